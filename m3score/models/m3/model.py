"""M3Model: encode an image once, then ask at any scale.

The public face of the model. Knows how questions become answers; encoder.py knows what goes into the
language model, generation.py what comes out of it, loading.py where models come from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch

from m3score.common.errors import M3ScoreError
from m3score.images.decode import ImageSource
from m3score.models import loading
from m3score.models.base import ScaleAnswer
from m3score.models.inference import answering, generation
from m3score.models.inference.batching import MemoryGuard, free_memory
from m3score.models.m3.config import M3Settings
from m3score.models.m3.encoder import Embedder, EncodedImage

__all__ = ["EncodedImage", "M3Model", "load_model"]

_POSITIONS_AT_ONCE = {"cpu": 16_384, "cuda": 65_536}
"""Token positions in one batch of the language model, per kind of device: more are no faster."""
_SHARE_OF_FREE_MEMORY = 0.5
"""What of the free memory a batch may be reckoned to take; the rest is for what isn't reckoned."""
_PAIRS_AT_ONCE = 256
_LOGITS_AT_ONCE = 2**26
"""Logits held of the finest answers in a batch: 256 MB in float32."""


class M3Model(Embedder):
    """A Matryoshka multimodal model. Make one with `m3score.load_model`.

    Beside what is here: `encode`, `visual_tokens`, `visual_token_count`, `prompt_ids`, `embed`, `decode` and
    the attributes `name`, `ladder`, `device`, `dtype`, `tokenizer`, `settings` and `hf_model`.
    """

    def __init__(self, hf_model: Any, tokenizer: Any, settings: M3Settings, name: str) -> None:
        super().__init__(hf_model, tokenizer, settings, name)
        self.stop_ids = _stop_ids(hf_model, tokenizer)
        self._decode_guard = MemoryGuard()

    @torch.no_grad()
    def logits(
        self,
        ids: Sequence[int],
        images: Sequence[EncodedImage] = (),
        tokens: int | None = None,
        *,
        truncate: bool = False,
    ) -> torch.Tensor:
        """Logits at every position, visual ones included: float32 (length, vocabulary), on the CPU.

        The arguments are those of `embed`.
        """
        sequence = self.embed(ids, images, tokens, truncate=truncate)
        output = self.hf_model.model.language_model(inputs_embeds=sequence[None], use_cache=False)
        return self.hf_model.get_output_embeddings()(output.last_hidden_state[0]).float().cpu()

    def generate(
        self,
        ids: Sequence[int],
        images: Sequence[EncodedImage] = (),
        tokens: int | None = None,
        *,
        max_new_tokens: int = 32,
        truncate: bool = False,
    ) -> list[int]:
        """Greedy answer to any prompt, as token ids; the end token is the last if it came.

        The other arguments are those of `embed`: text only (no images) and several images work too.
        """
        with torch.no_grad():
            sequence = self.embed(ids, images, tokens, truncate=truncate)
        return generation.greedy(self, [sequence], max_new_tokens)[0].ids

    @torch.no_grad()
    def next_token_logits(
        self, image: ImageSource | EncodedImage, question: str, tokens: int | None = None
    ) -> torch.Tensor:
        """float32 (vocabulary,) on the CPU: logits of the answer's first token."""
        sequence = self.prompt_embeddings(self.encode(image), question, tokens)
        output = self.hf_model.model.language_model(inputs_embeds=sequence[None], use_cache=False)
        return self.hf_model.get_output_embeddings()(output.last_hidden_state[0, -1]).float().cpu()

    @overload
    def answer(
        self,
        images: ImageSource | EncodedImage,
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
            images: an image (encoded or not), or a list.
            question: a question, or as many as there are images.
            tokens: visual tokens per grid; None for all.
            max_new_tokens: at most this many tokens.
            batch_size: how many of a list at once; "auto" reckons, and halves when memory runs out.

        Returns:
            A stripped string, or a list of them.
        """
        if isinstance(question, str) and not isinstance(images, (list, tuple)):
            return self.answer([images], [question], tokens, max_new_tokens=max_new_tokens)[0]
        lists = isinstance(images, (list, tuple)) and not isinstance(question, str)
        if not lists or len(images) != len(question):
            raise M3ScoreError("answer takes one image and one question, or equally long lists of both.")

        scale = self.settings.grid**2 if tokens is None else tokens

        def run(pairs: Sequence[tuple[Any, str]]) -> list[str]:
            distinct = {id(image): image for image, _ in pairs}
            encoded = dict(zip(distinct, self.encode(list(distinct.values())), strict=True))
            asked = [(encoded[id(image)], text) for image, text in pairs]
            answers = generation.greedy_pairs(self, asked, scale, max_new_tokens)
            return [self.decode(answer.ids) for answer in answers]

        size = self._batch_size(batch_size, max_new_tokens)
        return self._decode_guard.map(run, list(zip(images, question, strict=True)), size)

    def answer_ladder(
        self,
        images: Sequence[ImageSource | EncodedImage],
        questions: Sequence[Sequence[str]],
        *,
        max_new_tokens: int = 32,
        answers: bool = True,
        batch_size: int | Literal["auto"] = "auto",
    ) -> list[list[tuple[ScaleAnswer, ...]]]:
        """Answer each image's questions at every scale: the same answers as scale by scale, only cheaper.

        Args:
            images: images, encoded or not.
            questions: per image, its questions.
            max_new_tokens: at most this many tokens per answer.
            answers: whether coarser scales' answers are wanted where they differ from the finest scale's;
                agreement alone is cheaper.
            batch_size: (image, question) pairs at once; "auto" as in `answer`.

        Returns:
            Per image and question one ScaleAnswer per scale, coarsest first.
        """
        return answering.answer_ladder(
            self,
            images,
            questions,
            max_new_tokens=max_new_tokens,
            answers=answers,
            batch_size=self._batch_size(batch_size, max_new_tokens, max(map(len, questions), default=1)),
            guard=self._decode_guard,
        )

    def _batch_size(
        self, wanted: int | Literal["auto"], max_new_tokens: int, questions_per_image: int = 1
    ) -> int:
        """(image, question) pairs at once, reckoned for the longest prompts that this model's images make."""
        if wanted != "auto":
            if wanted < 1:
                raise M3ScoreError(f"batch_size is {wanted}; it must be at least 1, or 'auto'.")
            return wanted
        generation.check_max_new_tokens(max_new_tokens)
        config = self.hf_model.config.text_config
        asked = max(1, min(questions_per_image, _PAIRS_AT_ONCE))
        row = self.most_tiles() * self.settings.grid**2 + 128 + asked * (64 + max_new_tokens)
        # A position's keys and values stay in every layer; what one layer works on comes and goes.
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        held = 2 * config.num_hidden_layers * config.num_key_value_heads * head
        worked_on = 8 * config.hidden_size + 3 * config.intermediate_size
        free = _SHARE_OF_FREE_MEMORY * free_memory(self.device) / (self.dtype.itemsize * (held + worked_on))
        positions = min(_POSITIONS_AT_ONCE["cuda" if self.device.type == "cuda" else "cpu"], int(free))
        logits = _LOGITS_AT_ONCE // (max_new_tokens * config.vocab_size)
        # Whole images where possible: what an image's questions share is read once per batch.
        return max(1, min(_PAIRS_AT_ONCE // asked * asked, max(1, positions // row) * asked, logits))

    def save(self, folder: str | Path) -> None:
        """Write a folder in transformers' format that `load_model` reads again, M3's facts included."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        self.hf_model.config.m3score = self.settings.to_dict()
        with loading.no_progress_bars():
            self.hf_model.save_pretrained(target)
        self.tokenizer.save_pretrained(target)
        (target / "preprocessor_config.json").write_text(
            json.dumps(self.settings.preprocessor_config(), indent=2)
        )


def _stop_ids(hf_model: Any, tokenizer: Any) -> frozenset[int]:
    """The end token(s): of the generation configuration, else of the tokenizer."""
    configured = getattr(hf_model.generation_config, "eos_token_id", None)
    if configured is None:
        configured = tokenizer.eos_token_id
    if configured is None:
        return frozenset()
    return frozenset([configured] if isinstance(configured, int) else configured)


def load_model(
    name_or_path: str | Path,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    quantize: Literal["4bit", "8bit"] | None = None,
    revision: str | None = None,
) -> M3Model:
    """Load a Matryoshka multimodal model.

    Args:
        name_or_path: a bundled model ("m3-tiny"), a folder or a hub id; in the M3 authors' format (such as
            "mucai/llava-v1.5-7b-m3") or in transformers' (model_type llava or llava_next, as `M3Model.save`
            writes it).
        device: "auto" (cuda, else mps, else cpu) or a torch device.
        dtype: "auto" (bfloat16 or float16 on a GPU, float32 on a CPU), "float32", "float16" or "bfloat16".
        quantize: "4bit" or "8bit": the language model's weights in fewer bits, through bitsandbytes.
        revision: branch, tag or commit on the hub.

    Raises M3ScoreError, one sentence naming what is allowed, if that can't be done; MissingExtraError if
    quantize is asked for and bitsandbytes isn't installed.
    """
    parts = loading.load(name_or_path, device=device, dtype=dtype, quantize=quantize, revision=revision)
    return M3Model(parts.hf_model, parts.tokenizer, parts.settings, str(name_or_path))
