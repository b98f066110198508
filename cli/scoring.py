"""m3score rank with a scorer other than the model or its predictor: a score table all the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from m3score.cli.console import sigterm_as_interrupt
from m3score.common.limits import Limits

if TYPE_CHECKING:
    from rich.console import Console

    from m3score.cli.search import Search
    from m3score.runs.tally import Tally
    from m3score.scoring.scorers import ScorerOptions


def rank_by_scorer(
    name: str,
    options: ScorerOptions,
    search: Search,
    console: Console,
    out: Path | None,
    format: str | None,
    *,
    overwrite: bool,
    limits: Limits,
) -> None:
    """Rank by a scorer of m3score.scoring.scorers.SCORERS, most complex first.

    Complexity and the scorer's own columns are filled in; what only an M3 model can tell (tokens, agreement)
    stays empty.
    """
    from m3score.cli.running import Run, Target
    from m3score.runs.journal import open_journal
    from m3score.runs.ranking import BLOCK_BATCHES
    from m3score.scoring.scorers import SCORERS, BatchScorer
    from m3score.tables.schema import SCORES

    found = search.begin()
    with sigterm_as_interrupt():
        with console.status(f"Preparing {name} ..."):
            scorer = SCORERS[name](options)
            depends_on = {
                "command": f"rank --scorer {name}",
                "--max-pixels": limits.max_pixels,
                "--max-bytes": [limits.max_bytes, limits.max_embedded_bytes],
                **scorer.identity(),
            }
        block = BLOCK_BATCHES * scorer.batch_size if isinstance(scorer, BatchScorer) else 1
        run = Run(open_journal(out, depends_on, overwrite=overwrite), search, console, block=block)

        def keep(row: dict[str, Any]) -> None:
            run.collector.keep(row, transient=row.pop("transient", False))

        target = Target(out, format, SCORES, scorer.columns, (), ranked=True)
        tally = run.go(found, lambda items: _closing(scorer.rows(items, limits)), keep, target)
    run.tell(tally, "Ranked", f" by {name}")
    _summarise(tally, console)
    run.leave(tally, out)


def _closing(rows: Any) -> Any:
    """Rows as a generator, which can be closed before its end."""
    yield from rows


def _summarise(tally: Tally, console: Console) -> None:
    from m3score.cli.extremes import show_extremes
    from m3score.cli.summary import show_failures

    if tally.scored:
        console.print(f"\nMean complexity {tally.complexity_sum / tally.scored:.3f}.")
        show_extremes(tally.first, tally.last, console)
    show_failures(tally, console)
