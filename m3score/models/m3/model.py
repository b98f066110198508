"""M3Model: encode an image once, then ask at any scale.

The public interface of the model. encoder.py makes the inputs of the language model, models/inference
decodes, and loading.py loads the files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from m3score.images.given import ImageSource
from m3score.models.base import ScaleAnswer
from m3score.models.inference import answering, generation
from m3score.models.inference.batching import MemoryGuard
from m3score.models.local import (
    LOGITS_AT_ONCE,
    LocalModel,
    check_batch_size,
    positions_at_once,
    stop_ids,
)
from m3score.models.m3 import loading
from m3score.models.m3.config import M3Config
from m3score.models.m3.encoder import Embedder, EncodedImage
from m3score.models.m3.preprocess import Tiles
from m3score.models.m3.tower import patch_features
from m3score.models.placing import no_progress_bars

if TYPE_CHECKING:
    pass

_PAIRS_AT_ONCE = 256


class M3Model(Embedder, LocalModel):
    """A Matryoshka multimodal model. Make one with `m3score.load_model`.

    Inherited from Embedder: `encode`, `visual_tokens`, `visual_token_count`, `prompt_ids`, `embed`, `decode`
    and the attributes `name`, `ladder`, `device`, `dtype`, `tokenizer`, `config` and `hf_model`.
    """

    looks_in_threads = True

    def __init__(
        self, hf_model: Any, tokenizer: Any, config: M3Config, name: str, folder: Path | None = None
    ) -> None:
        """
        Args:
            hf_model, tokenizer, config, name: as for Embedder.
            folder: where the weights were read; None for a model that was made in memory.
        """
        super().__init__(hf_model, tokenizer, config, name)
        self._folder = folder
        self.stop_ids = stop_ids(hf_model, tokenizer)
        self._decode_guard = MemoryGuard()

    @cached_property
    def identity(self) -> str:
        """SHA-256 (hexadecimal) over the weights, the quantisation and the M3Config.

        The weights are those of the files (fingerprint.py), so a model has the same identity on every device
        and with every dtype. A model that was made in memory is told apart by its tensors.
        """
        facts = json.dumps([self.weights_identity, self.quantized, self.config.to_dict()], sort_keys=True)
        return hashlib.sha256(facts.encode()).hexdigest()

    @property
    def calibration_identity(self) -> str:
        """See fingerprint.calibration_identity."""
        return self.weights_identity

    @property
    def vision_shape(self) -> M3Config:
        """What the vision tower looks at when there is no question."""
        return self.config

    @property
    def vision_ladder(self) -> tuple[int, ...]:
        """Visual tokens per grid to which the tower's features are pooled, coarsest first."""
        return self.ladder

    def patch_features(self, images: Sequence[Tiles]) -> list[torch.Tensor]:
        """Features of the patches of preprocessed pictures: see tower.py."""
        return patch_features(self, images)

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
        """Greedy answer to any prompt, as token ids; the last one is the end token, unless it was cut off.

        The other arguments are those of `embed`. Text alone and several images work too.
        """
        with torch.no_grad():
            sequence = self.embed(ids, images, tokens, truncate=truncate)
        return generation.greedy(self, [sequence], max_new_tokens)[0].ids

    @torch.no_grad()
    def next_token_logits(
        self, image: ImageSource | EncodedImage, question: str, tokens: int | None = None
    ) -> torch.Tensor:
        """Logits of the answer's first token: float32 (vocabulary,), on the CPU."""
        sequence = self.prompt_embeddings(self.encode(image), question, tokens)
        output = self.hf_model.model.language_model(inputs_embeds=sequence[None], use_cache=False)
        return self.hf_model.get_output_embeddings()(output.last_hidden_state[0, -1]).float().cpu()

    def _answers(
        self,
        images: Sequence[Any],
        questions: Sequence[str],
        tokens: int | None,
        max_new_tokens: int,
        batch_size: int | Literal["auto"],
    ) -> list[str]:
        """See LocalModel."""
        scale = self.config.grid**2 if tokens is None else tokens

        def run(pairs: Sequence[tuple[Any, str]]) -> list[str]:
            distinct = {id(image): image for image, _ in pairs}
            encoded = dict(zip(distinct, self.encode(list(distinct.values())), strict=True))
            asked = [(encoded[id(image)], text) for image, text in pairs]
            answers = generation.greedy_pairs(self, asked, scale, max_new_tokens)
            return [self.decode(answer.ids) for answer in answers]

        size = self._batch_size(batch_size, max_new_tokens)
        return self._decode_guard.map(run, list(zip(images, questions, strict=True)), size)

    def answer_ladder(
        self,
        images: Sequence[ImageSource | EncodedImage],
        questions: Sequence[Sequence[str]],
        *,
        max_new_tokens: int = 32,
        decode_coarse: bool = True,
        batch_size: int | Literal["auto"] = "auto",
    ) -> list[list[tuple[ScaleAnswer, ...]]]:
        """Answer each image's questions at every scale: the same answers as scale by scale, but cheaper.

        Args:
            images: images, encoded or not.
            questions: per image, its questions.
            max_new_tokens: at most this many tokens per answer.
            decode_coarse: decode coarser scales' answers where they differ from the finest scale's. Agreement
                alone is cheaper.
            batch_size: (image, question) pairs at once; "auto" as in `answer`.

        Returns:
            Per image, per question: one ScaleAnswer per scale, coarsest first.
        """
        return answering.answer_ladder(
            self,
            images,
            questions,
            max_new_tokens=max_new_tokens,
            decode_coarse=decode_coarse,
            batch_size=self._batch_size(batch_size, max_new_tokens, max(map(len, questions), default=1)),
            guard=self._decode_guard,
        )

    def _batch_size(
        self, wanted: int | Literal["auto"], max_new_tokens: int, questions_per_image: int = 1
    ) -> int:
        """(image, question) pairs at once, estimated for the longest prompts that images can give."""
        if wanted != "auto":
            return check_batch_size(wanted)
        generation.check_max_new_tokens(max_new_tokens)
        config = self.hf_model.config.text_config
        asked = max(1, min(questions_per_image, _PAIRS_AT_ONCE))
        row = self.most_tiles() * self.config.grid**2 + 128 + asked * (64 + max_new_tokens)
        positions = positions_at_once(config, self.device, self.dtype)
        logits = LOGITS_AT_ONCE // (max_new_tokens * config.vocab_size)
        # All questions of an image together where possible: their shared part is read once per batch.
        return max(1, min(_PAIRS_AT_ONCE // asked * asked, max(1, positions // row) * asked, logits))

    def save(self, folder: str | Path) -> None:
        """Write a folder in transformers' format, with the M3Config, that `load_model` reads."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        self.hf_model.config.m3score = self.config.to_dict()
        with no_progress_bars():
            self.hf_model.save_pretrained(target)
        self.tokenizer.save_pretrained(target)
        (target / "preprocessor_config.json").write_text(
            json.dumps(self.config.preprocessor_config(), indent=2)
        )


def load_m3(folder: Path, options: Mapping[str, Any], name: str) -> M3Model:
    """Load the M3 model in a folder.

    Args:
        folder: with the model's files, in the authors' format or in transformers'.
        options: from placing.options.
        name: what the model is to be called.
    """
    parts = loading.load(folder, options)
    return M3Model(parts.hf_model, parts.tokenizer, parts.config, name, parts.folder)
