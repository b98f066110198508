"""Pairs of a picture and a question, as a model's processor lays them out at a budget.

Knows chat templates and tensors that run along the prompt; knows neither answers nor weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image

from m3score.common.errors import M3ScoreError, first_line
from m3score.models.budgets.base import Family

_IMAGE_TAG = "<image>"

Inputs = dict[str, Any]
"""What the model takes. The tensors as long as `input_ids` are padded on the left."""


class Prompter:
    """Makes the inputs of one model."""

    def __init__(
        self, processor: Any, hf_model: Any, family: Family, image_token: int, pad_token: int
    ) -> None:
        """
        Args:
            processor: transformers' processor.
            hf_model: the model, whose configuration some families' budgets are set in.
            family: the model's.
            image_token: id of what stands for one visual token.
            pad_token: id of padding.
        """
        self._processor = processor
        self._config = hf_model.config
        self._family = family
        self._image_token = image_token
        self._pad = pad_token

    def text(self, question: str) -> str:
        """The prompt with one picture and a question, up to where the model answers."""
        plain = question.replace(_IMAGE_TAG, "")
        if (own := getattr(self._processor, "image_token", None)) is not None:
            plain = plain.replace(own, "")
        content = [{"type": "image"}, {"type": "text", "text": plain.strip()}]
        prompt: str = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        return prompt

    def inputs(self, images: Sequence[Image.Image], texts: Sequence[str], budget: int) -> Inputs:
        """What the model takes for pictures with a prompt each, at a budget; on the CPU.

        Raises:
            M3ScoreError: the processor refuses them.
        """
        with self._told(budget) as told:
            try:
                made = self._processor(
                    text=list(texts),
                    images=[[image] for image in images],
                    images_kwargs=told,
                    text_kwargs={"padding": True, "padding_side": "left"},
                    return_tensors="pt",
                )
            except (ValueError, IndexError, TypeError) as error:
                raise M3ScoreError(f"the model's processor refuses this: {first_line(error)}") from error
        return dict(made)

    def count(self, inputs: Inputs) -> list[int]:
        """How many visual tokens each prompt has."""
        counts: list[int] = (inputs["input_ids"] == self._image_token).sum(dim=1).tolist()
        return counts

    def continued(self, inputs: Inputs, tails: Sequence[Sequence[int]]) -> Inputs:
        """The same prompts, each followed by some tokens of an answer."""
        if not any(tails):
            return inputs
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        lengths = mask.sum(dim=1).tolist()
        width = max(length + len(tail) for length, tail in zip(lengths, tails, strict=True))
        changed = dict(inputs)
        for name, value in inputs.items():
            if isinstance(value, torch.Tensor) and value.shape == ids.shape:
                changed[name] = value.new_full((len(ids), width), self._pad if name == "input_ids" else 0)
                for row, (length, tail) in enumerate(zip(lengths, tails, strict=True)):
                    start = width - len(tail)
                    changed[name][row, start - length : start] = value[row, ids.shape[1] - length :]
        for row, tail in enumerate(tails):
            start = width - len(tail)
            changed["input_ids"][row, start:] = torch.tensor(tail, dtype=ids.dtype)
            changed["attention_mask"][row, start:] = 1
        return changed

    @contextmanager
    def _told(self, budget: int) -> Iterator[Mapping[str, Any]]:
        """What the image processor is told with a call; for a family that cannot be told with a call, it is
        set meanwhile."""
        kwargs = self._family.processor_kwargs(budget)
        if self._family.per_call:
            yield kwargs
            return
        self.set_budget(budget)
        yield {}

    def set_budget(self, budget: int) -> None:
        """Set a budget where the family's processor and model look for it, if they don't take it with a
        call."""
        if self._family.per_call:
            return
        for name, value in self._family.processor_kwargs(budget).items():
            setattr(self._processor.image_processor, name, value)
            if hasattr(self._config, name):
                setattr(self._config, name, value)
