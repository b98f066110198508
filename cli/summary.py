"""The closing summary of a score table: a histogram over the ladder, the means, what went wrong."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.bar import Bar
from rich.console import Console
from rich.table import Table

from m3score.cli.console import plain
from m3score.cli.extremes import show_extremes

if TYPE_CHECKING:
    import pandas as pd

    from m3score.common.profiling import Profile
    from m3score.runs.tally import Tally

BAR_WIDTH = 32


def ladder_of(table: pd.DataFrame) -> tuple[int, ...]:
    """The scales of a score table, from its agreement columns, coarsest first."""
    names = (re.fullmatch(r"agreement_(\d+)", column) for column in table.columns)
    return tuple(sorted(int(name[1]) for name in names if name))


def show_summary(tally: Tally, console: Console, *, rule: str) -> None:
    """Print how many images need how many tokens, the means, and the first failures.

    `tally` has the counts and sums of a table of any length, and a few of its rows: `first` (the most complex
    images), `last` (the simplest) and `failures`.
    """
    if tally.scored:
        console.print(f"\nImages by visual tokens needed per grid (rule: {rule})")
        console.print(_histogram(tally))
        console.print(_means(tally))
        show_extremes(tally.first, tally.last, console)
    show_failures(tally, console)


def show_failures(tally: Tally, console: Console) -> None:
    """Print how many inputs failed, and why the first of them did."""
    if not tally.failed:
        return
    console.print(f"\n[bold red]{_count(tally.failed, 'input')} failed[/] (see the column error):")
    for row in tally.failures:
        console.print(f"  {plain(row['path'])}: {plain(row['error'])}", soft_wrap=True)
    if tally.failed > len(tally.failures):
        console.print(f"  ... and {tally.failed - len(tally.failures):,} more")


def show_profile(profile: Profile, console: Console) -> None:
    """Print the seconds of each stage, and what share of the time the model did not work."""
    from m3score.common.profiling import MODEL_STAGES

    table = Table(title="Where the time went", title_justify="left", box=None)
    for column in ("stage", "seconds", "share", "beside it, in workers"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    wall = max(profile.wall, 1e-9)
    rest = profile.wall - sum(profile.seconds.values())
    measured = {**profile.seconds, "everything else": rest}
    order = [*MODEL_STAGES, *sorted({*measured, *profile.workers} - {*MODEL_STAGES})]
    for name in order:
        here, beside = measured.get(name, 0.0), profile.workers.get(name, 0.0)
        table.add_row(name, f"{here:.2f}", f"{here / wall:.1%}", f"{beside:.2f}" if beside else "")
    table.add_row("wall clock", f"{profile.wall:.2f}", "100%", "")
    console.print()
    console.print(table)
    console.print(f"Outside the model: {profile.outside / wall:.1%} of the time.")


def show_skipped(skipped: Mapping[str, int], console: Console) -> None:
    """Say how many files of which suffixes were not taken for images."""
    if not skipped:
        return
    kinds = ", ".join(f"{suffix} {count}" for suffix, count in Counter(skipped).most_common(5))
    more = ", ..." if len(skipped) > 5 else ""
    total = sum(skipped.values())
    console.print(
        f"Skipped {_count(total, 'file')} that {'is no image' if total == 1 else 'are no images'}", end=""
    )
    console.print(f" ({plain(kinds)}{more}).")


def suffix_of(path: str) -> str:
    """What a skipped file is counted as."""
    return os.path.splitext(path)[1].lower() or "no suffix"


def _histogram(tally: Tally) -> Table:
    rows = [(str(tokens), tally.tokens[tokens]) for tokens in tally.ladder]
    if tally.tokens[None]:
        rows.append(("unsolved", tally.tokens[None]))
    return histogram(rows)


def histogram(rows: Sequence[tuple[str, int]]) -> Table:
    """Counts by label, as bars with their numbers and shares."""
    most = max(count for _, count in rows) or 1
    total = sum(count for _, count in rows) or 1
    grid = Table.grid(padding=(0, 1))
    grid.add_column(justify="right", min_width=5)
    grid.add_column(width=BAR_WIDTH)
    grid.add_column(justify="right")
    grid.add_column(justify="right", style="dim")
    for label, count in rows:
        bar = Bar(size=most, begin=0, end=count, width=BAR_WIDTH, color="cyan")
        grid.add_row(label, bar, f"{count:,}", f"{count / total:.0%}")
    return grid


def _means(tally: Tally) -> str:
    finest = tally.ladder[-1]
    lines = [
        f"Mean complexity {tally.complexity_sum / tally.scored:.3f}; "
        f"mean effective tokens {tally.effective_sum / tally.scored:.1f} of {finest}."
    ]
    if tally.tokens[None]:
        lines.append(
            "Unsolved: no scale gives a right answer; "
            f"such a question counts as {finest} tokens in the means."
        )
    if jumps := tally.not_monotone:
        verb = "is" if jumps == 1 else "are"
        lines.append(f"{_count(jumps, 'image')} {verb} not monotone: fewer tokens suffice where more do not.")
    if tally.cut:
        verb = "has" if tally.cut == 1 else "have"
        lines.append(
            f"{_count(tally.cut, 'image')} {verb} answers that were cut at the most tokens they may have: "
            "they are judged as far as they go."
        )
    return "\n".join(lines)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
