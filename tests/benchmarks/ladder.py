"""What does a whole ladder of answers cost? Run: python tests/benchmarks/ladder.py [MODEL ...]

By default m3-tiny and the tiny LLaVA-NeXT checkpoint of the tests, 16 images of 640x480 in a batch. Answers
have a set length, because the end token is taken from the models: 4 tokens are short ones, 30 a description.
Everything is measured in turns, in every round; ratios are medians over rounds, of wall-clock time and of
processor time, which others' work disturbs less.

- finest: the images are encoded, the finest scale answers.
- ladder: all scales answer; agreement: without coarse answers.
- naive: each scale by itself, one image and question at a time: encode, prefill, decode.
- generate: transformers' own, on the same embeddings; against the finest scale alone, both without encoding.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from m3score import load_model
from m3score.models.inference.generation import greedy, greedy_pairs
from m3score.models.m3.model import M3Model

NEXT = Path(__file__).parents[1] / "data/parity/checkpoints/tiny-llava-next-vicuna-7b-m3"
QUESTIONS = (
    "Which bar is the highest?",
    "What color is at the middle?",
    "Which is brighter, the top left or the bottom right?",
    "How many circles are there?",
    "What is written at the top?",
)
SHORT, LONG = 4, 30
Work = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One line of the table: what is divided by what, and the bar."""

    name: str
    above: str
    below: str
    bar: float
    at_most: bool


ROWS = (
    Row("ladder / finest, short answers", "ladder", "finest", 1.6, True),
    Row("ladder / finest, agreement only", "agreement", "finest", 1.5, True),
    Row("ladder / finest, descriptions", "ladder-long", "finest-long", 2.0, True),
    Row("naive / ladder, one question", "naive", "ladder", 2.2, False),
    Row("naive / ladder, five questions", "naive-5", "ladder-5", 5.0, False),
    Row("generate / finest, short answers", "generate", "decode", 1.0, False),
    Row("generate / finest, descriptions", "generate-long", "decode-long", 1.0, False),
)


def pictures(count: int) -> list[Image.Image]:
    """Different parts of a fractal, 640x480."""
    return [
        Image.effect_mandelbrot((640, 480), (-2 + k / 20, -1.2, 0.5 + k / 20, 1.2), 60).convert("RGB")
        for k in range(count)
    ]


def works(m3: M3Model, images: list[Image.Image], several: list[Image.Image]) -> dict[str, Work]:
    """What is measured, by name. `several` are the images that are asked five questions."""
    top = m3.ladder[-1]
    encoded = m3.encode(images)
    pairs = [(image, QUESTIONS[0]) for image in encoded]

    def ladder(pictures: list[Image.Image], questions: int, tokens: int, decode_coarse: bool = True) -> Work:
        asked = [list(QUESTIONS[:questions])] * len(pictures)
        size = len(pictures) * questions
        return lambda: m3.answer_ladder(
            pictures, asked, max_new_tokens=tokens, decode_coarse=decode_coarse, batch_size=size
        )

    def finest(tokens: int) -> Work:
        return lambda: m3.answer(images, QUESTIONS[:1] * len(images), max_new_tokens=tokens, batch_size=99)

    def naive(pictures: list[Image.Image], questions: int) -> Work:
        def run() -> None:
            for picture in pictures:
                for question in QUESTIONS[:questions]:
                    for scale in m3.ladder:
                        prompt = m3.prompt_embeddings(m3.encode(picture), question, scale)
                        greedy(m3, [prompt], SHORT)

        return run

    def decode(tokens: int) -> Work:
        return lambda: [answer.ids for answer in greedy_pairs(m3, pairs, top, tokens)]

    def generate(tokens: int) -> Work:
        return lambda: transformers_answers(m3, pairs, tokens)

    for tokens in (SHORT, LONG):
        same = decode(tokens)() == generate(tokens)()
        if not same and m3.dtype == torch.float32:  # in 16 bits, near ties fall either way
            raise SystemExit("transformers' answers are others.")
    return {
        "finest": finest(SHORT),
        "finest-long": finest(LONG),
        "ladder": ladder(images, 1, SHORT),
        "agreement": ladder(images, 1, SHORT, decode_coarse=False),
        "ladder-long": ladder(images, 1, LONG),
        "naive": naive(images, 1),
        "ladder-5": ladder(several, 5, SHORT),
        "naive-5": naive(several, 5),
        "decode": decode(SHORT),
        "generate": generate(SHORT),
        "decode-long": decode(LONG),
        "generate-long": generate(LONG),
    }


@torch.no_grad()
def transformers_answers(m3: M3Model, pairs: list[Any], tokens: int) -> list[list[int]]:
    """The same answers by generate(); prompts are equally long, so there is no padding."""
    from transformers import GenerationConfig

    prompts = torch.stack([m3.prompt_embeddings(image, question, None) for image, question in pairs])
    plain = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0)
    made = m3.hf_model.generate(
        inputs_embeds=prompts,
        attention_mask=torch.ones(prompts.shape[:2], dtype=torch.long, device=prompts.device),
        generation_config=plain,
    )
    return made.tolist()


def measure(todo: dict[str, Work], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """(wall-clock, processor) seconds of each, in turns."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in todo}
    for _ in range(rounds):
        for name, work in todo.items():
            start, used = time.perf_counter(), time.process_time()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # what was only asked for isn't done yet
            times[name].append((time.perf_counter() - start, time.process_time() - used))
    return times


def report(times: dict[str, list[tuple[float, float]]], images: int) -> None:
    def ratio(row: Row, clock: int) -> float:
        both = zip(times[row.above], times[row.below], strict=True)
        return statistics.median(above[clock] / max(below[clock], 1e-9) for above, below in both)

    say(f"| {'':<34} |   bar | wall clock | processor |")
    say(f"|{'-' * 36}|------:|-----------:|----------:|")
    for row in ROWS:
        bar = f"{'<=' if row.at_most else '>='} {row.bar}"
        say(f"| {row.name:<34} | {bar:>5} | {ratio(row, 0):10.2f} | {ratio(row, 1):9.2f} |")
    seconds = {name: statistics.median(wall for wall, _ in found) for name, found in times.items()}
    each = ", ".join(f"{name} {value:.2f}" for name, value in seconds.items())
    say(f"Seconds: {each}.")
    say(f"Images/s: finest {images / seconds['finest']:.1f}, ladder {images / seconds['ladder']:.1f}.")


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def machine() -> str:
    """The processor's name, and how much of it is used."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    return (
        f"{name or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, float32"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of a ladder of answers, as ratios.")
    parser.add_argument("models", nargs="*", default=["m3-tiny", str(NEXT)])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--threads", type=int, help="of torch; by default all processors")
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    say(machine())
    for name in chosen.models:
        m3 = load_model(name, device="cpu", dtype="float32")
        m3.stop_ids = frozenset()
        m3.hf_model.generation_config.eos_token_id = None  # which generate() falls back to
        images = pictures(chosen.images)
        todo = works(m3, images, images[: max(1, chosen.images // 4)])
        measure(todo, 1)  # caches warm up
        say(f"\n{Path(name).name}, {chosen.images} images of 640x480, {chosen.rounds} rounds\n")
        report(measure(todo, chosen.rounds), chosen.images)


if __name__ == "__main__":
    main()
