"""What is found out about a server before anything is asked, and what is said where it can't be used."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from m3score.common.errors import M3ScoreError
from m3score.models.endpoint.loading import load_endpoint
from m3score.models.endpoint.model import EndpointModel
from tests.support.endpoint import Answered, Stub, ToyMind, as_json, refusal, serving


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving(Stub(ToyMind())) as one:
        yield one


def _load(stub: Stub, **options: Any) -> EndpointModel:
    return load_endpoint(stub.url, **options)


# ---- what there is --------------------------------------------------------------------------------------


def test_the_servers_only_model_its_kind_and_its_family_are_found(stub: Stub) -> None:
    model = _load(stub)
    assert (model.name, model.findings.knob.name) == (stub.name, "vllm")
    assert model.family is not None and model.family.name == "qwen2.5-vl"
    assert model.ladder == (64, 256, 1024, 4096)
    counts = [(one.budget, one.expected, one.measured) for one in model.findings.counts]
    assert counts == [(64, 54, 56), (256, 234, 236), (1024, 391, 393), (4096, 391, 393)]
    assert model.findings.markup == 2


@pytest.mark.parametrize(
    ("most_logprobs", "forces", "source"),
    [(20, True, "forced"), (20, False, "logprobs"), (5, False, "logprobs"), (0, False, "answers")],
)
def test_where_agreement_comes_from(stub: Stub, most_logprobs: int, forces: bool, source: str) -> None:
    stub.most_logprobs, stub.forces = most_logprobs, forces
    model = _load(stub)
    assert model.agreement_from == source
    assert model.chat.top == (most_logprobs or None)


def test_a_server_that_does_not_know_a_parameter(stub: Stub) -> None:
    """As newer models of OpenAI: other limits' names, no temperature, no log-probabilities."""

    def strict(path: str, body: Any) -> Answered | None:
        for name in ("temperature", "logprobs", "max_tokens"):
            if body and name in body:
                hint = " Use 'max_completion_tokens' instead." if name == "max_tokens" else ""
                return refusal(400, f"Unsupported parameter: '{name}'.{hint}")
        if body:
            body["max_tokens"] = body["max_completion_tokens"]
        return None

    stub.before = strict
    assert _load(stub).agreement_from == "answers"


def test_the_older_spelling_of_a_knob_is_tried(stub: Stub) -> None:
    def older(path: str, body: Any) -> None:
        told = (body or {}).get("mm_processor_kwargs", {})
        told.pop("size", None)
        if "max_pixels" in told:
            body["mm_processor_kwargs"] = {
                "size": {"shortest_edge": told["min_pixels"], "longest_edge": told["max_pixels"]}
            }

    stub.before = older
    assert _load(stub).findings.knob.spelling == 1


def test_resize_needs_nothing_of_the_server(stub: Stub) -> None:
    stub.listens = False
    model = _load(stub, knob="resize")
    assert [one.measured for one in model.findings.counts] == [56, 236, 393, 393]
    assert model.count_visual_tokens((1600, 1200), 64) == 54


def test_detail_has_two_rungs_by_what_a_large_picture_costs(stub: Stub) -> None:
    def detailed(path: str, body: Any) -> None:
        for part in (body or {"messages": [{"content": ()}]})["messages"][0]["content"]:
            if isinstance(part, dict) and part.get("image_url", {}).get("detail") == "low":
                body["mm_processor_kwargs"] = {"size": {"shortest_edge": 3136, "longest_edge": 64 * 28 * 28}}

    stub.owner, stub.before = "openai", detailed
    model = _load(stub)
    assert model.findings.knob.name == "detail"
    assert model.ladder == (66, 1371)
    assert model.count_visual_tokens((640, 480), model.ladder[0]) == 56
    assert model.count_visual_tokens((640, 480), model.ladder[1]) == 393


def test_thinking_is_noticed_and_switched_off(stub: Stub, caplog: pytest.LogCaptureFixture) -> None:
    stub.thoughts = "Let me see."
    stub.before = lambda path, body: _switch(stub, body)
    with caplog.at_level(logging.WARNING):
        model = _load(stub)
    assert model.agreement_from == "answers" and "--no-thinking may help" in caplog.text
    assert _load(stub, thinking=False).agreement_from == "forced"


def _switch(stub: Stub, body: Any) -> None:
    told = (body or {}).get("chat_template_kwargs", {})
    stub.thoughts = "" if told.get("enable_thinking") is False else "Let me see."


def test_identity_tells_models_rungs_and_answers_apart(stub: Stub) -> None:
    first = _load(stub).identity
    assert _load(stub).identity == first
    assert _load(stub, rungs=[64, 256]).identity != first
    assert _load(stub, thinking=False).identity != first
    stub.mind = ToyMind(needed=9999)  # other weights under the same name
    assert _load(stub).identity != first


# ---- what can't be used ---------------------------------------------------------------------------------

HTML: Answered = (200, {"Content-Type": "text/html"}, b"<html>Welcome</html>")


def _set(**values: Any) -> Callable[[Stub], None]:
    return lambda stub: stub.__dict__.update(values)


@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        (_set(listens=False), {}, "ignores --knob vllm: a picture of 640x480 pixels costs 393 tokens"),
        (_set(trusts=False), {}, "refuses --knob vllm at a budget of 4096 .*with --trust-request-mm-kwargs"),
        (_set(pictures=False), {}, "takes no picture of 640x480 pixels .400: At most 0"),
        (_set(), {"model": "other/Qwen2.5-VL"}, "has no model other/.*; it has the models tiny/Qwen2.5-VL"),
        (_set(name="served"), {}, "served does not say what family .* --family, one of qwen2.5-vl"),
        (_set(owner="me"), {}, "does not say what kind of server it is: give --knob, one of vllm"),
        (_set(), {"knob": "screw"}, "--knob screw is none; the knobs are vllm"),
        (_set(), {"family": "qwen9"}, "no family 'qwen9'"),
        (_set(), {"family": "qwen3-vl"}, "costs 317 tokens, and not the 234 of qwen3-vl: is it"),
        (_set(), {"rungs": [64]}, "needs at least two rungs"),
        (_set(), {"rungs": [1, 64]}, "no budget of 1 visual tokens"),
        (_set(), {"knob": "detail", "rungs": [1, 2, 3]}, "two rungs, low and high"),
        (_set(), {"knob": "sglang"}, "--knob sglang has no word for a budget of qwen2.5-vl"),
        (_set(), {"knob": "transformers"}, "ignores --knob transformers"),
        (_set(), {"knob": "detail"}, "ignores --knob detail"),
        (_set(), {"family": "smolvlm", "knob": "resize"}, "resize does nothing for smolvlm"),
        (_set(), {"concurrency": 0}, "--concurrency must be at least 1"),
        (_set(), {"timeout": 0}, "--timeout has to be"),
        (_set(before=lambda path, body: HTML), {}, "answers with a web page, not JSON"),
        (_set(before=lambda path, body: as_json(404, {"detail": "Not Found"})), {"model": "a/Qwen2-VL"},
         "/chat/completions is not there .404: Not Found.: addresses usually end in /v1"),
        (_set(usage=False), {"knob": "detail"}, "counts no prompt tokens"),
    ],
)  # fmt: skip
def test_one_sentence(stub: Stub, change: Callable[[Stub], None], options: Any, sentence: str) -> None:
    change(stub)
    with pytest.raises(M3ScoreError, match=sentence) as caught:
        _load(stub, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_several_models_have_to_be_told_apart(stub: Stub) -> None:
    several = as_json(200, {"data": [{"id": name} for name in ("b", "a")]})
    stub.before = lambda path, body: several if path == "/v1/models" else None
    with pytest.raises(M3ScoreError, match="has the models a, b: give --model NAME"):
        _load(stub)


def test_a_model_that_reads_text_only_and_says_nothing(stub: Stub) -> None:
    def blind(path: str, body: Any) -> None:
        if body and not isinstance(body["messages"][0]["content"], str):
            body["messages"][0]["content"] = body["messages"][0]["content"][1]["text"]

    stub.before = blind
    with pytest.raises(M3ScoreError, match="reads no tokens of a picture of 640x480 pixels"):
        _load(stub)
