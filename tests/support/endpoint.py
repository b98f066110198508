"""A stub of an OpenAI-compatible server on this machine: imitates vLLM, and what goes wrong with servers.

What it says comes from a mind: `ToyMind` knows nothing but a picture's size, `StockMind` runs a real model.
"""

from __future__ import annotations

import base64
import io
import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

import numpy as np
from PIL import Image

Answered = tuple[int, dict[str, str], bytes]
"""Status, headers and content of a reply."""


@dataclass(frozen=True)
class Said:
    """What a mind makes of a prompt: the prompt's tokens, and the answer's with their distributions."""

    prompt: Sequence[int]
    ids: Sequence[int]
    log_probs: np.ndarray
    """(answer, vocabulary): of each position of the answer."""
    read: np.ndarray | None = None
    """(draft, vocabulary): of each position of a draft, which the prompt ends with."""
    stops: bool = True
    """Whether the last token ends the answer."""


class Mind(Protocol):
    """Answers greedily."""

    def say(
        self, image: Image.Image | None, text: str, kwargs: Mapping[str, Any], draft: str | None, most: int
    ) -> Said: ...

    def text(self, ids: Sequence[int]) -> str: ...


@dataclass
class Stub:
    """The server's behaviour, changed by tests as it runs."""

    mind: Mind
    name: str = "tiny/Qwen2.5-VL"
    owner: str = "vllm"
    most_logprobs: int = 20
    """0: log-probabilities are silently ignored, as transformers serve does."""
    forces: bool = True
    """Whether it reads drafts and reports the prompt's log-probabilities."""
    trusts: bool = True
    """Whether it takes mm_processor_kwargs with a request."""
    listens: bool = True
    """False: mm_processor_kwargs are silently ignored."""
    pictures: bool = True
    usage: bool = True
    thoughts: str = ""
    key: str | None = None
    before: Callable[[str, Any], Answered | None] = lambda path, body: None
    """Told every request first; what it gives is the reply."""
    seen: list[tuple[str, Any]] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    url: str = ""

    def chats(self) -> list[Any]:
        """The bodies of all chat requests so far."""
        return [body for path, body in self.seen if path.endswith("/chat/completions")]

    def reply(self, path: str, body: Any) -> Answered:
        """Status, headers and content."""
        if (instead := self.before(path, body)) is not None:
            return instead
        if self.key and self.headers[-1].get("Authorization") != f"Bearer {self.key}":
            told = self.headers[-1].get("Authorization")
            return refusal(401, f"Incorrect API key provided: {told}")
        if path == "/v1/models":
            entry = {"id": self.name, "object": "model", "owned_by": self.owner}
            return as_json(200, {"object": "list", "data": [entry]})
        if path != "/v1/chat/completions":
            return as_json(404, {"detail": "Not Found"})
        return self._chat(body)

    def _chat(self, body: Any) -> Answered:
        image, text, draft = read_chat(body["messages"])
        kwargs, top = body.get("mm_processor_kwargs"), body.get("top_logprobs", 0)
        if body["model"] != self.name:
            return refusal(404, f"The model `{body['model']}` does not exist.")
        if image is not None and not self.pictures:
            return refusal(400, "At most 0 image(s) may be provided in one prompt.")
        if kwargs and not self.trusts:
            return refusal(400, "Passing mm_processor_kwargs is only allowed with --trust-request-mm-kwargs.")
        if self.most_logprobs and max(top, body.get("prompt_logprobs", 0)) > self.most_logprobs:
            return refusal(
                400, f"Requested sample logprobs of {top}, greater than max allowed: {self.most_logprobs}"
            )
        said = self.mind.say(
            image,
            text,
            (kwargs or {}) if self.listens else {},
            draft if self.forces else None,
            body["max_tokens"],
        )
        content = self.mind.text(said.ids[:-1] if said.stops else said.ids)
        choice: dict[str, Any] = {
            "message": {"role": "assistant", "content": content},
            "finish_reason": "stop" if said.stops else "length",
        }
        if self.thoughts:
            choice["message"]["reasoning_content"] = self.thoughts
        numbered = bool(body.get("return_tokens_as_token_ids"))
        if body.get("logprobs") and self.most_logprobs:
            rows = zip(said.ids, said.log_probs, strict=True)
            choice["logprobs"] = {"content": [self._entry(token, row, top, numbered) for token, row in rows]}
        found: dict[str, Any] = {"choices": [choice]}
        if self.usage:
            found["usage"] = {"prompt_tokens": len(said.prompt), "completion_tokens": len(said.ids)}
        if self.forces and body.get("prompt_logprobs"):
            found["prompt_logprobs"] = self._prompt(said, body["prompt_logprobs"])
        return as_json(200, found)

    def _entry(self, token: int, row: np.ndarray, top: int, numbered: bool) -> dict[str, Any]:
        best = [int(one) for one in np.argsort(-row, kind="stable")[:top]]
        return {
            **self._named(token, row, numbered),
            "top_logprobs": [self._named(one, row, numbered) for one in best],
        }

    def _named(self, token: int, row: np.ndarray, numbered: bool) -> dict[str, Any]:
        name = f"token_id:{token}" if numbered else self.mind.text([token])
        return {"token": name, "logprob": max(float(row[token]), -9999.0), "bytes": list(name.encode())}

    def _prompt(self, said: Said, top: int) -> list[Any]:
        read = () if said.read is None else said.read
        tail = list(said.prompt)[len(said.prompt) - len(read) :]
        entries: list[Any] = [None] * (len(said.prompt) - len(tail))
        for token, row in zip(tail, read, strict=True):  # the prompt's own token first, as vLLM has it
            best = [token, *(int(one) for one in np.argsort(-row, kind="stable")[:top])]
            entries.append({str(one): {"logprob": max(float(row[one]), -9999.0)} for one in best})
        return entries


@contextmanager
def serving(stub: Stub) -> Iterator[Stub]:
    """The stub as a server on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # headers and content in one packet: else each reply waits for the client's system

        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, body: Any) -> None:
            stub.headers.append(dict(self.headers))
            stub.seen.append((self.path, body))
            status, headers, content = stub.reply(self.path, body)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
            self.wfile.flush()
            if int(headers.get("Content-Length", len(content))) > len(content):
                self.close_connection = True  # cut in the middle

        def log_message(self, *told: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    stub.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()


def as_json(status: int, found: Any, **headers: str) -> Answered:
    """A JSON reply."""
    return status, {"Content-Type": "application/json", **headers}, json.dumps(found).encode()


def refusal(status: int, message: str, **headers: str) -> Answered:
    """An error in OpenAI's form."""
    return as_json(status, {"error": {"message": message, "code": status}}, **headers)


def read_chat(messages: Sequence[Any]) -> tuple[Image.Image | None, str, str | None]:
    """The picture, the question and the draft of a chat."""
    content, image = messages[0]["content"], None
    if not isinstance(content, str):
        url = content[0]["image_url"]["url"]
        image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")
        content = content[1]["text"]
    return image, content, messages[1]["content"] if len(messages) > 1 else None


# ---- minds ----------------------------------------------------------------------------------------------


class ToyMind:
    """Says "yes" where a picture has `needed` visual tokens, and else "no"; a token is a byte.

    The next token has a probability of .9, and the other 256 (bytes, and the end) share the rest. Pictures
    have the tokens of Qwen2.5-VL, and two around them.
    """

    STOP = 256

    def __init__(self, needed: int = 200) -> None:
        self.needed = needed

    def say(
        self, image: Image.Image | None, text: str, kwargs: Mapping[str, Any], draft: str | None, most: int
    ) -> Said:
        from m3score.models.budgets.qwen_vl import QwenVL

        size = kwargs.get("size") or {}
        family = QwenVL(
            least=int(size.get("shortest_edge", QwenVL.least)),
            most=int(size.get("longest_edge", QwenVL.most)),
        )
        tokens = 0 if image is None else family.visual_tokens(image.size)
        answer = [*(b"yes" if tokens >= self.needed else b"no"), self.STOP]
        prompt = [*text.encode(), *[300] * tokens, *([301, 302] if image else [])]
        start = list(draft.encode()) if draft else []
        on = [*answer[len(start) :], self.STOP] if start == answer[: len(start)] else [self.STOP]
        ids = on[: min(most, on.index(self.STOP) + 1)]
        read = np.array([self._row(token) for token in [*answer, *[self.STOP] * len(start)][: len(start)]])
        rows = np.array([self._row(token) for token in ids])
        return Said([*prompt, *start], ids, rows, read if draft else None, self.STOP in ids)

    def text(self, ids: Sequence[int]) -> str:
        return bytes(one for one in ids if one < 256).decode(errors="replace")

    def _row(self, token: int) -> np.ndarray:
        row = np.full(257, math.log(0.1 / 256))
        row[token] = math.log(0.9)
        return row


class StockMind:
    """A real model of transformers, run as a server would."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model
        self.processor = processor
        self._lock = threading.Lock()

    def say(
        self, image: Image.Image | None, text: str, kwargs: Mapping[str, Any], draft: str | None, most: int
    ) -> Said:
        import torch

        parts: list[Any] = [{"type": "image"}] if image is not None else []
        chat: list[Any] = [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
        rendered = self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        more = {"images": [image], "images_kwargs": dict(kwargs)} if image is not None else {}
        fed = self.processor(text=[rendered], return_tensors="pt", **more)
        tokenizer = self.processor.tokenizer
        start = tokenizer(draft, add_special_tokens=False)["input_ids"] if draft else []
        ids: list[int] = []
        with self._lock, torch.no_grad():
            rows = self._log_probs(fed, start)
            for _ in range(most):
                ids.append(int(rows[-1].argmax()))
                if ids[-1] == tokenizer.eos_token_id or len(ids) == most:
                    break
                rows = self._log_probs(fed, [*start, *ids])
        length = fed["input_ids"].shape[1]
        after = rows[length - 1 + len(start) :].numpy()
        read = rows[length - 1 : length - 1 + len(start)].numpy()
        return Said(
            [*fed["input_ids"][0].tolist(), *start],
            ids,
            after,
            read if draft else None,
            ids[-1] == tokenizer.eos_token_id,
        )

    def text(self, ids: Sequence[int]) -> str:
        return str(self.processor.tokenizer.decode(ids, skip_special_tokens=True))

    def _log_probs(self, fed: Any, more: Sequence[int]) -> Any:
        """(length, vocabulary)"""
        import torch

        given = dict(fed)
        for name, fill in (("input_ids", None), ("attention_mask", 1), ("mm_token_type_ids", 0)):
            if name in given:
                added = torch.tensor(
                    [list(more) if fill is None else [fill] * len(more)], dtype=given[name].dtype
                )
                given[name] = torch.cat([given[name], added], dim=1)
        return torch.log_softmax(self.model(**given).logits[0].float(), dim=-1)


def readable(hf_model: Any, tokenizer: Any, sureness: float = 1.0) -> None:
    """Make a tiny random checkpoint answer with letters that a text keeps: from "!" to "~", and the end.

    Args:
        hf_model: changed in place.
        tokenizer: that of stock_checkpoints.
        sureness: a factor of the logits.
    """
    import torch

    kept = {tokenizer.convert_tokens_to_ids(chr(code)) for code in range(ord("!"), ord("~") + 1)}
    kept.add(tokenizer.eos_token_id)
    with torch.no_grad():
        weights = hf_model.get_output_embeddings().weight
        weights *= sureness
        weights[[row for row in range(len(weights)) if row not in kept]] = 0  # a logit of 0: never the best
