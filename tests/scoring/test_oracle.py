"""Traces, required tokens, complexity and summaries, on a fake that says what it is told."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from m3score.common.errors import M3ScoreError
from m3score.data.questions import DESCRIBE, Question
from m3score.models.base import ScaleAnswer
from m3score.scoring.oracle import rescore, score, score_trace
from m3score.scoring.rules import RULES, complexity_of, effective_tokens_of, is_monotone, required_tokens
from m3score.scoring.traces import trace
from m3score.tables.io import read_traces, write_traces
from tests.support.fakes import SingleGrid

LADDER = (1, 9, 36, 144, 576)
LADDERS = st.lists(st.integers(1, 3000), min_size=1, max_size=7, unique=True).map(lambda t: tuple(sorted(t)))


class Scripted(SingleGrid):
    """Answers from a function of the question and the tokens: (answer, agreement)."""

    name = "scripted"

    def __init__(
        self, say: Callable[[str, int], tuple[str, float]], ladder: tuple[int, ...] = LADDER
    ) -> None:
        self.say = say
        self.ladder = ladder
        self.calls = 0

    def answer_ladder(
        self, images: Sequence[Image.Image], questions: Sequence[Sequence[str]], *, max_new_tokens: int = 32
    ) -> list[list[tuple[ScaleAnswer, ...]]]:
        self.calls += 1
        return [[tuple(self._scale(q, t) for t in self.ladder) for q in group] for group in questions]

    def _scale(self, question: str, tokens: int) -> ScaleAnswer:
        answer, agreement = self.say(question, tokens)
        return ScaleAnswer(tokens, 2 * tokens, answer, agreement, -0.5)


def knows_from(needed: int) -> Scripted:
    return Scripted(lambda _, t: ("a cat", 1.0) if t >= needed else ("a dog", 0.0))


def pattern(right: str) -> Scripted:
    """Right where the pattern over the ladder says 1: "01011" is right at 9, 144 and 576."""
    says = {t: "cat" if bit == "1" else "dog" for t, bit in zip(LADDER, right, strict=True)}
    return Scripted(lambda _, t: (says[t], 0.5))


IMAGE = Image.new("RGB", (8, 6))


# ---- rules --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "stays", "first", "monotone"),
    [
        ("11111", 1, 1, True), ("00111", 36, 36, True), ("00001", 576, 576, True), ("01011", 144, 9, False),
        ("11110", None, 1, False), ("00000", None, None, True), ("10000", None, 1, False),
    ],
)  # fmt: skip
def test_required_tokens(bits: str, stays: int | None, first: int | None, monotone: bool) -> None:
    sufficient = [bit == "1" for bit in bits]
    assert required_tokens(sufficient, LADDER) == stays
    assert required_tokens(sufficient, LADDER, "first") == first
    assert is_monotone(sufficient) is monotone


def test_complexity_by_the_formula() -> None:
    agreement = (0.2, 0.6, 0.5, 0.9, 1.0)
    lows, highs = (0.2, 0.5, 0.5, 0.9), (0.2, 0.6, 0.6, 0.9)
    steps = [math.log(b / a) for a, b in pairwise(LADDER)]
    for rule, held in (("stays", lows), ("first", highs)):
        wanted = sum(step * (1 - a) for step, a in zip(steps, held, strict=True)) / math.log(576)
        assert complexity_of(agreement, LADDER, rule) == pytest.approx(wanted, abs=1e-12)


@given(LADDERS, st.data(), st.sampled_from(list(RULES)))
def test_zero_one_agreement_is_the_logarithm_of_required_tokens(
    ladder: tuple[int, ...], data: st.DataObject, rule: str
) -> None:
    bits = data.draw(st.lists(st.booleans(), min_size=len(ladder), max_size=len(ladder)))
    required = required_tokens(bits, ladder, rule)
    complexity = complexity_of([float(bit) for bit in bits], ladder, rule)
    if required is None:
        assert complexity == 1.0
    elif ladder[-1] > 1:
        assert complexity == math.log(required) / math.log(ladder[-1])
        assert effective_tokens_of(complexity, ladder) == required


@given(LADDERS, st.data(), st.sampled_from(list(RULES)))
def test_complexity_never_falls_when_an_agreement_falls(
    ladder: tuple[int, ...], data: st.DataObject, rule: str
) -> None:
    size = len(ladder)
    high = data.draw(st.lists(st.floats(0, 1), min_size=size, max_size=size))
    low = [a * data.draw(st.floats(0, 1)) for a in high]
    before, after = complexity_of(high, ladder, rule), complexity_of(low, ladder, rule)
    assert 0.0 <= before <= after + 1e-12 <= 1.0 + 1e-12


def test_bad_numbers() -> None:
    with pytest.raises(M3ScoreError, match="unknown rule 'last'; allowed: stays, first"):
        required_tokens([True] * 5, LADDER, "last")
    with pytest.raises(M3ScoreError, match="a number for each scale"):
        complexity_of([0.5, math.nan], (1, 9))
    with pytest.raises(M3ScoreError, match="a number for each scale"):
        complexity_of([0.5], (1, 9))


# ---- traces -------------------------------------------------------------------------------------------


def test_trace_rows() -> None:
    rows = trace(knows_from(36), [IMAGE], [["what?", Question("why?")]], [["Cat.", None]], ids=["x.png"])
    assert [(r.image, r.question_id, r.question, r.tokens) for r in rows] == [
        ("x.png", number, text, t) for number, text in enumerate(("what?", "why?")) for t in LADDER
    ]
    assert [r.correct for r in rows] == [False, False, True, True, True] + [None] * 5
    assert [r.consistent for r in rows] == [False, False, True, True, True] * 2
    assert rows[0].metric == "exact_match" and rows[5].metric is None and rows[5].metric_score is None
    assert rows[2].visual_tokens == 72 and rows[2].references == ("Cat.",)
    assert (rows[0].model, rows[0].width, rows[0].height) == ("scripted", 8, 6)
    assert list(rows[0].to_dict()) == [name for name in rows[0].__dataclass_fields__]


def test_the_model_does_not_run_on_bad_input() -> None:
    model = knows_from(1)
    bad = [
        dict(questions=[["q"], ["q"]]),
        dict(questions=[[]]),
        dict(questions=[["q"]], answers=[["a", "b"]]),
        dict(questions=[["q"]], metrics="bleu"),
        dict(questions=[[Question("q", ("zebra",), ("cat", "dog"))]]),
        dict(questions=[["q"]], ids=["a", "b"]),
    ]
    for arguments in bad:
        with pytest.raises(M3ScoreError):
            trace(model, [IMAGE], **arguments)  # type: ignore[arg-type]
    assert model.calls == 0
    assert trace(model, [], []) == []


# ---- scores -------------------------------------------------------------------------------------------


def test_one_in_one_out() -> None:
    """A model that can only answer is asked to describe the image."""
    result: Any = score(IMAGE, model=knows_from(36))
    assert result.complexity == math.log(36) / math.log(576)
    assert result.effective_tokens == 36.0 and result.required_tokens == 36 and result.solved
    assert [q.question for q in result.questions] == [DESCRIBE]
    assert result.questions[0].judged_by == "consistent"
    assert result.agreement == (0.0, 0.0, 1.0, 1.0, 1.0)
    several: object = score([IMAGE, IMAGE], model=knows_from(36))
    assert several == [result, result]
    assert score([], model=knows_from(36)) == []


def test_shapes_of_questions_and_answers() -> None:
    model = knows_from(9)
    assert score(IMAGE, model=model, questions="q", answers="cat").required_tokens == 9
    assert score(IMAGE, model=model, questions="q", answers=["bird", "cat"]).required_tokens == 9
    both = score(IMAGE, model=model, questions=["q", "r"], answers=["cat", ["dog", "wolf"]])
    assert [q.required_tokens for q in both.questions] == [9, None]
    listed = score([IMAGE, IMAGE], model=model, questions=["q", ["q", "r"]], answers=["bird", ["cat", None]])
    assert [len(one.questions) for one in listed] == [1, 2]
    assert [one.solved for one in listed] == [False, True]
    same = score([IMAGE, IMAGE], model=model, questions="q")
    assert len(same) == 2
    for wrong in (dict(questions=["q"]), dict(answers="cat"), dict(questions=["q", "r"], answers=["cat"])):
        with pytest.raises(M3ScoreError, match="for every image"):
            score([IMAGE, IMAGE], model=model, **wrong)
    with pytest.raises(M3ScoreError, match="per question"):
        score(IMAGE, model=model, questions=["q", "r"], answers="cat")


def test_ground_truth_takes_the_place_of_agreement() -> None:
    stays = score(IMAGE, model=pattern("01011"), questions="q", answers="cat")
    assert stays.required_tokens == 144 and not stays.monotone
    assert stays.complexity == math.log(144) / math.log(576)
    first = score(IMAGE, model=pattern("01011"), questions="q", answers="cat", rule="first")
    assert first.required_tokens == 9 and first.complexity == math.log(9) / math.log(576)
    unsolved = score(IMAGE, model=pattern("11110"), questions="q", answers="cat")
    assert (unsolved.required_tokens, unsolved.solved, unsolved.complexity) == (None, False, 1.0)
    by_text = score(IMAGE, model=pattern("01011"), questions="q", answers="bird", sufficiency="consistent")
    assert by_text.required_tokens == 144 and by_text.questions[0].judged_by == "consistent"
    assert 0.0 < by_text.complexity < 1.0
    with pytest.raises(M3ScoreError, match="no ground truth for 'q'"):
        score(IMAGE, model=pattern("01011"), questions="q", sufficiency="correct")


def test_an_image_needs_what_its_hardest_question_needs() -> None:
    model = Scripted(lambda q, t: ("yes", 1.0) if t >= int(q) else ("no", 0.0))
    result = score(IMAGE, model=model, questions=["1", "36"])
    assert result.required_tokens == 36
    assert result.complexity == pytest.approx(math.log(36) / math.log(576) / 2)
    assert result.effective_tokens == pytest.approx(6.0)
    assert result.agreement == (0.5, 0.5, 1.0, 1.0, 1.0)
    half = score(IMAGE, model=model, questions=["1", "36"], answers=["yes", "never"])
    assert (half.required_tokens, half.solved) == (None, False)
    assert half.complexity == 0.5


@pytest.mark.parametrize("ladder", [(1,), (576,), (4, 16), (1, 2, 3, 5, 8, 13)])
def test_any_ladder(ladder: tuple[int, ...]) -> None:
    result: Any = score(IMAGE, model=Scripted(lambda _, t: ("x", 1.0), ladder))
    assert result.ladder == ladder
    assert result.required_tokens == ladder[0]
    assert result.effective_tokens == ladder[0]


def test_names_that_are_not_allowed() -> None:
    for wrong, allowed in (("rule", "stays, first"), ("sufficiency", "auto"), ("metric", "exact_match")):
        with pytest.raises(M3ScoreError, match=f"unknown {wrong} 'x'; allowed: {allowed}"):
            score(IMAGE, model=knows_from(1), questions="q", **{wrong: "x"})  # type: ignore[call-overload]


def test_to_dict_is_json_ready() -> None:
    import json

    result = score(IMAGE, model=knows_from(36), questions="q", answers="cat")
    assert json.loads(json.dumps(result.to_dict())) == result.to_dict()
    assert list(result.to_row())[:7] == [
        "complexity", "effective_tokens", "required_tokens", "judged_by", "solved", "monotone", "agreement_1",
    ]  # fmt: skip
    assert result.to_row()["questions"] == 1


# ---- scoring a trace again ----------------------------------------------------------------------------

ANSWERS = st.sampled_from(["cat", "a cat", "dog", "2", "two", ""])
GROUPS = st.lists(
    st.lists(
        st.tuples(
            st.lists(st.tuples(ANSWERS, st.floats(0, 1)), min_size=3, max_size=3),
            st.one_of(st.none(), st.lists(ANSWERS, min_size=1, max_size=3)),
        ),
        min_size=1,
        max_size=2,
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=40, deadline=None)
@given(GROUPS, st.sampled_from(list(RULES)), st.sampled_from(["auto", "consistent"]))
def test_rescore_is_score(groups: list, rule: str, sufficiency: str) -> None:
    ladder = (1, 4, 16)
    script = {f"{i}.{j}": said for i, group in enumerate(groups) for j, (said, _) in enumerate(group)}
    model = Scripted(lambda q, t: script[q][ladder.index(t)], ladder)
    questions = [[f"{i}.{j}" for j in range(len(group))] for i, group in enumerate(groups)]
    answers = [[truth for _, truth in group] for group in groups]
    images = [IMAGE] * len(groups)
    direct = score(
        images, model=model, questions=questions, answers=answers, rule=rule, sufficiency=sufficiency
    )
    frame = pd.DataFrame([row.to_dict() for row in trace(model, images, questions, answers)])
    again = rescore(frame.sample(frac=1.0, random_state=0).sort_values("image"), rule, sufficiency)
    assert [row["path"] for row in again.to_dict("records")] == [str(i) for i in range(len(groups))]
    for one, row in zip(direct, again.to_dict("records"), strict=True):
        for name, value in one.to_row().items():
            assert row[name] == value or (value is None and pd.isna(row[name]))


def test_rescore_keeps_failures_and_finds_gaps() -> None:
    rows = [row.to_dict() for row in trace(knows_from(9), [IMAGE, IMAGE], [["q"], ["q"]], ids=["a", "b"])]
    broken = [*rows[:-1], {"image": "c", "error": "truncated"}, {"image": "a", "error": "failed at first"}]
    table = rescore(pd.DataFrame(broken)).set_index("path")
    assert list(table.index) == ["a", "b", "c"]
    assert table.loc["a", "required_tokens"] == 9 and table.loc["a", "error"] is None
    assert table.loc["b", "error"] == "the trace lacks the rows of 576 tokens"
    assert table.loc["c", "error"] == "truncated" and table["required_tokens"].isna()["c"]
    truth = rescore(pd.DataFrame(rows), sufficiency="correct")
    assert all("no ground truth" in error for error in truth["error"])
    assert str(table["required_tokens"].dtype) == "Int64"


def test_rescore_judges_anew() -> None:
    rows = trace(Scripted(lambda _, t: ("104" if t < 36 else "100", 0.0)), [IMAGE], [["q"]], [["100"]])
    frame = pd.DataFrame([row.to_dict() for row in rows])
    assert list(rescore(frame)["required_tokens"]) == [36]
    assert list(rescore(frame, metric="relaxed_accuracy")["required_tokens"]) == [1]
    minimal = frame[["image", "question", "tokens", "answer", "agreement", "consistent"]]
    assert list(rescore(minimal)["required_tokens"]) == [36]


def test_rescore_understands_what_pandas_reads_of_a_csv_file(tmp_path: Path) -> None:
    """Not letter by letter, and not "False" as true; names and answers without the guard of spreadsheets."""
    names = ["=a.png", "b.png", "12"]
    said = [("-5", 0.5), ("4", 0.5), ("-5", 1.0)]
    model = Scripted(lambda _, t: said[(9, 36, 576).index(t)], (9, 36, 576))
    rows = trace(model, [IMAGE] * 3, [["q"]] * 3, [["-5"], ["red"], [["4", "4.0"]]], ids=names)
    table = [*(row.to_dict() for row in rows), {"image": "c.png", "error": "truncated"}]
    write_traces(table, tmp_path / "t.csv")
    read = pd.read_csv(tmp_path / "t.csv")
    assert isinstance(read["references"][0], str) and read["image"][0] == "'=a.png"
    for metric in (None, "exact_match", "relaxed_accuracy"):
        for rule in ("stays", "first"):
            expected = rescore(read_traces(tmp_path / "t.csv"), rule, metric=metric)
            assert rescore(read, rule, metric=metric).equals(expected)
    assert list(rescore(read, "first")["path"]) == [*names, "c.png"]
    assert list(rescore(read, "first")["required_tokens"][[0, 2]]) == [9, 36]
    assert rescore(read.astype(object).astype({"correct": str}), "first").equals(rescore(read, "first"))
    write_traces(table, tmp_path / "t.parquet")
    assert rescore(pd.read_parquet(tmp_path / "t.parquet")).equals(rescore(read))


def test_rescore_refuses_what_it_cannot_understand(tmp_path: Path) -> None:
    rows = trace(Scripted(lambda _, t: ("None", 1.0)), [IMAGE], [["q"]], [["None"]], ids=["a.png"])
    table = [row.to_dict() for row in rows]
    with pytest.raises(M3ScoreError, match=r"a\.png: references need a list of texts.* not 'None'"):
        rescore(pd.DataFrame([{**row, "references": "None"} for row in table]))
    with pytest.raises(M3ScoreError, match=r"a\.png: a value .*\(needs true or false, not 'maybe'\)"):
        rescore(pd.DataFrame([{**row, "consistent": "maybe"} for row in table]))
    write_traces(table, tmp_path / "t.csv")
    with pytest.raises(M3ScoreError, match=r"a\.png: an answer is missing; .*read_traces"):
        rescore(pd.read_csv(tmp_path / "t.csv"))  # "None" is a missing value to pandas
    assert rescore(read_traces(tmp_path / "t.csv"))["required_tokens"].tolist() == [1]


def test_rescore_says_what_is_wrong() -> None:
    rows = [row.to_dict() for row in trace(knows_from(9), [IMAGE], [["q"]])]
    with pytest.raises(M3ScoreError, match="missing: agreement"):
        rescore(pd.DataFrame(rows).drop(columns="agreement"))
    with pytest.raises(M3ScoreError, match="one model, this one those of other, scripted"):
        rescore(pd.DataFrame([*rows, {**rows[0], "model": "other"}]))
    with pytest.raises(M3ScoreError, match="0: a value in the trace is of the wrong kind"):
        rescore(pd.DataFrame([{**rows[0], "tokens": "many"}]))
    with pytest.raises(M3ScoreError, match="unknown rule"):
        rescore(pd.DataFrame(rows), rule="best")
    with pytest.raises(M3ScoreError, match="0: the trace lacks the rows of 576 tokens"):
        score_trace(
            [*trace(knows_from(9), [IMAGE], [["q"]])[:-1], *trace(knows_from(9), [IMAGE], [["q"]], ids=["1"])]
        )


def test_a_row_says_what_judged() -> None:
    """Complexity by agreement and by right answers are two numbers: a table has to tell them apart."""
    model = Scripted(lambda question, t: ("yes" if question == "known" else "any", 1.0))
    asked = [["known"], ["other"], ["known", "other"]]
    answers: list[list[Any]] = [[["yes"]], [None], [["yes"], None]]
    scored = score_trace(trace(model, [IMAGE] * 3, asked, answers=answers, ids=["a", "b", "c"]))
    judges = ["right answers", "agreement", "mixed"]
    assert [one.to_row()["judged_by"] for one in scored.values()] == judges


# ---- answers that were cut ----------------------------------------------------------------------------


class Cut(Scripted):
    """Every answer at 9 tokens is cut."""

    def _scale(self, question: str, tokens: int) -> ScaleAnswer:
        return replace(super()._scale(question, tokens), cut=tokens == 9 and question != "short")


def test_answers_that_were_cut_are_marked_and_counted(tmp_path: Path) -> None:
    model = Cut(lambda _, t: ("a long answ", 1.0))
    rows = trace(model, [IMAGE, IMAGE], [["q", "short"], ["short"]], ids=["a", "b"])
    assert [row.tokens for row in rows if row.cut] == [9]
    scored = score_trace(rows)
    assert [one.to_row()["cut_questions"] for one in scored.values()] == [1, 0]
    assert [question.cut for question in scored["a"].questions] == [True, False]
    for name in ("t.csv", "t.jsonl", "t.parquet"):
        write_traces(rows, tmp_path / name)
        assert list(rescore(read_traces(tmp_path / name))["cut_questions"]) == [1, 0]
    older = pd.DataFrame([row.to_dict() for row in rows]).drop(columns="cut")
    assert list(rescore(older)["cut_questions"]) == [0, 0]


def test_imports_stay_light() -> None:
    code = (
        "import sys, m3score.scoring.oracle, m3score.tables.io;"
        "sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
