"""The commands ask a model behind a server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

import m3score
from m3score.cli.main import app
from tests.support.endpoint import Answered, Stub, ToyMind, read_chat, refusal, serving

QUESTIONS = ("--question", "What?")


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with serving(Stub(ToyMind(needed=70), key="sk-secret")) as one:
        yield one


def _run(*args: object) -> Result:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def _rank(stub: Stub, *args: object) -> Result:
    return _run("rank", "in", "--endpoint", stub.url, *QUESTIONS, *args)


def test_rank(stub: Stub, pictures: Path) -> None:
    result = _rank(stub, "--out", "s.csv", "--traces", "t.jsonl", "--price-in", 2, "--price-out", 8)
    assert result.exit_code == 3, result.output  # one picture is broken
    table = pd.read_csv("s.csv")
    assert list(table["required_tokens"].dropna()) == [256, 256, 256]  # 320x200 pixels: 54 and then 77 tokens
    assert "not an image" in table["error"].dropna().iloc[0]
    assert set(table["agreement_from"].dropna()) == {"forced"} and set(table["model"].dropna()) == {stub.name}
    traces = pd.read_json("t.jsonl", lines=True)
    assert list(traces["visual_tokens"].dropna().unique()) == [60, 77]
    assert "at these prices" in result.output and "0% fewer" in result.output
    written = Path("s.csv").read_text() + Path("t.jsonl").read_text() + result.output
    assert "sk-secret" not in written


def test_python(stub: Stub, pictures: Path) -> None:
    model = m3score.load_endpoint(stub.url, rungs=[16, 256])
    table = m3score.rank("in", model=model, questions="What?")
    assert list(table["agreement_16"].dropna().round(3)) == [0.325] * 3
    again = m3score.rank("in", endpoint=stub.url, rungs="16,256", questions="What?")
    pd.testing.assert_frame_equal(table, again)
    assert m3score.score("in/plain.png", model=model, questions="What?").required_tokens == 256


def test_ask(stub: Stub, pictures: Path) -> None:
    asked = ("ask", "in/plain.png", "What?", "--endpoint", stub.url)
    assert _run(*asked).stdout.strip() == "yes"
    assert _run(*asked, "--tokens", 64).stdout.strip() == "no"
    rows = [json.loads(line) for line in _run(*asked, "--all", "--json").stdout.splitlines()]
    assert [row["answer"] for row in rows] == ["no", "yes", "yes", "yes"]


def test_calibrate_collects_labels(stub: Stub, pictures: Path) -> None:
    collect = ("calibrate", "in", "--endpoint", stub.url, "--collect-only", "--work", "labels")
    result = _run(*collect)
    assert result.exit_code == 3 and "12 answers, 1 images failed" in result.output, result.output
    held = json.loads(next(Path("labels").rglob("collection.json")).read_text())
    assert held["model"] == stub.name and held["ladder"] == [64, 256, 1024, 4096]
    stub.mind = ToyMind(needed=9999)  # another model under the same name
    result = _run(*collect)
    assert result.exit_code == 2 and "holds labels of another run (fingerprint differ)" in result.output


def test_evaluate(stub: Stub, pictures: Path) -> None:
    Path("q.jsonl").write_text('{"image": "in/plain.png", "question": "What?", "answers": ["yes"]}\n')
    result = _run("evaluate", "q.jsonl", "--endpoint", stub.url, "--out", "r.csv", "--work", "w")
    assert result.exit_code == 0, result.output
    table = pd.read_csv("r.csv")
    assert 4096 in set(table["tokens"])
    host = stub.url.removeprefix("http://").replace(":", "-").replace("/", "-")
    assert [path.name for path in Path("w").iterdir()] == [host]


def test_info(stub: Stub) -> None:
    result = _run("info", "--endpoint", stub.url, "--twice", 2)
    assert result.exit_code == 0, result.output
    for text in (
        "vllm: it moves",
        "of which 54 visual ones",
        "the top 20",
        "forced",
        "0 of 2 answers differ",
    ):
        assert text in result.stdout
    found = json.loads(_run("info", "--endpoint", stub.url, "--twice", 2, "--json").stdout)
    assert found["flip_rate"] == 0 and found["visual_tokens"][0] == {
        "rung": 64,
        "expected": 54,
        "counted": 56,
    }


def test_info_notices_flips(stub: Stub) -> None:
    model_rounds: list[int] = []

    def fickle(path: str, body: Any) -> None:
        if body and body["max_tokens"] == 16:
            model_rounds.append(1)
            stub.mind = ToyMind(needed=70 if len(model_rounds) <= 2 else 9999)

    stub.before = fickle
    found = json.loads(_run("info", "--endpoint", stub.url, "--twice", 2, "--json").stdout)
    assert found["flip_rate"] == 1


# ---- resuming, and stopping -----------------------------------------------------------------------------


def test_a_server_that_dies_stops_the_run_and_the_same_command_goes_on(stub: Stub, pictures: Path) -> None:
    (pictures / "broken.png").unlink()
    left = [7 + 5]  # the probe, then the first two pictures with their forced answers

    def dies(path: str, body: Any) -> Answered | None:
        if path.endswith("completions"):
            left[0] -= 1
        return refusal(401, "expired") if left[0] < 0 else None

    stub.before = dies
    result = _rank(stub, "--out", "s.csv", "--concurrency", 1)
    assert result.exit_code == 2 and "refuses the key (401: expired)" in result.output
    assert len(pd.read_csv("s.csv")) == 1
    assert "sk-secret" not in Path(".s.csv.journal").read_text()
    stub.before = lambda path, body: None
    stub.seen.clear()
    result = _rank(stub, "--out", "s.csv")
    assert result.exit_code == 0 and "of which 1 were done before" in result.output, result.output
    assert len(pd.read_csv("s.csv")) == 3


def test_another_model_under_the_same_name_does_not_go_on(stub: Stub, pictures: Path) -> None:
    stub.before = _after(12, refusal(401, "expired"))
    assert _rank(stub, "--out", "s.csv", "--concurrency", 1).exit_code == 2
    stub.before = lambda path, body: None
    stub.mind = ToyMind(needed=9999)
    result = _rank(stub, "--out", "s.csv")
    assert result.exit_code == 2 and "--model" in result.output


def _after(number: int, reply: Answered) -> Any:
    left = [number]

    def before(path: str, body: Any) -> Answered | None:
        left[0] -= path.endswith("completions")
        return reply if left[0] < 0 else None

    return before


def test_one_bad_picture_costs_its_row(stub: Stub, pictures: Path) -> None:
    def too_large(path: str, body: Any) -> Answered | None:
        image = read_chat(body["messages"])[0] if body else None
        white = image is not None and image.size == (320, 200) and image.getpixel((0, 0)) == (90, 120, 30)
        return (
            refusal(413, "too big") if white and image and image.getpixel((319, 0)) == (90, 120, 30) else None
        )

    stub.before = too_large
    assert _rank(stub, "--out", "s.csv").exit_code == 3
    errors = pd.read_csv("s.csv").set_index("path")["error"]
    assert errors["in/plain.png"] == "the picture is too large for the server (413: too big)"
    assert errors.isna().sum() == 2


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("rank", "in", "--knob", "vllm", *QUESTIONS), "--knob: give --endpoint URL too"),
        (("ask", "in/plain.png", "What?", "--no-thinking"), "--no-thinking: give --endpoint URL too"),
        (("rank", "in", "--endpoint", "URL", "--device", "cpu", *QUESTIONS), "--device: with --endpoint"),
        (
            ("ask", "in/plain.png", "What?", "--endpoint", "URL", "--dtype", "float16"),
            "--dtype: with --endpoint",
        ),
        (("rank", "in", "--endpoint", "URL", "--price-in", "-1", *QUESTIONS), "can't be negative"),
        (("rank", "in", "--endpoint", "nowhere", *QUESTIONS), "'nowhere' is no URL"),
        (("rank", "in", "--scorer", "vision", "--endpoint", "URL"), "the scorer vision has no --endpoint"),
        (("rank", "in", "--model", "http://localhost:8000/v1", *QUESTIONS), "give it by --endpoint"),
        (("info", "--key-env", "MINE"), "--key-env: give --endpoint URL too"),
    ],
)
def test_one_sentence(stub: Stub, pictures: Path, args: tuple[str, ...], sentence: str) -> None:
    result = _run(*(stub.url if arg == "URL" else arg for arg in args))
    assert result.exit_code == 2 and sentence in " ".join(result.output.split()), result.output
