"""Accuracy per scale: on benchmarks (tasks.py), and on drawn images that training never used.

Uses the public interface (anything with `answer_ladder`), so that it measures what users get.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from m3score.calibration.benchmarks.kept import judge_anew
from m3score.calibration.benchmarks.results import BenchmarkResult, benchmark_result
from m3score.calibration.benchmarks.task_data import TaskSource
from m3score.calibration.drawings.drawing import Drawing, draw
from m3score.calibration.drawings.questions import DrawnQuestion
from m3score.calibration.predictor.labelling.collect import collect
from m3score.data.metrics import grade
from m3score.models.base import LadderAnswerer
from m3score.scoring.rules import required_tokens
from m3score.scoring.scorers.model_stream import check_frames

if TYPE_CHECKING:
    import pandas as pd

EVALUATION_SEED = 1_000_003
"""Seed of the drawings that evaluation uses; recipes use small seeds."""
READABLE = 40
"""A sign counts as readable from this letter height (px) on."""
LARGE = 60
"""A shape counts as large from this diameter (px) on."""


def evaluate_task(
    source: TaskSource,
    model: LadderAnswerer,
    folder: str | os.PathLike[str],
    *,
    fingerprint: str,
    limit: int | None = None,
    batch_size: int | Literal["auto"] = "auto",
    max_new_tokens: int | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> BenchmarkResult:
    """Ask a model a benchmark's questions at every scale, and compute its figures.

    Answers of an earlier run are gone on with. If the questions have changed since, answers to those that are
    still asked are judged anew, and the rest is asked; see kept.judge_anew.

    Args:
        source: the benchmark (task_data.load_task or load_own).
        model: anything that answers at every scale.
        folder: for traces and features: a collection (collect.py), which resumes where it stopped and on
            which predictors can be calibrated.
        fingerprint: hash of the model's weights.
        limit: ask about the first images only.
        max_new_tokens: by default what the task says.
        resamples, seed: of the bootstrap.
        batch_size, workers, overwrite, progress: as in collect.

    Raises:
        M3ScoreError: the folder holds something else, or no image was answered.
    """
    check_frames(source.frames, model)
    if not overwrite:
        judge_anew(source, Path(folder), fingerprint)
    held = collect(
        source,
        model,
        folder,
        fingerprint=fingerprint,
        limit=limit,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens or source.task.max_new_tokens,
        workers=workers,
        overwrite=overwrite,
        anew="--restart",
        vision=False,
        progress=progress,
    )
    kept = held.features()
    keys = dict(zip(kept["image"], kept["key"], strict=True))
    return benchmark_result(held.traces(), source, limit=limit, keys=keys, resamples=resamples, seed=seed)


# ---- drawn images -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DrawnEvaluation:
    """Answers about drawn images. One row per question and scale: see `_row` for the columns."""

    model: str
    seed: int
    rows: pd.DataFrame

    def by_task(self) -> pd.DataFrame:
        """Accuracy in percent: tasks down (the number of questions first), scales across, finest first."""
        table = self.rows.pivot_table(index="task", columns="tokens", values="correct", aggfunc="mean") * 100
        table.loc["all"] = self.rows.groupby("tokens")["correct"].mean() * 100
        table = table[sorted(table.columns, reverse=True)]
        counts = self.rows[self.rows.tokens == self.rows.tokens.max()].task.value_counts()
        table.insert(0, "questions", [int(counts.get(task, counts.sum())) for task in table.index])
        return table

    def facts(self) -> dict[str, float]:
        """Figures for the model card, beside the table."""
        finest = self.rows[self.rows.tokens == self.rows.tokens.max()]
        signs = finest[finest.task.isin(["word", "number"])]
        large = self.rows[(self.rows.task == "colour") & (self.rows["size"] >= LARGE)]
        needed = self._required()
        read = needed[needed.task.isin(["word", "number"]) & needed.required.notna()]
        overall = self.rows.groupby("tokens")["correct"].mean() * 100
        falls = overall.diff().dropna()
        return {
            "overall accuracy at the finest scale, %": 100 * finest.correct.mean(),
            f"signs read, letters of {READABLE} px and more, %": 100
            * signs[signs.height >= READABLE].correct.mean(),
            "Spearman of letter height and required tokens, signs read": read.height.corr(
                read.required.astype(float), method="spearman"
            ),
            f"colour of shapes of {LARGE} px and more at 9 tokens, %": 100
            * large[large.tokens == 9].correct.mean(),
            "largest rise of overall accuracy as tokens drop, points": max(0.0, -falls.min()),
        }

    def _required(self) -> pd.DataFrame:
        import pandas as pd

        ladder = sorted(self.rows.tokens.unique())
        out = []
        for _, group in self.rows.groupby("number"):
            ordered = group.sort_values("tokens")
            needed = required_tokens(list(ordered.correct), ladder)
            first = ordered.iloc[0]
            out.append({"task": first.task, "height": first.height, "required": needed})
        return pd.DataFrame(out)

    def to_markdown(self) -> str:
        """Both tables, ready for a model card."""
        table = self.by_task()
        lines = ["| task | questions | " + " | ".join(str(t) for t in table.columns[1:]) + " |"]
        lines.append("|---|" + "---:|" * len(table.columns))
        for task, row in table.iterrows():
            cells = [f"{int(row['questions'])}", *(f"{value:.1f}" for value in row[1:])]
            lines.append(f"| {task} | " + " | ".join(cells) + " |")
        lines += ["", *(f"- {name}: {value:.2f}" for name, value in self.facts().items())]
        return "\n".join(lines) + "\n"


def held_out(seed: int = EVALUATION_SEED) -> Iterator[tuple[Drawing, DrawnQuestion]]:
    """All questions of an endless stream of drawings."""
    index = 0
    while True:
        drawing = draw(seed, index)
        yield from ((drawing, question) for question in drawing.questions)
        index += 1


def evaluate_drawn(
    model: LadderAnswerer,
    questions: int = 4000,
    *,
    seed: int = EVALUATION_SEED,
    at_once: int = 64,
    progress: Any = None,
) -> DrawnEvaluation:
    """Ask a model `questions` questions about drawn images, at every scale.

    Args:
        model: anything that answers at every scale.
        questions: how many (question, image) pairs.
        seed: the stream of drawings.
        at_once: pairs that the model gets in one call.
        progress: called with the number of questions answered since the last call.
    """
    import pandas as pd

    pairs = islice(held_out(seed), questions)
    rows: list[dict[str, Any]] = []
    number = 0
    while batch := list(islice(pairs, at_once)):
        images: list[Any] = []
        grouped: list[list[DrawnQuestion]] = []
        for drawing, question in batch:
            if images and images[-1] is drawing.image:
                grouped[-1].append(question)
            else:
                images.append(drawing.image)
                grouped.append([question])
        answered = model.answer_ladder(
            images, [[question.question for question in group] for group in grouped], max_new_tokens=24
        )
        for group, per_image in zip(grouped, answered, strict=True):
            for question, scales in zip(group, per_image, strict=True):
                rows += [_row(number, question, scale.tokens, scale.answer or "") for scale in scales]
                number += 1
        if progress:
            progress(len(batch))
    return DrawnEvaluation(model.name, seed, pd.DataFrame(rows))


def _row(number: int, question: DrawnQuestion, tokens: int, answer: str) -> dict[str, Any]:
    return {
        "number": number,
        "task": question.task,
        "question": question.question,
        "reference": question.answer,
        "height": question.detail.get("height"),
        "size": question.detail.get("size"),
        "tokens": tokens,
        "answer": answer,
        "correct": grade("exact_match", answer, [question.answer]).correct,
    }
