"""Lines of JSON: the one place that reads them, with the line number in every error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from m3score.common.errors import M3ScoreError


def json_lines(text: str, name: str, *, unique: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects of a jsonl file with their line numbers; M3ScoreError, with the line, for all else.

    A key that an object has twice is an error too, if it has to be `unique`; else the last one counts.
    """
    decode = json.JSONDecoder(object_pairs_hook=_unique if unique else None).decode
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = decode(line)
        except M3ScoreError as error:
            raise M3ScoreError(f"{name}, line {number}: {error}.") from None
        except (ValueError, RecursionError) as error:  # brackets in thousands; numbers of thousands of digits
            raise M3ScoreError(f"{name}, line {number}: not JSON ({error}).") from None
        if not isinstance(row, dict):
            raise M3ScoreError(f"{name}, line {number}: every line has to be a JSON object.")
        yield number, row


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = next(key for index, (key, _) in enumerate(pairs) if key in dict(pairs[:index]))
        raise M3ScoreError(f"the key {twice[:100]!r} appears twice")
    return row
