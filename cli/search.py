"""The inputs of a command that goes through images: looked for lazily, counted on the side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING

from m3score.common.errors import M3ScoreError
from m3score.common.limits import MAX_EMBEDDED_BYTES

if TYPE_CHECKING:
    from m3score.data.discover import Columns, FoundImage, Source


class Search:
    """The inputs: looked for lazily, counted on the side, with what was skipped."""

    def __init__(
        self,
        paths: Sequence[Source],
        limit: int | None,
        columns: Columns | None = None,
        max_bytes: int = MAX_EMBEDDED_BYTES,
    ) -> None:
        self.paths = paths
        self.limit = limit
        self.columns = columns
        self.max_bytes = max_bytes
        self.skipped: Counter[str] = Counter()

    def begin(self) -> Iterator[FoundImage]:
        """The inputs; M3ScoreError, before a model is loaded for nothing, if there are none."""
        from m3score.cli.summary import suffix_of
        from m3score.data.discover import exists_somewhere, find_images

        names = ", ".join(str(getattr(path, "name", path)) for path in self.paths)
        if not exists_somewhere(self.paths):
            raise M3ScoreError(f"{names}: no such file or folder.")
        found = find_images(
            self.paths,
            columns=self.columns,
            on_skip=lambda path: self.skipped.update([suffix_of(path)]),
            max_bytes=self.max_bytes,
        )
        first = next(found, None)
        if first is None:
            others = f" ({sum(self.skipped.values()):,} other files)" if self.skipped else ""
            raise M3ScoreError(f"{names}: no images found{others}.{self._hint()}")
        return islice(chain([first], found), self.limit)

    def _hint(self) -> str:
        from m3score.data.sources.parquet import is_table
        from m3score.data.sources.webdataset import is_shard

        inside = next((s for s in self.skipped if is_shard(f"x{s}") or is_table(f"x{s}")), None)
        return f' Shards and tables have to be named, as in "FOLDER/*{inside}".' if inside else ""

    def count(self) -> int | None:
        """How many inputs there are; None if there is no telling before the end."""
        from m3score.data.discover import count_images

        return count_images(self.paths, self.limit)


def search_for(
    paths: Sequence[str] | None,
    limit: int | None,
    *,
    dataset: str | None,
    split: str | None,
    image: str | None,
    question: str | None,
    answers: str | None,
    streaming: bool,
    asked: str | Sequence[str] | None,
    max_bytes: int = MAX_EMBEDDED_BYTES,
) -> Search:
    """The inputs that the options of a command stand for.

    Args:
        asked: what --question says: asked in place of what a source asks, unless a column was named for that.
        max_bytes: Limits.max_embedded_bytes.

    The others are the options of the same names. M3ScoreError if they make no sense together.
    """
    from m3score.data.discover import Columns

    columns = Columns(image, "" if asked and question is None else question, answers)
    if dataset is None:
        if split is not None or streaming:
            raise M3ScoreError("--split and --streaming go with --dataset.")
        if not paths:
            raise M3ScoreError("give PATHS, or --dataset NAME.")
        return Search(paths, limit, columns, max_bytes)
    from m3score.data.sources.hf_datasets import DataSet

    rows = DataSet(dataset, split, columns, streaming=streaming, max_bytes=max_bytes)
    rows.check()
    return Search([*(paths or ()), rows], limit, columns, max_bytes)
