"""Labels from traces: what suffices, which images go where, one question per image."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from m3score.calibration.predictor.labels import Labels, join, label
from m3score.common.errors import M3ScoreError
from m3score.common.statistics import spearman

LADDER = (1, 9, 36)


def trace_row(
    image: str, number: int, tokens: int, right: bool | None, same: bool, **more: Any
) -> dict[str, Any]:
    return {
        "image": image, "question_id": number, "question": f"Question {number}?", "tokens": tokens,
        "answer": "x", "agreement": float(same), "consistent": same, "correct": right,
        "metric_score": None if right is None else float(right),
        "metric": None if right is None else "exact_match",
        "references": [] if right is None else ["x"], "model": "fake", "width": 32, "height": 16, **more,
    }  # fmt: skip


def labelled(images: int, questions: int = 2, seed: int = 0) -> Labels:
    """Made-up labels: some questions that no scale solves, and images of two sizes."""
    rng = np.random.default_rng(seed)
    needs = rng.integers(0, 4, images * questions)
    names = np.repeat(np.array([f"{i}.png" for i in range(images)], object), questions)
    return Labels(
        model="fake",
        ladder=LADDER,
        images=names,
        keys=names.copy(),
        questions=np.array([f"Question {i % questions}?" for i in range(len(names))], object),
        sizes=np.tile([[32, 16], [64, 64]], (len(names), 1))[: len(names)],
        features=rng.normal(size=(len(names), 4)).astype(np.float32),
        sufficient=np.arange(3)[None, :] >= needs[:, None],
        by_truth=np.ones(len(names), bool),
        sources=np.array(["made up"] * len(names), object),
        spent=np.tile(np.array(LADDER, float), (len(names), 1)),
    )


def test_traces_become_labels():
    rows = [trace_row("a", 0, t, right=t >= 9, same=True) for t in LADDER]
    rows += [trace_row("a", 1, t, right=None, same=t >= 36) for t in LADDER]
    rows += [trace_row("b", 0, t, right=False, same=True) for t in LADDER]
    rows += [{"image": "broken", "error": "empty file"}]
    features = {"a": ("ka", np.ones(4)), "b": ("kb", np.zeros(4)), "broken": ("broken", None)}
    found = label(pd.DataFrame(rows), features, source="these")
    assert found.sufficient.tolist() == [[False, True, True], [False, False, True], [False] * 3]
    assert found.by_truth.tolist() == [True, False, True]
    assert found.keys.tolist() == ["ka", "ka", "kb"] and found.failed == 1
    target, unsolved = found.targets()
    assert np.exp(target).round().tolist() == [9, 36, 36] and unsolved.tolist() == [False, False, True]
    by_consistency = label(pd.DataFrame(rows), features, sufficiency="consistent")
    assert by_consistency.sufficient[0].all() and not by_consistency.by_truth.any()


def test_images_without_features_or_with_gaps_in_their_trace_are_lost_and_counted():
    rows = [trace_row("a", 0, t, right=True, same=True) for t in LADDER]
    rows += [trace_row("gap", 0, t, right=True, same=True) for t in LADDER[:2]]
    rows += [trace_row("unread", 0, t, right=True, same=True) for t in LADDER]
    features = {"a": ("a", np.ones(4)), "gap": ("gap", np.ones(4)), "unread": ("unread", None)}
    found = label(pd.DataFrame(rows), features)
    assert found.images.tolist() == ["a"] and found.failed == 2
    with pytest.raises(M3ScoreError, match="no image has both"):
        label(pd.DataFrame(rows[3:]), features)


@settings(max_examples=25, deadline=None)
@given(st.integers(30, 80), st.integers(0, 1000))
def test_splits_share_no_image_and_lose_none(images: int, seed: int):
    whole = labelled(images, seed=seed)
    parts = whole.split(seed, (0.5, 0.25, 0.25))
    keys = [set(part.keys) for part in parts.values()]
    assert not (keys[0] & keys[1] or keys[0] & keys[2] or keys[1] & keys[2])
    assert sum(len(part) for part in parts.values()) == len(whole)


def test_a_split_depends_on_neither_order_nor_on_the_other_images():
    whole = labelled(200)
    parts = whole.split(3)
    again = whole.take(np.arange(len(whole))[::-1]).split(3)
    fewer = whole.take(np.arange(100)).split(3)
    for name in parts:
        assert set(parts[name].keys) == set(again[name].keys) >= set(fewer[name].keys)
    assert {*whole.split(4)["fit"].keys} != {*parts["fit"].keys}


def test_shares_are_about_those_asked_for():
    parts = labelled(2000, 1).split(0, (2, 1, 1))
    assert len(parts["fit"]) == pytest.approx(1000, abs=100)


@pytest.mark.parametrize("shares", [(1, 1), (1, 0, 1), (1, 1, 1, 1)])
def test_bad_shares(shares: tuple[float, ...]):
    with pytest.raises(M3ScoreError, match=r"3 positive"):
        labelled(20).split(0, shares)


def test_too_few_images_to_split():
    with pytest.raises(M3ScoreError, match="too few images"):
        labelled(1).split()


def test_one_question_per_image_whatever_its_answers():
    whole = labelled(100, questions=3)
    one = whole.one_per_image(5)
    assert len(one) == 100 and len(set(one.keys)) == 100
    assert len(set(one.questions)) == 3  # not always the first
    turned = Labels(**{**whole.__dict__, "sufficient": ~whole.sufficient})
    assert turned.one_per_image(5).questions.tolist() == one.questions.tolist()
    assert whole.one_per_image(6).questions.tolist() != one.questions.tolist()


def test_copies_of_an_image_are_one_image():
    whole = labelled(50)
    copies = Labels(**{**whole.__dict__, "images": np.array([f"copy of {n}" for n in whole.images], object)})
    both = join([whole, copies])
    assert len(both.one_per_image()) == 50
    parts = both.split()
    assert all(not set(parts["fit"].keys) & set(parts[name].keys) for name in ("calibrate", "test"))


def test_labels_of_two_models_do_not_join():
    one = labelled(5)
    with pytest.raises(M3ScoreError, match="one model"):
        join([one, Labels(**{**one.__dict__, "model": "other"})])


def test_spearman():
    assert spearman(np.array([1.0, 2, 3]), np.array([2.0, 4, 9])) == pytest.approx(1)
    assert spearman(np.array([1.0, 1, 2, 2]), np.array([4.0, 4, 3, 3])) == pytest.approx(-1)
    assert math.isnan(spearman(np.ones(3), np.arange(3.0)))
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 9, (2, 5, 40)).astype(float)
    theirs = [stats.spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(spearman(x, y), theirs)


def test_spearman_of_too_few_pairs_is_undefined():
    """Of two pairs it is 1 or -1 whatever they are: no number to show."""
    assert math.isnan(spearman(np.array([1.0, 2]), np.array([2.0, 1])))
    assert math.isnan(spearman(np.arange(9.0), np.arange(9.0), fewest=10))
    assert math.isnan(spearman(np.zeros(0), np.zeros(0)))


def test_so_many_questions_of_each_image_and_no_more():
    labels = labels_of_counts([1, 5, 3, 9])
    kept = labels.at_most_per_image(3, seed=2)
    assert np.unique(kept.keys.astype(str), return_counts=True)[1].tolist() == [1, 3, 3, 3]
    assert list(kept.keys) == sorted(kept.keys)
    again = labels.take(np.arange(len(labels))[::-1]).at_most_per_image(3, seed=2)
    assert list(again.keys) == list(kept.keys)
    one = labels.one_per_image(seed=2)
    assert sorted(one.questions) == sorted(labels.at_most_per_image(1, seed=2).questions)


def labels_of_counts(counts: list[int]) -> Labels:
    """Images 0, 1, 2 and so on, with so many questions."""
    images = np.repeat(np.arange(len(counts)), counts).astype(str).astype(object)
    n = len(images)
    return Labels(
        model="fake", ladder=LADDER, images=images, keys=images.copy(),
        questions=np.array([f"Question {i}?" for i in range(n)], object), sizes=np.full((n, 2), 9),
        features=np.zeros((n, 2), np.float32), sufficient=np.ones((n, 3), bool), by_truth=np.ones(n, bool),
        sources=np.array([""] * n, object), spent=np.ones((n, 3)),
    )  # fmt: skip


def test_budgets_cost_what_images_really_have() -> None:
    rows = [trace_row("a", 0, t, right=True, same=True) | {"visual_tokens": min(t, 20)} for t in LADDER]
    features = {"a": ("ka", np.ones(4))}
    found = label(pd.DataFrame(rows), features)
    assert found.spent.tolist() == [[min(t, 20) for t in LADDER]] and found.exact() is found.spent
    assert found.ends() == (1, 20)
    tiles = [row | {"visual_tokens": row["tokens"] * 5} for row in rows]  # per grid, of several grids
    assert label(pd.DataFrame(tiles), features).exact() is None


def test_agreements_of_different_sources_do_not_go_together() -> None:
    rows = [trace_row("a", 0, t, right=True, same=True) for t in LADDER]
    ours = label(pd.DataFrame(rows), {"a": ("ka", np.ones(4))})
    theirs = label(pd.DataFrame(rows).assign(agreement_from="answers"), {"a": ("ka", np.ones(4))})
    with pytest.raises(M3ScoreError, match="answers and logits do not go together"):
        join([ours, theirs])
