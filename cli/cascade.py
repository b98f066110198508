"""m3score rank --scorer cascade: the predictor scores everything, the model what the predictor is unsure of.

Two passes and one table. Each pass has its own journal, so that a killed run goes on in the pass in which it
was. Inputs are looked for twice. What is asked, and how both scores come onto one scale, is in
m3score/runs/cascade.py.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from m3score.cli.console import plain
from m3score.cli.running import Run
from m3score.cli.search import Search
from m3score.common.errors import M3ScoreError
from m3score.runs.cascade import NOTHING, Budget, Line, agreement, path_hash, plan
from m3score.scoring.rules import effective_tokens_of

if TYPE_CHECKING:
    from rich.console import Console

    from m3score.common.limits import Limits
    from m3score.data.discover import FoundImage
    from m3score.data.loader import QuestionBook
    from m3score.routing.predict import Prediction
    from m3score.runs.journal import Journal
    from m3score.runs.tally import Tally

COLUMNS = ("scorer", "predicted_tokens")
"""Of the table, beside those of a model's ranking."""


_FIRST_PASS = ("--predictor", "--question", "--questions", "--max-pixels", "--max-bytes")
"""What predictions depend on."""


def in_cascade(budget: str | None, most: int | None, predictor: str) -> dict[str, Any]:
    """What a cascade's rows depend on beside what a model's do; M3ScoreError for bad options."""
    from m3score.routing.registry import predictor_digest

    allowed = Budget.of(budget, most)
    return {
        "command": "rank --scorer cascade",
        "--budget": allowed.share,
        "--max-model-images": allowed.most,
        "--predictor": predictor_digest(predictor),
    }


def predictions_journal(out: Path | None, depends_on: Mapping[str, Any], *, overwrite: bool) -> Journal:
    """The journal of the first pass, beside that of the second."""
    from m3score.runs.journal import keeps_journal, open_journal

    place = None
    if out is not None and keeps_journal(out):
        home = Path(os.path.realpath(out))  # beside what a link points at
        place = home.with_name(f"{home.name[:180]}.predictions")
    first = {name: depends_on[name] for name in _FIRST_PASS}
    return open_journal(place, {"command": "predictions", **first}, overwrite=overwrite)


class Cascade(Run):
    """A Run whose model sees only what a first pass over the inputs chose.

    Args:
        journal, search, console, block, on_skip: see Run; of the model's pass.
        predictions: the journal of the predictor's pass, open.
        budget: --budget and --max-model-images.
        predictor: a name or a file.
        model: what is to be asked; a predictor of another is warned about.
        book: what images are asked, where that was said.
        limits: of one picture.
    """

    def __init__(
        self,
        journal: Journal,
        search: Search,
        console: Console,
        *,
        predictions: Journal,
        budget: tuple[str | None, int | None],
        predictor: str,
        model: Any,
        book: QuestionBook | None,
        limits: Limits,
        block: int,
        on_skip: Callable[[FoundImage], None],
    ) -> None:
        from m3score.routing.predict import load_predictor
        from m3score.runs.collector import Collector

        super().__init__(journal, search, console, block=block, on_skip=on_skip)
        self.predictions = predictions
        self.first = Collector(predictions, on_skip=self._skipped)
        self.budget = Budget.of(*budget)
        self.predictor = load_predictor(predictor, model=model)
        self.book = book
        self.limits = limits
        self.plan = NOTHING
        self.line = Line()
        self.by_model = 0
        self.model_failed: list[str] = []
        self.agreement: tuple[float | None, int] = (None, 0)
        """Of predictor and model on images drawn at random, and how many these are."""

    # ---- the two passes

    def _work(
        self,
        found: Iterator[FoundImage],
        stream: Callable[[Iterator[FoundImage]], Any],
        keep: Callable[[Any], None],
        verb: str,
    ) -> None:
        from m3score.routing.predict import predict_many

        if self.predictions.rows:
            self.console.print(f"Predicted by an earlier run: {self.predictions.rows:,} rows.")

        def predicted(items: Iterator[FoundImage]) -> Iterator[Prediction]:
            asked = map(self._asked, items)
            return predict_many(
                asked, max_drop=None, predictor=self.predictor, limits=self.limits, spread=True
            )

        def keep_prediction(one: Prediction) -> None:
            row = {"path": one.path, "complexity": one.complexity, "predicted_tokens": one.tokens}
            self.first.keep({**row, "error": one.error, "spread": one.spread}, transient=one.transient)

        self._through(self.first, found, predicted, keep_prediction, "Predicting", self._count())
        if self.interrupted:
            return
        self.predictions.sync()
        self._choose()
        many = len(self.plan.chosen)
        if many:
            self.console.print(f"Asking the model about {many:,} of {self._seen:,} images.")
            again = Search(self.search.paths, self.search.limit, self.search.columns, self.search.max_bytes)
            chosen = (item for item in again.begin() if item.path in self.plan)
            self._through(self.collector, chosen, stream, keep, "Asking the model", lambda: many)

    def _asked(self, item: FoundImage) -> FoundImage:
        """An input as the predictor is to see it: with what the model will be asked."""
        if self.book is not None and not item.error:
            try:
                item = replace(item, questions=self.book.of(item.name, item.questions))
            except M3ScoreError as error:
                return replace(item, error=error.reason)
        return item if self.predictor.with_question is not None else replace(item, questions=())

    def _choose(self) -> None:
        hashes, complexity, spread = array("Q"), array("d"), array("d")
        for place in self.first.places():
            record = self.predictions.read(place)
            hashes.append(path_hash(record.key["path"]))
            complexity.append(_number(record.row["complexity"]))
            spread.append(_number(record.row["spread"]))
        self._seen = len(hashes)
        self.plan = plan(
            np.frombuffer(hashes, np.uint64), np.frombuffer(complexity), np.frombuffer(spread), self.budget
        )

    # ---- one table

    @property
    def made(self) -> int:
        """Inputs that this run, and no earlier one, predicted or asked the model about."""
        return self.first.made + self.collector.made

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every input once, in order: with the model's score where there is one."""
        answered = self._answered()
        for place in self.first.places():
            record = self.predictions.read(place)
            theirs = answered.get(path_hash(record.key["path"]))
            if theirs is None:
                yield self._predicted(record.row)
            else:
                tokens = {"predicted_tokens": record.row["predicted_tokens"]}
                yield {**self.journal.row(theirs), "scorer": "model", **tokens}

    def _predicted(self, row: Mapping[str, Any]) -> dict[str, Any]:
        kept = {name: row[name] for name in ("path", "predicted_tokens", "error")}
        if row["complexity"] is None:
            return kept
        complexity = self.line.at(row["complexity"])
        effective = effective_tokens_of(complexity, self.predictor.ladder)
        return {**kept, "complexity": complexity, "effective_tokens": effective, "scorer": "predictor"}

    def _answered(self) -> dict[int, int]:
        """Places of the model's rows, by path_hash. Sets the line between both scores on the way.

        An image on which the model failed, as it may not next time, keeps the predictor's score.
        """
        places: dict[int, int] = {}
        pairs: list[tuple[float, float, bool]] = []
        self.model_failed = []
        for place in self.collector.places():
            record = self.journal.read(place)
            complexity = record.row.get("complexity")
            if record.transient:
                self.model_failed.append(f"{record.row['path']}: {record.row['error']}")
                continue
            number = path_hash(record.key["path"])
            places[number] = place
            if complexity is not None:
                predicted, drawn = self.plan.told(number)
                pairs.append((predicted, complexity, drawn))
        ours, theirs, random = np.array(pairs).reshape(-1, 3).T
        self.by_model, self.line = len(pairs), Line.through(ours, theirs)
        self.agreement = agreement(ours[random > 0], theirs[random > 0]), int(random.sum())
        return places

    def forget(self) -> None:
        """Both journals; the one that vouches for the table last."""
        self.predictions.remove()
        super().forget()

    def close(self) -> None:
        """Both passes."""
        self.first.close()
        self.predictions.close()
        super().close()

    # ---- what is said in the end

    def tell(self, tally: Tally, done: str, what: str = "") -> None:
        """How many images, asked and not, and how long it took."""
        from m3score.cli.summary import show_skipped

        before = self.first.skipped + self.collector.skipped
        verb = "Interrupted after" if self.interrupted else done
        kept = f"; {before:,} rows of both passes were done before" if before else ""
        images = f"{tally.images:,} image{'' if tally.images == 1 else 's'}"
        self.console.print(f"{verb} {images} in {self.seconds:.1f} s, {self.by_model:,} of them{what}{kept}.")
        show_skipped(self.search.skipped, self.console)

    def show(self, tally: Tally, model: str) -> bool:
        """Who scored how many, how well they agree, and the extremes."""
        from m3score.cli.extremes import show_extremes
        from m3score.cli.summary import show_failures

        rho, drawn = self.agreement
        lines = [
            f"\nScored by {plain(model)}: {self.by_model:,}; by the predictor: "
            f"{tally.scored - self.by_model:,}. Mean complexity "
            f"{tally.complexity_sum / max(1, tally.scored):.3f}."
        ]
        if rho is not None:
            lines.append(
                f"On {drawn:,} images drawn at random they agree with a rank correlation of {rho:.2f}."
            )
        if self.model_failed:
            lines.append(
                f"[yellow]The model failed on {len(self.model_failed):,} images[/], which keep the "
                f"predictor's score: {plain(self.model_failed[0])}"
            )
        self.console.print("\n".join(lines))
        if tally.scored:
            show_extremes(tally.first, tally.last, self.console)
        show_failures(tally, self.console)
        return True


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


class _Rewound(io.BufferedReader):
    """A file whose every iteration begins at its start."""

    def __iter__(self) -> Any:
        self.seek(0)
        return super().__iter__()


def keep_stdin() -> None:
    """Put a list that comes on stdin into a temporary file without a name, so that it can be read twice."""
    source = getattr(sys.stdin, "buffer", sys.stdin)
    kept = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
    for line in source:
        kept.write(line if isinstance(line, bytes) else str(line).encode(errors="surrogateescape"))
    sys.stdin = io.TextIOWrapper(_Rewound(kept))
