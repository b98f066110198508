"""Metrics against values computed by hand and examples of the published definitions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3score.common.errors import M3ScoreError
from m3score.data.choices import choice, yes_or_no
from m3score.data.metrics import METRICS, default_metric, grade
from m3score.data.normal_form import consistent, normalise


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("  A Cat. ", "cat"),
        ("the two dogs", "2 dogs"),
        ("None", "0"),
        ("Zero", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        (".5", ".5"),
        ("5.", "5"),
        ("U.S.A.", "usa"),
        ("yes, it is", "yes it is"),
        ("black-and-white", "black and white"),
        ("black/white", "black white"),
        ("dont", "don't"),
        ("don\u2019t", "don't"),
        ("wouldntve", "wouldntve"),  # two apostrophes missing: not in the official table
        ("its", "its"),
        ("were", "were"),
        ("im", "im"),  # the official table's keys for these are in capitals, or there is none
        ("ive", "ive"),
        ("lets", "lets"),
        ("shes", "shes"),
        ("that'll", "that'll"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("yall'll", "y'all'll"),
        ("'ows'at", "'ow's'at"),
        ("-5", "-5"),
        ("3-5", "3 5"),
        ("A", "a"),
        ("The", "the"),
        ("?", "?"),
        ("", ""),
        ("\n\t", ""),
        ("Cafe\u0301", "caf\u00e9"),
        ("\u6771\u4eac", "\u6771\u4eac"),
        ("$5.00", "$5.00"),
    ],
)
def test_normalise(text: str, normal: str) -> None:
    assert normalise(text) == normal


@given(st.text())
def test_normalise_any_text(text: str) -> None:
    assert isinstance(normalise(text), str)
    assert consistent(text, text)
    assert consistent(f" {text}\n", text)


def test_consistent() -> None:
    assert consistent("Two cats.", "2 cats")
    assert consistent("", "")
    assert not consistent("", "A")
    assert not consistent("A", "an")
    assert not consistent("-5", "5")


def test_exact_match() -> None:
    assert grade("exact_match", "The Cat!", ["dog", "cat"]).correct
    assert grade("exact_match", "cats", "cat").score == 0.0
    assert grade("exact_match", "", "cat").score == 0.0
    assert grade("exact_match", "", "").score == 1.0


@pytest.mark.parametrize(
    ("matches", "of", "score"),
    [
        (0, 10, 0.0), (1, 10, 0.3), (2, 10, 0.6), (3, 10, 0.9), (4, 10, 1.0), (10, 10, 1.0),
        (1, 1, 1.0), (1, 2, 0.5), (2, 2, 1.0), (1, 3, 1 / 3), (2, 3, 2 / 3), (3, 3, 1.0),
        (1, 4, 0.25), (2, 4, 0.5), (3, 4, 0.75), (4, 4, 1.0),
    ],
)  # fmt: skip
def test_vqa_accuracy(matches: int, of: int, score: float) -> None:
    references = ["the cat"] * matches + [f"other {i}" for i in range(of - matches)]
    assert grade("vqa_accuracy", "Cat", references).score == score
    assert grade("vqa_accuracy", "Cat", references).correct == (score >= 0.5)


@given(st.lists(st.sampled_from("ab"), min_size=4, max_size=14))
def test_vqa_accuracy_is_the_leave_one_out_mean(references: list[str]) -> None:
    terms = []
    for i in range(len(references)):
        others = references[:i] + references[i + 1 :]
        terms.append(min(1.0, others.count("b") / 3))
    assert grade("vqa_accuracy", "b", references).score == pytest.approx(sum(terms) / len(terms))


def test_anls() -> None:
    assert grade("anls", "Hello  World", "hello world").score == 1.0
    assert grade("anls", "kitten", "sitting").score == pytest.approx(1 - 3 / 7)
    assert grade("anls", "kitten", ["xyz", "mitten"]).score == pytest.approx(5 / 6)
    assert grade("anls", "ab", "ax").score == 0.5  # as the challenge's script has it, and lmms-eval
    assert grade("anls", "ab", "ax").correct and grade("anls", "abc", "axy").score == 0.0
    assert grade("anls", "", "x").score == 0.0
    assert grade("anls", "", "").score == 1.0


@pytest.mark.parametrize(
    ("prediction", "reference", "correct"),
    [
        ("105", "100", True),
        ("0.105", "0.1", True),
        ("105.1", "100", False),
        ("95", "100", True),
        ("-100", "100", False),
        ("-100", "-104", True),
        ("1,234", "1234", True),
        ("1,234,567", "1234567", True),
        ("$1,200", "1200", True),
        ("-$5", "-5", True),
        ("5 \u20ac", "5", True),
        ("12%", "12 %", True),
        ("12%", "0.12", True),
        ("12%", "12", False),
        ("\u22125", "-5", True),
        ("1e3", "1000", True),
        ("0", "0.0", True),
        ("0.01", "0", False),
        ("2010", "2019", True),
        ("Blue", "blue.", True),
        ("blue", "red", False),
        ("three", "3", True),
        ("nan", "nan", True),
        ("inf", "5", False),
        ("1e999", "5", False),
        ("", "5", False),
        ("$", "5", False),
    ],
)
def test_relaxed_accuracy(prediction: str, reference: str, correct: bool) -> None:
    assert grade("relaxed_accuracy", prediction, reference).correct is correct


OPTIONS = ("cat", "dark red dog", "red dog", "The Eiffel Tower")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"), ("a", "A"), ("(B)", "B"), ("B.", "B"), ("b)", "B"), ("[C]", "C"), ("D:", "D"),
        ("A) cat", "A"), ("(A) cat", "A"), ("B. dark red dog", "B"), ("B dark red dog", "B"),
        ("The answer is A", "A"), ("the answer is b.", "B"), ("Answer: (C)", "C"), ("Option D", "D"),
        ("The correct answer is option B because it is red", "B"),
        ("cat", "A"), ("A cat", "A"), ("Cat.", "A"), ("eiffel tower", "D"), ("it is a dark red dog", "B"),
        ("I think it is the red dog.", "C"), ("the answer is a cat", "A"),
        ("a cat and a red dog", None), ("E", None), ("I", None), ("", None), ("nothing", None),
        ("cats", None),
        ("U.S. dollars", None),
    ],
)  # fmt: skip
def test_choice(text: str, letter: str | None) -> None:
    position = choice(text, OPTIONS)
    assert (None if position is None else chr(65 + position)) == letter


@pytest.mark.parametrize("options", [("cat", "dog", "ant", "bee"), ("b", "a", "d", "c"), ()])
@pytest.mark.parametrize(
    "text",
    [
        "I think it is (B).", "It's B", "It is B.", "I choose B", "I'd go with B", "I would select (B)",
        "B is correct", "B is the correct answer.", "(B) is right", "B, because it barks", "B: it barks",
        "B - it barks", "ASSISTANT: B", "assistant: (b)", "**B**", "**Answer: B**", "The answer is **B**.",
        "`B`", "__B__", "\\boxed{B}", '"B"', "'B'", "B!", "Answer: B", "Option B", "The best choice is B.",
        "It must be B.", "Surely B", "B because it barks", "The answer is B, not A.", "Not A but B.",
        "It isn't A, it's B", "(A) is wrong. The answer is (B).", "I guess B", "B\n\nIt barks.",
        "Based on the image, the answer would be B", "My choice is [B]", "The answer is B as it barks",
        "The answer is B and nothing else", "(B) since option A is wrong", "Option B is the best, not A",
    ],
)  # fmt: skip
def test_letters_in_sentences(text: str, options: tuple[str, ...]) -> None:
    assert choice(text, options) == 1
    assert grade("multiple_choice", text, "B", options).correct


@pytest.mark.parametrize(
    "text",
    [
        "A or B", "A and B", "The answer is A or B", "Either (A) or (B)", "A thing",
        "I see a thing", "I do not know", "It's not B", "Not (B)",
        "Plan-B", "B.C. times", "It's a thing", "e", "The answer is unknown", "Answer:", "**", "ASSISTANT:",
    ],
)  # fmt: skip
def test_no_letter_is_picked(text: str) -> None:
    assert choice(text, ("cat", "dog", "ant", "bee")) is None


def test_option_texts_win_over_letters_among_words() -> None:
    vitamins = ("Vitamin C", "Vitamin A", "Vitamin D")
    assert choice("I think it is Vitamin C.", vitamins) == 0 and choice("It's Vitamin A", vitamins) == 1
    assert choice("It is C", vitamins) == 2
    assert choice("A dog", ("dog", "cat")) == 0 and choice("I see 2 of them", ("1", "2")) == 1
    assert choice("It's B", ("b", "a", "d", "c")) == 1  # a letter, whatever the texts are


@pytest.mark.parametrize(
    ("prediction", "right"),
    [("B", True), ("b", True), ("Because", True), ("B. ant", True), ("(B)", False), ("It's B", False),
     ("", False), ("A", False)],
)  # fmt: skip
def test_first_letter(prediction: str, right: bool) -> None:
    assert grade("first_letter", prediction, "B", ("bee", "ant")).correct is right


def test_choice_where_texts_look_like_letters() -> None:
    assert choice("D. H. Lawrence", ["Joyce", "D. H. Lawrence"]) == 1
    assert choice("A", ["B", "A"]) == 0
    assert choice("2", ["1", "2"]) == 1
    assert choice("*", ["+", "*"]) == 1 and choice("__init__", ["main", "__init__"]) == 1


def test_multiple_choice() -> None:
    assert grade("multiple_choice", "(B)", "dark red dog", OPTIONS).correct
    assert grade("multiple_choice", "the red dog", "C", OPTIONS).correct
    assert not grade("multiple_choice", "", "C", OPTIONS).correct
    assert not grade("multiple_choice", "who knows", "A", OPTIONS).correct
    assert grade("multiple_choice", "The answer is B", "b").correct
    assert grade("multiple_choice", "blue", "Blue.").correct
    with pytest.raises(M3ScoreError, match=r"'zebra' names no option; .* A \(cat\), B"):
        grade("multiple_choice", "A", "zebra", OPTIONS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("yes", True), ("Yes, there is a dog.", True), ("no", False), ("No.", False),
        ("There is not.", False), ("It isn't. Yes!", False), ("There isn\u2019t one", False),
        ("yes, but no cat", True), ("maybe", None), ("", None), ("nobody knows", None),
        ("I don't know", None), ("not sure", None), ("I'm not certain.", None),
        ("It cannot be determined", None), ("I'm not sure it's clear", None),
        ("I can't tell", None), ("It is not clear", None), ("I'm not sure, but yes", True),
        ("It is not yes", False), ("It's not a yes", False), ("It isn't no", True),
        ("The answer is no", False), ("'no'", False), ("\u2018Yes\u2019", True), ('"no"', False),
        ("**No**", False), ("It cannot be.", False),
        ("There's no dog", False), ("know", None), ("not", False),
    ],
)  # fmt: skip
def test_yes_or_no(text: str, said: bool | None) -> None:
    assert yes_or_no(text) is said
    assert grade("yes_no", text, "yes").correct is (said is True)
    assert grade("yes_no", text, "no").correct is (said is False)


@pytest.mark.parametrize(
    ("prediction", "references", "correct"),
    [
        ("a black dog", "dog", True),
        ("dogs", "dog", False),
        ("The Eiffel Tower in Paris", "eiffel tower", True),
        ("", "dog", False),
        ("", "", True),
        ("about 1,234.50 metres", "1234.5", True),
        ("$3.004", "3", True),  # to two decimals
        ("3.1", "3", False),
        ("13", "3", False),
        ("three", "3", True),
        ("v2.5", "2.5", False),
        ("-4", "4", False),
        ("x is 12%", "12%", True),
    ],
)
def test_contains(prediction: str, references: str, correct: bool) -> None:
    assert grade("contains", prediction, references).correct is correct


def test_default_metric() -> None:
    assert default_metric(["x"]) == "exact_match"
    assert default_metric(["x"] * 10) == "vqa_accuracy"
    aliases = [f"name {i}" for i in range(12)]
    assert default_metric(aliases) == "exact_match" and grade(None, "Name 7.", aliases).correct
    assert default_metric([*aliases, "name 3"]) == "vqa_accuracy"  # somebody said the same: votes
    assert default_metric(["x"] * 9) == "exact_match"
    assert default_metric(["A"], ["x", "y"]) == "multiple_choice"
    assert grade(None, "x", ["x"] * 3 + ["y"] * 7).score == 0.9


def test_bad_input() -> None:
    with pytest.raises(M3ScoreError, match="unknown metric 'bleu'; allowed: exact_match, vqa_accuracy, anls"):
        grade("bleu", "x", "x")
    with pytest.raises(M3ScoreError, match="at least one reference"):
        grade("anls", "x", [])
    with pytest.raises(M3ScoreError, match="reference answer 'BEE' is no letter"):
        grade("first_letter", "B", "bee")


@given(
    st.sampled_from(list(METRICS)),
    st.text(max_size=30),
    st.lists(st.text(max_size=30), min_size=1, max_size=5),
)
def test_scores_are_between_0_and_1(metric: str, prediction: str, references: list[str]) -> None:
    if metric == "first_letter":
        references = ["abcde"[len(reference) % 5] for reference in references]
    verdict = grade(metric, prediction, references)
    assert 0.0 <= verdict.score <= 1.0
    assert verdict.correct == (verdict.score >= METRICS[metric].threshold)
    assert verdict.to_dict() == {"score": verdict.score, "correct": verdict.correct}
    if metric not in ("vqa_accuracy", "yes_no"):
        assert grade(metric, references[0], references).correct
