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
from typing import TYPE_CHECKING, Any, Literal, overload

import torch

from m3score.common.errors import M3ScoreError
from m3score.images.given import ImageSource
from m3score.models.base import ScaleAnswer
from m3score.models.fingerprint import fingerprint, hash_of_tensors
from m3score.models.inference import answering, generation
from m3score.models.inference.batching import MemoryGuard, free_memory
from m3score.models.m3 import loading
from m3score.models.m3.config import M3Config
from m3score.models.m3.encoder import Embedder, EncodedImage
from m3score.models.m3.preprocess import Tiles
from m3score.models.m3.tower import patch_features
from m3score.models.placing import no_progress_bars

if TYPE_CHECKING:
    from m3score.models.vision.complexity import VisionScore
    from m3score.models.vision.meter import VisionMeter

_POSITIONS_AT_ONCE = {"cpu": 16_384, "cuda": 65_536}
"""Token positions in one batch of the language model, per kind of device: more are no faster."""
_SHARE_OF_FREE_MEMORY = 0.5
"""Share of the free memory that a batch is planned to use; the rest covers what the estimate leaves out."""
_PAIRS_AT_ONCE = 256
_LOGITS_AT_ONCE = 2**26
"""Logits of the finest answers that are kept in a batch: 256 MB in float32."""


class M3Model(Embedder):
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
        self.stop_ids = _stop_ids(hf_model, tokenizer)
        self._decode_guard = MemoryGuard()

    @cached_property
    def identity(self) -> str:
        """SHA-256 (hexadecimal) over the weights, the quantisation and the M3Config.

        The weights are those of the files (fingerprint.py), so a model has the same identity on every device
        and with every dtype. A model that was made in memory is told apart by its tensors.
        """
        bits = [
            name for name in ("is_loaded_in_4bit", "is_loaded_in_8bit") if getattr(self.hf_model, name, False)
        ]
        facts = json.dumps([self.weights_identity, bits, self.config.to_dict()], sort_keys=True)
        return hashlib.sha256(facts.encode()).hexdigest()

    @cached_property
    def weights_identity(self) -> str:
        """SHA-256 (hexadecimal) over the weights alone, see `identity`."""
        return fingerprint(self._folder) if self._folder else hash_of_tensors(self.hf_model)

    @property
    def calibration_identity(self) -> str:
        """See fingerprint.calibration_identity."""
        return self.weights_identity

    @cached_property
    def vision_meter(self) -> VisionMeter:
        """What `vision_score` scores with: the model's statistics over drawings are in it."""
        from m3score.models.vision.meter import VisionMeter

        return VisionMeter(self, self.weights_identity)

    @overload
    def vision_score(self, images: ImageSource) -> VisionScore: ...

    @overload
    def vision_score(self, images: list[Any] | tuple[Any, ...]) -> list[VisionScore]: ...

    def vision_score(self, images: Any) -> Any:
        """How complex an image is without a question: see m3score/models/vision/complexity.py.

        Args:
            images: an image, or a list.

        Returns:
            A VisionScore, with a (24, 24) map of where the complexity is; or a list of them.
        """
        many = isinstance(images, list | tuple)
        scores = self.vision_meter.score(images if many else [images])
        return scores if many else scores[0]

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
            batch_size: how many at once; "auto" is estimated. It is halved when memory runs out.

        Returns:
            A stripped string, or a list of them.
        """
        if isinstance(question, str) and not isinstance(images, (list, tuple)):
            return self.answer([images], [question], tokens, max_new_tokens=max_new_tokens)[0]
        lists = isinstance(images, (list, tuple)) and not isinstance(question, str)
        if not lists or len(images) != len(question):
            raise M3ScoreError("answer takes one image and one question, or equally long lists of both.")

        scale = self.config.grid**2 if tokens is None else tokens

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
            if wanted < 1:
                raise M3ScoreError(f"batch_size is {wanted}; it must be at least 1, or 'auto'.")
            return wanted
        generation.check_max_new_tokens(max_new_tokens)
        config = self.hf_model.config.text_config
        asked = max(1, min(questions_per_image, _PAIRS_AT_ONCE))
        row = self.most_tiles() * self.config.grid**2 + 128 + asked * (64 + max_new_tokens)
        # Keys and values stay in memory for every layer, intermediate values for one layer at a time.
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        held = 2 * config.num_hidden_layers * config.num_key_value_heads * head
        worked_on = 8 * config.hidden_size + 3 * config.intermediate_size
        free = _SHARE_OF_FREE_MEMORY * free_memory(self.device) / (self.dtype.itemsize * (held + worked_on))
        positions = min(_POSITIONS_AT_ONCE["cuda" if self.device.type == "cuda" else "cpu"], int(free))
        logits = _LOGITS_AT_ONCE // (max_new_tokens * config.vocab_size)
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


def _stop_ids(hf_model: Any, tokenizer: Any) -> frozenset[int]:
    """The end tokens of the generation configuration, else of the tokenizer."""
    configured = getattr(hf_model.generation_config, "eos_token_id", None)
    if configured is None:
        configured = tokenizer.eos_token_id
    if configured is None:
        return frozenset()
    return frozenset([configured] if isinstance(configured, int) else configured)


def load_m3(folder: Path, options: Mapping[str, Any], name: str) -> M3Model:
    """Load the M3 model in a folder.

    Args:
        folder: with the model's files, in the authors' format or in transformers'.
        options: from placing.options.
        name: what the model is to be called.
    """
    parts = loading.load(folder, options)
    return M3Model(parts.hf_model, parts.tokenizer, parts.config, name, parts.folder)
