"""Cheap features of a picture and a question: what a predictor guesses the required tokens from.

numpy and Pillow only; deterministic: the same file gives the same numbers. A predictor is bound to
FEATURE_VERSION and to the names below; whoever changes what a number means raises the version.

Pictures are looked at as the model sees them (see patch_grid.py): in a square of 24 cells a side, at 12
pixels a cell; and at their own size (see native.py), for what is too fine for that. They hang on the pixels
alone: a path, its bytes, the opened picture and its array agree. The byte size of a file is never used: files
are re-encoded.
"""

from __future__ import annotations

import math

import numpy as np

from m3score.common.limits import MAX_FILE_BYTES, MAX_PIXELS
from m3score.images.decode import open_sampled
from m3score.images.given import ImageSource
from m3score.routing.features import measures
from m3score.routing.features.native import native
from m3score.routing.features.patch_grid import SIDE, Square
from m3score.routing.features.question import question_features

FEATURE_VERSION = 3

MEANINGS: dict[str, str] = {
    # Size.
    "size_longest": "ln of the longest side of the file's picture, in pixels",
    "aspect": "ln(width / height)",
    "aspect_long": "ln of the longer over the shorter side",
    "pixels": "ln of the number of the picture's pixels",
    # At the picture's own size (native.py).
    "native_2048": "luminance lost when the longest side is made 2048 pixels, in log rms; 0 below",
    "native_1024": "the same for 1024 pixels",
    "native_512": "the same for 512 pixels",
    "letters": "ln(1 + about how many letters), by how often dark and light take turns in both directions",
    "letters_share": "share of cells of 32 pixels that look like print: contrast, dark or light",
    # What pooling loses, as ln(1 + root mean square in grey levels), log rms for short.
    "luma_1px": "luminance, lost from 288 to 144 pixels a side",
    "luma_2px": "lost from 144 to 72 pixels a side",
    "luma_4px": "lost from 72 to 24 a side",
    "luma_24": "lost from the pixels to 24 cells a side: within a patch, out of 576 tokens' reach",
    "luma_24_peak": "the same in the cell that loses most",
    "luma_24_share": "the same as a share of all the square's variance",
    "luma_12": "lost from 24 to 12 cells a side: from 576 tokens to 144",
    "luma_12_peak": "the same in the cell that loses most",
    "luma_12_share": "the same as a share of all the square's variance",
    "luma_6": "lost from 12 to 6 cells a side: to 36 tokens",
    "luma_6_peak": "the same in the cell that loses most",
    "luma_3": "lost from 6 to 3 cells a side: to 9 tokens",
    "luma_1": "lost from 3 cells a side to 1: to 1 token",
    "chroma_24": "Cb and Cr together, lost from 72 pixels to 24 cells a side",
    "chroma_24_peak": "the same in the cell that loses most",
    "chroma_12": "lost from 24 to 12 cells a side",
    "chroma_6": "lost from 12 to 6 cells a side",
    "chroma_3": "lost from 6 to 3 cells a side",
    "chroma_1": "lost from 3 cells a side to 1",
    # Where the finest loss (luma_24, per cell) is.
    "detail_cells": "effective share of cells that it is spread over, exp(entropy) / 576",
    "detail_top": "share that the 5 % of cells with most of it have",
    "detail_median": "its median, in log rms",
    "detail_high": "its 90th percentile, in log rms",
    "detail_busy": "share of cells that look busy",
    "detail_spread": "root mean square distance from its centre of mass, in sides of the square",
    # Edges and corners.
    "edges": "share of neighbouring pixels that differ by 16 grey levels or more",
    "edges_strong": "the same with 48 grey levels",
    "edges_mean": "ln(1 + mean difference of neighbouring pixels)",
    "edges_upright": "share of the differences that is between left and right",
    "edges_entropy": "entropy of the differences, in bits",
    "corners": "share of windows with a corner (lesser eigenvalue of the structure tensor)",
    "corners_mean": "mean lesser eigenvalue, in log rms",
    # Text-likeness.
    "strokes_1px": "density of thin lines, darker or lighter than both their sides, at 288 pixels a side",
    "strokes_1px_peak": "the same in the four densest cells",
    "lines_1px": "how much upright strokes come in rows with gaps",
    "strokes_2px": "density of strokes at 144 pixels a side",
    "strokes_2px_peak": "the same in the four densest cells",
    "lines_2px": "how much upright strokes come in rows with gaps",
    "strokes_4px": "density of strokes at 72 pixels a side",
    "strokes_4px_peak": "the same in the four densest cells",
    "strokes_8px": "density of strokes at 36 pixels a side",
    "contrast": "mean range of grey levels within a cell, over 255",
    "two_valued": "how much the pixels of cells with contrast are either dark or light",
    "text_cells": "share of cells that look like text: contrast, two values, strokes",
    "text_rows": "share of rows of cells with text",
    # Grey levels and colours.
    "grey_mean": "mean grey level over 255",
    "grey_deviation": "standard deviation over 255",
    "grey_entropy": "entropy of the histogram, in bits",
    "colours": "ln(1 + number of colours, of 4096)",
    "colours_entropy": "entropy of their histogram, in bits",
    "colour_strength": "ln(1 + mean distance from grey)",
    "colour_deviation": "standard deviation of Cb and Cr, in log rms",
    "hues_entropy": "entropy of the twelve hues among coloured pixels, in bits",
    # Change and order.
    "steps_4px_10": "share of neighbours, at 72 pixels a side, whose colours differ by more than 10",
    "steps_4px_20": "by more than 20",
    "steps_4px_40": "by more than 40",
    "steps_8px_10": "the same at 36 pixels a side",
    "steps_8px_20": "by more than 20",
    "steps_8px_40": "by more than 40",
    "regions_some": "ln(1 + number of connected regions of 4 pixels or more, at 72 a side)",
    "regions_large": "ln(1 + number of 26 pixels, half a per cent of the square, or more)",
    "regions_tiny": "share of the picture in regions of fewer than 4 pixels",
    "regions_first": "share of the largest region",
    "regions_five": "share of the five largest",
    "jpeg_bytes": "ln of the bytes as a grey JPEG of 144 pixels a side, quality 75",
    "mirrored": "correlation of the picture with its mirror image, at 12 cells a side",
}
"""Image features by name and what they mean. Detail and densities are of the square, as the model sees it."""

IMAGE_FEATURES: tuple[str, ...] = tuple(MEANINGS)


def image_features(
    img: ImageSource, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_FILE_BYTES
) -> np.ndarray:
    """Features of one picture: float32 (len(IMAGE_FEATURES),), finite.

    Args:
        img: a path, bytes, a PIL image or an array, as `m3score.images.decode.open_image` takes them.
        max_pixels, max_bytes: as there.

    Raises:
        M3ScoreError: the image can't be opened; the sentence names the file.
    """
    return sized_features(img, max_pixels=max_pixels, max_bytes=max_bytes)[0]


def sized_features(
    img: ImageSource, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_FILE_BYTES
) -> tuple[np.ndarray, tuple[int, int]]:
    """The features of a picture, and its (width, height) in pixels; see image_features."""
    opened = open_sampled(img, SIDE, max_pixels=max_pixels, max_bytes=max_bytes)
    width, height = opened.size
    square = Square.of(opened.image)
    levels = square.levels()
    values, cells = measures.losses(square, levels)
    values |= {
        "size_longest": math.log(max(width, height)),
        "aspect": math.log(width / height),
        "aspect_long": abs(math.log(width / height)),
    }
    values |= measures.spread(cells) | measures.edges(square, levels)
    values |= measures.strokes(square, levels, cells) | measures.colours(square)
    values |= measures.steps(square) | measures.order(square, levels)
    values |= native(opened.cells, opened.size)
    return np.array([values[name] for name in IMAGE_FEATURES], np.float32), opened.size


def features(img: ImageSource, question: str | None = None) -> np.ndarray:
    """Image and question features, one after the other: float32 (IMAGE_FEATURES + QUESTION_FEATURES,)."""
    return np.concatenate([image_features(img), question_features(question)])
