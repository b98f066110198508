"""The configuration of an M3 model: ladder, image handling, conversation, limits.

Knows names and numbers, no tensors and no files. The authors keep these values in several top-level keys of
config.json. In transformers' format they are together in one entry, `m3score`:

    "m3score": {
      "ladder": [1, 9, 36, 144, 576],        visual tokens per grid; any order
      "image_aspect_ratio": "pad",           "pad", "anyres" or "square" (see preprocess.py)
      "image_grid_pinpoints": [[672, 336]],  for "anyres": (width, height) of the allowed canvases
      "merge": "flat",                       how tiles are joined: "flat", "spatial", "spatial_unpad"
      "image_size": 336,                     side of a tile in pixels (default: the vision tower's)
      "image_mean": [0.48, 0.46, 0.41],      per channel, of pixels in [0, 1]
      "image_std": [0.27, 0.26, 0.28],
      "conversation": "vicuna_v1",           a name in conversation.CONVERSATIONS
      "max_length": 2048                     longest sequence, visual tokens included
    }

All keys are optional; the defaults are those of LLaVA-1.5-M3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from m3score.common.errors import M3ScoreError
from m3score.models.m3.conversation import CONVERSATIONS
from m3score.models.m3.ladder import Size, default_ladder, make_ladder

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

ASPECT_RATIOS = ("pad", "anyres", "square")
MERGES = ("flat", "spatial", "spatial_unpad")


@dataclass(frozen=True)
class M3Config:
    """The configuration of one M3 model; the docstring of this module explains the fields."""

    ladder: tuple[int, ...] = default_ladder(24)
    grid: int = 24
    image_aspect_ratio: str = "pad"
    image_grid_pinpoints: tuple[Size, ...] = ()
    merge: str = "flat"
    image_size: int = 336
    image_mean: tuple[float, ...] = CLIP_MEAN
    image_std: tuple[float, ...] = CLIP_STD
    conversation: str = "vicuna_v1"
    max_length: int = 2048

    def __post_init__(self) -> None:
        _one_of("image_aspect_ratio", self.image_aspect_ratio, ASPECT_RATIOS)
        _one_of("merge", self.merge, MERGES)
        _one_of("conversation", self.conversation, tuple(CONVERSATIONS))
        if self.image_aspect_ratio == "anyres":
            self._check_pinpoints()

    def _check_pinpoints(self) -> None:
        if not self.image_grid_pinpoints:
            raise M3ScoreError("image_aspect_ratio 'anyres' needs image_grid_pinpoints.")
        for width, height in self.image_grid_pinpoints:
            if width % self.image_size or height % self.image_size:
                raise M3ScoreError(
                    f"image_grid_pinpoints holds {width}x{height}, which is no multiple of "
                    f"the tile's {self.image_size} pixels."
                )

    def to_dict(self) -> dict[str, Any]:
        """The `m3score` entry of config.json, without the grid, which follows from the vision tower."""
        entry = dataclasses.asdict(self)
        del entry["grid"]
        return entry

    def preprocessor_config(self) -> dict[str, Any]:
        """The content of preprocessor_config.json, so that other software preprocesses in the same way."""
        anyres = self.image_aspect_ratio == "anyres"
        side = {"height": self.image_size, "width": self.image_size}
        return {
            "image_processor_type": "LlavaNextImageProcessor" if anyres else "LlavaImageProcessor",
            "do_pad": self.image_aspect_ratio == "pad",
            "do_resize": True,
            "size": {"shortest_edge": self.image_size},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": side,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
        }

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any], *, image_size: int, patch_size: int) -> M3Config:
        """Make a configuration from some of the keys; unknown keys and None are ignored.

        Args:
            entry: the keys listed in the docstring of this module.
            image_size: side of the vision tower's input, in pixels.
            patch_size: side of one patch, in pixels.
        """
        names = {field.name for field in dataclasses.fields(cls)} - {"grid"}
        known = {name: value for name, value in entry.items() if name in names and value is not None}
        try:
            grid = int(known.setdefault("image_size", image_size)) // patch_size
            for name in ("image_mean", "image_std"):
                if name in known:
                    known[name] = tuple(float(value) for value in known[name])
            known["image_grid_pinpoints"] = tuple(
                (int(width), int(height)) for width, height in known.get("image_grid_pinpoints", ())
            )
            scales = [int(scale) for scale in known.pop("ladder", None) or default_ladder(grid)]
            known["max_length"] = int(known.get("max_length", cls.max_length))
        except (TypeError, ValueError) as error:
            raise M3ScoreError(f"The model's m3score settings can't be read: {error}.") from error
        return cls(ladder=make_ladder(scales, grid), grid=grid, **known)


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise M3ScoreError(f"{key} is {value!r}; it must be one of {', '.join(map(repr, allowed))}.")
