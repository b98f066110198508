"""LLaVA's instruction data: records of a conversation and its image, if any; read, checked and batched.

A file is a JSON list (or JSON lines) of {"id", "image", "conversations": [{"from": "human"|"gpt", "value"}]},
such as llava_v1_5_mix665k.json; a record without an image has no "image". Knows files, tokens and pixels;
runs no model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from m3score.common.errors import M3ScoreError
from m3score.images.decode import open_image
from m3score.models.m3 import conversation
from m3score.models.m3.config import M3Config
from m3score.models.m3.ladder import count_visual_tokens
from m3score.models.m3.preprocess import Tiles, preprocess

SPEAKERS = ("human", "gpt")
FILLER = -1
"""Stands for no record in an order: pads the last batch of an epoch."""


class Records:
    """The records of a data file, held as one block of bytes.

    A list of dictionaries would be copied, page by page, into every loading process that reads it.
    """

    def __init__(self, records: Sequence[Any]) -> None:
        lines = [json.dumps(record).encode() for record in records]
        self._ends = np.cumsum([len(line) for line in lines], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(lines), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Any:
        start = int(self._ends[index - 1]) if index else 0
        return json.loads(self._bytes[start : self._ends[index]].tobytes())


def read_records(path: str | Path) -> Records:
    """Read a data file; M3ScoreError if it can't be read or holds no records."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise M3ScoreError(f"--data {path} can't be read: {error}.") from None
    try:
        data = (
            json.loads(text) if text.lstrip()[:1] == "[" else [json.loads(row) for row in text.splitlines()]
        )
    except json.JSONDecodeError as error:
        raise M3ScoreError(f"--data {path} is neither a JSON list nor JSON lines: {error}.") from None
    if not data:
        raise M3ScoreError(f"--data {path} holds no records.")
    return Records(data)


def record_images(record: Mapping[str, Any]) -> list[str]:
    """Names of a record's images, which the file gives as nothing, a name or a list."""
    named = record.get("image")
    return [] if named is None else [named] if isinstance(named, str) else list(named)


def record_turns(record: Mapping[str, Any]) -> list[Mapping[str, str]]:
    """The conversation from the first human message on: as the authors do, an opening by "gpt" is skipped."""
    turns = record["conversations"]
    return turns[1:] if turns and turns[0]["from"] == SPEAKERS[1] else turns


def record_fault(record: Any) -> str | None:
    """Why a record can't be used, or None."""
    try:
        turns, images = record_turns(record), record_images(record)
        speakers = [turn["from"] for turn in turns]
        texts = [turn["value"] for turn in turns]
    except (AttributeError, IndexError, KeyError, TypeError):
        return 'not of the form {"image", "conversations": [{"from", "value"}]}'
    if not all(isinstance(text, str) for text in [*texts, *images]):
        return "a message or an image's name is no text"
    if not turns or speakers != [*SPEAKERS] * (len(turns) // 2):
        return f"the speakers don't alternate human, gpt: {', '.join(map(str, speakers)) or 'nobody'}"
    tags = sum(text.count(conversation.IMAGE_TAG) for text in texts)
    if tags not in (len(images), 0):
        return f"{tags} {conversation.IMAGE_TAG} tags for {len(images)} images"
    return None


def check_records(
    records: Records, folder: Path, progress: Callable[[int], None] | None = None
) -> tuple[np.ndarray, list[dict[str, str]]]:
    """Which records can be used, and why the others can't.

    Args:
        records: of the data file.
        folder: image names are relative to it.
        progress: called after each record.

    Returns:
        The indices of usable records, and a row {"record", "id", "error"} for each of the others.

    Raises:
        M3ScoreError: no record can be used, or most images are missing, so that the folder must be wrong.
    """
    good, left_out, named, missing = [], [], 0, 0
    for index in range(len(records)):
        record = records[index]
        why = record_fault(record)
        if why is None:
            images = record_images(record)
            named += bool(images)
            if gone := next((name for name in images if not (folder / name).is_file()), None):
                missing += 1
                why = f"{gone}: no such image"
        if why is None:
            good.append(index)
        else:
            left_out.append(left_out_row(index, record, why))
        if progress:
            progress(1)
    if 2 * missing > named:
        example = next(row["error"] for row in left_out if row["error"].endswith("no such image"))
        raise M3ScoreError(f"--image-folder {folder}: {missing} of {named} images aren't there ({example}).")
    if not good:
        raise M3ScoreError(f"No record can be used; the first: {left_out[0]['error']}.")
    return np.array(good, dtype=np.int64), left_out


def left_out_row(index: int, record: Any, error: str) -> dict[str, str]:
    name = record.get("id", "") if isinstance(record, Mapping) else ""
    return {"record": str(index), "id": str(name), "error": error}


def conversation_lengths(records: Records, chosen: Sequence[int] | np.ndarray) -> np.ndarray:
    """int64 (records,): words in each conversation, negative where there is no image."""
    lengths = np.empty(len(chosen), dtype=np.int64)
    for place, index in enumerate(chosen):
        record = records[int(index)]
        words = max(1, sum(len(turn["value"].split()) for turn in record_turns(record)))
        lengths[place] = words if record_images(record) else -words
    return lengths


def grouped_order(lengths: np.ndarray, batch_size: int, epochs: int, seed: int) -> np.ndarray:
    """The order of the records in all epochs; records of similar length are computed together.

    Each batch is a random sample of the records with an image, or of those without, as in LLaVA's training;
    only the last batches of an epoch may mix them. Within a batch the long ones come first, so that the parts
    computed at once (on one device, in one step) have little padding. The order does not depend on the number
    of processes.

    Args:
        lengths: from `conversation_lengths`.
        batch_size: records per optimiser step, over all processes.
        epochs: how often each record is seen.
        seed: of the random order.

    Returns:
        int64 (epochs * batches * batch_size,): indices into `lengths`; FILLER pads each epoch's last batch.
    """
    order = []
    for epoch in range(epochs):
        rng = np.random.default_rng((seed, epoch))
        whole, rest = [], []
        for members in (np.flatnonzero(lengths > 0), np.flatnonzero(lengths <= 0)):
            shuffled = rng.permutation(members)
            cut = len(shuffled) // batch_size * batch_size
            whole += list(shuffled[:cut].reshape(-1, batch_size))
            rest.append(shuffled[cut:])
        batches = [whole[place] for place in rng.permutation(len(whole))]
        leftover = np.concatenate(rest)  # up to two incomplete batches
        batches += [leftover[start : start + batch_size] for start in range(0, len(leftover), batch_size)]
        for batch in batches:
            longest_first = batch[np.argsort(-np.abs(lengths[batch]), kind="stable")]
            filler = np.full(batch_size - len(batch), FILLER, dtype=np.int64)
            order += [longest_first, filler]
    return np.concatenate(order)


@dataclass(frozen=True, eq=False)
class Example:
    """One record, ready for the model."""

    ids: list[int]
    """Token ids, conversation.IMAGE_TOKEN for each image."""
    labels: list[int]
    """One per id: the id where an answer is predicted, else conversation.NOT_SUPERVISED."""
    tiles: list[Tiles]
    """Preprocessed images."""

    def answer_tokens(self, tokens: int, config: M3Config) -> int:
        """How many predictions count at a scale; those beyond the model's longest length do not."""
        visual = [
            count_visual_tokens(tokens, config.grid, tile.size, tile.tiles, config.merge)
            for tile in self.tiles
        ]
        expanded = conversation.expand_labels(self.ids, self.labels, visual)[1 : config.max_length]
        return sum(label != conversation.NOT_SUPERVISED for label in expanded)


class Instructions(Dataset[Example | None]):
    """The records in the order of training. One with an unreadable image is None, and is logged."""

    def __init__(
        self,
        records: Records,
        order: np.ndarray,
        folder: Path,
        tokenizer: Any,
        config: M3Config,
        left_out: Path,
    ) -> None:
        """
        Args:
            order: indices of records, or FILLER.
            left_out: JSON-lines file to which unreadable records are added.
        """
        self.records, self.order, self.folder = records, order, folder
        self.tokenizer, self.config, self.left_out = tokenizer, config, left_out

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Example | None:
        place = int(self.order[index])
        if place == FILLER:
            return None
        record = self.records[place]
        try:
            return make_example(record, self.folder, self.tokenizer, self.config)
        except M3ScoreError as error:
            with self.left_out.open("a") as file:  # one short write: lines of several processes don't mix
                file.write(json.dumps(left_out_row(place, record, str(error))) + "\n")
            return None


def make_example(record: Mapping[str, Any], folder: Path, tokenizer: Any, config: M3Config) -> Example:
    """Tokens, labels and pixels of a record; M3ScoreError for an image that can't be read."""
    names = record_images(record)
    ids, labels = conversation.training_example(
        record_turns(record), tokenizer, config.conversation, len(names)
    )
    tiles = [preprocess(open_image(folder / name), config) for name in names]
    return Example(ids, labels, tiles)


@dataclass(frozen=True, eq=False)
class Conversations:
    """A batch that the Trainer does not look into; the model moves what it needs to its device."""

    examples: list[Example]


class InstructionCollator:
    """Makes batches, and counts the supervised positions at each scale, over which the loss is a mean."""

    def __init__(self, config: M3Config, scales: Sequence[int]) -> None:
        self.config, self.scales = config, tuple(scales)

    def __call__(self, items: list[Example | None]) -> dict[str, Any]:
        examples = [item for item in items if item is not None]
        counts = [
            sum(example.answer_tokens(tokens, self.config) for example in examples) for tokens in self.scales
        ]
        return {"conversations": Conversations(examples), "counts": torch.tensor(counts)}
