"""Errors: what a program can read off them, and how whatever goes wrong with one image becomes one."""

from __future__ import annotations

import copy

import pytest

from m3score.common.errors import M3ScoreError, MissingExtraError, image_failure, model_failure
from m3score.data.loader import in_halves
from m3score.images.worker_pool import WorkerError


def test_an_error_knows_its_subject_and_whether_it_may_pass() -> None:
    error = M3ScoreError("no such file", subject="a: b.png")
    assert str(error) == "a: b.png: no such file"
    assert (error.subject, error.reason, error.transient) == ("a: b.png", "no such file", False)
    assert (M3ScoreError("why").subject, M3ScoreError("why").reason) == (None, "why")
    assert WorkerError("it died").transient and M3ScoreError("busy", transient=True).transient


@pytest.mark.parametrize(
    "error",
    [
        M3ScoreError("no such file", subject="a.png", transient=True),
        WorkerError("it died", subject="a.png"),
        MissingExtraError("reading URLs", "remote", subject="s3://x"),
    ],
)
def test_errors_travel_between_machines(error: M3ScoreError) -> None:
    there = copy.copy(error)  # as for another machine
    assert isinstance(there, M3ScoreError) and str(there) == str(error)
    assert (there.subject, there.reason, there.transient) == (error.subject, error.reason, error.transient)


def test_what_nobody_foresaw_has_its_kind_and_words() -> None:
    known = M3ScoreError("no such file", subject="a.png")
    assert image_failure(known, "can't be opened") is known
    other = image_failure(KeyError("x\ny"), "can't be opened")
    assert str(other) == "can't be opened (KeyError: 'x\\ny')" and not other.transient


def test_a_models_failure_may_pass_a_users_error_does_not() -> None:
    assert model_failure(RuntimeError("out of\nmemory")).transient
    assert str(model_failure(RuntimeError("out of\nmemory"))) == (
        "the model failed (RuntimeError: out of memory)"
    )
    told = model_failure(M3ScoreError("too long", subject="a.png"))
    assert str(told) == "a.png: too long" and not told.transient


def test_a_batch_that_fails_is_tried_in_halves_down_to_the_one_at_fault() -> None:
    sizes: list[int] = []

    def work(batch: list[int]) -> list[int]:
        sizes.append(len(batch))
        if 5 in batch:
            raise RuntimeError("five")
        return [2 * one for one in batch]

    made = in_halves(work, [1, 2, 3, 4, 5, 6, 7])  # type: ignore[arg-type]
    assert [str(one) for one in made] == [
        *("2", "4", "6", "8"),
        *("the model failed (RuntimeError: five)", "12", "14"),
    ]
    assert sizes == [7, 3, 4, 2, 1, 1, 2] and in_halves(work, []) == []  # type: ignore[arg-type]
