"""What all models have in common that run in this process: answers in lists, vision scores, batch sizes.

Knows transformers' models as far as they are all alike; knows no family of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch

from m3score.common.errors import M3ScoreError
from m3score.images.given import ImageSource
from m3score.models.fingerprint import fingerprint, hash_of_tensors
from m3score.models.inference.batching import free_memory

if TYPE_CHECKING:
    from m3score.models.vision.complexity import VisionScore
    from m3score.models.vision.meter import VisionMeter

LOGITS_AT_ONCE = 2**26
"""Logits of the finest answers that are kept in a batch: 256 MB in float32."""
_POSITIONS_AT_ONCE = {"cpu": 16_384, "cuda": 65_536}
"""Token positions in one batch of the language model, per kind of device: more are no faster."""
_SHARE_OF_FREE_MEMORY = 0.5
"""Share of the free memory that a batch is planned to use; the rest covers what the estimate leaves out."""


class LocalModel(ABC):
    """A model in this process. It has `hf_model`, and `_folder`: where its weights were read, or None."""

    hf_model: Any
    _folder: Path | None

    @cached_property
    def weights_identity(self) -> str:
        """SHA-256 (hexadecimal) over the weights alone, those of the files: the same on every device and with
        every dtype. A model that was made in memory is told apart by its tensors."""
        return fingerprint(self._folder) if self._folder else hash_of_tensors(self.hf_model)

    @property
    def quantized(self) -> list[str]:
        """In what way the weights are quantised: names of transformers' marks that are set."""
        marks = ("is_loaded_in_4bit", "is_loaded_in_8bit")
        return [mark for mark in marks if getattr(self.hf_model, mark, False)]

    # ---- without a question

    @cached_property
    def vision_meter(self) -> VisionMeter:
        """What `vision_score` scores with: the model's statistics over drawings are in it."""
        from m3score.models.vision.meter import VisionMeter

        looker: Any = self
        return VisionMeter(looker, self.weights_identity)

    @overload
    def vision_score(self, images: ImageSource) -> VisionScore: ...

    @overload
    def vision_score(self, images: list[Any] | tuple[Any, ...]) -> list[VisionScore]: ...

    def vision_score(self, images: Any) -> Any:
        """How complex an image is without a question: see m3score/models/vision/complexity.py.

        The score's tokens are those of the grid that the vision tower looks at, not budgets.

        Args:
            images: an image, or a list.

        Returns:
            A VisionScore, with a map of where the complexity is, (24, 24) for a tower of 24x24 patches; or a
            list of them.
        """
        many = isinstance(images, list | tuple)
        scores = self.vision_meter.score(images if many else [images])
        return scores if many else scores[0]

    # ---- with one

    @overload
    def answer(
        self,
        images: Any,
        question: str,
        tokens: int | None = None,
        *,
        max_new_tokens: int = 32,
        batch_size: int | Literal["auto"] = "auto",
    ) -> str: ...

    @overload
    def answer(
        self,
        images: list[Any] | tuple[Any, ...],
        question: Sequence[str],
        tokens: int | None = None,
        *,
        max_new_tokens: int = 32,
        batch_size: int | Literal["auto"] = "auto",
    ) -> list[str]: ...

    def answer(
        self,
        images: Any,
        question: Any,
        tokens: int | None = None,
        *,
        max_new_tokens: int = 32,
        batch_size: int | Literal["auto"] = "auto",
    ) -> Any:
        """Answer greedily.

        Args:
            images: an image (of an M3 model encoded or not), or a list.
            question: a question, or as many as there are images.
            tokens: the scale; by default the finest.
            max_new_tokens: at most this many tokens.
            batch_size: how many at once; "auto" is estimated. It is halved when memory runs out.

        Returns:
            A stripped string, or a list of them.
        """
        if isinstance(question, str) and not isinstance(images, (list, tuple)):
            return self._answers([images], [question], tokens, max_new_tokens, "auto")[0]
        lists = isinstance(images, (list, tuple)) and not isinstance(question, str)
        if not lists or len(images) != len(question):
            raise M3ScoreError("answer takes one image and one question, or equally long lists of both.")
        return self._answers(images, question, tokens, max_new_tokens, batch_size)

    @abstractmethod
    def _answers(
        self,
        images: Sequence[Any],
        questions: Sequence[str],
        tokens: int | None,
        max_new_tokens: int,
        batch_size: int | Literal["auto"],
    ) -> list[str]:
        """As `answer`, of equally long lists."""


def check_batch_size(batch_size: int) -> int:
    """The batch size; M3ScoreError for one below 1."""
    if batch_size < 1:
        raise M3ScoreError(f"batch_size is {batch_size}; it must be at least 1, or 'auto'.")
    return batch_size


def positions_at_once(text_config: Any, device: torch.device, dtype: torch.dtype) -> int:
    """Token positions that a batch of the language model may have, by the memory that is free."""
    # Keys and values stay in memory for every layer, intermediate values for one layer at a time.
    head = (
        getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
    )
    held = 2 * text_config.num_hidden_layers * text_config.num_key_value_heads * head
    worked_on = 8 * text_config.hidden_size + 3 * text_config.intermediate_size
    free = _SHARE_OF_FREE_MEMORY * free_memory(device) / (dtype.itemsize * (held + worked_on))
    return min(_POSITIONS_AT_ONCE["cuda" if device.type == "cuda" else "cpu"], int(free))


def stop_ids(hf_model: Any, tokenizer: Any) -> frozenset[int]:
    """The end tokens of the generation configuration, else of the tokenizer."""
    configured = getattr(hf_model.generation_config, "eos_token_id", None)
    if configured is None:
        configured = tokenizer.eos_token_id
    if configured is None:
        return frozenset()
    return frozenset([configured] if isinstance(configured, int) else configured)
