"""The commands on a model of a known family that is no M3 model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from PIL import Image

from m3score.cli.main import main
from m3score.models.vision.whitening import Reference
from m3score.tables.io import read_scores, read_traces
from tests.support.fakes import NOISE, PLAIN

LADDER = "16,64"


@pytest.fixture
def asked(pictures: Path) -> Path:
    """Questions about the pictures, by their names."""
    rows = [
        {"image": f"in/{name}.png", "question": "What is it?", "answers": ["x"]} for name in ("plain", "half")
    ]
    file = pictures.parent / "asked.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


def run(*arguments: object) -> int:
    """The exit code of a command."""
    with mock.patch("sys.argv", ["m3score", *map(str, arguments)]), pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def test_rank_rescore_and_compare(
    pictures: Path, stock_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model = stock_folder("qwen2_5_vl")
    told = ["rank", pictures, "--model", model, "--question", "Why?", "--max-new-tokens", 3, "-q"]
    assert run(*told, "--rungs", LADDER, "--out", "s.csv", "--traces", "t.jsonl", "--report", "r.html") == 3
    table = read_scores("s.csv")
    scored = table[table["error"].isna()]
    assert set(scored["ladder"]) == {LADDER} and set(scored["model"]) == {str(model)}
    assert set(scored["agreement_from"]) == {"logits"}
    assert (scored["visual_tokens"] <= scored["required_tokens"]).all()
    traces = read_traces("t.jsonl")
    assert set(traces["agreement_from"].dropna()) == {"logits"}
    assert set(traces["tokens"].dropna()) == {16, 64}
    assert run("rescore", "t.jsonl", "--out", "again.csv", "-q") == 3
    again = read_scores("again.csv")
    assert again["complexity"].dropna().tolist() == scored["complexity"].tolist()
    # Other rungs are another ladder: neither gone on with nor compared.
    assert run(*told, "--rungs", "16,32", "--out", "other.csv") == 3
    assert run("compare", "s.csv", "other.csv") == 2
    assert "numbers of different ladders ('16,64' and '16,32') are not compared" in capsys.readouterr().err
    assert run("compare", "s.csv", "other.csv", "--anyway") == 0


def test_ask(pictures: Path, stock_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    told = ["--model", stock_folder("gemma4"), "--max-new-tokens", 3, "-q"]
    assert run("ask", pictures / "half.png", "Why?", "--all", "--json", *told) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["tokens"], row["visual_tokens"]) for row in rows] == [(70, 60), (140, 126), (280, 273)]
    assert run("ask", pictures / "half.png", "Why?", "--all", *told) == 0
    assert "Budget" in capsys.readouterr().out
    assert run("ask", pictures / "half.png", "Why?", "--tokens", 140, *told) == 0
    assert capsys.readouterr().out.strip() == rows[1]["answer"]
    assert run("ask", pictures / "half.png", "Why?", "--tokens", 100, *told) == 2
    assert "it has 70, 140, 280" in capsys.readouterr().err


def test_evaluate_and_calibrate(
    asked: Path, stock_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def few() -> list[Image.Image]:
        return [NOISE, PLAIN, NOISE.rotate(90)]

    def plain() -> list[Image.Image]:
        return [PLAIN]

    # The tower's statistics over all drawings take minutes.
    reference = Reference(few, plain, few, few)
    monkeypatch.setattr("m3score.models.vision.meter._own_reference", lambda: reference)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    told = ["--model", stock_folder("qwen3_vl"), "--rungs", LADDER, "-q"]
    assert run("evaluate", asked, *told, "--out", "e.csv") == 0
    calibrate = ["calibrate", "in", "--questions", asked, "--collect-only", "--work", "labels", "--limit", 2]
    for image in ("noise", "broken"):
        (asked.parent / "in" / f"{image}.png").unlink()
    asked.write_text(asked.read_text().replace("in/", ""))
    assert run(*calibrate, *told, "--max-new-tokens", 3) == 0
    held = json.loads((asked.parent / "labels" / "collection.json").read_text())
    assert held["ladder"] == [16, 64]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rank", "in", "--rungs", "16,many"], "--rungs needs budgets of visual tokens such as 64,256,1024"),
        (["rank", "in", "--rungs", "1,16"], "it takes any number from 4 on"),
        (["rank", "in", "--question", "Why?", "--frames", "3"], "takes whole pictures only"),
        (["demo"], "the demo shows tokens per grid"),
    ],
)
def test_what_cannot_be_had(
    arguments: list[str],
    said: str,
    pictures: Path,
    stock_folder: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(*arguments, "--model", stock_folder("qwen2_5_vl")) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_picture_that_is_too_long_costs_its_own_row(
    pictures: Path, stock_folder: Callable[[str], Path]
) -> None:
    Image.new("RGB", (900, 3)).save(pictures / "long.png")
    told = ["--model", stock_folder("qwen2_5_vl"), "--question", "Why?", "--max-new-tokens", 2, "-q"]
    assert run("rank", pictures, *told, "--out", "s.csv") == 3
    errors = read_scores("s.csv").set_index("path")["error"].dropna()
    assert len(errors) == 2 and "200 times as long as wide" in errors[str(pictures / "long.png")]
