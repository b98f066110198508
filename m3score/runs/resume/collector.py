"""From a stream of inputs to rows in a journal to a sorted table, in memory that does not grow with them.

Couples inputs and results: what an earlier run did is not asked for again, and what changes while it is being
worked on is done once more. Of every input eight bytes are in memory: the place of its record.
"""

from __future__ import annotations

import tempfile
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import Any

from m3score.analysis.judged import is_unsolved
from m3score.common.errors import OutputError
from m3score.data.item import ImageItem
from m3score.runs.resume.external_sort import external_sort
from m3score.runs.resume.input_state import digest_of, has_changed, input_key, is_same
from m3score.runs.resume.journal import Journal, Record
from m3score.tables.schema import absent

HASHERS = 2
_NOT_YET = -1
_Waiting = tuple[int, ImageItem, dict[str, Any], "Future[str | None]"]


class Collector:
    """The rows of a run, each in the journal as soon as it is made, in the end in the order of the inputs.

    Args:
        journal: open.
        block: inputs that are skipped only together. Models compute images in batches, and the same image in
            another company may differ in the last bit: so an interrupted block is done again as a whole, and
            the table is the one of a run that nobody disturbed.
        on_skip: called with every input that an earlier run did.
    """

    def __init__(
        self, journal: Journal, *, block: int = 1, on_skip: Callable[[ImageItem], None] | None = None
    ) -> None:
        self.journal = journal
        self.block = block
        self.on_skip = on_skip or (lambda item: None)
        self.skipped = 0
        self.made = 0
        self.again = 0
        """Inputs that an earlier run did, and that are done again with the rest of their block."""
        self._places = array("q")
        self._waiting: deque[_Waiting] = deque()
        self._changed: list[tuple[int, ImageItem]] = []
        self._pool = ThreadPoolExecutor(HASHERS, thread_name_prefix="m3score-hash")

    def to_do(self, found: Iterable[ImageItem]) -> Iterator[ImageItem]:
        """The inputs that no earlier run did. Every one of them has to be answered by `keep`, in order."""
        items = iter(found)
        while chunk := list(islice(items, self.block)):
            keys = [input_key(item) for item in chunk]
            places = [self._earlier(key) for key in keys]
            if all(place is not None for place in places):
                self._places.extend(place for place in places if place is not None)
                self.skipped += len(chunk)
                for item in chunk:
                    self.on_skip(item)
                continue
            self.again += sum(place is not None for place in places)
            for item, key in zip(chunk, keys, strict=True):
                self._places.append(_NOT_YET)
                yield self._given(len(self._places) - 1, item, key)

    def changed(self) -> Iterator[ImageItem]:
        """Inputs that were replaced or deleted while they were worked on, to be done again, as in `to_do`."""
        again, self._changed = self._changed, []
        for number, item in again:
            yield self._given(number, item, input_key(item))

    def keep(
        self, row: Mapping[str, Any], traces: Sequence[Mapping[str, Any]] = (), *, transient: bool = False
    ) -> None:
        """Write down what became of the next input; an error that is `transient` is tried again next time."""
        number, item, key, digest = self._waiting.popleft()
        if "digest" not in key:
            key["digest"] = digest.result()
        if transient:
            key["transient"] = True
        if has_changed(key):
            self._changed.append((number, item))
            key.update(status=None, digest=None)  # whichever of its contents this row shows
        self._places[number] = self.journal.append(Record(key, row, traces))
        self.made += 1

    def rows(self) -> Iterator[dict[str, Any]]:
        """All rows so far, in the order of the inputs."""
        return map(self.journal.row, self.places())

    def places(self) -> Iterator[int]:
        """Where in the journal the records so far are, in the order of the inputs."""
        return (place for place in self._places if place != _NOT_YET)

    def traces(self) -> Iterator[Mapping[str, Any]]:
        """All trace rows so far, in the order of the inputs."""
        for place in self.places():
            yield from self.journal.read(place).traces

    def close(self) -> None:
        """Stop hashing; the journal stays open."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _given(self, number: int, item: ImageItem, key: dict[str, Any]) -> ImageItem:
        self._waiting.append((number, replace(item, content=None), key, self._pool.submit(digest_of, key)))
        return item

    def _earlier(self, key: Mapping[str, Any]) -> int | None:
        for place, record in self.journal.earlier(key["path"]):
            failed = record.row.get("error") is not None
            if not record.transient and is_same(key, record.key, failed=failed):
                return place
        return None


def ranked_rows(rows: Iterable[dict[str, Any]], *, folder: str | None = None) -> Iterator[dict[str, Any]]:
    """Score rows with their rank: most complex first, ties by path; then those that no scale solves, which
    says nothing of their complexity; those that failed last.

    `folder` is where temporary files may lie. OutputError if they can't be written.
    """
    try:
        ordered = external_sort(rows, most_complex_first, folder=folder)
        for rank, row in enumerate(ordered, 1):
            yield {**row, "rank": None if row.get("complexity") is None else rank}
    except OSError as error:
        place = folder or tempfile.gettempdir()
        raise OutputError(f"cannot sort the table ({error.strerror or error}).", subject=place) from error


def most_complex_first(row: Mapping[str, Any]) -> tuple[bool, bool, float, str]:
    """The place of a row among others; see ranked_rows."""
    failed = absent(row.get("complexity"))
    return failed, is_unsolved(row), 0.0 if failed else -float(row["complexity"]), str(row["path"])
