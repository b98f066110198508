"""Figures of a benchmark against values worked out by hand; luck against simulated guessing models."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from m3score.calibration.benchmarks.chance import luck_of
from m3score.calibration.benchmarks.results import UNSOLVED, BenchmarkResult, benchmark_result
from m3score.calibration.benchmarks.scoreboard import (
    grids,
    needs,
    overview,
    published,
    rows,
    sentences,
    to_markdown,
)
from m3score.calibration.benchmarks.task_data import Entry, TaskSource
from m3score.calibration.benchmarks.tasks import Task, TaskQuestion, find_task, task_question
from m3score.common.errors import M3ScoreError
from m3score.data.metrics import grade
from m3score.data.questions import Question
from tests.support.fakes import LADDER

THREE = (1, 9, 36)


def source_of(task: Task, asked: list[list[TaskQuestion]]) -> TaskSource:
    entries = [Entry(f"{task.name}/{i}", tuple(own), lambda: None) for i, own in enumerate(asked)]
    return TaskSource(task, "here", tuple(entries))


def traces_of(
    source: TaskSource, said: list[list[list[str]]], ladder: tuple[int, ...] = THREE
) -> pd.DataFrame:
    """`said[image][question]` holds one answer per scale."""
    out = []
    for entry, per_image in zip(source.entries, said, strict=True):
        for number, (asked, answers) in enumerate(zip(entry.questions, per_image, strict=True)):
            question = asked.question
            for tokens, answer in zip(ladder, answers, strict=True):
                verdict = grade(question.metric, answer, question.answers, question.options)
                out.append({"image": entry.name, "question_id": number, "question": question.question,
                            "tokens": tokens, "visual_tokens": 5 * tokens, "answer": answer, "error": None,
                            "metric_score": verdict.score, "correct": verdict.correct,
                            "model": "fake"})  # fmt: skip
    return pd.DataFrame(out)


def judged_of(
    task: Task,
    asked: list[list[TaskQuestion]],
    said: list[list[list[str]]],
    ladder: tuple[int, ...] = THREE,
    **more: Any,
) -> BenchmarkResult:
    source = source_of(task, asked)
    return benchmark_result(traces_of(source, said, ladder), source, resamples=200, **more)


def plain(*references: str, metric: str = "exact_match", **more: Any) -> TaskQuestion:
    return TaskQuestion(Question("?", references, metric=metric), **more)


TASK = Task("mine", "Mine", "exact_match")


@pytest.fixture
def four() -> BenchmarkResult:
    """Right at (1, 9, 36): yyy, nyy, yny, nnn."""
    said = [[["a", "a", "a"]], [["x", "a", "a"]], [["a", "x", "a"]], [["x", "x", "x"]]]
    return judged_of(TASK, [[plain("a")] for _ in said], said)


def test_accuracy_and_oracle_by_hand(four: BenchmarkResult) -> None:
    assert [four.score(t).value for t in THREE] == [0.5, 0.5, 0.75]
    assert [four.get("visual tokens", tokens=t).value for t in THREE] == [5, 45, 180]
    assert four.get("solved", rule="first").value == four.get("solved", rule="stays").value == 0.75

    def mean(rule: str, unsolved: str) -> float:
        return four.get("mean tokens", rule=rule, unsolved=unsolved).value

    assert mean("first", "one") == (1 + 9 + 1 + 1) / 4
    assert mean("first", "answerable") == pytest.approx((1 + 9 + 1) / 3)
    assert mean("first", "finest") == (1 + 9 + 1 + 36) / 4
    assert mean("stays", "one") == (1 + 9 + 36 + 1) / 4
    assert mean("stays", "answerable") == pytest.approx((1 + 9 + 36) / 3)
    assert mean("stays", "finest") == (1 + 9 + 36 + 36) / 4
    assert four.get("not monotone").value == 0.25
    assert (four.needed, four.best) == (36, 36)
    low, high = four.needed_between
    assert low <= four.needed <= high


def test_soft_scores_count_at_the_scale_that_the_oracle_takes() -> None:
    task = Task("soft", "Soft", "vqa_accuracy")
    references = ["a"] * 2 + ["b"] * 8  # "a" scores 0.6, "b" 1.0
    said = [[["a", "b", "b"]], [["x", "x", "a"]]]
    judged = judged_of(task, [[plain(*references, metric="vqa_accuracy")] for _ in said], said)
    assert [judged.score(t).value for t in THREE] == pytest.approx([0.3, 0.5, 0.8])
    for unsolved in UNSOLVED:
        found = judged.get("oracle", rule="first", unsolved=unsolved).value
        assert found == pytest.approx((0.6 + 0.6) / 2)
    assert judged.get("solved", rule="first").value == 1.0


def test_unsolved_questions_get_what_the_scale_scores_that_they_are_charged_for() -> None:
    """Who pays one token for all gets what one token scores, be it below the threshold."""
    task = Task("soft", "Soft", "vqa_accuracy")
    references = ["a"] + ["b"] * 9  # "a" scores 0.3: too little to be solved
    said = [[["a", "x", "x"]], [["a", "x", "x"]], [["x", "x", "a"]], [["b", "b", "b"]]]
    judged = judged_of(task, [[plain(*references, metric="vqa_accuracy")] for _ in said], said)
    assert judged.get("solved", rule="first").value == 0.25

    def oracle(unsolved: str) -> float:
        return judged.get("oracle", rule="first", unsolved=unsolved).value

    assert judged.get("mean tokens", rule="first", unsolved="one").value == 1
    assert oracle("one") == judged.score(1).value == pytest.approx((0.3 + 0.3 + 0 + 1) / 4)
    assert oracle("finest") == pytest.approx((0 + 0 + 0.3 + 1) / 4)
    assert oracle("answerable") == 1


def test_groups_count_as_one_if_all_are_right() -> None:
    task = Task("groups", "Groups", "exact_match", unit="all", unit_of="g", category="c")
    asked = [[plain("a", unit="1", category="x")], [plain("a", unit="1", category="y")],
             [plain("a", unit="2", category="x")], [plain("a", unit="2", category="y")]]  # fmt: skip
    said = [[["a", "a", "a"]], [["x", "a", "a"]], [["x", "x", "a"]], [["x", "x", "x"]]]
    judged = judged_of(task, asked, said)
    assert (judged.questions, judged.units) == (4, 2)
    assert [judged.score(t).value for t in THREE] == [0, 0.5, 0.5]
    assert [judged.get("right per question", tokens=t).value for t in THREE] == [0.25, 0.5, 0.75]
    assert judged.get("score", tokens=36, category="x").value == 1.0
    assert judged.get("score", tokens=36, category="y").value == 0.5
    assert any("in 2 groups that count as one" in sentence for sentence in sentences(judged))


def test_temporalbench_has_multiple_binary_accuracy() -> None:
    """A video counts if all its questions are right (get_qa_acc.py of its repository); worked out by hand."""
    task = find_task("temporalbench")
    videos = {"v1": ["A", "B", "A"], "v2": ["B", "B"], "v3": ["A"]}
    said = {
        "v1": ["A", "b", "A. red"],
        "v2": ["B", "A"],
        "v3": ["A. He sits."],
    }
    asked = [
        [task_question(task, {"video_name": v, "question": f"{i}?", "GT": gt, "category": 1 + i % 2})
         for i, gt in enumerate(truth)]
        for v, truth in videos.items()
    ]  # fmt: skip
    judged = judged_of(task, asked, [[[a] * 3 for a in answers] for answers in said.values()])
    assert (judged.questions, judged.units) == (6, 3)
    assert judged.get("right per question", tokens=9).value == pytest.approx(5 / 6)  # binary accuracy
    assert judged.score(9).value == pytest.approx(2 / 3)
    # Category 1: the first and third questions of a video; 2: the second ones.
    assert judged.get("score", tokens=9, category="1").value == 1.0
    assert judged.get("score", tokens=9, category="2").value == 0.5
    assert judged.get("mean tokens", rule="first", unsolved="finest").value == pytest.approx((1 + 1 + 36) / 3)


def test_vinoground_has_text_video_and_group_score() -> None:
    """get_score_all.py of its repository, worked out by hand for four pairs.

    pair   caption of the first, of the second video   video of the first, of the second caption
    0      right right                                 right right      text, video, group
    1      right right                                 right wrong      text
    2      wrong right                                 right right      video
    3      wrong wrong                                 wrong right
    """
    task = find_task("vinoground")
    truth = {"text": ("A", "B"), "video": ("B", "A")}
    right = {
        "text": [(True, True), (True, True), (False, True), (False, False)],
        "video": [(True, True), (True, False), (True, True), (False, True)],
    }
    asked, said = [], []
    for kind, pairs in right.items():
        for pair, sides in enumerate(pairs):
            for side, gt, is_right in zip(("pos", "neg"), truth[kind], sides, strict=True):
                row = {"idx": f"{pair}_{side}", "question": "Which?", "GT": gt, "kind": kind}
                asked.append([task_question(task, row)])
                said.append([[gt if is_right else "BA"["AB".index(gt)]] * 3])
    judged = judged_of(task, asked, said)
    group, text, video = (judged.get("score", tokens=36, category=c).value for c in (None, "text", "video"))
    assert (text, video, group) == (0.5, 0.5, 0.25)
    assert (judged.questions, judged.units) == (16, 4)
    assert judged.get("right per question", tokens=36).value == 11 / 16


def test_a_group_with_a_failed_image_is_left_out() -> None:
    task = Task("groups", "Groups", "exact_match", unit="all", unit_of="g")
    source = source_of(task, [[plain("a", unit=unit)] for unit in "1122"])
    traces = traces_of(source, [[["a"] * 3]] * 4)
    broken = traces[traces["image"] != "groups/3"]
    failure = {"image": "groups/3", "tokens": math.nan, "error": "not an image"}
    judged = benchmark_result(pd.concat([broken, pd.DataFrame([failure])]), source, resamples=10)
    assert judged.units == 1 and judged.failed == {"groups/3": "not an image"}
    with pytest.raises(M3ScoreError, match=r"none of its images was answered \(nothing was asked\)"):
        benchmark_result(traces[traces["image"] == "x"], source)


def test_f1_of_yes() -> None:
    truth = ["yes", "yes", "yes", "no", "no"]
    said = [["yes"] * 3, ["Yes, it is."] * 3, ["no"] * 3, ["yes"] * 3, ["No"] * 3]
    asked = [[plain(answer, metric="yes_no")] for answer in truth]
    judged = judged_of(find_task("pope"), asked, [[one] for one in said])
    assert judged.score(36).measure == "f1"
    assert judged.score(36).value == pytest.approx(2 / 3)  # 2 hits, 1 false, 1 missed
    assert (
        judged.get("precision", tokens=36).value
        == judged.get("recall", tokens=36).value
        == pytest.approx(2 / 3)
    )
    assert judged.get("score", tokens=36).value == 0.6
    assert judged.get("says yes", tokens=36).value == 0.6


def test_images_are_resampled_with_all_their_questions() -> None:
    """Ten questions on each of four images, all alike: as uncertain as four questions, not as forty."""
    said = [[[answer] * 3] * 10 for answer in "aaxx"]
    judged = judged_of(TASK, [[plain("a")] * 10 for _ in said], said)
    figure = judged.score(36)
    assert figure.value == 0.5 and figure.low <= 0.25 and figure.high >= 0.75
    together = {f"mine/{i}": "copy" for i in range(4)}
    assert judged_of(TASK, [[plain("a")] * 10 for _ in said], said, keys=together).score(36).low == 0.5


def test_the_fewest_tokens_within_a_point() -> None:
    coarse = [["a" if i < 199 else "x", "a", "a"] for i in range(200)]
    judged = judged_of(TASK, [[plain("a")] for _ in coarse], [[one] for one in coarse])
    assert judged.needed == 1 and judged.best == 9
    assert needs(judged).startswith("Mine needs 1 token per grid (95% interval 1 to 9)")
    worse = [["a" if i < 190 else "x", "a", "a"] for i in range(200)]
    assert judged_of(TASK, [[plain("a")] for _ in worse], [[one] for one in worse]).needed == 9


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(60):
        right = rng.random(80) < 0.7
        judged = judged_of(TASK, [[plain("a")]] * 80, [[["a" if one else "x"]] for one in right], (36,))
        inside += judged.score(36).low <= 0.7 <= judged.score(36).high
    assert inside >= 51  # 57 expected; fewer than 51 has a chance below 1 %


# ---- luck ------------------------------------------------------------------------------------------

KINDS: dict[str, tuple[str, list[str], tuple[str, ...]]] = {
    "yes/no": ("yes_no", ["yes", "no"], ()),
    "four options": ("multiple_choice", list("ABCD"), ("w", "x", "y", "z")),
    "texts": ("exact_match", [f"word{i}" for i in range(60)], ()),
}


def simulated(
    kind: str, *, knows: float, knows_coarse: float = 0.0, habit: float = 0.0, n: int = 800
) -> tuple[float, float, float]:
    """(oracle, luck, corrected oracle) of a model that knows some questions and guesses the others.

    `knows`: share known at every scale; `knows_coarse`: share of the rest known at one of the coarse scales;
    `habit`: how often a guess is the same at several scales.
    """
    metric, values, options = KINDS[kind]
    rng = np.random.default_rng(7)
    truth_odds, guess_odds = rng.dirichlet(np.full(len(values), 8.0), 2)

    def guess() -> str:
        return str(rng.choice(values, p=guess_odds))

    questions, answers = [], []
    for _ in range(n):
        truth, usual = str(rng.choice(values, p=truth_odds)), guess()
        said = [usual if rng.random() < habit else guess() for _ in LADDER]
        if rng.random() < knows:
            said = [truth] * len(LADDER)
        elif rng.random() < knows_coarse:
            said[rng.integers(len(LADDER) - 1)] = truth
        questions.append(Question("?", (truth,), options, metric))
        answers.append(said)
    right = np.array([[a == q.answers[0] for a in said] for q, said in zip(questions, answers, strict=True)])
    luck = luck_of(questions, answers, [[i] for i in range(n)], right)
    a, c = right[:, -1].mean(), luck.chance[:, -1].mean()
    known = (a - c) / (1 - c)
    corrected = known + (1 - known) * luck.gain[~right[:, -1]].mean()
    return right.any(axis=1).mean(), luck.chance_any.mean(), corrected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("habit", [0.0, 0.7])
def test_a_guessing_model_has_nothing_but_luck(kind: str, habit: float) -> None:
    oracle, luck, corrected = simulated(kind, knows=0.0, habit=habit)
    assert luck == pytest.approx(oracle, abs=0.04)
    assert corrected == pytest.approx(0.0, abs=0.08)
    if kind == "yes/no" and not habit:
        assert oracle > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_known_at_every_scale_is_found(kind: str) -> None:
    oracle, _, corrected = simulated(kind, knows=0.5)
    assert corrected == pytest.approx(0.5, abs=0.07) and oracle > corrected - 0.03


@pytest.mark.parametrize("kind", ["four options", "texts"])
def test_what_only_coarse_scales_know_is_found_too(kind: str) -> None:
    _, _, corrected = simulated(kind, knows=0.5, knows_coarse=0.4, habit=0.5)
    assert corrected == pytest.approx(0.7, abs=0.07)


def test_coarse_scales_prove_nothing_about_yes_and_no() -> None:
    _, _, corrected = simulated("yes/no", knows=0.5, knows_coarse=0.4, habit=0.5)
    assert corrected == pytest.approx(0.5, abs=0.1)


def test_groups_are_harder_to_guess() -> None:
    rng = np.random.default_rng(3)
    questions = [Question("?", (str(rng.choice(["A", "B"])),), metric="multiple_choice") for _ in range(900)]
    answers = [[str(rng.choice(["A", "B"]))] for _ in questions]
    units = [[i, i + 1, i + 2] for i in range(0, 900, 3)]
    hit = np.array([[a[0] == q.answers[0]] for q, a in zip(questions, answers, strict=True)])
    luck = luck_of(questions, answers, units, np.array([hit[unit].all(axis=0) for unit in units]))
    assert luck.chance.mean() == pytest.approx(1 / 8, abs=0.03)


# ---- beside the paper --------------------------------------------------------------------------------


def test_the_papers_figures_stand_beside() -> None:
    said = [[["14"] * 5]] * 3 + [[["x"] * 5]]
    judged = judged_of(find_task("chartqa"), [[plain("14", metric="relaxed_accuracy")]] * 4, said, LADDER)
    paper = published(judged)
    assert paper is not None and not paper.same_model and paper.title == "LLaVA-NeXT-7B-M3"
    assert paper.accuracy == {1: 31.04, 9: 42.0, 36: 50.24, 144: 57.04, 576: 58.96}
    (row,) = [r for r in rows(judged) if r["measure"] == "score" and r["tokens"] == 36]
    assert row["value"] == 75.0 and row["difference"] == pytest.approx(75 - 50.24)
    assert "2405.17430" in row["paper_source"]
    (tokens,) = [r for r in rows(judged) if r["paper"] == 41.78]
    assert (tokens["rule"], tokens["unsolved"], tokens["unit"]) == ("first", "one", "tokens")
    text = to_markdown([judged, judged])
    assert text.startswith("## All tasks") and "| 576 | 2880 | 75.0 |" in text and "| 58.96" not in text
    assert "| 59.0 | +16.0 |" in text
    assert overview([judged]).header == ("tokens per grid", "ChartQA")
    assert all(len(row) == len(grid.header) for grid in grids(judged) for row in grid.rows)


def test_the_paper_has_rows_of_both_models() -> None:
    said = [[["yes"] * 5]]
    judged = judged_of(find_task("pope"), [[plain("yes", metric="yes_no")]], said, LADDER)
    named = {name: published(BenchmarkResult(**{**judged.__dict__, "model": name})) for name in
             ("mucai/llava-v1.5-7b-m3", "mucai/llava-next-vicuna-7b-m3")}  # fmt: skip
    assert [one and (one.title, one.accuracy[1], one.same_model) for one in named.values()] == [
        ("LLaVA-1.5-7B-M3", 78.4, True),
        ("LLaVA-NeXT-7B-M3", 83.38, True),
    ]


def test_answers_that_were_cut_are_counted() -> None:
    source = source_of(TASK, [[plain("a")] for _ in range(3)])
    traces = traces_of(source, [[["a", "a", "a"]] for _ in range(3)])
    said = "questions have an answer that reached the most tokens"
    assert benchmark_result(traces, source, resamples=10).cut == 0  # a table of an older version does not say
    traces["cut"] = pd.array([True, True, None, *[False] * 6], dtype="boolean")
    judged = benchmark_result(traces, source, resamples=10)
    assert judged.cut == 1 and any(said in one for one in sentences(judged))
    traces["cut"] = False
    assert not any(said in one for one in sentences(benchmark_result(traces, source, resamples=10)))
