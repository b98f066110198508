"""Pictures unlike the calibration's: p-values that mean what they say, and what a predictor does of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from m3score.calibration.drawings.drawing import draw
from m3score.calibration.predictor.familiarity import fit_familiarity
from m3score.common.errors import M3ScoreError
from m3score.routing.decision import BUDGET, NO_PROMISE, UNCERTIFIED, Wish
from m3score.routing.features.image import image_features
from m3score.routing.predict import predict_many
from m3score.routing.predictor import Predictor
from m3score.routing.promises.familiar import LEVEL, Familiarity, fewest
from m3score.routing.registry import load_predictor
from tests.benchmarks.features import draw_photograph
from tests.support.predictors import made_up, small_predictor


def kinds(n: int, seed: int) -> np.ndarray:
    """Pictures of three kinds, each in a place of its own: what is in their middle is of none."""
    rng = np.random.default_rng(seed)
    places = np.array([[6.0, 0, 0, 0], [-6, 6, 0, 0], [-6, -6, 0, 0]])
    return places[rng.integers(0, 3, n)] + rng.normal(size=(n, 4))


@pytest.fixture(scope="module")
def known() -> Familiarity:
    return fit_familiarity(kinds(1500, 0), kinds(600, 1))


def test_few_of_the_same_kinds_are_strange_and_those_between_are(known: Familiarity) -> None:
    fresh = (known.p_values(kinds(3000, 2)) <= LEVEL).mean()
    assert 0.02 < fresh <= LEVEL + 2.5 * np.sqrt(LEVEL * (1 - LEVEL) / 600)
    between = np.random.default_rng(3).normal(scale=0.5, size=(200, 4))
    assert (known.p_values(between) <= LEVEL).mean() > 0.95
    assert (known.p_values(100 * between) <= LEVEL).all()


def test_p_values_are_uniform_over_calibrations() -> None:
    """The level is kept on the average, however few the images: 40 fits of 60 and 60 images."""
    shares = []
    for seed in range(40):
        found = fit_familiarity(kinds(60, 10 * seed), kinds(60, 10 * seed + 1))
        shares.append((found.p_values(kinds(300, 10 * seed + 2)) <= LEVEL).mean())
    assert np.mean(shares) == pytest.approx(3 / 61, abs=0.02)


def test_too_few_images_call_nothing_strange() -> None:
    assert fewest() == 19
    for images, found in ((18, False), (19, True)):
        one = fit_familiarity(kinds(50, 0), kinds(images, 1))
        assert (one.p_values(np.full((1, 4), 1e3)) <= LEVEL).all() == found


def test_a_row_is_the_same_in_any_batch(known: Familiarity) -> None:
    X = kinds(40, 5).astype(np.float32)
    single = [known.strangeness(row[None])[0] for row in X]
    np.testing.assert_array_equal(known.strangeness(X), single)


@pytest.mark.parametrize("name", ["middle", "scale", "offsets", "means", "factors", "scores"])
def test_damaged_arrays_are_refused(known: Familiarity, name: str) -> None:
    good = known.arrays()
    broken = [good[name][:0], good[name].astype(np.float64), np.full_like(good[name], np.nan)]
    for array in broken:
        with pytest.raises(M3ScoreError, match=f"the file: {name!r}"):
            Familiarity.from_arrays({**good, name: array}, "the file")
    with pytest.raises(M3ScoreError, match="the file"):
        Familiarity.from_arrays({key: value for key, value in good.items() if key != name}, "the file")
    for array in (good["factors"][:, :-1], good["factors"][:1]):
        with pytest.raises(M3ScoreError, match="do not fit each other"):
            Familiarity.from_arrays({**good, "factors": array}, "the file")
    with pytest.raises(M3ScoreError, match="must ascend"):
        Familiarity.from_arrays({**good, "scores": good["scores"][::-1].copy()}, "the file")


# ---- in a predictor -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wary() -> Predictor:
    """It was calibrated on pictures whose features are about 0."""
    familiar = fit_familiarity(made_up(400, seed=1).images, made_up(600, seed=2).images)
    return replace(small_predictor(questions=3), familiar=familiar)


def test_strange_pictures_get_the_finest_scale_and_a_reason(wary: Predictor) -> None:
    fresh, trusting = made_up(300, seed=8), replace(wary, familiar=None)
    mixed = fresh.images.copy()
    mixed[::2] += 5
    wish = Wish(max_drop=0.2)
    found, before = wary.decide(mixed, fresh.questions, wish), trusting.decide(mixed, fresh.questions, wish)
    assert before.certified.all() and set(before.reasons) == {None}
    assert not found.certified[::2].any() and (found.tokens[::2] == 576).all()
    assert found.certified[1::2].mean() >= 1 - 2 * LEVEL
    kept = found.certified
    np.testing.assert_array_equal(found.tokens[kept], before.tokens[kept])
    for sure, reason in zip(found.certified, found.reasons, strict=True):
        assert (reason is None) == sure and (sure or "unlike the pictures" in str(reason))
    np.testing.assert_array_equal(found.complexity, before.complexity)  # it is no promise


def test_who_wants_no_promise_gets_predictions_as_they_are(wary: Predictor) -> None:
    far = made_up(5).images + 5
    for wish, reason in ((Wish(max_drop=None), NO_PROMISE), (Wish(mean_tokens=30), BUDGET)):
        found = wary.decide(far, wish=wish)
        assert not found.certified.any() and set(found.reasons) == {reason}
        again = replace(wary, familiar=None).decide(far, wish=wish)
        np.testing.assert_array_equal(found.tokens, again.tokens)
    assert set(wary.decide(far, wish=Wish(max_drop=0.001)).reasons) == {UNCERTIFIED}


def test_the_file_keeps_what_is_familiar_and_all_questions(wary: Predictor, tmp_path: Path) -> None:
    wary.save(tmp_path / "a.predictor")
    again, fresh = Predictor.load(tmp_path / "a.predictor"), made_up(50, seed=9)
    for per in ("image", "question"):
        wish = Wish(max_drop=0.2, per=per)
        one, other = (p.decide(fresh.images, fresh.questions, wish) for p in (wary, again))
        np.testing.assert_array_equal(one.tokens, other.tokens)
        assert one.certificate == other.certificate and one.reasons == other.reasons
        assert one.certificate is not None and one.certificate.per == per and one.certificate.certified


def test_familiar_features_must_be_those_of_the_predictor(wary: Predictor, known: Familiarity) -> None:
    with pytest.raises(M3ScoreError, match="what is familiar has 4 features"):
        replace(wary, familiar=known)


# ---- the bundled one ----------------------------------------------------------------------------------


def test_the_bundled_predictor_knows_drawings_from_photographs(tmp_path: Path) -> None:
    drawings: list[Image.Image] = [draw(4404, i).image for i in range(40)]
    strange: list[Image.Image] = [draw_photograph(640, 480, seed) for seed in range(5)]
    found = list(predict_many([*drawings, *strange]))
    assert sum(bool(one.certified) for one in found[:40]) >= 35
    for one in found[40:]:
        assert (one.certified, one.tokens, one.promise) == (False, 576, None)
        assert one.reason is not None and "unlike the pictures" in one.reason
    assert {one.promise for one in found[:40] if one.certified} == {"image"}
    X = np.stack([image_features(one) for one in drawings])
    assert load_predictor().decide(X).certified.tolist() == [one.certified for one in found[:40]]
