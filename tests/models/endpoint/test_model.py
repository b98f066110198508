"""A model behind a server answers at every budget."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from m3score.common.errors import M3ScoreError, StopRunError
from m3score.data.loader import in_halves
from m3score.models.endpoint.loading import load_endpoint
from m3score.models.endpoint.model import EndpointModel
from tests.support.endpoint import Answered, Stub, ToyMind, as_json, read_chat, refusal, serving

LARGE = Image.new("RGB", (640, 480), "red")


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving(Stub(ToyMind())) as one:
        yield one


def _load(stub: Stub, **options: Any) -> EndpointModel:
    model = load_endpoint(stub.url, **options)
    model.chat.client._pause = 0.001
    stub.seen.clear()
    return model


def _answers(model: EndpointModel, image: Image.Image = LARGE) -> list[tuple[int, int, str | None, float]]:
    (((*scales,),),) = model.answer_ladder([image], [["What?"]])
    return [(one.tokens, one.visual_tokens, one.answer, round(one.agreement, 9)) for one in scales]


@pytest.mark.parametrize(
    ("stubbed", "coarse"),
    [({}, 0.325), ({"forces": False}, 0.1), ({"most_logprobs": 0}, 0.0)],
    ids=["forced", "logprobs", "answers"],
)
def test_agreement(stub: Stub, stubbed: dict[str, Any], coarse: float) -> None:
    """ "no" against "yes" and the end: of four positions three agree by .1, and the end wholly."""
    vars(stub).update(stubbed)
    assert _answers(_load(stub)) == [
        (64, 54, "no", coarse),
        (256, 234, "yes", 1.0),
        (1024, 391, "yes", 1.0),
        (4096, 391, "yes", 1.0),
    ]


def test_equal_pixels_are_asked_about_once(stub: Stub) -> None:
    model = _load(stub)
    _answers(model)
    assert len(stub.chats()) == 4  # 54, 234 and 391 tokens, and the coarsest is made to read "yes"
    stub.seen.clear()
    assert {one[1] for one in _answers(model, Image.new("RGB", (200, 200)))} == {49}
    assert len(stub.chats()) == 1


def test_pictures_travel_without_loss_and_a_request_holds_nothing_else(stub: Stub) -> None:
    model = _load(stub)
    assert model.answer(LARGE, "What?", 64) == "no"
    assert model.answer(LARGE, "What?") == "yes"
    body = stub.chats()[0]
    assert body["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert body["mm_processor_kwargs"] == {"size": {"shortest_edge": 3136, "longest_edge": 50176}}
    assert body["temperature"] == 0
    with pytest.raises(M3ScoreError, match="no rung of 65 visual tokens; it has 64, 256"):
        model.answer(LARGE, "What?", 65)


def test_requests_are_made_side_by_side(stub: Stub) -> None:
    model = _load(stub, concurrency=4)
    now, most, lock = 0, 0, threading.Lock()

    def slow(path: str, body: Any) -> None:
        nonlocal now, most
        with lock:
            now, most = now + 1, max(most, now + 1)
        time.sleep(0.05)
        with lock:
            now -= 1

    stub.before = slow
    model.answer_ladder([LARGE] * 4, [[f"What {number}?"] for number in range(4)])
    assert most == 4


def test_other_counts_than_expected_are_believed(stub: Stub, caplog: pytest.LogCaptureFixture) -> None:
    model = _load(stub)

    def least(path: str, body: Any) -> None:  # a limit of the server's that this picture meets
        size = (body or {}).get("mm_processor_kwargs", {}).get("size", {})
        size.update(longest_edge=max(size.get("longest_edge", 0), 128 * 28 * 28))

    stub.before = least
    assert [one[1] for one in _answers(model)] == [117, 234, 391, 391]
    assert "counts other visual tokens than expected of a picture of 640x480 pixels" in caplog.text


def test_one_bad_picture_costs_its_own_result_and_nothing_is_asked_twice(stub: Stub) -> None:
    model = _load(stub)
    bad = Image.new("RGB", (641, 480))
    stub.before = lambda path, body: _too_large(body, 641)
    images = [LARGE, Image.new("RGB", (640, 480)), bad, Image.new("RGB", (640, 480), "blue")]

    def work(batch: Any) -> Any:
        return model.answer_ladder(batch, [["What?"]] * len(batch))

    found = in_halves(work, images)
    assert [isinstance(one, M3ScoreError) for one in found] == [False, False, True, False]
    assert "the picture is too large for the server (413: too big)" in str(found[2])
    assert len(stub.chats()) == 3 * 4 + 3
    stub.before = lambda path, body: None
    assert len(work([bad])) == 1  # and is asked about again by whoever asks again


def _too_large(body: Any, width: int) -> Answered | None:
    image = read_chat(body["messages"])[0] if body else None
    return refusal(413, "too big") if image and image.width == width else None


def test_a_server_that_goes_stops_all_requests(stub: Stub) -> None:
    model = _load(stub, concurrency=2)
    stub.before = lambda path, body: refusal(401, "expired")
    with pytest.raises(StopRunError, match="expired"):
        model.answer_ladder([LARGE] * 8, [[f"What {number}?"] for number in range(8)])
    assert len(stub.chats()) <= 2
    stub.before = lambda path, body: None
    assert _answers(model)[-1][2] == "yes"  # a later call may find it again


def test_a_model_that_is_still_thinking(stub: Stub) -> None:
    stub.thoughts = "Let me see."
    model = _load(stub)
    empty = {"choices": [{"message": {"content": None, "reasoning": "hm"}, "finish_reason": "length"}]}
    stub.before = lambda path, body: as_json(200, empty)
    with pytest.raises(M3ScoreError, match="still thinking when it was cut: give --no-thinking"):
        _answers(model)


@pytest.mark.parametrize("found", [{"choices": []}, {"choices": [{}]}, [], {"object": "error"}, "text"])
def test_what_is_no_chat_completion(stub: Stub, found: Any) -> None:
    model = _load(stub)
    stub.before = lambda path, body: as_json(200, found)
    with pytest.raises(M3ScoreError, match="no chat completion"):
        _answers(model)


def test_ctrl_c_waits_for_no_reply(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _load(stub)
    stub.before = lambda path, body: time.sleep(2)

    def interrupt(asking: Any, asked: Any) -> None:
        time.sleep(0.2)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("m3score.models.endpoint.asking.Asking.compare", interrupt)
        begun = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            _answers(model)
    assert time.monotonic() - begun < 1.5
    stub.before = lambda path, body: None
    assert _answers(model)[-1][2] == "yes"


@pytest.mark.parametrize("raw", ["<think>Is it?</think> yes", "Is it?</think>\n\nyes", "yes"])
def test_thoughts_are_no_part_of_an_answer(stub: Stub, raw: str) -> None:
    model = _load(stub)
    stub.before = lambda path, body: as_json(200, {"choices": [{"message": {"content": raw}}]})
    assert model.answer(LARGE, "What?") == "yes"
