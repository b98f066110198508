"""Questions about drawn images: their wordings, and questions that the pixels of any picture answer."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from m3score.calibration.drawings.canvas import SIZE


@dataclass(frozen=True)
class DrawnQuestion:
    """A question about a drawn image, its answer, and the skill that it tests."""

    task: str
    question: str
    answer: str
    detail: dict[str, Any] = field(default_factory=dict)
    """For analyses: the letter height or the size of a shape, in pixels."""


WORDINGS: dict[str, tuple[str, ...]] = {
    "number": ("What number is on the sign?", "Which number do you see?", "Read the number."),
    "word": ("What word is on the sign?", "What does the sign say?", "Read the word."),
    "describe": ("Describe the image.", "What is in the image?", "Describe this picture."),
    "count": ("How many shapes are there?", "How many objects are in the image?", "Count the shapes."),
    "count kind": ("How many {kinds} are there?", "What is the number of {kinds}?", "Count the {kinds}."),
    "count bars": ("How many bars are there?", "How many bars does the chart have?", "Count the bars."),
    "colour": (
        "What color is the {kind}?",
        "What colour is the {kind}?",
        "Which color does the {kind} have?",
    ),
    "place": (
        "Where is the {thing}?",
        "In which part of the image is the {thing}?",
        "Where do you see the {thing}?",
    ),
    "presence": ("Is there {thing}?", "Do you see {thing}?", "Is there {thing} in the image?"),
    "highest": (
        "Which bar is the highest?",
        "What color is the tallest bar?",
        "Which bar has the largest value?",
    ),
    "lowest": (
        "Which bar is the lowest?",
        "What color is the shortest bar?",
        "Which bar has the smallest value?",
    ),
    "value": ("What is the value of the {colour} bar?", "How high is the {colour} bar?"),
    "field": ("What is the {key}?", "What does the page say for {key}?", "Read the field {key}."),
    "regions": ("How many regions are there?", "How many colored areas are there?", "Count the regions."),
    "pixel colour": ("What color is at the {place}?", "What colour do you see at the {place}?"),
    "brighter": ("Which is brighter, the {one} or the {other}?", "Is the {one} or the {other} brighter?"),
    "texture": ("Is there fine texture at the {place}?", "Is the {place} finely textured?"),
}
SHORT = " Answer the question using a single word or phrase."
"""LLaVA's suffix for short answers. Training uses it at times, because benchmark prompts have it."""

PLACES = {
    f"{row} {column}".strip() or "middle": (x, y)
    for y, row in enumerate(("top", "", "bottom"))
    for x, column in enumerate(("left", "", "right"))
}


def wording(rng: np.random.Generator, task: str, **words: str) -> str:
    """One of a task's wordings, filled in; at times with LLaVA's suffix for short answers."""
    text = str(rng.choice(WORDINGS[task])).format(**words)
    return text + SHORT if task != "describe" and rng.random() < 0.15 else text


_HUES = {
    "red": (-14, 8),
    "orange": (20, 38),
    "yellow": (47, 64),
    "green": (85, 160),
    "blue": (205, 250),
    "purple": (268, 300),
}
"""Ranges of hue, in degrees, whose names people agree on."""


def colour_name(red: float, green: float, blue: float) -> str | None:
    """The basic colour name of an RGB value (0 to 255), or None where people would disagree."""
    hue, light, _ = colorsys.rgb_to_hls(red / 255, green / 255, blue / 255)
    chroma = (max(red, green, blue) - min(red, green, blue)) / 255
    if light < 0.1:
        return "black"
    if chroma < 0.06:
        return "white" if light > 0.9 else ("gray" if 0.25 < light < 0.75 else None)
    if chroma < 0.3:
        return None
    degrees = hue * 360
    if 8 < degrees < 40 and 0.12 < light < 0.38:
        return "brown"
    if light > 0.72 and (degrees > 310 or degrees < 10):
        return "pink"
    if not 0.25 < light < 0.75:
        return None
    for name, (low, high) in _HUES.items():
        if low <= degrees <= high or low <= degrees - 360 <= high:
            return name
    return None


def _block(values: np.ndarray, place: str) -> np.ndarray:
    """The middle of one of the nine places: a square with a sixth of the picture's side."""
    x, y = PLACES[place]
    step = SIZE // 3
    start_x, start_y = x * step + step // 4, y * step + step // 4
    return values[start_y : start_y + step // 2, start_x : start_x + step // 2]


def _pixel_colour(rng: np.random.Generator, pixels: np.ndarray, place: str) -> tuple[str, str, str] | None:
    block = _block(pixels, place).reshape(-1, 3)
    name = colour_name(*block.mean(axis=0))
    if name is None or block.std(axis=0).max() > 45:
        return None
    return "pixel_colour", wording(rng, "pixel colour", place=place), name


def _brighter(rng: np.random.Generator, pixels: np.ndarray, place: str) -> tuple[str, str, str] | None:
    other = str(rng.choice([name for name in PLACES if name != place]))
    difference = _block(pixels, place).mean() - _block(pixels, other).mean()
    if abs(difference) < 20:
        return None
    return "brighter", wording(rng, "brighter", one=place, other=other), place if difference > 0 else other


def _texture(rng: np.random.Generator, pixels: np.ndarray, place: str) -> tuple[str, str, str] | None:
    block = _block(pixels, place).mean(axis=2)
    energy = np.abs(np.diff(block, axis=0)).mean() + np.abs(np.diff(block, axis=1)).mean()
    if 3 < energy < 9:
        return None
    # Smooth places are far more common; asking about all of them would teach the answer "no".
    if energy <= 3 and rng.random() < 0.6:
        return None
    return "texture", wording(rng, "texture", place=place), "yes" if energy >= 9 else "no"


def pixel_questions(rng: np.random.Generator, pixels: np.ndarray, wanted: int) -> list[tuple[str, str, str]]:
    """Up to `wanted` questions (task, question, answer) that any picture (336, 336, 3) can be asked."""
    found = []
    for _ in range(4 * wanted):
        ask = (_pixel_colour, _brighter, _texture)[int(rng.integers(3))]
        item = ask(rng, pixels, str(rng.choice(list(PLACES))))
        if item is not None:
            found.append(item)
        if len(found) == wanted:
            break
    return found
