"""LLaVA's instruction data: records of an image (or none) and a conversation, read, checked and batched.

A file is a JSON list (or JSON lines) of {"id", "image", "conversations": [{"from": "human"|"gpt", "value"}]},
such as llava_v1_5_mix665k.json; a record of text alone has no "image". Knows files, tokens and pixels; runs
no model.
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
from m3score.models.m3.config import M3Settings
from m3score.models.m3.ladder import count_visual_tokens
from m3score.models.m3.preprocess import Tiles, preprocess

SPEAKERS = ("human", "gpt")
FILLER = -1
"""In an order: no record; the last batch of an epoch is filled up with these."""


class Records:
    """The records of a data file, held as one block of bytes.

    A list of dictionaries would be copied, page by page, into every loading process that touches it.
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
    """Read a data file; M3ScoreError if it can't be read or is no list."""
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


def images_of(record: Mapping[str, Any]) -> list[str]:
    """Names of a record's images: none, one, or a list."""
    named = record.get("image")
    return [] if named is None else [named] if isinstance(named, str) else list(named)


def turns_of(record: Mapping[str, Any]) -> list[Mapping[str, str]]:
    """The conversation from the first human message on: the authors skip an opening by the assistant."""
    turns = record["conversations"]
    return turns[1:] if turns and turns[0]["from"] == SPEAKERS[1] else turns


def fault(record: Any) -> str | None:
    """Why nothing can be learnt from a record, or None."""
    try:
        turns, images = turns_of(record), images_of(record)
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
    """Which records can be learnt from, and the others with the reason.

    Args:
        records: of the data file.
        folder: names of images count from here.
        progress: called after each record.

    Returns:
        (indices of the good ones, a row {"record", "id", "error"} for each other). M3ScoreError if most
        images aren't there: then the folder is the wrong one.
    """
    good, left_out, named, missing = [], [], 0, 0
    for index in range(len(records)):
        record = records[index]
        why = fault(record)
        if why is None:
            images = images_of(record)
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
        raise M3ScoreError(f"No record can be learnt from; the first: {left_out[0]['error']}.")
    return np.array(good, dtype=np.int64), left_out


def left_out_row(index: int, record: Any, error: str) -> dict[str, str]:
    name = record.get("id", "") if isinstance(record, Mapping) else ""
    return {"record": str(index), "id": str(name), "error": error}


def lengths_of(records: Records, chosen: Sequence[int] | np.ndarray) -> np.ndarray:
    """int64 (records,): words of each conversation, negative where there is no image."""
    lengths = np.empty(len(chosen), dtype=np.int64)
    for place, index in enumerate(chosen):
        record = records[int(index)]
        words = max(1, sum(len(turn["value"].split()) for turn in turns_of(record)))
        lengths[place] = words if images_of(record) else -words
    return lengths


def grouped_order(lengths: np.ndarray, batch_size: int, epochs: int, seed: int) -> np.ndarray:
    """Which record stands where, epoch after epoch, so that those computed together are of like length.

    Each batch is a random sample of the records with an image, or of those without, as in LLaVA's training;
    only the last batch of an epoch may mix them. Within a batch the long ones come first, so that the parts
    computed at once (on one device, in one step) have little padding. The order is the same for any number of
    processes.

    Args:
        lengths: as `lengths_of` gives them.
        batch_size: records per optimiser step, over all processes.

    Returns:
        int64 (epochs * batches * batch_size,): places in `lengths`; FILLER ends each epoch's last batch.
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
    """As many: the id where an answer is predicted, else conversation.NOT_SUPERVISED."""
    tiles: list[Tiles]
    """Preprocessed images."""

    def answer_tokens(self, tokens: int, settings: M3Settings) -> int:
        """How many predictions count at a scale: what lies beyond the longest length is lost."""
        visual = [
            count_visual_tokens(tokens, settings.grid, tile.size, tile.tiles, settings.merge)
            for tile in self.tiles
        ]
        expanded = conversation.expand_labels(self.ids, self.labels, visual)[1 : settings.max_length]
        return sum(label != conversation.NOT_SUPERVISED for label in expanded)


class Instructions(Dataset[Example | None]):
    """The records in the order of training. One that turns out broken is None, and is written down."""

    def __init__(
        self,
        records: Records,
        order: np.ndarray,
        folder: Path,
        tokenizer: Any,
        settings: M3Settings,
        left_out: Path,
    ) -> None:
        """
        Args:
            order: indices of records, or FILLER.
            left_out: JSON lines; what can't be read is added there.
        """
        self.records, self.order, self.folder = records, order, folder
        self.tokenizer, self.settings, self.left_out = tokenizer, settings, left_out

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Example | None:
        place = int(self.order[index])
        if place == FILLER:
            return None
        record = self.records[place]
        try:
            return make_example(record, self.folder, self.tokenizer, self.settings)
        except M3ScoreError as error:
            with self.left_out.open("a") as file:  # one short write: lines of several processes don't mix
                file.write(json.dumps(left_out_row(place, record, str(error))) + "\n")
            return None


def make_example(record: Mapping[str, Any], folder: Path, tokenizer: Any, settings: M3Settings) -> Example:
    """Tokens, labels and pixels of a record; M3ScoreError for an image that can't be read."""
    names = images_of(record)
    ids, labels = conversation.training_example(
        turns_of(record), tokenizer, settings.conversation, len(names)
    )
    tiles = [preprocess(open_image(folder / name), settings) for name in names]
    return Example(ids, labels, tiles)


@dataclass(frozen=True, eq=False)
class Conversations:
    """A batch, opaque to the Trainer: the model moves what it needs to its device."""

    examples: list[Example]


class InstructionCollator:
    """Makes batches; counts what will be predicted at each scale, so that the loss can be a mean over it."""

    def __init__(self, settings: M3Settings, scales: Sequence[int]) -> None:
        self.settings, self.scales = settings, tuple(scales)

    def __call__(self, items: list[Example | None]) -> dict[str, Any]:
        examples = [item for item in items if item is not None]
        counts = [
            sum(example.answer_tokens(tokens, self.settings) for example in examples)
            for tokens in self.scales
        ]
        return {"conversations": Conversations(examples), "counts": torch.tensor(counts)}
