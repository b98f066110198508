from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m3score.common.errors import M3ScoreError
from m3score.models.m3.ladder import (
    count_visual_tokens,
    default_ladder,
    join_tiles,
    make_ladder,
    pool,
    pool_kernel,
    pooled_side,
    round_up,
    unpad_window,
)
from m3score.models.m3.preprocess import best_canvas
from tests.support.goldens import GOLDEN, NEXT, SCALES, golden

PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
sides = st.integers(1, 2000)


def test_the_papers_ladder() -> None:
    assert default_ladder(24) == SCALES
    assert make_ladder([576, 144, 36, 9, 1], 24) == SCALES


@given(st.integers(1, 64))
def test_every_default_ladder_is_one(grid: int) -> None:
    ladder = default_ladder(grid)
    assert ladder == make_ladder(ladder, grid)
    assert (ladder[0], ladder[-1]) == (1, grid * grid)


@pytest.mark.parametrize("scales", [[], [1, 2], [577], [0], [-1]])
def test_no_ladder(scales: list[int]) -> None:
    with pytest.raises(M3ScoreError):
        make_ladder(scales, 24)


@pytest.mark.parametrize("tokens", [0, -1, 577, 1000, 1.5, "9", True, None])
def test_a_scale_that_makes_no_sense(tokens: object) -> None:
    with pytest.raises(M3ScoreError, match="1 to 576"):
        pool_kernel(tokens, 24)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tokens", "given"),
    [
        (1, 1),
        (2, 1),
        (4, 4),
        (5, 4),
        (9, 9),
        (16, 16),
        (36, 36),
        (64, 64),
        (100, 144),
        (300, 576),
        (576, 576),
    ],
)
def test_tokens_outside_the_ladder_are_those_the_authors_get(tokens: int, given: int) -> None:
    assert pooled_side(tokens, 24) ** 2 == given


@given(st.floats(0, 1000), st.sampled_from([SCALES, default_ladder(16), (1,)]))
def test_round_up(tokens: float, ladder: tuple[int, ...]) -> None:
    chosen = round_up(tokens, ladder)
    assert chosen in ladder
    assert chosen >= tokens or chosen == ladder[-1]
    assert all(scale < tokens for scale in ladder if scale < chosen)


@settings(deadline=None, derandomize=True)
@given(st.sampled_from([(24, scale) for scale in SCALES] + [(16, 4), (12, 9), (7, 49)]), st.integers(0, 99))
def test_pooling_keeps_means(grid_and_tokens: tuple[int, int], seed: int) -> None:
    grid, tokens = grid_and_tokens
    features = torch.randn(
        2, grid * grid, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    pooled = pool(features, tokens)
    assert pooled.shape == (2, tokens, 3)
    torch.testing.assert_close(pooled.mean(dim=1), features.mean(dim=1))


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 576), st.integers(0, 99))
def test_pooling_is_torchs(tokens: int, seed: int) -> None:
    features = torch.randn(1, 576, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    kernel = int(math.sqrt(576 / tokens))
    as_image = features.transpose(1, 2).reshape(1, 2, 24, 24)
    expected = torch.nn.functional.avg_pool2d(as_image, kernel, kernel).flatten(2).transpose(1, 2)
    torch.testing.assert_close(pool(features, tokens), expected)


def test_counts_of_the_goldens() -> None:
    for image, expected in golden(NEXT)["images"].items():
        size = GOLDEN["images"][image]["width"], GOLDEN["images"][image]["height"]
        tiles = tuple(expected["grid_wh"])
        assert best_canvas(size, PINPOINTS) == tuple(expected["best_resolution_wh"])
        for tokens in SCALES:
            assert count_visual_tokens(tokens, 24, size, tiles) == expected["n_visual_tokens"][str(tokens)]


def test_a_small_image_may_have_its_overview_only() -> None:
    assert best_canvas((300, 200), PINPOINTS) == (336, 672)  # a tie: the first listed wins
    assert count_visual_tokens(1, 24, (300, 200), (1, 2)) == 1
    assert unpad_window((1, 2), (49, 49)).columns == 1
    assert unpad_window((1, 2), (49, 49)).rows == 0  # 49 * (1 / 49) is less than 1 in floating point


@settings(deadline=None, derandomize=True)
@given(sides, sides, st.sampled_from(SCALES))
def test_counting_is_joining(width: int, height: int, tokens: int) -> None:
    canvas = best_canvas((width, height), PINPOINTS)
    tiles = canvas[0] // 336, canvas[1] // 336
    side = pooled_side(tokens, 24)
    pooled = torch.zeros(1 + tiles[0] * tiles[1], side * side, 1)
    for merge in ("flat", "spatial", "spatial_unpad"):
        joined = join_tiles(pooled, (width, height), tiles, torch.ones(1), merge)
        assert len(joined) == count_visual_tokens(tokens, 24, (width, height), tiles, merge)
    assert joined.sum() == unpad_window((tiles[0] * side, tiles[1] * side), (width, height)).rows


@given(sides, sides, st.integers(1, 72), st.integers(1, 72))
def test_the_window_lies_on_the_grid_and_is_centred(width: int, height: int, columns: int, rows: int) -> None:
    window = unpad_window((columns, rows), (width, height))
    assert window.top >= 0 and window.bottom <= rows and window.left >= 0 and window.right <= columns
    assert window.top == rows - window.bottom and window.left == columns - window.right
    assert window.rows == rows or window.columns == columns


def test_tiles_are_joined_row_by_row() -> None:
    # Two tiles beside each other, each a 2x2 grid; the image fills the canvas.
    overview, left, right = [0.0, 1, 2, 3], [10.0, 11, 12, 13], [20.0, 21, 22, 23]
    pooled = torch.tensor([overview, left, right])[..., None]
    joined = join_tiles(pooled, (672, 336), (2, 1), torch.tensor([-1.0]))
    assert joined.flatten().tolist() == [0, 1, 2, 3, 10, 11, 20, 21, -1, 12, 13, 22, 23, -1]


def test_newlines_are_needed() -> None:
    with pytest.raises(M3ScoreError, match="image_newline"):
        join_tiles(torch.zeros(3, 4, 1), (672, 336), (2, 1), None)
