"""The inputs of the language model: encoded images, visual tokens at any scale, embedded prompts.

Knows the vision tower, the projector and the token embeddings of transformers' LLaVA models; knows nothing
about answers. An image is encoded once. M3 then pools the projected features to the wanted number of visual
tokens ("Matryoshka Multimodal Models", arXiv 2405.17430, section 3).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, overload

import numpy as np
import torch
from PIL import Image

from m3score.common.errors import M3ScoreError
from m3score.common.profiling import stage
from m3score.images.decode import open_image
from m3score.images.given import ImageSource
from m3score.images.sandbox import Preparation
from m3score.images.video import FRAMES, Frames, open_frames
from m3score.models.inference.batching import MemoryGuard
from m3score.models.m3 import conversation
from m3score.models.m3.config import M3Config
from m3score.models.m3.ladder import Size, count_visual_tokens, join_tiles, pool
from m3score.models.m3.preprocess import (
    Tiles,
    best_canvas,
    preprocess,
    preprocess_frames,
    tiles_from_worker,
    tiles_in_worker,
)
from m3score.models.m3.vision_features import vision_feature_names, vision_statistics

_TILES_AT_ONCE = 32
"""Tiles in one pass of the vision tower; fewer if memory runs out."""


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """An image after the vision tower and the projector, which is all that any scale needs."""

    features: torch.Tensor
    """(tiles, grid * grid, hidden): projected, not yet pooled; the overview tile comes first."""
    size: Size
    """(width, height) of the original image in pixels."""
    tiles: Size | None
    """(columns, rows) of tiles beside the overview; None for a single-grid image, or one grid per frame."""

    @property
    def grids(self) -> int:
        """Number of grids of visual tokens: tiles of an image, or frames of a video.

        The M3 paper counts this times the tokens per grid (2880, 720, 180, 45, 5 for the five grids of a
        LLaVA-NeXT image). The tokens that enter the language model are `Embedder.visual_token_count`: fewer,
        because padding is cut off, and more, because each row of joined tiles ends in a newline.
        """
        return len(self.features)


class Embedder:
    """Makes the input embeddings of one LLaVA model from images and prompts."""

    def __init__(self, hf_model: Any, tokenizer: Any, config: M3Config, name: str) -> None:
        """
        Args:
            hf_model: transformers' LlavaForConditionalGeneration or LlavaNextForConditionalGeneration.
            tokenizer: transformers' tokenizer.
            config: ladder, image handling, conversation and limits.
            name: what the model is called.
        """
        self.hf_model = hf_model
        self.tokenizer = tokenizer
        self.config = config
        self.name = name
        self._encode_guard = MemoryGuard()

    @property
    def ladder(self) -> tuple[int, ...]:
        """Visual tokens per grid, coarsest first."""
        return self.config.ladder

    @property
    def device(self) -> torch.device:
        return self.hf_model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations; weights may be quantised."""
        return self.hf_model.get_input_embeddings().weight.dtype

    # -- images ------------------------------------------------------------------------------------------

    @overload
    def encode(self, images: ImageSource | Frames | Tiles | EncodedImage) -> EncodedImage: ...

    @overload
    def encode(self, images: list[Any] | tuple[Any, ...]) -> list[EncodedImage]: ...

    def encode(self, images: Any) -> Any:
        """Run the vision tower and the projector, once for all scales and questions.

        Args:
            images: a PIL image, path, bytes or (H, W, 3) uint8 array, Frames (a grid each), or Tiles; or a
                list of these. Encoded images are returned as they are.

        Returns:
            An EncodedImage, or a list of them.

        Raises:
            M3ScoreError: an image can't be read.
        """
        if not isinstance(images, (list, tuple)):
            return self.encode([images])[0]
        pending = {i: image for i, image in enumerate(images) if not isinstance(image, EncodedImage)}
        # A few images at a time, so that not all pixels are in memory at once.
        done = self._encode_guard.map(self._encode_batch, list(pending.values()), self.images_per_pass())
        encoded = dict(zip(pending, done, strict=True))
        return [encoded.get(i, image) for i, image in enumerate(images)]

    def encode_frames(self, video: str | os.PathLike[str], frames: int = FRAMES) -> EncodedImage:
        """Encode a video with a grid of visual tokens per frame (`encode` combines frames into one picture).

        Args:
            video: a file.
            frames: how many frames, sampled evenly. Each costs as many visual tokens as a single-grid image.
        """
        return self.encode(open_frames(video, frames))

    def images_per_pass(self) -> int:
        """Images that the vision tower is given at once."""
        return max(1, _TILES_AT_ONCE // self.most_tiles())

    def most_tiles(self) -> int:
        """The most grids that an image can have."""
        side = self.config.image_size
        if self.config.image_aspect_ratio != "anyres":
            return 1
        return 1 + max(
            (width // side) * (height // side) for width, height in self.config.image_grid_pinpoints
        )

    @torch.no_grad()
    def _encode_batch(self, images: Sequence[ImageSource | Frames | Tiles]) -> list[EncodedImage]:
        tiles = [self.tiles(image) for image in images]
        with stage("vision tower"):
            return self.project(tiles, train_vision=False)

    def tiles(self, image: ImageSource | Frames | Tiles) -> Tiles:
        """Preprocess one image, or the frames of a video, for the vision tower."""
        if isinstance(image, Tiles):
            return image
        with stage("preprocess"):
            if isinstance(image, Frames):
                return preprocess_frames(image.pictures, self.config)
            return preprocess(open_image(image), self.config)

    @property
    def preparation(self) -> Preparation:
        """`tiles`, to run in worker processes: tiles are smaller to send than large pictures."""
        return Preparation(tiles_in_worker, (asdict(self.config),), tiles_from_worker)

    def project(self, images: Sequence[Tiles], *, train_vision: bool) -> list[EncodedImage]:
        """Run vision tower and projector on the tiles of several images.

        Args:
            images: preprocessed images.
            train_vision: let gradients, if enabled, reach the vision tower.
        """
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
        """The visual tokens of an image, as the language model gets them.

        Args:
            encoded: from `encode`.
            tokens: visual tokens per grid; None for all. Scales outside the ladder are allowed too, although
                the model was not trained for them.

        Returns:
            (n, hidden). Tiles of a LLaVA-NeXT image are pooled one by one and joined; their padding is cut
            off, and each row ends in a newline.

        Raises:
            M3ScoreError: `tokens` is not between 1 and the size of the grid.
        """
        return self._visual_tokens(encoded, tokens)

    def _visual_tokens(self, encoded: EncodedImage, tokens: int | None) -> torch.Tensor:
        newline = getattr(self.hf_model.model, "image_newline", None)
        pooled = pool(encoded.features, self._scale(tokens))
        return join_tiles(pooled, encoded.size, encoded.tiles, newline, self.config.merge)

    def visual_token_count(self, encoded: EncodedImage, tokens: int | None = None) -> int:
        """The number of rows of `visual_tokens`."""
        frames = len(encoded.features) if encoded.tiles is None else 1
        return frames * count_visual_tokens(
            self._scale(tokens), self.config.grid, encoded.size, encoded.tiles, self.config.merge
        )

    def most_visual_tokens(self, image: Any) -> int:
        """`visual_token_count` at the finest scale, before encoding; 0 if the image must be opened for it."""
        if isinstance(image, EncodedImage):
            return self.visual_token_count(image, self.ladder[-1])
        if isinstance(image, Tiles):
            frames = len(image.pixel_values) if image.tiles is None else 1
            return frames * count_visual_tokens(
                self.ladder[-1], self.config.grid, image.size, image.tiles, self.config.merge
            )
        if self.config.image_aspect_ratio != "anyres" or not isinstance(image, Image.Image):
            return 0
        return self.count_visual_tokens(image.size, self.ladder[-1])

    def count_visual_tokens(self, size: Size, budget: int) -> int:
        """`visual_token_count` of an image, before it is opened.

        Args:
            size: (width, height) of the image in pixels.
            budget: visual tokens per grid.
        """
        tiles = None
        if self.config.image_aspect_ratio == "anyres":
            canvas = best_canvas(size, self.config.image_grid_pinpoints)
            tiles = canvas[0] // self.config.image_size, canvas[1] // self.config.image_size
        return count_visual_tokens(budget, self.config.grid, size, tiles, self.config.merge)

    def _scale(self, tokens: int | None) -> int:
        return self.config.grid**2 if tokens is None else tokens

    def vision_features(self, image: ImageSource | EncodedImage) -> np.ndarray:
        """Statistics of the projected overview grid: float32 (features,); see vision_features.py."""
        features = self.encode(image).features[0].float().cpu().numpy()
        side = self.config.grid
        return vision_statistics(features.reshape(side, side, -1), self.ladder)

    @property
    def vision_feature_names(self) -> tuple[str, ...]:
        """Names of the `vision_features`."""
        return vision_feature_names(self.hf_model.get_input_embeddings().weight.shape[1], self.ladder)

    # -- prompts -----------------------------------------------------------------------------------------

    def prompt_ids(self, question: str, n_images: int = 1) -> list[int]:
        """Token ids of the full prompt, with conversation.IMAGE_TOKEN for each image.

        Args:
            question: what to ask. It may have `<image>` tags of its own, else they are put in front.
            n_images: how many images it is about; may be 0.
        """
        prompt = conversation.build_prompt(question, self.config.conversation, n_images)
        return conversation.tokenize(prompt, self.tokenizer)

    def embed(
        self,
        ids: Sequence[int],
        images: Sequence[EncodedImage] = (),
        tokens: int | None = None,
        *,
        truncate: bool = False,
    ) -> torch.Tensor:
        """Input embeddings of a prompt with its visual tokens.

        Args:
            ids: from `prompt_ids`, one conversation.IMAGE_TOKEN per image.
            images: encoded images, in their order in the prompt.
            tokens: visual tokens per grid; None for all.
            truncate: cut a sequence that is too long, as the authors' code does, instead of raising. The end
                of the prompt, with the question, is then lost.

        Returns:
            (length, hidden)

        Raises:
            M3ScoreError: the sequence is too long, or the number of images is wrong.
        """
        if (places := list(ids).count(conversation.IMAGE_TOKEN)) != len(images):
            raise M3ScoreError(f"The prompt has room for {places} images, but {len(images)} were given.")
        table = self.hf_model.get_input_embeddings()
        parts: list[torch.Tensor] = []
        pending = iter(images)
        for is_image, run in conversation.runs(ids):
            if is_image:
                parts.append(self._visual_tokens(next(pending), tokens).to(table.weight.dtype))
            else:
                parts.append(table(torch.tensor(run, device=self.device)))
        return self._within_limit(torch.cat(parts), truncate)

    def _within_limit(self, sequence: torch.Tensor, truncate: bool) -> torch.Tensor:
        if not truncate:
            self.check_length(len(sequence))
        return sequence[: self.config.max_length]

    def check_length(self, length: int) -> None:
        """M3ScoreError if a prompt of this length, visual tokens included, is too long for the model."""
        if length > self.config.max_length:
            raise M3ScoreError(
                f"The prompt with its visual tokens is {length} tokens long, more than the "
                f"{self.config.max_length} that {self.name} takes (tokenizer_model_max_length): ask at a "
                "coarser scale, ask less, or give a video fewer frames of their own."
            )

    def prompt_parts(self, question: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Token ids before and after the image, for a question about one image."""
        ids = tuple(self.prompt_ids(question))
        place = ids.index(conversation.IMAGE_TOKEN)
        return ids[:place], ids[place + 1 :]

    @torch.no_grad()
    def text_embeddings(self, ids: Sequence[int]) -> torch.Tensor:
        """Embeddings of token ids: (length, hidden)."""
        return self.hf_model.get_input_embeddings()(torch.tensor(ids, dtype=torch.long, device=self.device))

    @torch.no_grad()
    def image_embeddings(self, encoded: EncodedImage, tokens: int | None) -> torch.Tensor:
        """`visual_tokens` in the language model's dtype: (n, hidden)."""
        return self._visual_tokens(encoded, tokens).to(self.dtype)

    @torch.no_grad()
    def prompt_embeddings(self, encoded: EncodedImage, question: str, tokens: int | None) -> torch.Tensor:
        """Input embeddings of one question about one image: (length, hidden)."""
        return self.embed(self.prompt_ids(question), [encoded], tokens)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer's token ids, stripped, without special tokens."""
        return conversation.decode(ids, self.tokenizer)
