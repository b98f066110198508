from __future__ import annotations

import math
from itertools import chain
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from m3score.common.errors import M3ScoreError
from m3score.data.questions import Question
from m3score.models.base import LadderAnswerer
from m3score.models.inference import verification
from m3score.models.inference.batching import MemoryGuard, free_memory
from m3score.models.inference.generation import (
    Decoded,
    build_prompt_forest,
    continue_decoding,
    decode,
    greedy,
)
from m3score.models.inference.prompt_tree import Node, PromptTrees
from m3score.models.m3.encoder import EncodedImage
from m3score.models.m3.model import M3Model
from m3score.scoring.oracle import score
from m3score.scoring.traces import trace
from tests.support.goldens import GOLDEN, IMAGES, LLAVA, NEXT, SEPARATE, encoded, golden, model, picture

QUESTIONS = (*GOLDEN["questions"].values(), "Why?", "Is there text on the wall? Answer yes or no, please.")
TAGGED = "What is <image> about?"  # its text before the image is its own
EMPTY = (300, 200)  # at one token per grid, a LLaVA-NeXT image of this size has its overview only
pairs = st.lists(
    st.tuples(st.sampled_from([*IMAGES, EMPTY]), st.lists(st.sampled_from([*QUESTIONS, TAGGED]), max_size=4)),
    min_size=1,
    max_size=3,
)
few = settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def one_by_one(m3: M3Model, image: Any, question: str, tokens: int, length: int) -> Decoded:
    sequence = m3.prompt_embeddings(image, question, tokens)
    return greedy(m3, [sequence], length, keep_distributions=True)[0]


def forced(m3: M3Model, image: Any, question: str, tokens: int, answer: list[int]) -> torch.Tensor:
    """Distributions at the answer's positions, from one plain forward pass without batch or cache."""
    ids = [*m3.prompt_ids(question), *answer[:-1]]
    logits = m3.logits(ids, [image], tokens)[-len(answer) :]
    return torch.softmax(logits.double(), dim=-1)


@pytest.mark.parametrize("name", [LLAVA, SEPARATE, NEXT])
def test_a_model_is_a_ladder_answerer(name: str) -> None:
    answerer: LadderAnswerer = model(name)
    rows = answerer.answer_ladder([picture("land_640x480")], [["Why?"]], max_new_tokens=2)
    assert [answer.tokens for answer in rows[0][0]] == list(answerer.ladder)


def encode(name: str, image: Any) -> EncodedImage:
    if image in IMAGES:
        return encoded(name, image)
    return model(name).encode(Image.effect_mandelbrot(image, (-2, -1, 1, 1), 60).convert("RGB"))


@few
@given(asked=pairs, length=st.integers(1, 10), batch_size=st.sampled_from([1, 2, 7]))
@pytest.mark.parametrize("name", [LLAVA, SEPARATE, NEXT, "m3-tiny"])
def test_the_ladder_is_every_scale_by_itself(name: str, asked: Any, length: int, batch_size: int) -> None:
    m3 = model(name)
    images = [encode(name, image) for image, _ in asked]
    questions = [texts for _, texts in asked]
    rows = m3.answer_ladder(images, questions, max_new_tokens=length, batch_size=batch_size)
    assert [len(row) for row in rows] == [len(texts) for texts in questions]
    for image, texts, row in zip(images, questions, rows, strict=True):
        for question, answers in zip(texts, row, strict=True):
            check(m3, image, question, length, answers)


def check(m3: M3Model, image: Any, question: str, length: int, answers: Any) -> None:
    finest = one_by_one(m3, image, question, m3.ladder[-1], length)
    reference = forced(m3, image, question, m3.ladder[-1], finest.ids)
    assert [answer.tokens for answer in answers] == list(m3.ladder)
    assert answers[-1].agreement == 1.0
    for answer in answers:
        own = one_by_one(m3, image, question, answer.tokens, length)
        assert answer.answer == m3.decode(own.ids)
        assert answer.cut is (own.ids[-1] not in m3.stop_ids)
        assert answer.logprob == pytest.approx(own.logprob, abs=1e-3)
        assert answer.visual_tokens == m3.visual_token_count(image, answer.tokens)
        distance = (forced(m3, image, question, answer.tokens, finest.ids) - reference).abs().sum(-1) / 2
        assert answer.agreement == pytest.approx(1 - distance.mean().item(), abs=1e-4)
        assert 0 <= answer.agreement <= 1


@pytest.mark.parametrize("packed", [0, 40, 10_000])
@pytest.mark.parametrize("name", [LLAVA, NEXT])
def test_scales_in_one_row_or_in_several(name: str, packed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    m3 = model(name)
    images, questions = [encoded(name, image) for image in IMAGES], [["Why?", "Where?"], [TAGGED], ["Who?"]]
    expected = m3.answer_ladder(images, questions, max_new_tokens=6)
    monkeypatch.setitem(verification._PACKED_TOKENS, "cpu", packed)
    assert_same(m3.answer_ladder(images, questions, max_new_tokens=6), expected)


@pytest.mark.parametrize("name", [SEPARATE, NEXT])
def test_without_coarse_answers_nothing_but_the_finest_scale_decodes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    m3 = model(name)
    images, questions = [encoded(name, image) for image in IMAGES], [list(QUESTIONS)] * len(IMAGES)
    whole = m3.answer_ladder(images, questions, max_new_tokens=4)
    steps, append = list[int](), PromptTrees.append

    def counted(trees: PromptTrees, ids: torch.Tensor) -> torch.Tensor:
        steps.append(len(ids))
        return append(trees, ids)

    monkeypatch.setattr(PromptTrees, "append", counted)
    lean = m3.answer_ladder(images, questions, max_new_tokens=4, decode_coarse=False, batch_size=100)
    assert len(steps) <= 3
    kinds = set()
    for one, other in zip(chain(*whole), chain(*lean), strict=True):
        for full, left in zip(one, other, strict=True):
            assert left.agreement == pytest.approx(full.agreement, abs=1e-5)
            same = left.answer is not None
            kinds.add(same)
            assert left.answer == (full.answer if full.answer == one[-1].answer else None)
            assert left.logprob == (
                pytest.approx(full.logprob, abs=1e-4) if same else pytest.approx(math.nan, nan_ok=True)
            )
    assert kinds == {True, False}


def test_without_coarse_answers_only_agreement_and_consistency_count() -> None:
    asked = Question("How many?", answers=("x",))
    picture = Image.effect_mandelbrot((64, 48), (-2, -1, 1, 1), 60).convert("RGB")
    m3 = model("m3-tiny")
    whole = trace(m3, [picture], [[asked]], max_new_tokens=3)
    lean = trace(m3, [picture], [[asked]], max_new_tokens=3, coarse_answers=False)
    assert [row.agreement for row in lean] == pytest.approx([row.agreement for row in whole], abs=1e-5)
    assert all(row.correct is None and row.references == () for row in lean)
    for row, full in zip(lean, whole, strict=True):
        assert row.answer == (full.answer if row.consistent else "")
    scored = score(picture, model=m3, questions="How many?", answers="x", coarse_answers=False)
    assert scored.questions[0].judged_by == "consistent"


def assert_same(one: Any, other: Any) -> None:
    """The same answers; numbers but for rounding."""
    for a, b in zip(chain(*chain(*one)), chain(*chain(*other)), strict=True):
        assert (a.tokens, a.visual_tokens, a.answer) == (b.tokens, b.visual_tokens, b.answer)
        assert (a.agreement, a.logprob) == pytest.approx((b.agreement, b.logprob), abs=1e-4)


@pytest.mark.parametrize("name", [LLAVA, NEXT])
def test_ladder_answers_are_the_golden_ones(name: str) -> None:
    cases = [case for case in golden(name)["cases"] if case["scale"] is not None]
    rows = model(name).answer_ladder(
        [encoded(name, image) for image in IMAGES], [list(GOLDEN["questions"].values())] * 3, max_new_tokens=8
    )
    answers = {
        (image, question, answer.tokens): answer.answer
        for image, row in zip(IMAGES, rows, strict=True)
        for question, ladder in zip(GOLDEN["questions"], row, strict=True)
        for answer in ladder
    }
    for case in cases:
        if case["min_margin"] > 1e-3:
            assert answers[case["image"], case["question"], case["scale"]] == case["output_text"]


@pytest.mark.parametrize("name", [LLAVA, NEXT])
def test_a_batch_says_what_each_says_alone(name: str) -> None:
    m3 = model(name)
    sequences = [
        m3.prompt_embeddings(encoded(name, image), question, tokens)
        for image, question, tokens in zip(IMAGES, QUESTIONS, (144, 1, 36), strict=False)
    ]
    together = greedy(m3, sequences, 10, keep_distributions=True)
    for sequence, answer in zip(sequences, together, strict=True):
        alone = greedy(m3, [sequence], 10, keep_distributions=True)[0]
        assert answer.ids == alone.ids
        assert answer.logprob == pytest.approx(alone.logprob, abs=1e-4)
        assert answer.log_probs is not None and alone.log_probs is not None
        torch.testing.assert_close(answer.log_probs, alone.log_probs, rtol=0, atol=1e-4)


def test_outputs_that_are_no_numbers_are_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    m3 = model(LLAVA)
    prompt = m3.prompt_embeddings(encoded(LLAVA, "land_640x480"), "Why?", 1)
    with pytest.raises(M3ScoreError, match="bfloat16"):
        greedy(m3, [prompt * float("inf")], 2)
    embed = m3.image_embeddings
    monkeypatch.setattr(m3, "image_embeddings", lambda e, t: embed(e, t) * (1 if t > 9 else float("inf")))
    with pytest.raises(M3ScoreError, match="bfloat16"):
        m3.answer_ladder([encoded(LLAVA, "land_640x480")], [["Why?"]])


def test_an_answer_stops_at_its_end_token() -> None:
    ended = [
        case for case in golden(SEPARATE)["cases"] + golden(SEPARATE)["extra"] if 2 in case["new_token_ids"]
    ]
    assert ended
    for case in ended:
        ids = model(SEPARATE).prompt_ids(GOLDEN["questions"][case["question"]])
        images = [encoded(SEPARATE, case["image"])]
        answer = model(SEPARATE).generate(ids, images, case["scale"], max_new_tokens=50)
        assert answer == case["new_token_ids"]


def test_pictures_need_not_be_encoded_and_are_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    m3, passes = model(LLAVA), list[int]()
    project = m3.project

    def counted(tiles: Any, **options: Any) -> Any:
        passes.append(len(tiles))
        return project(tiles, **options)

    monkeypatch.setattr(m3, "project", counted)
    pictures = [picture(image) for image in IMAGES[:2]]
    rows = m3.answer_ladder(pictures, [list(QUESTIONS), ["Why?"]], max_new_tokens=2, batch_size=2)
    assert sum(passes) == 2
    assert rows == m3.answer_ladder(
        [encoded(LLAVA, image) for image in IMAGES[:2]],
        [list(QUESTIONS), ["Why?"]],
        max_new_tokens=2,
        batch_size=2,
    )


@pytest.mark.parametrize("name", [LLAVA, NEXT])
def test_questions_on_an_image_share_what_stands_before_them(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    m3, read = model(name), list[int]()
    forward = PromptTrees._forward

    def counted(trees: PromptTrees, embeddings: torch.Tensor, *arguments: Any) -> torch.Tensor:
        read.append(embeddings.shape[0] * embeddings.shape[1])
        return forward(trees, embeddings, *arguments)

    monkeypatch.setattr(PromptTrees, "_forward", counted)
    monkeypatch.setitem(verification._PACKED_TOKENS, "cpu", 10_000)
    image, questions = encoded(name, "land_640x480"), list(QUESTIONS)
    m3.answer_ladder([image], [questions], max_new_tokens=1, batch_size=len(questions))
    parts = [m3.prompt_parts(question) for question in questions]
    visual = [m3.visual_token_count(image, tokens) for tokens in m3.ladder]
    tails = sum(len(tail) for _, tail in parts)
    assert sum(read) == 2 * len(parts[0][0]) + sum(visual) + len(visual) * tails


def test_a_tree_is_its_paths() -> None:
    m3 = model(LLAVA)
    torch.manual_seed(0)
    runs = [0.1 * torch.randn(length, 64) for length in (3, 5, 1, 4, 2, 6)]
    tree = [Node(run, parent) for run, parent in zip(runs, (None, 0, 1, 1, None, 4), strict=True)]
    other = [Node(runs[5]), Node(runs[4], 0), Node(runs[0], 0)]
    paths = {(0, 2): (0, 1, 2), (0, 3): (0, 1, 3), (0, 5): (4, 5), (1, 1): (5, 4), (1, 2): (5, 0)}
    expected = greedy(m3, [torch.cat([runs[i] for i in path]) for path in paths.values()], 5)
    for trunk_first in (False, True):
        trees = PromptTrees(m3.hf_model, [tree, other], trunk_first=trunk_first)
        got = decode(trees, list(paths), frozenset(), 5)
        assert [answer.ids for answer in got] == [answer.ids for answer in expected]
        assert [a.logprob for a in got] == pytest.approx([a.logprob for a in expected], abs=1e-4)


@given(limits=st.lists(st.integers(1, 9), min_size=5, max_size=5))
@few
def test_answers_that_end_early_make_room(limits: list[int]) -> None:
    m3, image = model(NEXT), encoded(NEXT, "gray_336x336")
    pairs = [(image, question) for question in QUESTIONS[:3]]
    pairs += [(encoded(NEXT, "land_640x480"), question) for question in QUESTIONS[:2]]
    forest, leaves = build_prompt_forest(m3, pairs, [36])
    trees = PromptTrees(m3.hf_model, forest)
    logits = trees.logits_at_ends(leaves)
    trees.start(leaves)
    got = continue_decoding(trees, logits, frozenset(), limits, keep_distributions=True)
    for (one, question), limit, answer in zip(pairs, limits, got, strict=True):
        alone = one_by_one(m3, one, question, 36, limit)
        assert answer.ids == alone.ids
        assert answer.log_probs is not None and alone.log_probs is not None
        torch.testing.assert_close(answer.log_probs, alone.log_probs, rtol=0, atol=1e-4)


def test_batches_are_of_whole_images_and_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [model(NEXT)._batch_size("auto", 32, questions) for questions in (1, 5, 1000)]
    assert sizes[0] < sizes[1] <= sizes[2] and sizes[1] % 5 == 0
    assert free_memory(torch.device("cpu")) > 0
    monkeypatch.setattr("m3score.models.local.free_memory", lambda device: 1)
    assert model(NEXT)._batch_size("auto", 32, 5) == 5


def test_images_of_alike_lengths_go_together() -> None:
    m3 = model(NEXT)
    images = [picture(image) for image in IMAGES] + [Image.new("RGB", EMPTY)]
    counts = [m3.visual_token_count(one, m3.ladder[-1]) for one in m3.encode(images)]
    assert [m3.most_visual_tokens(image) for image in images] == counts
    assert [m3.most_visual_tokens(m3.tiles(image)) for image in images] == counts
    assert m3.most_visual_tokens("a path.jpg") == 0
    expected = [m3.answer_ladder([image], [["Why?"]], max_new_tokens=2)[0] for image in images]
    assert_same(m3.answer_ladder(images, [["Why?"]] * 4, max_new_tokens=2, batch_size=2), expected)


def test_nothing_to_answer() -> None:
    assert model(LLAVA).answer_ladder([], []) == []
    assert model(LLAVA).answer_ladder([picture("gray_336x336")], [[]]) == [[]]


@pytest.mark.parametrize(
    ("images", "questions", "options", "says"),
    [
        (1, [["a"], ["b"]], {}, "1 images"),
        (1, [["a"]], {"max_new_tokens": 0}, "max_new_tokens"),
        (1, [["a"]], {"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_arguments(images: int, questions: Any, options: dict[str, Any], says: str) -> None:
    pictures = [Image.new("RGB", (8, 8))] * images
    with pytest.raises(M3ScoreError, match=says):
        model(LLAVA).answer_ladder(pictures, questions, **options)


def test_out_of_memory_halves_the_batch_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    guard, sizes = MemoryGuard(), []

    def run(batch: Any) -> list[int]:
        sizes.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return [2 * item for item in batch]

    assert guard.map(run, range(10), 8) == [2 * item for item in range(10)]
    assert sizes == [8, 4, 2, 2, 2, 2, 2]
    assert guard.map(run, range(4), 8) == [0, 2, 4, 6]  # remembered
    assert sizes[7:] == [2, 2]
    assert len(caplog.records) == 1


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), RuntimeError("MPS backend out of memory")])
def test_out_of_memory_for_a_single_item(error: RuntimeError) -> None:
    def run(batch: Any) -> list[int]:
        raise error

    with pytest.raises(M3ScoreError, match="memory"):
        MemoryGuard().map(run, [1, 2], 2)


def test_other_errors_are_not_about_memory() -> None:
    def run(batch: Any) -> list[int]:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        MemoryGuard().map(run, [1, 2], 2)


def test_a_ladder_that_ran_out_of_memory_is_the_same_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    m3 = model(LLAVA)
    monkeypatch.setattr(m3, "_decode_guard", MemoryGuard())
    images, questions = [encoded(LLAVA, image) for image in IMAGES], [["Why?"], ["Why?", "Where?"], ["Who?"]]
    expected = m3.answer_ladder(images, questions, max_new_tokens=3, batch_size=1)
    embed = m3.image_embeddings
    alive: list[int] = []

    def scarce(image: Any, tokens: int | None) -> torch.Tensor:
        alive.append(1)
        if len(alive) == 4:
            raise torch.OutOfMemoryError
        return embed(image, tokens)

    monkeypatch.setattr(m3, "image_embeddings", scarce)
    got = m3.answer_ladder(images, questions, max_new_tokens=3, batch_size=4)
    assert_same(got, expected)
