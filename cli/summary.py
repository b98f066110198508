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

if TYPE_CHECKING:
    import pandas as pd

    from m3score.profiling import Profile

FAILURES_SHOWN = 5
BAR_WIDTH = 32


def ladder_of(table: pd.DataFrame) -> tuple[int, ...]:
    """The scales of a score table, from its agreement columns, coarsest first."""
    names = (re.fullmatch(r"agreement_(\d+)", column) for column in table.columns)
    return tuple(sorted(int(name[1]) for name in names if name))


def show_summary(table: pd.DataFrame, console: Console, *, rule: str) -> None:
    """Print how many images need how many tokens, the means, and the first failures."""
    scored = table[table["complexity"].notna()]
    if len(scored):
        console.print(f"\nImages by visual tokens needed per grid (rule: {rule})")
        console.print(_histogram(scored, ladder_of(table)))
        console.print(_means(scored, ladder_of(table)))
    failed = table[table["complexity"].isna()]
    if len(failed):
        console.print(f"\n[bold red]{_count(len(failed), 'input')} failed[/] (see the column error):")
        for path, error in failed[["path", "error"]].head(FAILURES_SHOWN).itertuples(index=False):
            console.print(f"  {plain(path)}: {plain(error)}", soft_wrap=True)
        if len(failed) > FAILURES_SHOWN:
            console.print(f"  ... and {len(failed) - FAILURES_SHOWN} more")


def show_profile(profile: Profile, console: Console) -> None:
    """Print the seconds of each stage, and what share of the time the model did not work."""
    from m3score.profiling import MODEL_STAGES

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


def _histogram(scored: pd.DataFrame, ladder: tuple[int, ...]) -> Table:
    counts = {tokens: int((scored["required_tokens"] == tokens).sum()) for tokens in ladder}
    rows = [(str(tokens), counts[tokens]) for tokens in ladder]
    unsolved = int(scored["required_tokens"].isna().sum())
    if unsolved:
        rows.append(("unsolved", unsolved))
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


def _means(scored: pd.DataFrame, ladder: tuple[int, ...]) -> str:
    lines = [
        f"Mean complexity {scored['complexity'].mean():.3f}; "
        f"mean effective tokens {scored['effective_tokens'].mean():.1f} of {ladder[-1]}."
    ]
    unsolved = int(scored["required_tokens"].isna().sum())
    if unsolved:
        lines.append(
            "Unsolved: no scale gives a right answer; "
            f"such a question counts as {ladder[-1]} tokens in the means."
        )
    jumps = int((~scored["monotone"].astype(bool)).sum())
    if jumps:
        verb = "is" if jumps == 1 else "are"
        lines.append(f"{_count(jumps, 'image')} {verb} not monotone: fewer tokens suffice where more do not.")
    return "\n".join(lines)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
