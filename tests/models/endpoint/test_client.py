"""The connection: what is tried again, what stops a run, and where a key goes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from typing import Any

import pytest

from m3score.common.errors import M3ScoreError, StopRunError
from m3score.models.endpoint.client import ATTEMPTS, Client, RefusedError
from tests.support.endpoint import Answered, Stub, ToyMind, as_json, refusal, serving

CHAT = "chat/completions"
BODY = {"model": "tiny/Qwen2.5-VL", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}


@pytest.fixture
def stub() -> Iterator[Stub]:
    with serving(Stub(ToyMind())) as one:
        yield one


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def _client(stub: Stub, **options: Any) -> Client:
    return Client(stub.url, pause=0.001, **options)


def _times(number: int, reply: Answered) -> Callable[[str, Any], Answered | None]:
    """That reply to so many chat requests."""
    left = [reply] * number
    return lambda path, body: left.pop() if left and path.endswith(CHAT) else None


HTML: Answered = (200, {"Content-Type": "text/html"}, b"<html>Welcome</html>")
CUT: Answered = (200, {"Content-Type": "application/json", "Content-Length": "999"}, b'{"choices": [{"mess')


@pytest.mark.parametrize(
    "reply",
    [refusal(429, "slow down"), refusal(500, "oops"), as_json(503, "warming up"), HTML, CUT],
    ids=["429", "500", "503", "a web page", "cut in the middle"],
)
def test_what_passes_is_tried_again(stub: Stub, reply: Answered) -> None:
    client = _client(stub)
    client.get("models")  # a server that once answered in JSON may show a web page of a proxy
    stub.before = _times(2, reply)
    assert "choices" in client.post(CHAT, BODY)
    assert len(stub.chats()) == 3


def test_a_server_asks_to_wait(stub: Stub) -> None:
    stub.before = _times(1, refusal(429, "slow down", **{"Retry-After": "0.3"}))
    begun = time.monotonic()
    _client(stub).post(CHAT, BODY)
    assert time.monotonic() - begun >= 0.3


def test_a_server_may_name_a_date(stub: Stub) -> None:
    stub.before = _times(
        1, refusal(429, "slow down", **{"Retry-After": formatdate(time.time() + 2, usegmt=True)})
    )
    begun = time.monotonic()
    _client(stub).post(CHAT, BODY)
    assert 0.5 <= time.monotonic() - begun <= 3


def test_a_long_wait_stops_the_run(stub: Stub) -> None:
    stub.before = _times(1, refusal(429, "daily limit", **{"Retry-After": "86400"}))
    with pytest.raises(StopRunError, match="asks to wait 86400 s"):
        _client(stub).post(CHAT, BODY)


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        (refusal(429, "slow down"), "limits the rate again and again .429: slow down.*--concurrency"),
        (as_json(429, {"error": {"message": "pay", "code": "insufficient_quota"}}), "no quota left"),
        (refusal(402, "pay first"), "wants to be paid"),
        (refusal(401, "who are you?"), "wants a key .401: who are you\\?.: set OPENAI_API_KEY"),
        (refusal(403, "not you"), "wants a key .403"),
        ((302, {"Location": "http://other.example/v1"}, b""), "sends elsewhere, to http://other.example/v1"),
        (HTML, "a web page, not JSON"),
    ],
)
def test_what_stops_a_run(stub: Stub, reply: Answered, sentence: str) -> None:
    stub.before = _times(99, reply)
    with pytest.raises(StopRunError, match=sentence):
        _client(stub).post(CHAT, BODY)


def test_one_request_may_fail_where_the_server_goes_on(stub: Stub) -> None:
    client = _client(stub)
    client.get("models")
    stub.before = _times(99, refusal(500, "out of memory"))
    with pytest.raises(M3ScoreError, match=r"failed again and again .500: out of memory") as caught:
        client.post(CHAT, BODY)
    assert caught.value.transient and not isinstance(caught.value, StopRunError)
    assert len(stub.chats()) == ATTEMPTS


@pytest.mark.parametrize(("status", "sentence"), [(400, "refuses the request"), (413, "too large")])
def test_a_refusal_concerns_one_request(stub: Stub, status: int, sentence: str) -> None:
    stub.before = _times(99, refusal(status, "no"))
    with pytest.raises(RefusedError, match=sentence):
        _client(stub).post(CHAT, BODY)
    assert len(stub.chats()) == 1


def test_a_server_that_is_gone(stub: Stub) -> None:
    url = "http://127.0.0.1:9/v1"  # nothing listens at the port of "discard"
    begun = time.monotonic()
    with pytest.raises(StopRunError, match=f"{url} does not answer .*is the server running"):
        Client(url).post(CHAT, BODY)
    assert time.monotonic() - begun < 5


def test_a_reply_that_takes_too_long(stub: Stub) -> None:
    client = _client(stub, timeout=0.1)
    client.get("models")
    stub.before = lambda path, body: time.sleep(0.4) if path.endswith(CHAT) else None
    with pytest.raises(M3ScoreError, match="no reply in time: see --timeout"):
        client.post(CHAT, BODY)
    assert len(stub.chats()) == 2


def test_the_key_goes_into_one_header_and_nowhere_else(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    stub.key = "sk-right"
    monkeypatch.setenv("OPENAI_API_KEY", "sk-right")
    assert "choices" in _client(stub).post(CHAT, BODY)
    monkeypatch.setenv("MINE", "sk-wrong")
    with pytest.raises(
        StopRunError, match=r"refuses the key .401: Incorrect API key provided: Bearer \*\*\*"
    ) as caught:
        _client(stub, key_env="MINE").post(CHAT, BODY)
    assert "sk-" not in str(caught.value) + caplog.text


def test_a_key_has_to_be_there(stub: Stub) -> None:
    with pytest.raises(M3ScoreError, match="--key-env NOWHERE: there is no such"):
        _client(stub, key_env="NOWHERE")


def test_the_usual_key_does_not_go_to_other_machines_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    for url, sent in (
        ("http://server.example/v1", False),
        ("https://server.example/v1", True),
        ("http://localhost:8000/v1", True),
        ("http://[::1]:8000/v1", True),
    ):
        assert bool(Client(url)._key) is sent


def test_the_proxy_of_the_environment_is_not_for_this_machine(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert "choices" in _client(stub).post(CHAT, BODY)
    with pytest.raises(StopRunError, match="does not answer"):  # through the proxy, which is not there
        Client("http://server.invalid/v1").get("models")


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("localhost:8000/v1", "is no URL"),
        ("ftp://host/v1", "is no URL of a server"),
        ("http://", "is no URL of a server"),
        ("http://me:secret@host/v1", "leave user and password out"),
        ("http://host/v1?key=1", "leave out what follows"),
        ("http://host:port/v1", "is no URL"),
    ],
)
def test_a_wrong_url(url: str, sentence: str) -> None:
    with pytest.raises(M3ScoreError, match=sentence) as caught:
        Client(url)
    assert "secret" not in str(caught.value)


def test_a_url_with_the_method_in_it() -> None:
    assert Client("http://host:1/v1/chat/completions/").url == "http://host:1/v1"
