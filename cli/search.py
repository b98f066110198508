"""The inputs of a command that goes through images: looked for lazily, counted on the side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING

from m3score.errors import M3ScoreError

if TYPE_CHECKING:
    from m3score.finding import FoundImage


class Search:
    """The inputs: looked for lazily, counted on the side, with what was skipped."""

    def __init__(self, paths: list[str], limit: int | None) -> None:
        self.paths = paths
        self.limit = limit
        self.skipped: Counter[str] = Counter()

    def begin(self) -> Iterator[FoundImage]:
        """The inputs; M3ScoreError, before a model is loaded for nothing, if there are none."""
        from m3score.cli.summary import suffix_of
        from m3score.finding import exists_somewhere, find_images

        if not exists_somewhere(self.paths):
            raise M3ScoreError(f"{', '.join(self.paths)}: no such file or folder.")
        found = find_images(self.paths, on_skip=lambda path: self.skipped.update([suffix_of(path)]))
        first = next(found, None)
        if first is None:
            others = f" ({sum(self.skipped.values()):,} other files)" if self.skipped else ""
            raise M3ScoreError(f"{', '.join(self.paths)}: no images found{others}.")
        return islice(chain([first], found), self.limit)

    def count(self) -> int:
        """How many inputs there are."""
        from m3score.finding import find_images

        return sum(1 for _ in islice(find_images(self.paths), self.limit))
