"""Whether numbers may stand in one table, or beside each other.

Complexity and required tokens are relative to a model's ladder, and agreement is another number where it was
worked out from less than the model's full distributions. So tables say model, ladder and where agreement
comes from, and what differs in these is not mixed. Tables of older versions do not say; they are not refused.
Knows rows and columns, no files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from m3score.analysis.judged import judge_of, mode_of
from m3score.common.errors import M3ScoreError
from m3score.tables.schema import absent

if TYPE_CHECKING:
    import pandas as pd

FACTS = {"model": "models", "ladder": "ladders", "agreement_from": "sources of agreement"}
"""Columns that say what a row's numbers are relative to, and what they are called in a message."""
_SHOWN = 3
_TELLING = ("judged_by", "required_tokens", "solved", "predicted_tokens")


class Alike:
    """Takes note of what rows are relative to, and refuses what differs from the rows before."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, str], dict[str, str]] = {}
        """By the kind of number and fact: the values, and where each was met first."""

    def add(self, row: Mapping[Any, Any], where: str) -> None:
        """Take note of a row that has a score. `where` is what a message calls its table."""
        if absent(row.get("complexity")):
            return
        for fact in FACTS:
            if not absent(value := row.get(fact)) and value != "":
                self.seen.setdefault((_kind(row), fact), {}).setdefault(str(value), where)

    def check(self, what: str, hint: str = "") -> None:
        """M3ScoreError where rows differ.

        Args:
            what: what may not be done with them, such as "are not compared".
            hint: the end of the sentence.
        """
        for (_, fact), values in self.seen.items():
            if len(values) > 1:
                some = list(values)[:_SHOWN]
                places = list(dict.fromkeys(values.values()))
                told = " and ".join(f"{value!r}" for value in some) + (" ..." if len(values) > _SHOWN else "")
                raise M3ScoreError(
                    f"{' and '.join(places[:_SHOWN])}: numbers of different {FACTS[fact]} ({told}) "
                    f"{what}{hint}."
                )


def check_alike(tables: Mapping[str, pd.DataFrame], what: str, hint: str = "") -> None:
    """M3ScoreError where the rows of tables, by what messages call them, are relative to different things."""
    alike = Alike()
    for name, table in tables.items():
        columns = [column for column in (*_TELLING, *FACTS) if column in table.columns]
        scored = table.loc[table["complexity"].notna(), columns] if "complexity" in table else None
        for row in () if scored is None else _records(scored):
            alike.add({**row, "complexity": 0.0}, name)
    alike.check(what, hint)


def _records(frame: pd.DataFrame) -> Iterable[dict[Any, Any]]:
    return frame.drop_duplicates().to_dict("records")


def _kind(row: Mapping[Any, Any]) -> str:
    """What judged a row. Scores without a question have a ladder of their own, the grid that the vision tower
    sees; and predictions may stand beside answers."""
    return str(mode_of([judge_of(row)]))
