"""Names that repeat are kept apart: every input of a run has a name of its own, the same in every run."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import replace

from m3score.data.item import ImageItem

logger = logging.getLogger(__name__)


def make_names_unique(found: Iterable[ImageItem], *, quiet: bool = False) -> Iterator[ImageItem]:
    """The inputs in order, the second one called a.jpg as a.jpg#2, the third as a.jpg#3; a warning says so.

    What is remembered of a name are 64 bits of its hash, in 11 to 27 bytes: half a gigabyte for 20 million
    names. (Among 20 million, one name is numbered without need with a chance of 1 in 90,000.)
    """
    seen = _Seen()
    last: dict[str, int] = {}
    for item in found:
        name = item.shown
        if seen.add(name):
            yield item
            continue
        number = last.get(name, 1) + 1
        while not seen.add(f"{name}#{number}"):
            number += 1
        if not last and not quiet:
            logger.warning(
                "%s is there more than once: it is listed again as %s#%d, as are others that repeat",
                name,
                name,
                number,
            )
        last[name] = number
        yield replace(item, path=f"{item.path}#{number}", original=item.name)


class _Seen:
    """A set of texts by their hashes: an open-addressing table, a seventh of the size of Python's own set."""

    def __init__(self) -> None:
        self._slots = array("Q", [0]) * 1024
        self._count = 0

    def add(self, text: str) -> bool:
        """Remember a text; False if it was known."""
        if not self._insert(hash(text) & 0xFFFFFFFFFFFFFFFF or 1):  # 0 marks a free slot
            return False
        self._count += 1
        if self._count > 0.75 * len(self._slots):
            old, self._slots = self._slots, array("Q", [0]) * (2 * len(self._slots))
            for value in filter(None, old):
                self._insert(value)
        return True

    def _insert(self, value: int) -> bool:
        slots, mask = self._slots, len(self._slots) - 1
        place = value & mask
        while slots[place]:
            if slots[place] == value:
                return False
            place = (place + 1) & mask
        slots[place] = value
        return True
