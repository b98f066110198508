"""The complexity without a question: spectra whose numbers are known, and pictures whose order is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from m3score.common.errors import M3ScoreError
from m3score.models.vision.complexity import (
    Distinct,
    combine,
    distinct_tokens,
    score_pictures,
    spectral_entropy,
)
from m3score.models.vision.reader import Reading
from m3score.models.vision.whitening import Whitening

LADDER = (1, 4, 16)
WIDTH = 8


def plain(nothing: float = 0.0, texture_bias: float = -100.0, texture_weight: float = 0.0) -> Whitening:
    """Statistics that leave features as they are; tokens of a large last feature may count as texture."""
    layer_in = torch.zeros(WIDTH + 1, 1)
    layer_in[WIDTH - 1] = texture_weight
    return Whitening(
        torch.zeros(16, WIDTH),
        torch.eye(WIDTH),
        layer_in,
        torch.tensor([1.0, texture_bias]),
        torch.tensor(nothing),
    )


def picture(kinds: list[int]) -> torch.Tensor:
    """(1, 16, 8): at each place one of several equally different features."""
    return torch.eye(WIDTH)[torch.tensor(kinds)][None] * 10


def nothing_to_read() -> Reading:
    return Reading(0.0, None, np.zeros((24, 24), np.float32))


# ---- the spectrum ---------------------------------------------------------------------------------------


def test_equal_eigenvalues_count_themselves() -> None:
    assert spectral_entropy(torch.tensor([[3.0, 3.0, 3.0, 0.0]]), 0.0).exp().item() == pytest.approx(3)
    assert spectral_entropy(torch.tensor([[3.0, 3.0, 3.0]]), 3.0).exp().item() == pytest.approx(
        math.exp(-(math.log(1 / 3) / 3 + 2 / 3 * math.log(2 / 9)))
    )


def test_what_varies_no_more_than_nothing_is_one_token() -> None:
    spectra = torch.tensor([[1.0, 0.9], [0.0, 0.0], [1.1, 1.0]])
    tokens = spectral_entropy(spectra, 2.0).exp()
    assert tokens[0] == tokens[1] == 1
    assert 1 < tokens[2] < 2


def test_a_picture_of_k_kinds_of_patches_has_k_tokens() -> None:
    for kinds in (2, 4, 8):
        (found,) = distinct_tokens([picture([i % kinds for i in range(16)])], plain(), LADDER)
        # k points centred span k - 1 directions
        assert found.tokens == pytest.approx(kinds - 1, rel=1e-4)


def test_scale_and_turning_of_features_change_nothing() -> None:
    features = torch.randn(1, 16, WIDTH, generator=torch.Generator().manual_seed(0))
    turned = 3 * features @ torch.linalg.qr(torch.randn(WIDTH, WIDTH))[0]
    one, other = distinct_tokens([features, turned], plain(), LADDER)
    assert one.tokens == pytest.approx(other.tokens, rel=1e-4)


def test_texture_is_one_token_however_much_it_varies() -> None:
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 16, WIDTH, generator=random)
    noise[..., -1] = 20
    knows_texture = plain(texture_bias=-100, texture_weight=20.0)
    (ignorant,), (found,) = (distinct_tokens([noise], known, LADDER) for known in (plain(), knows_texture))
    assert ignorant.tokens > 4
    assert found.tokens == pytest.approx(1, abs=1e-3)


def test_more_features_than_tokens_and_the_other_way_round() -> None:
    """Eigenvalues come from the smaller of both products."""
    random = torch.Generator().manual_seed(0)
    wide = torch.randn(1, 4, WIDTH, generator=random)
    known = Whitening(
        torch.zeros(4, WIDTH),
        torch.eye(WIDTH),
        torch.zeros(WIDTH + 1, 1),
        torch.tensor([0.0, -9.0]),
        torch.tensor(0.1),
    )
    (found,) = distinct_tokens([wide], known, (1, 4))
    centred = (wide[0] - wide[0].mean(0)).double()
    expected = spectral_entropy(torch.linalg.eigvalsh(centred.T @ centred / 4)[None].clamp(min=0), 0.1).exp()
    assert found.tokens == pytest.approx(expected.item(), rel=1e-3)


def test_shares_kept_by_pooling() -> None:
    quarters = [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]
    checks = [0, 1, 0, 1, 1, 0, 1, 0, 0, 1, 0, 1, 1, 0, 1, 0]
    one, other = distinct_tokens([picture(quarters), picture(checks)], plain(), LADDER)
    assert one.kept == pytest.approx((0, 1), abs=1e-6)
    assert other.kept == pytest.approx((0, 0), abs=1e-6)


def test_the_map_shows_the_odd_patch() -> None:
    kinds = [0] * 16
    kinds[6] = 1
    (found,) = distinct_tokens([picture(kinds)], plain(), LADDER)
    assert found.shares.shape == (4, 4)
    assert np.unravel_index(found.shares.argmax(), (4, 4)) == (1, 2)
    assert found.shares.sum() == pytest.approx(1, rel=1e-5)


def test_pictures_in_tiles_beside_others() -> None:
    """Tiles count together: the same tile twice has as many tokens as once."""
    tile = picture([i % 4 for i in range(16)])
    two = torch.cat([tile, tile])
    more = torch.cat([tile, picture([4 + i % 4 for i in range(16)])])
    once, twice, both = distinct_tokens([tile, two, more], plain(), LADDER)
    assert once.tokens == pytest.approx(twice.tokens, rel=1e-4)
    assert both.tokens == pytest.approx(7, rel=1e-4)
    assert once.kept == pytest.approx(twice.kept, abs=1e-5)


def test_half_precision_keeps_the_order() -> None:
    random = torch.Generator().manual_seed(0)
    features = [
        torch.randn(1, 16, WIDTH, generator=random) * torch.linspace(1, spread, WIDTH)
        for spread in (0.1, 1, 0.5, 0.3)
    ]
    exact = [found.tokens for found in distinct_tokens(features, plain(0.5), LADDER)]
    rough = [found.tokens for found in distinct_tokens([f.bfloat16() for f in features], plain(0.5), LADDER)]
    assert np.argsort(exact).tolist() == np.argsort(rough).tolist()
    assert rough == pytest.approx(exact, rel=0.02)


def test_numbers_that_are_none_are_an_error() -> None:
    broken = picture([0, 1] * 8)
    broken[0, 3, 2] = torch.inf
    with pytest.raises(M3ScoreError, match="not finite"):
        distinct_tokens([broken], plain(), LADDER)


# ---- both demands ---------------------------------------------------------------------------------------


def distinct(tokens: float) -> Distinct:
    return Distinct(tokens, (0.0, 0.5), np.full((4, 4), 1 / 16, np.float32))


def test_the_harder_demand_counts() -> None:
    cells = np.zeros((24, 24), np.float32)
    cells[0, :6] = 1.5
    seen = combine(distinct(12), Reading(9.0, 5.0, cells), LADDER)
    read = combine(distinct(3), Reading(9.0, 5.0, cells), LADDER)
    assert (seen.effective_tokens, seen.required_tokens) == (12, 16)
    assert (read.effective_tokens, read.required_tokens) == (9, 16)
    assert read.complexity == pytest.approx(math.log(9) / math.log(16))
    for score in (seen, read):
        assert score.map.sum() == pytest.approx(score.effective_tokens, rel=1e-5)
    assert read.map[0, 0] == pytest.approx(9) and read.map[1:].sum() == 0
    assert seen.map.std() < 1e-6


def test_more_print_than_the_finest_scale_holds_is_the_whole_of_it() -> None:
    cells = np.full((24, 24), 5000 / 576, np.float32)
    score = combine(distinct(3), Reading(5000.0, 1.0, cells), LADDER)
    assert (score.complexity, score.effective_tokens, score.required_tokens) == (1, 16, 16)
    assert score.reading_tokens == 5000


def test_nothing_is_nought() -> None:
    score = combine(distinct(1), nothing_to_read(), LADDER)
    assert (score.complexity, score.effective_tokens, score.required_tokens) == (0, 1, 1)
    assert combine(distinct(1), nothing_to_read(), (1,)).complexity == 0


def test_a_row_has_a_column_per_scale() -> None:
    (score,) = score_pictures([picture([0, 1] * 8)], [nothing_to_read()], plain(), LADDER)
    row = score.to_row()
    assert {"complexity", "effective_tokens", "required_tokens", "distinct_tokens"} <= set(row)
    assert {"reading_tokens", "letter_height", "kept_1", "kept_4"} <= set(row)
    assert row["judged_by"] == "vision" and row["letter_height"] is None
