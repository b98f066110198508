"""What every family of vision language models says about its budgets.

A budget is the most visual tokens that one picture may have, a rung of the model's ladder. A family knows how
to ask the processor for it, and how many tokens a picture of a given size then has, exactly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

from m3score.common.errors import M3ScoreError

Size = tuple[int, int]
"""(width, height) in pixels, as Pillow has it."""


@dataclass(frozen=True)
class Square:
    """A square picture whose visual tokens form a square grid, which complexity without a question needs."""

    pixels: int
    """Side of the picture."""
    grid: int
    """Tokens per side. They come first among the picture's tokens, row by row."""
    budget: int


@dataclass(frozen=True)
class Family(ABC):
    """One family, with what a model's own processor says of it: a subclass's fields, as published by default.

    A budget is an upper bound of the tokens of one picture, except where a family says otherwise.
    """

    name: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    """`model_type` of the configurations that belong to it."""
    hints: ClassVar[tuple[str, ...]] = ()
    """What the names of its checkpoints have in them, in lower case, without dots, dashes and underscores."""
    per_call: ClassVar[bool] = True
    """Whether a processor takes `processor_kwargs` with a call. Otherwise they are set on the image
    processor, and on the model's configuration where it has them too."""

    @classmethod
    @abstractmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """The family as one model has it.

        Args:
            settings: what the processor's files say: its own keys and those of its image processor in one
                mapping. What is missing, or None, is as published.
        """

    @property
    @abstractmethod
    def default_rungs(self) -> tuple[int, ...]:
        """Budgets, smallest first. The last is what the processor does unless told otherwise, where the
        family does not say why not."""

    @abstractmethod
    def processor_kwargs(self, budget: int) -> dict[str, Any]:
        """What the image processor is told for a budget. M3ScoreError for a budget it doesn't have."""

    @abstractmethod
    def visual_tokens(self, size: Size, budget: int | None = None) -> int:
        """How many visual tokens a picture has under a budget, exactly.

        Args:
            size: of the picture.
            budget: None for what the processor does unless told otherwise.

        Raises:
            M3ScoreError: a budget that the family doesn't have, or a picture that its processor refuses.
        """

    @abstractmethod
    def check_budget(self, budget: int) -> None:
        """M3ScoreError for a budget that the family doesn't have; the sentence says which it has."""

    @abstractmethod
    def square(self) -> Square:
        """The picture that the vision tower looks at when there is no question."""

    def client_size(self, size: Size, budget: int) -> Size | None:
        """The size to which a client resizes a picture so that an untold server keeps to the budget.

        The tokens of the resized picture are `visual_tokens(client_size)`. None where resizing does not help:
        the family's processor enlarges what is small.
        """
        return None

    def same_pixels(self, size: Size, one: int, other: int) -> bool:
        """Whether the model is shown the same pixels under two budgets."""
        return self.visual_tokens(size, one) == self.visual_tokens(size, other)

    def ladder(self, rungs: Iterable[int] | None = None) -> tuple[int, ...]:
        """The rungs, smallest first: the default ones, or those wanted. M3ScoreError for one there is not."""
        ladder = self.default_rungs if rungs is None else tuple(sorted(set(rungs)))
        if not ladder:
            raise M3ScoreError("rungs: give at least one budget of visual tokens, such as 256,1024.")
        for budget in ladder:
            self.check_budget(budget)
        return ladder

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the family's name, and its settings; `table.restore` reads it."""
        return {"family": self.name, **asdict(self)}


@dataclass(frozen=True)
class SteppedFamily(Family):
    """A family whose processor knows only some budgets."""

    @abstractmethod
    def steps(self) -> dict[int, int]:
        """The budgets that there are, smallest first, and what the family's knob says for each."""

    def check_budget(self, budget: int) -> None:
        """See Family."""
        if budget not in self.steps():
            some = ", ".join(map(str, self.steps()))
            raise M3ScoreError(f"{self.name} has no budget of {budget} visual tokens; it has {some}.")

    def knob(self, budget: int) -> int:
        """What the family's knob says for a budget."""
        self.check_budget(budget)
        return self.steps()[budget]


def parse_rungs(rungs: str | Sequence[int] | None) -> tuple[int, ...] | None:
    """Budgets as the command line has them, "64,256,1024", or as a sequence; None stays None.

    M3ScoreError for what is no list of numbers of tokens.
    """
    if rungs is None:
        return None
    try:
        budgets = tuple(int(one) for one in (rungs.split(",") if isinstance(rungs, str) else rungs))
    except (TypeError, ValueError):
        budgets = ()
    if not budgets or min(budgets) < 1:
        raise M3ScoreError(f"--rungs needs budgets of visual tokens such as 64,256,1024, not {rungs!r}.")
    return budgets


def number(settings: Mapping[str, Any], *names: str) -> int | None:
    """The first of these settings that is there and not None, as a whole number; otherwise None."""
    return next((int(settings[name]) for name in names if settings.get(name) is not None), None)


def known(**values: Any) -> dict[str, Any]:
    """The values that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def side_of(value: Any) -> int | None:
    """The side of a square given as a number, as {"height", "width"} or as {"longest_edge"}; or None."""
    if isinstance(value, Mapping):
        return number(value, "height", "longest_edge", "shortest_edge")
    return None if value is None else int(value)
