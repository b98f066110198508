"""Accuracy per scale: on benchmarks (tasks.py), and on drawn images that training never used.

Works through the public face (anything with `answer_ladder`), so that what is judged is what users get.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from m3score.calibration.benchmarks.judged import Judged, judge
from m3score.calibration.benchmarks.task_data import TaskSource
from m3score.calibration.drawings.drawn import Drawing, draw
from m3score.calibration.drawings.wordings import Asked
from m3score.calibration.predictor.collect import collect
from m3score.data.metrics import grade
from m3score.models.base import LadderAnswerer
from m3score.scoring.rules import required_tokens
from m3score.scoring.scorers.model_stream import check_frames

if TYPE_CHECKING:
    import pandas as pd

EVALUATION_SEED = 1_000_003
"""Its stream of drawings is for judging only; recipes use small seeds."""
READABLE = 40
"""Letters of signs from this height (px) on are expected to be read."""
LARGE = 60
"""Shapes from this diameter (px) on are large."""


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
) -> Judged:
    """Ask a model the questions of a benchmark at every scale, and judge it.

    Args:
        source: the benchmark (task_data.load_task or load_own).
        model: anything that answers at every scale.
        folder: where traces and features are kept: a collection (collect.py), which goes on where it stopped
            and which predictors are calibrated on.
        fingerprint: hash of the model's weights.
        limit: only the first images.
        max_new_tokens: by default what the task says.
        resamples, seed: of the bootstrap.
        batch_size, workers, overwrite, progress: as in collect.

    Raises:
        M3ScoreError: a folder that holds something else, or nothing was answered.
    """
    check_frames(source.frames, model)
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
        progress=progress,
    )
    kept = held.features()
    keys = dict(zip(kept["image"], kept["key"], strict=True))
    return judge(held.traces(), source, limit=limit, keys=keys, resamples=resamples, seed=seed)


# ---- drawn images -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """One row per question and scale: task, question, reference, height, size, tokens, answer, correct."""

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
        """The figures that the model card states beside the table."""
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


def held_out(seed: int = EVALUATION_SEED) -> Iterator[tuple[Drawing, Asked]]:
    """Every question of a stream of drawings, endlessly."""
    index = 0
    while True:
        drawing = draw(seed, index)
        yield from ((drawing, asked) for asked in drawing.asked)
        index += 1


def evaluate_drawn(
    model: LadderAnswerer,
    questions: int = 4000,
    *,
    seed: int = EVALUATION_SEED,
    at_once: int = 64,
    progress: Any = None,
) -> Evaluation:
    """Ask a model at least `questions` questions about drawn images, at every scale.

    Args:
        model: anything that answers at every scale.
        questions: how many (question, image) pairs.
        seed: the stream of drawings.
        at_once: pairs handed to the model in one call.
        progress: called with the number of questions answered since the last call.
    """
    import pandas as pd

    pairs = islice(held_out(seed), questions)
    rows: list[dict[str, Any]] = []
    number = 0
    while batch := list(islice(pairs, at_once)):
        images: list[Any] = []
        grouped: list[list[Asked]] = []
        for drawing, asked in batch:
            if images and images[-1] is drawing.image:
                grouped[-1].append(asked)
            else:
                images.append(drawing.image)
                grouped.append([asked])
        answered = model.answer_ladder(
            images, [[asked.question for asked in group] for group in grouped], max_new_tokens=24
        )
        for group, per_image in zip(grouped, answered, strict=True):
            for asked, scales in zip(group, per_image, strict=True):
                rows += [_row(number, asked, scale.tokens, scale.answer or "") for scale in scales]
                number += 1
        if progress:
            progress(len(batch))
    return Evaluation(model.name, seed, pd.DataFrame(rows))


def _row(number: int, asked: Asked, tokens: int, answer: str) -> dict[str, Any]:
    return {
        "number": number,
        "task": asked.task,
        "question": asked.question,
        "reference": asked.answer,
        "height": asked.detail.get("height"),
        "size": asked.detail.get("size"),
        "tokens": tokens,
        "answer": answer,
        "correct": grade("exact_match", answer, [asked.answer]).correct,
    }
