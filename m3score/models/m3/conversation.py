"""Conversations as the language model reads them: text, token ids and labels.

Knows templates, and uses a given tokenizer. Knows nothing about images except that each one has a position,
written `<image>` in text and IMAGE_TOKEN in ids. No torch.

As in the M3 authors' code, text is split at `<image>`, each piece is tokenised separately, and the begin
token is added once.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from m3score.common.errors import M3ScoreError

IMAGE_TAG = "<image>"
IMAGE_TOKEN = -200
"""Stands for one image among token ids; no tokenizer uses it."""
NOT_SUPERVISED = -100
"""The label of a position whose prediction doesn't count; torch's cross-entropy ignores it."""

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_BYTEWISE = "m3score.bytewise"


@dataclass(frozen=True)
class Conversation:
    """A template: the system text, then turns of two roles."""

    system: str
    user: str = "USER"
    assistant: str = "ASSISTANT"
    end: str = "</s>"
    """Written after each answer; it must be the tokenizer's end token."""

    def prompt(self, turns: Sequence[tuple[str, str | None]]) -> str:
        """The text of (question, answer) turns. A last answer of None is left for the model."""
        text = f"{self.system} " if self.system else ""
        for question, answer in turns:
            text += f"{self.user}: {question} {self.assistant}:"
            if answer is not None:
                text += f" {answer}{self.end}"
        return text


CONVERSATIONS: dict[str, Conversation] = {
    "vicuna_v1": Conversation(
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    ),
    "short": Conversation(""),
}
"""Templates by name, as in M3Config. The M3 checkpoints were trained with "vicuna_v1"; "short" is the same
without a system text, for small models."""


def place_image_tags(question: str, n_images: int) -> str:
    """Put image tags in front, one per line, as in training, unless the question has tags of its own.

    M3ScoreError if the number of its tags is not the number of images.
    """
    tags = question.count(IMAGE_TAG)
    if tags == 0:
        return f"{IMAGE_TAG}\n" * n_images + question
    if tags != n_images:
        raise M3ScoreError(
            f"The question has {tags} {IMAGE_TAG} tags, but {n_images} images were given with it."
        )
    return question


def build_prompt(question: str, conversation: str = "vicuna_v1", n_images: int = 1) -> str:
    """The full prompt of one question, up to where the model answers."""
    return CONVERSATIONS[conversation].prompt([(place_image_tags(question, n_images), None)])


def tokenize(prompt: str, tokenizer: Any) -> list[int]:
    """Token ids with IMAGE_TOKEN for each `<image>`, and the begin token first if the tokenizer adds one."""
    ids: list[int] = list(tokenizer("").input_ids)
    for index, piece in enumerate(prompt.split(IMAGE_TAG)):
        if index:
            ids.append(IMAGE_TOKEN)
        ids.extend(tokenizer(piece, add_special_tokens=False).input_ids)
    return ids


def runs(ids: Sequence[int]) -> list[tuple[bool, list[int]]]:
    """Split ids into runs: (True, [IMAGE_TOKEN]) for an image, (False, ids) for text between images."""
    found: list[tuple[bool, list[int]]] = []
    for token in ids:
        if token == IMAGE_TOKEN:
            found.append((True, [token]))
        elif found and not found[-1][0]:
            found[-1][1].append(token)
        else:
            found.append((False, [token]))
    return found


def decode(ids: Sequence[int], tokenizer: Any) -> str:
    """The text of an answer, stripped, without special tokens.

    Bytes that are not UTF-8 become U+FFFD one by one. (The tokenizers library replaces the whole run of bytes
    that holds one, and valid characters in it are lost.)
    """
    tokens = tokenizer.convert_ids_to_tokens(list(ids), skip_special_tokens=True)
    if not any(_BYTE.fullmatch(token) for token in tokens):
        return str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip()
    raw = b"".join(_token_bytes(token) for token in tokens)
    return raw.decode("utf-8", errors=_BYTEWISE).strip()


def _replace_bytewise(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(_BYTEWISE, _replace_bytewise)


def _token_bytes(token: str) -> bytes:
    byte = _BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()


def training_example(
    conversations: Sequence[Mapping[str, str]],
    tokenizer: Any,
    conversation: str = "vicuna_v1",
    n_images: int = 1,
) -> tuple[list[int], list[int]]:
    """Token ids and labels of a conversation, for training or for scoring given answers.

    Args:
        conversations: alternately {"from": "human", "value": ...} and {"from": "gpt", "value": ...}, as in
            LLaVA's data. An `<image>` anywhere in a message is moved to its front, on a line of its own;
            without any, the image goes to the front of the first message.
        tokenizer: the model's.
        conversation: the name of the template.
        n_images: how many images the conversation is about; 0 for text alone.

    Returns:
        (ids, labels) of equal length, with one entry per image. A label is the id where an answer (with its
        end token) is predicted, else NOT_SUPERVISED.
    """
    template = CONVERSATIONS[conversation]
    turns = _turns(conversations, n_images)
    ids = tokenize(template.prompt(turns), tokenizer)
    labels = [NOT_SUPERVISED] * len(ids)
    for index, (question, _) in enumerate(turns):
        before = template.prompt([*turns[:index], (question, None)])
        after = template.prompt(turns[: index + 1])
        start, stop = (_shared_length(ids, tokenize(text, tokenizer)) for text in (before, after))
        labels[start:stop] = ids[start:stop]
    return ids, labels


def expand_labels(ids: Sequence[int], labels: Sequence[int], visual_tokens: Sequence[int]) -> list[int]:
    """Labels of the sequence that the model reads, with an entry per visual token of each image."""
    counts = iter(visual_tokens)
    expanded: list[int] = []
    for token, label in zip(ids, labels, strict=True):
        expanded.extend([NOT_SUPERVISED] * next(counts) if token == IMAGE_TOKEN else [label])
    return expanded


def _turns(conversations: Sequence[Mapping[str, str]], n_images: int) -> list[tuple[str, str]]:
    speakers = [message.get("from") for message in conversations]
    if not speakers or speakers != ["human", "gpt"] * (len(speakers) // 2):
        raise M3ScoreError(
            f"A conversation alternates 'human' and 'gpt', beginning with 'human'; this one has {speakers}."
        )
    texts = [_tags_to_the_front(message["value"]) for message in conversations]
    if not any(IMAGE_TAG in text for text in texts):
        texts[0] = f"{IMAGE_TAG}\n" * n_images + texts[0]
    return list(zip(texts[::2], texts[1::2], strict=True))


def _tags_to_the_front(message: str) -> str:
    tags = message.count(IMAGE_TAG)
    if not tags:
        return message
    return (f"{IMAGE_TAG}\n" * tags + message.replace(IMAGE_TAG, "").strip()).strip()


def _shared_length(ids: Sequence[int], others: Sequence[int]) -> int:
    """How many leading ids are equal. (A tokenizer may merge across the end of a prefix.)"""
    pairs = zip(ids, others, strict=False)
    return next(
        (index for index, (one, other) in enumerate(pairs) if one != other), min(len(ids), len(others))
    )
