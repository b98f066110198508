"""Knobs: how a server is told how many visual tokens a picture may have.

Knows the fields of requests; what a family of models takes for a budget stands in models/budgets. Servers and
their versions spell the same differently: a knob has its spellings in the order in which they are tried.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from m3score.common.errors import M3ScoreError
from m3score.models.budgets.base import Family, Size
from m3score.models.endpoint.chat import Look, Picture

DETAILS = ("low", "high")
"""What the knob `detail` can be, coarsest first."""

_Kwargs = Mapping[str, Any]
_Fields = tuple[_Kwargs, _Kwargs]
"""Fields of the request, and fields beside the picture's URL."""


@dataclass(frozen=True)
class Knob:
    """A knob, and how it is spelled: from a family's kwargs to the fields of a request."""

    name: str
    spellings: tuple[Callable[[_Kwargs], _Fields | None], ...] = ()
    """Each gives None where it has no word for the kwargs."""
    spelling: int = 0
    """Which of them is in use."""

    def look(self, picture: Picture, family: Family | None, budget: int, ladder: tuple[int, ...]) -> Look:
        """A picture as it is to be shown at a budget of the ladder."""
        if self.name == "detail":
            return Look(picture, {}, {"detail": DETAILS[ladder.index(budget)]})
        if family is None:
            raise M3ScoreError(f"--knob {self.name} needs to know the model's family: give --family.")
        if self.name == "resize":
            return Look(_resized(picture, family, budget))
        fields = self.spellings[self.spelling](family.processor_kwargs(budget))
        if fields is None:
            raise M3ScoreError(
                f"--knob {self.name} has no word for a budget of {family.name}: the knobs are "
                f"{', '.join(KNOBS)}."
            )
        return Look(picture, *fields)

    def count(self, family: Family, size: Size, budget: int) -> int:
        """How many visual tokens a picture has at a budget, by the family's table."""
        if self.name != "resize":
            return family.visual_tokens(size, budget)
        return family.visual_tokens(_client_size(family, size, budget))

    def same(self, family: Family, size: Size, one: int, other: int) -> bool:
        """Whether the model is shown the same pixels at two budgets."""
        if self.name != "resize":
            return family.same_pixels(size, one, other)
        return _client_size(family, size, one) == _client_size(family, size, other)

    def respelled(self) -> Knob | None:
        """The knob with its next spelling; None after the last."""
        following = self.spelling + 1
        return Knob(self.name, self.spellings, following) if following < len(self.spellings) else None


def _pixels(kwargs: _Kwargs) -> dict[str, Any] | None:
    """Bounds in pixels, as servers call them that go back to before transformers 5."""
    size = kwargs.get("size")
    if isinstance(size, Mapping) and {"shortest_edge", "longest_edge"} <= size.keys():
        return {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    return None


def _patches(kwargs: _Kwargs) -> dict[str, Any] | None:
    """The most tiles, as the code that came with InternVL calls them."""
    return {"max_dynamic_patch": kwargs["max_patches"]} if "max_patches" in kwargs else None


def _vllm(kwargs: _Kwargs) -> _Fields:
    return {"mm_processor_kwargs": dict(kwargs)}, {}


def _vllm_before(kwargs: _Kwargs) -> _Fields | None:
    older = _pixels(kwargs) or _patches(kwargs)
    return None if older is None else ({"mm_processor_kwargs": older}, {})


def _transformers(kwargs: _Kwargs) -> _Fields:
    return {"chat_template_kwargs": dict(kwargs)}, {}


def _lmdeploy(kwargs: _Kwargs) -> _Fields | None:
    pixels = _pixels(kwargs)
    return None if pixels is None else ({"mm_processor_kwargs": {"image": pixels}}, {})


def _lmdeploy_flat(kwargs: _Kwargs) -> _Fields | None:
    pixels = _pixels(kwargs)
    return None if pixels is None else ({"mm_processor_kwargs": pixels}, {})


def _sglang(kwargs: _Kwargs) -> _Fields | None:
    patches = _patches(kwargs)
    return None if patches is None else ({}, patches)


KNOBS: Mapping[str, Knob] = {
    knob.name: knob
    for knob in (
        Knob("vllm", (_vllm, _vllm_before)),
        Knob("transformers", (_transformers,)),
        Knob("lmdeploy", (_lmdeploy, _lmdeploy_flat)),
        Knob("sglang", (_sglang,)),
        Knob("detail"),
        Knob("resize"),
    )
}


def find_knob(name: str) -> Knob:
    """The knob of that name; M3ScoreError if there is none."""
    if name not in KNOBS:
        raise M3ScoreError(f"--knob {name} is none; the knobs are {', '.join(KNOBS)}.")
    return KNOBS[name]


def _resized(picture: Picture, family: Family, budget: int) -> Picture:
    size = _client_size(family, picture.image.size, budget)
    if size == picture.image.size:
        return picture
    return Picture(picture.image.resize(size, Image.Resampling.BICUBIC))


def _client_size(family: Family, size: Size, budget: int) -> Size:
    wanted = family.client_size(size, budget)
    if wanted is None:
        raise M3ScoreError(
            f"--knob resize does nothing for {family.name}: its processor enlarges what is small; its server "
            "needs a knob of its own."
        )
    return wanted
