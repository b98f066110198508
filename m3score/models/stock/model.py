"""StockModel: a vision language model as it is served, asked at every budget of visual tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL import Image

from m3score.common.errors import M3ScoreError
from m3score.images.decode import open_image
from m3score.images.given import ImageSource
from m3score.models.base import ScaleAnswer
from m3score.models.budgets.base import Family, Size
from m3score.models.inference import answering
from m3score.models.inference.batching import MemoryGuard
from m3score.models.inference.generation import check_max_new_tokens
from m3score.models.local import (
    LOGITS_AT_ONCE,
    LocalModel,
    check_batch_size,
    positions_at_once,
    stop_ids,
)
from m3score.models.m3.preprocess import Tiles
from m3score.models.stock import loading
from m3score.models.stock.inference import Network, Pair, answer_pairs
from m3score.models.stock.prompts import Prompter

if TYPE_CHECKING:
    pass

_SQUARES_AT_ONCE = 8
"""Squares in one pass of the vision tower; fewer if memory runs out."""
_TEXT_LENGTH = 256
"""Tokens that a prompt is taken to have beside those of its picture."""
_SHOWN_OF_A_PROCESSOR = (
    "image_mean",
    "image_std",
    "resample",
    "do_rescale",
    "do_normalize",
    "do_convert_rgb",
)


class StockModel(LocalModel):
    """A vision language model of a family in models/budgets. Make one with `m3score.load_model`.

    Its ladder are budgets: the most visual tokens that a picture may have. How many it has then depends on
    its size, see `count_visual_tokens`. Decoding is greedy, without the penalties that a checkpoint's
    generation_config.json may ask for.
    """

    looks_in_threads = False  # processors are not made for it

    def __init__(
        self,
        hf_model: Any,
        processor: Any,
        family: Family,
        name: str,
        rungs: Sequence[int] | None = None,
        folder: Path | None = None,
    ) -> None:
        """
        Args:
            hf_model: transformers' model for pictures and text to text.
            processor: its processor, with a chat template.
            family: the model's, with the settings of its processor.
            name: what the model is called.
            rungs: the budgets; by default the family's.
            folder: where the weights were read; None for a model that was made in memory.
        """
        from transformers import GenerationConfig

        self.hf_model = hf_model
        self.processor = processor
        self.family = family
        self.name = name
        self.ladder = family.ladder(rungs)
        self._folder = folder
        stops = stop_ids(hf_model, processor.tokenizer)
        pad = _pad_id(processor.tokenizer, stops)
        hf_model.generation_config = GenerationConfig(eos_token_id=sorted(stops), pad_token_id=pad)
        image_token = _image_token(hf_model.config)
        prompter = Prompter(processor, hf_model, family, image_token, pad)
        self.network = Network(hf_model, processor.tokenizer, prompter, stops, pad)
        self._guard = MemoryGuard()

    @property
    def device(self) -> torch.device:
        return self.network.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations; weights may be quantised."""
        dtype: torch.dtype = self.hf_model.get_input_embeddings().weight.dtype
        return dtype

    @cached_property
    def identity(self) -> str:
        """SHA-256 (hexadecimal) over the weights, the quantisation, the ladder, the chat template, and how
        the processor prepares a picture."""
        image = self.processor.image_processor
        shown = {name: getattr(image, name, None) for name in _SHOWN_OF_A_PROCESSOR}
        facts = [
            self.weights_identity,
            self.quantized,
            self.family.to_dict(),
            self.ladder,
            self.processor.chat_template,
            type(image).__name__,
            shown,
        ]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()

    def count_visual_tokens(self, size: Size, budget: int) -> int:
        """How many visual tokens a picture has at a budget, exactly, before it is opened.

        Args:
            size: (width, height) of the picture in pixels.
            budget: the most that it may have.
        """
        return self.family.visual_tokens(size, budget)

    def answer_ladder(
        self,
        images: Sequence[ImageSource],
        questions: Sequence[Sequence[str]],
        *,
        max_new_tokens: int = 32,
        decode_coarse: bool = True,
        batch_size: int | Literal["auto"] = "auto",
    ) -> list[list[tuple[ScaleAnswer, ...]]]:
        """Answer each image's questions at every budget: the same answers as budget by budget, but cheaper.

        Args:
            images: images.
            questions: per image, its questions.
            max_new_tokens: at most this many tokens per answer.
            decode_coarse: decode smaller budgets' answers where they differ from the largest budget's.
                Agreement alone is cheaper.
            batch_size: (image, question) pairs at once; "auto" is estimated. It is halved when memory runs
                out.

        Returns:
            Per image, per question: one ScaleAnswer per budget, smallest first.
        """
        check_max_new_tokens(max_new_tokens)
        opened = [open_image(image) for image in images]
        for image in opened:  # what a processor refuses is told of before the model runs
            self._finest(image)

        def run(batch: Sequence[tuple[int, str]]) -> list[tuple[ScaleAnswer, ...]]:
            pairs = [Pair(opened[index], self.network.prompter.text(question)) for index, question in batch]
            return answer_pairs(
                self.network, self.family, self.ladder, pairs, max_new_tokens, decode_coarse=decode_coarse
            )

        return answering.batched(
            run,
            opened,
            questions,
            length=lambda index: self._finest(opened[index]),
            batch_size=self._batch_size(batch_size, opened, self.ladder[-1], max_new_tokens),
            guard=self._guard,
        )

    def _answers(
        self,
        images: Sequence[Any],
        questions: Sequence[str],
        tokens: int | None,
        max_new_tokens: int,
        batch_size: int | Literal["auto"],
    ) -> list[str]:
        """See LocalModel; any budget that the family has may be given, beside those of the ladder."""
        check_max_new_tokens(max_new_tokens)
        budget = self.ladder[-1] if tokens is None else tokens
        self.family.check_budget(budget)
        opened = [open_image(image) for image in images]

        def run(batch: Sequence[tuple[Image.Image, str]]) -> list[str]:
            pairs = [Pair(image, self.network.prompter.text(text)) for image, text in batch]
            inputs = self.network.inputs(pairs, budget)
            decoded = self.network.generate(inputs, [max_new_tokens] * len(pairs))
            return [self.network.decode(answer.ids) for answer in decoded]

        size = self._batch_size(batch_size, opened, budget, max_new_tokens)
        return self._guard.map(run, list(zip(opened, questions, strict=True)), size)

    @property
    def vision_shape(self) -> int:
        """Side of the square that the vision tower looks at, in pixels."""
        return self.family.square().pixels

    @property
    def vision_ladder(self) -> tuple[int, ...]:
        """Tokens of the square's grid, and of the grids that it is pooled to, coarsest first."""
        return _pooled(self.family.square().grid)

    def images_per_pass(self) -> int:
        """Squares that the vision tower is given at once."""
        return _SQUARES_AT_ONCE

    def patch_features(self, images: Sequence[Tiles]) -> list[torch.Tensor]:
        """The visual tokens of squares: per picture (1, tokens, width)."""
        squares = [Image.fromarray(image.pixel_values[0]) for image in images]
        return self.network.look(squares, self.family.square())

    def _finest(self, image: Image.Image) -> int:
        return self.family.visual_tokens(image.size, self.ladder[-1])

    def _batch_size(
        self, wanted: int | Literal["auto"], images: Sequence[Image.Image], budget: int, max_new_tokens: int
    ) -> int:
        """(image, question) pairs at once, estimated for the longest prompt among them."""
        if wanted != "auto":
            return check_batch_size(wanted)
        config = self.hf_model.config.get_text_config()
        longest = max((self.family.visual_tokens(image.size, budget) for image in images), default=1)
        row = longest + _TEXT_LENGTH + max_new_tokens
        positions = positions_at_once(config, self.device, self.dtype)
        return max(1, min(positions // row, LOGITS_AT_ONCE // (max_new_tokens * config.vocab_size)))


def load_stock(
    folder: Path, family: Family, options: Mapping[str, Any], name: str, rungs: Sequence[int] | None = None
) -> StockModel:
    """Load the model in a folder.

    Args:
        folder: with the model's files, in transformers' format.
        family: from table.read_family.
        options: from placing.options.
        name: what the model is to be called.
        rungs: the budgets; by default the family's.
    """
    family.ladder(rungs)  # wrong rungs are told of before the weights are read
    parts = loading.load(folder, family, options)
    return StockModel(parts.hf_model, parts.processor, family, name, rungs, parts.folder)


def _pooled(side: int) -> tuple[int, ...]:
    """Tokens of a grid of that side, and of those that windows of its smallest divisors pool it to."""
    sides = [side]
    while sides[-1] > 1:
        sides.append(sides[-1] // next(n for n in range(2, sides[-1] + 1) if sides[-1] % n == 0))
    return tuple(side * side for side in reversed(sides))


def _image_token(config: Any) -> int:
    """The id that stands for one visual token. (Not the processor's: Gemma 3's names another token.)"""
    for name in ("image_token_id", "image_token_index"):
        if (found := getattr(config, name, None)) is not None:
            return int(found)
    raise M3ScoreError("The model's configuration names no token for pictures: it does not take any.")


def _pad_id(tokenizer: Any, stops: frozenset[int]) -> int:
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(stops, default=0))
