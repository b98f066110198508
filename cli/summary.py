"""The closing summary of a score table: a histogram over the ladder, the means, what went wrong."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.bar import Bar
from rich.console import Console
from rich.table import Table

from m3score.analysis.judged import (
    Mode,
    explain,
    explain_complexity,
    is_unsolved,
    judge_of,
    mode_of,
    tokens_text,
)
from m3score.cli.console import INTERRUPTED, SOME_FAILED, plain
from m3score.cli.progress import speed_text
from m3score.images.video import missing_reader
from m3score.tables.schema import absent

if TYPE_CHECKING:
    import pandas as pd

    from m3score.common.profiling import Profile
    from m3score.runs.engine import Outcome
    from m3score.runs.tally import Tally

BAR_WIDTH = 32


def ladder_of(table: pd.DataFrame) -> tuple[int, ...]:
    """The scales of a score table, from its agreement columns, coarsest first."""
    names = (re.fullmatch(r"agreement_(\d+)", column) for column in table.columns)
    return tuple(sorted(int(name[1]) for name in names if name))


def show_outcome(outcome: Outcome, console: Console, *, rule: str, ranked: bool = True) -> None:
    """Print what a run came to: how fast it was, then what its table holds.

    Args:
        outcome: of the run.
        console: where to.
        rule: that required tokens follow.
        ranked: whether the table is sorted by complexity.
    """
    tally, done = outcome.tally, "Ranked" if ranked else "Predicted"
    verb = "Interrupted after" if outcome.interrupted else done
    images, before = _count(tally.images, "image"), outcome.resumed
    if tally.failed and not outcome.interrupted:
        images = f"{tally.scored:,} of {images}"
    if before and outcome.passes == 1:
        images += f", of which {before:,} were done before,"
    told = f"{verb} {images}"
    if outcome.made:
        told += f" in {outcome.seconds:.1f} s ({speed_text(outcome.made / max(outcome.seconds, 1e-9))})"
    if outcome.facts.label:
        told += f" {plain(outcome.facts.label)}"
    if before and outcome.passes > 1:
        told += f"; {before:,} rows of both passes were done before"
    console.print(f"{told}.")
    if again := outcome.again:
        images = f"{again:,} image{' was' if again == 1 else 's were'} done again"
        group = f"with a group of {outcome.block} that was not finished"
        console.print(f"{images}, {group}: so the numbers are those of an undisturbed run.")
    show_skipped(outcome.skipped, console)
    if outcome.notes:
        console.print("\n" + "\n".join(map(plain, outcome.notes)))
    show_summary(tally, console, rule=rule, ranked=ranked, means=not outcome.notes)
    if outcome.costs:
        console.print("\n" + "\n".join(map(plain, outcome.costs)))


def leave(outcome: Outcome, out: Path | None, console: Console) -> None:
    """Say where the table is and how to go on; exit codes 130 and 3."""
    if out is not None and str(out) != "-":
        rows = "the rows so far to " if outcome.interrupted else ""
        console.print(f"\nWrote {rows}{plain(out)}.")
    if outcome.left:
        what, place = _count(outcome.left, "image"), plain(outcome.journal)
        verb = "is" if outcome.left == 1 else "are"
        console.print(
            f"{what} of an earlier run {verb} not among these inputs: {place} keeps what was done, for a "
            "run that has them. Delete it if there will be none."
        )
    if outcome.interrupted:
        if outcome.journal is not None:
            place = plain(outcome.journal)
            console.print(f"The same command goes on from here: {place} knows what is done.")
        raise typer.Exit(INTERRUPTED)
    if outcome.tally.failed:
        raise typer.Exit(SOME_FAILED)


def show_summary(
    tally: Tally, console: Console, *, rule: str, ranked: bool = True, means: bool = True
) -> None:
    """Print how many images need how many tokens, as far as the table tells, and the first failures.

    Args:
        tally: has the counts and sums of a table of any length, and a few of its rows: `first` (the most
            complex images), `last` (the simplest) and `failures`.
        console: where to.
        rule: that required tokens follow.
        ranked: whether the table is sorted by complexity.
        means: whether the distribution and its means are wanted.
    """
    if tally.scored and means:
        _show_figures(tally, console, rule)
    if tally.scored and ranked:
        show_extremes(tally.first, tally.last, console)
    show_failures(tally, console)


def _show_figures(tally: Tally, console: Console, rule: str) -> None:
    """The distribution over the ladder and the leading number in the middle, with what they are."""
    mode, finest = mode_of(tally.judges), tally.ladder[-1] if tally.ladder else None
    if said := explain(tally.judges, finest):
        console.print(f"\n{said}")
    if mode is Mode.several:
        return
    if finest is None or mode is Mode.other:
        console.print(f"\nMean complexity {tally.complexity_sum / tally.scored:.3f}.")
    elif mode is Mode.predicted:
        console.print("\nImages by predicted visual tokens per grid")
        console.print(histogram([(str(tokens), tally.predicted[tokens]) for tokens in tally.ladder]))
        mean = sum(tokens * count for tokens, count in tally.predicted.items()) / tally.scored
        console.print(f"Mean {mean:.1f} of {finest} tokens.")
        for reason, count in tally.reasons.most_common():
            console.print(f"{count:,} of {tally.scored:,} got the finest scale: {plain(reason)}.")
        if tally.reasons:
            console.print("`m3score calibrate` makes a predictor for pictures like these.")
    else:
        held = "the scale that holds their effective tokens"
        title = held if mode is Mode.vision else f"visual tokens needed per grid (rule: {rule})"
        console.print(f"\nImages by {title}")
        console.print(_histogram(tally))
        console.print("\n".join(_middle(tally, mode, finest)))


def show_extremes(
    complex_first: Sequence[Mapping[str, Any]], simple_last: Sequence[Mapping[str, Any]], console: Console
) -> None:
    """Print paths with their complexity and leading number; no image twice, however few there are.

    Args:
        complex_first: rows of a score table, the most complex one first.
        simple_last: rows of the same table, the simplest one last.
        console: where to.
    """
    seen = {row["path"] for row in complex_first}
    others = [row for row in reversed(simple_last) if row["path"] not in seen]
    for title, rows in (("Most complex", complex_first), ("Simplest", others)):
        if rows:
            console.print(f"\n{title}")
            console.print(_scores(rows))


def _scores(rows: Sequence[Mapping[str, Any]]) -> Table:
    grid = Table(box=None, padding=(0, 1), header_style="dim", pad_edge=False)
    grid.add_column("complexity", justify="right", style="cyan")
    names = {
        Mode.vision: "effective tokens",
        Mode.answers: "tokens needed",
        Mode.predicted: "tokens predicted",
    }
    name = names.get(mode_of({judge_of(row) for row in rows}), "tokens")
    grid.add_column(name, justify="right", min_width=len(name))
    grid.add_column("path", overflow="fold")
    for row in rows:
        grid.add_row(f"{row['complexity']:.3f}", _tokens(row), plain(row["path"]))
    return grid


def _tokens(row: Mapping[str, Any]) -> str:
    """The row's leading number, where it is known: a predictor knows its own guess only."""
    if is_unsolved(row):
        return "unsolved"
    if judge_of(row) == "vision":
        return tokens_text(float(row["effective_tokens"]))
    for column, mark in (("required_tokens", ""), ("predicted_tokens", " (predicted)")):
        if (value := row.get(column)) is not None and not absent(value):
            return f"{int(value)}{mark}"
    return ""


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
    if videos := missing_reader(skipped):
        console.print(plain(videos))


def _histogram(tally: Tally) -> Table:
    rows = [(str(tokens), tally.tokens[tokens]) for tokens in tally.ladder]
    if tally.unsolved:
        rows.append(("unsolved", tally.unsolved))
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


def _middle(tally: Tally, mode: Mode, finest: int) -> list[str]:
    """Median and mean of the leading number, what complexity is beside it, and what stands apart."""
    lines, middle = [], tally.complexity.median
    told = explain_complexity(tally.judges, finest)
    if mode is Mode.vision and middle is not None:
        lines.append(
            f"Median {tokens_text(finest**middle)} effective tokens of {finest}: complexity {middle:.3f},"
        )
        lines.append(f"{told}.")
    elif middle is not None:
        counts = {tokens: count for tokens, count in tally.tokens.items() if tokens is not None}
        mean = sum(tokens * count for tokens, count in counts.items()) / max(1, sum(counts.values()))
        lines.append(f"Median {_median(counts)} tokens needed, mean {mean:.1f}, of {finest}.")
        lines.append(f"Mean complexity {tally.complexity.mean:.3f}: {told}.")
    if tally.unsolved:
        verb = "is" if tally.unsolved == 1 else "are"
        lines.append(
            f"{_count(tally.unsolved, 'image')} of {tally.scored:,} {verb} unsolved: no scale gives right "
            "answers. The model does not know, which is not complex: they are left out of these figures."
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
    return lines


def _median(counts: Mapping[int, int]) -> int:
    """The number in the middle, of two the smaller one."""
    every = sorted(Counter(counts).elements())
    return every[(len(every) - 1) // 2] if every else 0


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
