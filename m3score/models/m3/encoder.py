"""Everything that goes into the language model: encoded images, visual tokens at any scale, embedded prompts.

Knows the vision tower, the projector and the token table of transformers' LLaVA models; knows nothing about
answers. An image is encoded once; what M3 adds comes after the projector: features are pooled to the wanted
number of visual tokens ("Matryoshka Multimodal Models", arXiv 2405.17430, section 3).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from PIL import Image

from m3score.common.errors import M3ScoreError
from m3score.common.profiling import stage
from m3score.images.decode import ImageSource, open_image
from m3score.images.video import FRAMES, Frames, open_frames
from m3score.models.inference.batching import MemoryGuard
from m3score.models.m3 import conversation
from m3score.models.m3.config import M3Settings
from m3score.models.m3.ladder import Size, count_visual_tokens, join_tiles, pool
from m3score.models.m3.preprocess import Tiles, best_canvas, preprocess, preprocess_frames
from m3score.models.m3.vision_features import vision_feature_names, vision_statistics

_TILES_AT_ONCE = 32
"""Tiles in one pass of the vision tower; halved when memory runs out."""


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """An image behind the vision tower and the projector: everything any scale needs of it."""

    features: torch.Tensor
    """(tiles, grid * grid, hidden), projected, before pooling; the overview tile comes first."""
    size: Size
    """(width, height) of the original image in pixels."""
    tiles: Size | None
    """(columns, rows) of tiles beside the overview; None for a single-grid image, or one grid per frame."""

    @property
    def grids(self) -> int:
        """Grids of visual tokens: the tiles of an image, or the frames of a video.

        Times the tokens per grid, this is what the M3 paper counts (2880, 720, 180, 45, 5 for the five grids
        of a LLaVA-NeXT image). What enters the language model is `Embedder.visual_token_count`: less, since
        the padding of tiles is cut off, and more, since each row of joined tiles ends in a newline.
        """
        return len(self.features)


class Embedder:
    """Pictures and prompts -> input embeddings of one LLaVA model."""

    def __init__(self, hf_model: Any, tokenizer: Any, settings: M3Settings, name: str) -> None:
        """
        Args:
            hf_model: transformers' LlavaForConditionalGeneration or LlavaNextForConditionalGeneration.
            tokenizer: transformers' tokenizer.
            settings: ladder, image handling, conversation and limits.
            name: what the model is called.
        """
        self.hf_model = hf_model
        self.tokenizer = tokenizer
        self.settings = settings
        self.name = name
        self._encode_guard = MemoryGuard()

    @property
    def ladder(self) -> tuple[int, ...]:
        """Visual tokens per grid, coarsest first."""
        return self.settings.ladder

    @property
    def device(self) -> torch.device:
        return self.hf_model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of activations; weights may be quantised."""
        return self.hf_model.get_input_embeddings().weight.dtype

    # -- images ------------------------------------------------------------------------------------------

    @overload
    def encode(self, images: ImageSource | Frames | Tiles | EncodedImage) -> EncodedImage: ...

    @overload
    def encode(self, images: list[Any] | tuple[Any, ...]) -> list[EncodedImage]: ...

    def encode(self, images: Any) -> Any:
        """Run the vision tower and the projector, once for all scales and questions.

        Args:
            images: a PIL image, path, bytes or (H, W, 3) uint8 array, frames of a video that are to have a
                grid each, or what `tiles` made of one of these; or a list of them. Encoded images are passed
                through.

        Returns:
            An EncodedImage, or a list of them. Raises M3ScoreError for an image that can't be read.
        """
        if not isinstance(images, (list, tuple)):
            return self.encode([images])[0]
        pending = {i: image for i, image in enumerate(images) if not isinstance(image, EncodedImage)}
        # Few images at a time: their pixels needn't all be in memory at once.
        done = self._encode_guard.map(self._encode_batch, list(pending.values()), self._images_at_once())
        encoded = dict(zip(pending, done, strict=True))
        return [encoded.get(i, image) for i, image in enumerate(images)]

    def encode_frames(self, video: str | os.PathLike[str], frames: int = FRAMES) -> EncodedImage:
        """Encode a video with one grid of visual tokens per frame (`encode` makes one picture of them).

        Args:
            video: a file.
            frames: how many, sampled evenly. Each costs as many visual tokens as a single-grid image.
        """
        return self.encode(open_frames(video, frames))

    def _images_at_once(self) -> int:
        return max(1, _TILES_AT_ONCE // self.most_tiles())

    def most_tiles(self) -> int:
        """Grids that one image has at most."""
        side = self.settings.image_size
        if self.settings.image_aspect_ratio != "anyres":
            return 1
        return 1 + max(
            (width // side) * (height // side) for width, height in self.settings.image_grid_pinpoints
        )

    @torch.no_grad()
    def _encode_batch(self, images: Sequence[ImageSource | Frames | Tiles]) -> list[EncodedImage]:
        tiles = [self.tiles(image) for image in images]
        with stage("vision tower"):
            return self.project(tiles, train_vision=False)

    def tiles(self, image: ImageSource | Frames | Tiles) -> Tiles:
        """Preprocess one image, or the frames of a video: what the vision tower sees."""
        if isinstance(image, Tiles):
            return image
        with stage("preprocess"):
            if isinstance(image, Frames):
                return preprocess_frames(image.pictures, self.settings)
            return preprocess(open_image(image), self.settings)

    def project(self, images: Sequence[Tiles], *, train_vision: bool) -> list[EncodedImage]:
        """Vision tower and projector over the tiles of several images; with gradients where they are on."""
        core = self.hf_model.model
        pixels = torch.cat([torch.from_numpy(image.pixel_values) for image in images])
        pixels = pixels.to(self.device, core.vision_tower.dtype)
        with torch.set_grad_enabled(torch.is_grad_enabled() and train_vision):
            states = core.vision_tower(pixels, output_hidden_states=True).hidden_states
            patches = states[self.hf_model.config.vision_feature_layer][:, 1:]  # without the class token
        features = core.multi_modal_projector(patches)
        per_image = features.split([len(image.pixel_values) for image in images])
        return [
            EncodedImage(own, image.size, image.tiles) for own, image in zip(per_image, images, strict=True)
        ]

    @torch.no_grad()
    def visual_tokens(self, encoded: EncodedImage, tokens: int | None = None) -> torch.Tensor:
        """What the language model sees of an image.

        Args:
            encoded: from `encode`.
            tokens: visual tokens per grid; None for all. Scales outside the ladder are allowed where pooling
                gives any token at all, although the model wasn't trained for them.

        Returns:
            (n, hidden). Tiles of a LLaVA-NeXT image are pooled one by one, joined, rid of their padding, and
            each row ends in a newline. Raises M3ScoreError for a scale that makes no sense.
        """
        return self._visual_tokens(encoded, tokens)

    def _visual_tokens(self, encoded: EncodedImage, tokens: int | None) -> torch.Tensor:
        newline = getattr(self.hf_model.model, "image_newline", None)
        pooled = pool(encoded.features, self._scale(tokens))
        return join_tiles(pooled, encoded.size, encoded.tiles, newline, self.settings.merge)

    def visual_token_count(self, encoded: EncodedImage, tokens: int | None = None) -> int:
        """How many rows `visual_tokens` has."""
        frames = len(encoded.features) if encoded.tiles is None else 1
        return frames * count_visual_tokens(
            self._scale(tokens), self.settings.grid, encoded.size, encoded.tiles, self.settings.merge
        )

    def most_visual_tokens(self, image: Any) -> int:
        """`visual_token_count` at the finest scale, before encoding; 0 where a picture must be opened."""
        if isinstance(image, EncodedImage):
            return self.visual_token_count(image, self.ladder[-1])
        if isinstance(image, Tiles):
            frames = len(image.pixel_values) if image.tiles is None else 1
            return frames * count_visual_tokens(
                self.ladder[-1], self.settings.grid, image.size, image.tiles, self.settings.merge
            )
        if self.settings.image_aspect_ratio != "anyres" or not isinstance(image, Image.Image):
            return 0
        canvas = best_canvas(image.size, self.settings.image_grid_pinpoints)
        tiles = canvas[0] // self.settings.image_size, canvas[1] // self.settings.image_size
        return count_visual_tokens(
            self.ladder[-1], self.settings.grid, image.size, tiles, self.settings.merge
        )

    def _scale(self, tokens: int | None) -> int:
        return self.settings.grid**2 if tokens is None else tokens

    def vision_features(self, image: ImageSource | EncodedImage) -> np.ndarray:
        """float32 (features,) of the overview grid's projected features: see vision_features.py."""
        features = self.encode(image).features[0].float().cpu().numpy()
        side = self.settings.grid
        return vision_statistics(features.reshape(side, side, -1), self.ladder)

    @property
    def vision_feature_names(self) -> tuple[str, ...]:
        """Names of what `vision_features` gives."""
        return vision_feature_names(self.hf_model.get_input_embeddings().weight.shape[1], self.ladder)

    # -- prompts -----------------------------------------------------------------------------------------

    def prompt_ids(self, question: str, n_images: int = 1) -> list[int]:
        """Token ids of the whole prompt, with conversation.IMAGE_TOKEN where an image goes.

        Args:
            question: what to ask; it may hold `<image>` tags itself, else they are put in front.
            n_images: how many images it is about; 0 for a question about none.
        """
        prompt = conversation.build_prompt(question, self.settings.conversation, n_images)
        return conversation.tokenize(prompt, self.tokenizer)

    def embed(
        self,
        ids: Sequence[int],
        images: Sequence[EncodedImage] = (),
        tokens: int | None = None,
        *,
        truncate: bool = False,
    ) -> torch.Tensor:
        """Input embeddings of a prompt, visual tokens in their places.

        Args:
            ids: from `prompt_ids`, one conversation.IMAGE_TOKEN per image.
            images: encoded images, in their order in the prompt.
            tokens: visual tokens per grid; None for all.
            truncate: cut a sequence at the model's longest length, as the authors' code does, instead of
                raising. The end of the prompt, question and all, is then lost.

        Returns:
            (length, hidden). Raises M3ScoreError if the sequence is too long.
        """
        if (places := list(ids).count(conversation.IMAGE_TOKEN)) != len(images):
            raise M3ScoreError(f"The prompt has room for {places} images, but {len(images)} were given.")
        table = self.hf_model.get_input_embeddings()
        parts: list[torch.Tensor] = []
        pending = iter(images)
        for is_image, run in _runs(ids):
            if is_image:
                parts.append(self._visual_tokens(next(pending), tokens).to(table.weight.dtype))
            else:
                parts.append(table(torch.tensor(run, device=self.device)))
        return self._within_limit(torch.cat(parts), truncate)

    def _within_limit(self, sequence: torch.Tensor, truncate: bool) -> torch.Tensor:
        if not truncate:
            self.check_length(len(sequence))
        return sequence[: self.settings.max_length]

    def check_length(self, length: int) -> None:
        """Raises M3ScoreError for a prompt, visual tokens included, that is longer than the model takes."""
        if length > self.settings.max_length:
            raise M3ScoreError(
                f"The prompt with its visual tokens is {length} tokens long, more than the "
                f"{self.settings.max_length} that {self.name} takes (tokenizer_model_max_length): ask at a "
                "coarser scale, ask less, or give a video fewer frames of their own."
            )

    def prompt_parts(self, question: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Token ids before and behind the image, of a question about one image."""
        ids = tuple(self.prompt_ids(question))
        place = ids.index(conversation.IMAGE_TOKEN)
        return ids[:place], ids[place + 1 :]

    @torch.no_grad()
    def text_embeddings(self, ids: Sequence[int]) -> torch.Tensor:
        """(length, hidden)"""
        return self.hf_model.get_input_embeddings()(torch.tensor(ids, dtype=torch.long, device=self.device))

    @torch.no_grad()
    def image_embeddings(self, encoded: EncodedImage, tokens: int | None) -> torch.Tensor:
        """`visual_tokens` in the language model's dtype: (n, hidden)"""
        return self._visual_tokens(encoded, tokens).to(self.dtype)

    @torch.no_grad()
    def prompt_embeddings(self, encoded: EncodedImage, question: str, tokens: int | None) -> torch.Tensor:
        """(length, hidden) input embeddings of one question about one image."""
        return self.embed(self.prompt_ids(question), [encoded], tokens)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an answer's token ids, stripped, without special tokens."""
        return conversation.decode(ids, self.tokenizer)


def _runs(ids: Sequence[int]) -> list[tuple[bool, list[int]]]:
    """Ids as runs: (True, [IMAGE_TOKEN]) for an image, (False, ids) for the text between images."""
    runs: list[tuple[bool, list[int]]] = []
    for token in ids:
        if token == conversation.IMAGE_TOKEN:
            runs.append((True, [token]))
        elif runs and not runs[-1][0]:
            runs[-1][1].append(token)
        else:
            runs.append((False, [token]))
    return runs
