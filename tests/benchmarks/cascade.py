"""How the ranking of a cascade nears the model's own with its budget, beside random choice.

    python tests/benchmarks/cascade.py --labels FOLDER --predictor FILE [--plot cascade.png]
    python tests/benchmarks/cascade.py --images PATHS [--predictor FILE] [--model NAME] [--plot cascade.png]

Prints Spearman's rank correlation with asking the model about everything, at budgets of 0 to 100%. From
labels that m3score calibrate collected (of images that the predictor was not fitted to), or, with --images,
by running both scorers on pictures. What is chosen, and the line onto the model's scale, are the command's
own (m3score/runs/cascade.py); random choice has the same line, and is the mean of --draws draws.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from m3score.routing.registry import load_predictor
from m3score.runs.cascade import Budget, LinearMap, agreement, path_hash, plan

Found = tuple[list[str], np.ndarray, np.ndarray, np.ndarray]
BUDGETS = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)


def from_labels(folder: str, predictor: str) -> Found:
    """Names, predicted complexity, spread, and the model's complexity, of labelled images."""
    from m3score.calibration.predictor.labelling.collection import open_collection
    from m3score.scoring.oracle import rescore

    collection, chosen = open_collection(folder), load_predictor(predictor)
    frame, scores = collection.features(), rescore(collection.traces())
    known = dict(zip(scores["path"], scores["complexity"], strict=True))
    rows = [
        (str(name), values)
        for name, values in zip(frame["image"], frame["values"], strict=True)
        if values is not None and np.isfinite(known.get(name, np.nan))
    ]
    X = np.stack([np.asarray(values, np.float32) for _, values in rows])
    names = [name for name, _ in rows]
    oracle = np.array([float(known[name]) for name in names])
    return names, chosen.complexity(chosen.predict(X)), chosen.spread(X), oracle


def from_images(paths: Sequence[str], predictor: str, model: str) -> Found:
    """The same of pictures; asks the model about all of them."""
    from m3score import load_model
    from m3score.common.limits import Limits
    from m3score.data.discover import find_images
    from m3score.routing.predict import predict_many
    from m3score.scoring.scorers.model_stream import rank_stream

    found = list(find_images(list(paths)))
    foretold = list(predict_many(found, max_drop=None, predictor=predictor, limits=Limits(), spread=True))
    asked = list(rank_stream(found, load_model(model), limits=Limits()))
    both = [(a, b) for a, b in zip(foretold, asked, strict=True) if a.spread is not None and b.complexity]
    columns = [(a.complexity, a.spread, b.complexity.complexity) for a, b in both if b.complexity]
    predicted, spread, oracle = np.array(columns, float).T
    return [str(a.path) for a, _ in both], predicted, spread, oracle


def mixed(predicted: np.ndarray, oracle: np.ndarray, asked: np.ndarray) -> float:
    """Agreement of the ranking with the oracle's, where `asked` of the images went to the model."""
    line = LinearMap.through(predicted[asked], oracle[asked]) or LinearMap()
    scores = np.array([line.at(value) for value in predicted])
    return agreement(np.where(asked, oracle, scores), oracle) or 0.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--labels", help="a folder of m3score calibrate")
    parser.add_argument("--images", nargs="*", default=[], help="or pictures")
    parser.add_argument("--predictor", default="m3-tiny")
    parser.add_argument("--model", default="m3-tiny")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--plot")
    options = parser.parse_args()
    if options.labels:
        names, predicted, spread, oracle = from_labels(options.labels, options.predictor)
    else:
        names, predicted, spread, oracle = from_images(options.images, options.predictor, options.model)
    hashes = np.array([path_hash(name) for name in names], np.uint64)
    say, n, dice = sys.stdout.write, len(names), np.random.default_rng(0)
    say(f"{n:,} images\n\n| budget | cascade | random |\n|--:|--:|--:|\n")
    curves = []
    for share in BUDGETS:
        budget = Budget(share=share)
        chosen = plan(hashes, predicted, spread, budget)
        cascade = mixed(predicted, oracle, np.isin(hashes, chosen.chosen))
        drawn = [
            mixed(predicted, oracle, dice.permutation(n) < budget.images(n)) for _ in range(options.draws)
        ]
        curves.append((cascade, float(np.mean(drawn))))
        say(f"| {share:.0%} | {cascade:.3f} | {curves[-1][1]:.3f} |\n")
    if options.plot:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(5, 3.5), layout="constrained")
        for name, curve in zip(("cascade", "random choice"), np.array(curves).T, strict=True):
            axes.plot(np.array(BUDGETS) * 100, curve, "o-", label=name)
        axes.set(
            xlabel="% of images that the model is asked about", ylabel="rank correlation with asking of all"
        )
        axes.legend()
        figure.savefig(options.plot, dpi=150)


if __name__ == "__main__":
    main()
