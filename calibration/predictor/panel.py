"""Which probe questions tell simple pictures from complex ones?

    python -m m3score.calibration.predictor.panel TRACES RATINGS

TRACES is what `m3score rank --question ... --traces` wrote for all candidates; RATINGS a csv with the columns
path, category and score (higher = more complex; comparable within a category only). Prints, as Markdown, the
rank correlation of every candidate per category, and the panel that forward selection makes of them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from m3score.scoring.rules import complexity_of

if TYPE_CHECKING:
    import pandas as pd

CANDIDATES = (
    "Describe the image.",
    "What is in the image?",
    "How many objects are in the image?",
    "How many regions are there?",
    "What does the sign say?",
    "What number is on the sign?",
    "What color is at the middle?",
    "What color is at the top left?",
    "Which is brighter, the top left or the bottom right?",
    "Is there fine texture at the middle?",
    "Is there fine texture at the top left?",
    "Is there fine texture at the bottom right?",
    "Which bar is the highest?",
    "What is the NAME?",
    "Where is the red circle?",
)


def complexity_per_question(traces: pd.DataFrame) -> pd.DataFrame:
    """Images down, questions across: the complexity of each image by each question alone."""
    ladder = sorted(int(tokens) for tokens in traces.tokens.unique())
    wide = traces.pivot_table(index=["image", "question"], columns="tokens", values="agreement")[ladder]
    scores = wide.apply(lambda row: complexity_of(list(row), ladder), axis=1)
    return scores.unstack("question")


def separation(scores: pd.Series, ratings: pd.DataFrame) -> pd.Series:
    """Spearman's correlation of a score with the ratings, per category, and their mean.

    Args:
        scores: by image path.
        ratings: columns path, category, score.
    """
    import pandas as pd

    rated = ratings.assign(ours=ratings.path.map(scores)).dropna(subset="ours")
    per_category = {
        str(name): group.ours.corr(group.score, method="spearman")
        for name, group in rated.groupby("category")
    }
    out = pd.Series(per_category, dtype=float).fillna(0.0)  # the same score for all: no separation
    return pd.concat([out, pd.Series({"mean": out.mean()})])


def choose_panel(
    per_question: pd.DataFrame, ratings: pd.DataFrame, *, most: int = 5, least_gain: float = 0.005
) -> list[tuple[str, float]]:
    """Forward selection: the question that helps the mean correlation most, as long as it helps.

    Returns the questions in the order chosen, each with the mean correlation of the panel so far.
    """
    chosen: list[tuple[str, float]] = []
    while len(chosen) < most:
        names = [question for question, _ in chosen]
        gains = {
            question: separation(per_question[[*names, question]].mean(axis=1), ratings)["mean"]
            for question in per_question.columns
            if question not in names
        }
        if not gains:
            break
        best = max(gains, key=lambda question: gains[question])
        if chosen and gains[best] < chosen[-1][1] + least_gain:
            break
        chosen.append((best, float(gains[best])))
    return chosen


def to_markdown(per_question: pd.DataFrame, ratings: pd.DataFrame) -> str:
    """Every candidate's correlations, best first, and the panel."""
    rows = {question: separation(per_question[question], ratings) for question in per_question.columns}
    ordered = sorted(rows, key=lambda question: -rows[question]["mean"])
    names = list(rows[ordered[0]].index)
    lines = ["| question | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    lines += [f"| {q} | " + " | ".join(f"{rows[q][name]:.2f}" for name in names) + " |" for q in ordered]
    lines += ["", "Forward selection:", ""]
    lines += [
        f"- {question} (panel so far: {mean:.3f})" for question, mean in choose_panel(per_question, ratings)
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> None:
    import pandas as pd

    from m3score.tables.io import read_traces

    traces, ratings = read_traces(Path(arguments[0])), pd.read_csv(arguments[1])
    sys.stdout.write(to_markdown(complexity_per_question(traces), ratings))


if __name__ == "__main__":
    main(sys.argv[1:])
