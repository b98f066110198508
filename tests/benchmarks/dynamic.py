"""A model of dynamic resolution on drawn signs, from its answers to a certified predictor.

    python -m m3score.calibration.training.dynamic.train --small --out runs/dynamic --minutes 40
    python tests/benchmarks/dynamic.py draw pictures --small --count 1000 --seed 11      # to calibrate on
    python tests/benchmarks/dynamic.py draw fresh --small --count 600 --seed 12          # to judge on
    m3score rank fresh --model runs/dynamic/model --questions fresh/asked.jsonl --rungs 4,16,64,256 \\
        --out scores.csv --traces traces.parquet
    python tests/benchmarks/dynamic.py labels pictures --model runs/dynamic/model --rungs 4,16,64,256 \\
        --out labels
    m3score calibrate labels --shares 0.5,0.45,0.05 --out dynamic.predictor
    python tests/benchmarks/dynamic.py figures fresh --traces traces.parquet --predictor dynamic.predictor

(m3score calibrate pictures --model ... --questions ... does both, but takes vision scores as well.)
`figures` shows accuracy by budget, how letters' height and the required budget go together, and what the
predictor's choices keep and save on the fresh pictures. docs/training.md has the figures.
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from scipy.stats import spearmanr

from m3score.calibration.drawings.boards import READING

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _draw(index: int, folder: Path, seed: int, small: bool, counting_share: float) -> dict[str, object]:
    """One picture as a file, and one question about it."""
    from m3score.calibration.training.dynamic.evaluate import unseen
    from m3score.calibration.training.dynamic.train import recipe

    rungs, style = recipe(small)
    drawing = unseen(seed, index, 1, style, rungs[-1])[0]
    name = f"{index:05d}.png"
    drawing.image.save(folder / name, compress_level=1)
    rng = np.random.default_rng((seed, index, 1))
    *reading, counting = drawing.questions
    asked = counting if rng.random() < counting_share or not reading else reading[rng.integers(len(reading))]
    side = (drawing.image.width * drawing.image.height) ** 0.5
    return {
        "image": name,
        "question": asked.question,
        "answers": [asked.answer],
        "task": "reading" if asked.task in READING else "counting",
        "letters": asked.detail["height"],
        "share": asked.detail["height"] / side,
    }


@app.command()
def draw(
    folder: Path,
    count: Annotated[int, typer.Option(min=1)] = 1000,
    seed: Annotated[int, typer.Option(help="Any but those of training and of evaluate.py.")] = 11,
    first: Annotated[int, typer.Option(help="Index of the first picture.")] = 0,
    small: Annotated[bool, typer.Option(help="Pictures of the small recipe.")] = False,
    counting: Annotated[float, typer.Option(help="Share of questions to count, not to read.")] = 0.15,
    processes: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Draw pictures and questions that nothing was learnt from: files, asked.jsonl, drawn.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    work = partial(_draw, folder=folder, seed=seed, small=small, counting_share=counting)
    with ProcessPoolExecutor(processes) as pool:
        rows = list(pool.map(work, range(first, first + count), chunksize=16))
    with (folder / "asked.jsonl").open("w") as file:
        for row in rows:
            file.write(json.dumps({name: row[name] for name in ("image", "question", "answers")}) + "\n")
    pd.DataFrame(rows)[["image", "task", "letters", "share"]].to_csv(folder / "drawn.csv", index=False)


@app.command()
def labels(
    folder: Path,
    model: Annotated[str, typer.Option(help="The model's folder.")],
    rungs: Annotated[str, typer.Option(help="Budgets, with commas.")],
    out: Annotated[Path, typer.Option(help="The labels, for m3score calibrate.")],
) -> None:
    """What m3score calibrate --collect-only does, without vision scores: these first take the tower's
    statistics over a thousand drawings, which takes longer on a CPU than all the questions."""
    from m3score import load_model
    from m3score.calibration.predictor.calibrate import find_sources
    from m3score.calibration.predictor.labelling.collect import collect
    from m3score.models.budgets.base import parse_rungs
    from m3score.models.fingerprint import calibration_identity

    asked = {"questions": folder / "asked.jsonl", "split": None, "image": None, "question": None}
    source = find_sources([str(folder)], seed=0, answers=None, frames=None, **asked)[str(folder)]
    if source is None:
        raise typer.BadParameter(f"{folder} has labels already.")
    answerer = load_model(model, dtype="float32", rungs=parse_rungs(rungs))
    collect(source, answerer, out, fingerprint=calibration_identity(answerer), vision=False, batch_size=8)


def joined(folder: Path, traces: Path) -> pd.DataFrame:
    """The answers with what was drawn: a row per picture and budget."""
    answers = pd.read_parquet(traces).assign(
        image=lambda rows: rows["image"].map(lambda name: Path(name).name)
    )
    return answers.merge(pd.read_csv(folder / "drawn.csv"), on="image", validate="many_to_one")


def required(answers: pd.DataFrame) -> pd.DataFrame:
    """Per picture that is answered rightly at the finest budget: the smallest budget from which on it is."""
    table = answers.pivot(index="image", columns="tokens", values="correct").astype(bool)
    stays = table.loc[table.iloc[:, -1]].iloc[:, ::-1].cummin(axis=1).iloc[:, ::-1]
    facts = answers.drop_duplicates("image").set_index("image")[["task", "letters", "share"]]
    return stays.idxmax(axis=1).rename("required").to_frame().join(facts)


def accuracy_table(answers: pd.DataFrame) -> pd.DataFrame:
    """Percent right by budget, in rows: all, counting, and reading by the letters' share of the side."""
    edges = [0, 0.02, 0.04, 0.08, 1]
    names = ["below 2%", "2 to 4%", "4 to 8%", "above 8%"]
    kind = pd.cut(answers["share"], edges, labels=names).astype(str)
    kind = ("reading, letters " + kind).where(answers["task"] == "reading", "counting")
    parts = [answers.assign(kind="all"), answers.assign(kind=kind)]
    table = pd.concat(parts).pivot_table(index="kind", columns="tokens", values="correct", aggfunc="mean")
    counts = pd.concat(parts).groupby("kind")["image"].nunique().rename("pictures")
    mean = answers.groupby("tokens")["visual_tokens"].mean().rename("mean visual tokens").to_frame().T
    return pd.concat([(100 * table.astype(float)).round(1).join(counts), mean.round(1)])


def routing(answers: pd.DataFrame, chosen: pd.Series) -> dict[str, float]:
    """What the predictor's budgets give on pictures, beside the finest budget for all.

    Args:
        answers: from `joined`.
        chosen: the predicted budget, by image.
    """
    right = answers.pivot(index="image", columns="tokens", values="correct").astype(float)
    seen = answers.pivot(index="image", columns="tokens", values="visual_tokens").astype(float)
    places = right.columns.get_indexer(pd.Index(chosen.reindex(right.index)))
    rows = np.arange(len(right))
    finest, tokens = right.iloc[:, -1].mean(), seen.iloc[:, -1].mean()
    routed, paid = right.to_numpy()[rows, places], seen.to_numpy()[rows, places].mean()
    wronged = ((right.iloc[:, -1] == 1) & (routed == 0)).mean()
    return {
        "pictures": float(len(right)),
        "accuracy_finest": finest,
        "accuracy_routed": routed.mean(),
        "wronged": wronged,  # right at the finest budget, wrong at the predicted one: what is promised
        "tokens_finest": tokens,
        "tokens_routed": paid,
        "saved": 1 - paid / tokens,
    }


@app.command()
def figures(
    folder: Path,
    traces: Annotated[Path, typer.Option(help="Of m3score rank on the folder.")],
    predictor: Annotated[Path | None, typer.Option(help="Of m3score calibrate, on other pictures.")] = None,
    max_drop: Annotated[float, typer.Option(help="The promise, as a share.")] = 0.02,
) -> None:
    """The tables."""
    answers = joined(folder, traces)
    typer.echo(accuracy_table(answers).to_string(na_rep=""))
    need = required(answers)
    reading = need[need["task"] == "reading"]
    for name, rows in (("all questions", need), ("reading", reading)):
        share, height = (spearmanr(rows[key], rows["required"]).statistic for key in ("share", "letters"))
        typer.echo(
            f"{name}: Spearman of required budget and letters' height as a share of the side {share:.3f}, "
            f"in pixels {height:.3f} ({len(rows)} pictures answered at the finest budget)"
        )
    typer.echo(need["required"].value_counts().sort_index().to_string())
    if predictor is not None:
        from m3score import predict_scale

        asked = [json.loads(line) for line in (folder / "asked.jsonl").read_text().splitlines()]
        files, questions = [folder / row["image"] for row in asked], [row["question"] for row in asked]
        budgets = predict_scale(files, questions, max_drop=max_drop, predictor=predictor)
        chosen = pd.Series(budgets, index=[row["image"] for row in asked])
        typer.echo(chosen.value_counts().sort_index().to_string())
        typer.echo(json.dumps({name: round(value, 4) for name, value in routing(answers, chosen).items()}))


if __name__ == "__main__":
    app()
