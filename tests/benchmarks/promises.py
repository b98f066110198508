"""Are promises kept? Run: python tests/benchmarks/promises.py [--pipelines 300]

Simulated pipelines of a kind that broke promises: complex images have more questions, and are harder to
route. Each pipeline draws calibration images, certifies a margin per image and one per question, and looks up
the true shares of regrets in the population that the images were drawn from. A promise at confidence c may be
broken by 1 - c of the pipelines; "per image, held to all questions" is what must not be promised.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass

import numpy as np

from m3score.routing.promises.certify import certify, certify_questions, margins, regrets_at, route

LADDER = (1, 9, 36, 144, 576)
MOST = 8
"""Questions about one image."""


@dataclass(frozen=True)
class Population:
    """Questions about images: what is predicted of them, and at which scales they are answered."""

    image: np.ndarray
    """int (m,), ascending from 0."""
    predictions: np.ndarray
    sufficient: np.ndarray

    def rows_of(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of some images (one may come twice), and which of these each is about."""
        starts = np.searchsorted(self.image, np.arange(self.image[-1] + 2))
        rows = [np.arange(starts[i], starts[i + 1]) for i in images]
        return np.concatenate(rows), np.repeat(np.arange(len(rows)), [len(one) for one in rows])


def population(images: int = 20_000, seed: int = 20) -> Population:
    """Complex images have up to MOST questions, plain ones one or two; predictions see little of it."""
    rng = np.random.default_rng(seed)
    hard = rng.beta(0.6, 1.2, images)
    image = np.repeat(np.arange(images), 1 + rng.binomial(MOST - 1, hard))
    need = np.round(4.5 * hard[image] + rng.normal(scale=1.2, size=len(image)))
    sufficient = np.arange(len(LADDER)) >= need[:, None]
    sufficient ^= rng.random(sufficient.shape) < 0.03
    guess = 0.25 * hard[image] + 0.3 + rng.normal(scale=0.12, size=images)[image]
    predictions = np.clip(guess, 0, 1) * math.log(LADDER[-1])
    return Population(image, predictions.astype(np.float32), sufficient)


def broken(
    people: Population, images: int, max_drop: float, confidence: float, pipelines: int, seed: int = 21
) -> dict[str, tuple[float, float, float]]:
    """By promise: the share of pipelines that broke it, that certified anything, and the mean tokens."""
    grid, rng = margins(LADDER), np.random.default_rng(seed)
    regrets = np.stack([regrets_at(people.predictions, people.sufficient, m, LADDER) for m in grid])
    tokens = np.array([route(people.predictions, m, LADDER).mean() for m in grid])
    asked = np.bincount(people.image)
    shares = np.stack([np.bincount(people.image, weights=row) / asked for row in regrets])
    true = {"image": shares.mean(axis=1), "question": regrets.mean(axis=1)}
    place = {float(m): k for k, m in enumerate(grid)}
    found: dict[str, list[tuple[bool, bool, float]]] = {}
    for _ in range(pipelines):
        rows, image = people.rows_of(rng.integers(len(asked), size=images))
        order = rng.permutation(len(rows))
        _, first = np.unique(image[order], return_index=True)
        single, kept = rows[order[first]], {}

        def single_at(margin: float, rows: np.ndarray = single) -> np.ndarray:
            return regrets[place[margin]][rows]

        def all_at(margin: float, rows: np.ndarray = rows) -> np.ndarray:
            return regrets[place[margin]][rows]

        kept["image"] = certify(grid, single_at, max_drop, confidence)
        kept["question"] = certify_questions(grid, all_at, image, MOST, max_drop, confidence)
        for per, held in (("image", "image"), ("image", "question"), ("question", "question")):
            k = place[kept[per].margin]
            name = f"per {per}" if per == held else f"per {per}, held to all questions"
            said = kept[per].certified, bool(true[held][k] > max_drop), float(tokens[k])
            found.setdefault(name, []).append((said[1], said[0], said[2]))
    return {name: tuple(np.mean(values, axis=0).tolist()) for name, values in found.items()}


def main() -> None:
    options = argparse.ArgumentParser(description="Simulated pipelines that calibrate and promise.")
    options.add_argument("--pipelines", type=int, default=300)
    chosen = options.parse_args()
    people = population()
    lines = ["| max drop | confidence | images | promise | broken | certified | mean tokens |"]
    lines += ["|---:|---:|---:|---|---:|---:|---:|"]
    for max_drop, confidence, images in ((0.1, 0.9, 300), (0.05, 0.9, 600), (0.05, 0.95, 600)):
        results = broken(people, images, max_drop, confidence, chosen.pipelines)
        for name, (share, certified, tokens) in results.items():
            lines.append(
                f"| {max_drop:.0%} | {confidence:.0%} | {images} | {name} | {share:.1%} | {certified:.0%} | "
                f"{tokens:.0f} |"
            )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
