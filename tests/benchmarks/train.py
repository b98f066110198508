"""What one vision pass for all scales saves in training, as ratios on this machine's CPU.

    python tests/benchmarks/train.py [--model m3-tiny] [--rounds 5]

Times one step (loss and gradients) on the same records: the authors' way (the whole model once per scale),
and m3score's, one vision pass with the scales one after the other or packed into one sequence.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Annotated

import numpy as np
import torch
import typer

from m3score import load_model
from m3score.calibration.drawings.drawing import draw
from m3score.calibration.training.finetune.instructions import Example
from m3score.calibration.training.finetune.packing import summed_losses
from m3score.models.m3.conversation import training_example
from m3score.models.m3.preprocess import preprocess


def _examples(model, count: int) -> list[Example]:
    examples = []
    for index in range(count):
        drawing = draw(77, index)
        asked = drawing.questions[0]
        turns = [{"from": "human", "value": asked.question}, {"from": "gpt", "value": asked.answer}]
        ids, labels = training_example(turns, model.tokenizer, model.config.conversation)
        examples.append(Example(ids, labels, [preprocess(drawing.image, model.config)]))
    return examples


def _seconds(step: Callable[[], torch.Tensor]) -> float:
    start = time.perf_counter()
    step().backward()
    return time.perf_counter() - start


def main(
    model: Annotated[str, typer.Option()] = "m3-tiny",
    batch: Annotated[int, typer.Option()] = 4,
    rounds: Annotated[int, typer.Option()] = 5,
) -> None:
    torch.set_num_threads(1)
    m3 = load_model(model, device="cpu", dtype="float32")
    examples = _examples(m3, batch)
    typer.echo("| | tower frozen | tower tuned |\n|---|--:|--:|")
    ratios: dict[str, list[float]] = {}
    for tuned in (False, True):

        def losses(scales, packed, tuned=tuned):
            return summed_losses(m3, examples, scales, train_vision=tuned, packed=packed).sum()

        ways = {
            "the whole model once per scale": lambda: sum(losses((n,), False) for n in m3.ladder),
            "one vision pass, scale after scale": lambda: losses(m3.ladder, False),
            "one vision pass, scales packed": lambda: losses(m3.ladder, True),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds + 1):
            for name, step in ways.items():
                m3.hf_model.zero_grad(set_to_none=True)
                seconds = _seconds(step)
                if number:  # the first round warms up
                    times[name].append(seconds)
        medians = {name: statistics.median(own) for name, own in times.items()}
        whole = next(iter(medians.values()))
        for name, median in medians.items():
            ratios.setdefault(name, []).append(median / whole)
    for name, row in ratios.items():
        typer.echo(f"| {name} | " + " | ".join(f"{np.round(ratio, 2):.2f}" for ratio in row) + " |")


if __name__ == "__main__":
    typer.run(main)
