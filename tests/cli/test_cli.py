"""The m3score command: tables on stdout or in files, everything else on stderr, exit codes, no tracebacks."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import m3score
from m3score.cli.main import app
from tests.support.fakes import FakeAnswerer, grey

runner = CliRunner()
ROOT = Path(__file__).parents[2]
INSTALLED = Path(sys.executable).with_name("m3score")
ASKED = ("--scorer", "model")
"""The model that answers, which is what is faked here; without a question its vision tower would look."""
MODELS = [
    ROOT / "tests" / "data" / "parity" / "checkpoints" / "tiny-llava-v1.5-7b-m3",
    ROOT / "m3score" / "assets" / "m3-tiny",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images and nothing else."""
    for name, level in {"dark": 0, "mid": 120, "white": 255}.items():
        (tmp_path / "in").mkdir(exist_ok=True)
        grey(level).save(tmp_path / "in" / f"{name}.png")
    return tmp_path / "in"


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeAnswerer:
    """The model that every command loads."""
    model = FakeAnswerer()
    monkeypatch.setattr("m3score.models.loading.load_model", lambda name, **options: model)
    return model


def run(*arguments: object, stdin: str | None = None) -> Any:
    result = runner.invoke(app, [str(argument) for argument in arguments], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.stderr
    return result


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def imports_of(*arguments: str) -> set[str]:
    """Top-level modules that a run of the command imports."""
    code = (
        "import sys\nfrom m3score.cli.main import app\n"
        f"try:\n    app({list(arguments)!r})\n"
        "except SystemExit: pass\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stderr.split())


HEAVY = {"torch", "transformers", "pandas", "sklearn", "numpy", "pyarrow", "datasets", "PIL"}


@pytest.mark.parametrize("arguments", [["--help"], ["rank", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    assert not imports_of(*arguments) & HEAVY


def test_importing_m3score_imports_nothing_heavy() -> None:
    code = "import sys, m3score; print(*{name.partition('.')[0] for name in sys.modules}); dir(m3score)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not set(done.stdout.split()) & HEAVY


def test_public_names() -> None:
    assert {"load_model", "score", "rank", "M3ScoreError"} <= set(dir(m3score))
    assert (
        m3score.rank.__module__ == "m3score.runs.ranking"
        and m3score.score.__module__ == "m3score.scoring.oracle"
    )
    assert m3score.__version__
    with pytest.raises(AttributeError, match="nonsense"):
        m3score.nonsense  # noqa: B018


@pytest.mark.parametrize("command", ["rank", "rescore", "ask", "info"])
def test_every_command_has_help(command: str) -> None:
    assert run(command, "--help").exit_code == 0


def test_rank_prints_csv_and_only_that(folder: Path) -> None:
    result = run("rank", *ASKED, folder)
    assert result.exit_code == 0
    rows = table(result.stdout)
    assert [(row["rank"], Path(row["path"]).stem, row["required_tokens"]) for row in rows] == [
        ("1", "white", "576"),
        ("2", "mid", "36"),
        ("3", "dark", "1"),
    ]
    assert "Ranked 3 images" in result.stderr and "576" in result.stderr


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_rank_writes_files_and_nothing_on_stdout(suffix: str, folder: Path, tmp_path: Path) -> None:
    from m3score.tables.io import read_scores

    out = tmp_path / f"scores.{suffix}"
    result = run("rank", *ASKED, folder, "--out", out)
    assert (result.exit_code, result.stdout) == (0, "")
    assert read_scores(out)["required_tokens"].tolist() == [576, 36, 1]


def test_format_goes_before_the_suffix(folder: Path, tmp_path: Path) -> None:
    assert run("rank", *ASKED, folder, "-o", tmp_path / "scores.txt", "--format", "jsonl").exit_code == 0
    assert len([json.loads(line) for line in (tmp_path / "scores.txt").read_text().splitlines()]) == 3
    assert json.loads(run("rank", *ASKED, folder, "--format", "jsonl").stdout.splitlines()[0])["rank"] == 1


def test_quiet_says_nothing(folder: Path, tmp_path: Path) -> None:
    result = run("rank", *ASKED, folder, "-q", "-o", tmp_path / "s.csv")
    assert (result.stdout, result.stderr) == ("", "")


def test_broken_inputs_are_rows_and_exit_code_3(folder: Path) -> None:
    (folder / "broken.jpg").write_bytes(b"hello")
    (folder / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("x")
    (folder / "photo.heic").write_text("x")
    result = run("rank", *ASKED, folder, folder / "missing.png")
    assert result.exit_code == 3
    rows = {Path(row["path"]).name: row for row in table(result.stdout)}
    assert len(rows) == 7
    assert (
        rows["broken.jpg"]["error"] == "not an image that Pillow can read" and not rows["broken.jpg"]["rank"]
    )
    assert rows["missing.png"]["error"] == "no such file"
    assert "4 inputs failed" in result.stderr and "empty file (0 bytes)" in result.stderr
    assert "Skipped 1 file that is no image (.txt 1)" in result.stderr


def test_paths_from_stdin(folder: Path) -> None:
    result = run("rank", *ASKED, "-", stdin=f"{folder}/mid.png\n{folder}/gone.png\n")
    assert result.exit_code == 3 and len(table(result.stdout)) == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["rank", *ASKED, "nowhere"], "nowhere: no such file or folder"),
        (["rank", *ASKED, "EMPTY"], "no images found"),
        (["rank", *ASKED, "nowhere*.jpg"], "nowhere*.jpg: no image matches this pattern"),
        (["rank", "IN", "--question", " "], "the question is empty"),
        (["ask", "IN/mid.png", ""], "the question is empty"),
        (["rank", *ASKED, "IN", "-o", "scores.xlsx"], "allowed: .csv"),
        (["rank", *ASKED, "IN", "-o", "no/such/folder/s.csv"], "there is no folder no/such/folder"),
        (["rank", *ASKED, "IN", "-o", "EMPTY"], "is a folder"),
        (["rank", *ASKED, "IN", "-o", "s.csv", "--traces", "s.csv"], "need different files"),
        (["rank", *ASKED, "IN", "--format", "xml"], "xml"),
        (["rank", *ASKED, "IN", "--batch-size", "0"], "batch-size"),
        (["rank", "IN", "--questions", "none.csv"], "none.csv"),
        (["rank"], "PATHS"),
        (["train", "nope"], "give a .toml file or one of m3-tiny, llava-1.5-7b-m3, llava-1.5-7b-m3-lora."),
        (["rescore", "none.jsonl"], "none.jsonl"),
        (["ask", "IN/mid.png", "What?", "--tokens", "37"], "has 1, 9, 36, 144, 576"),
        (["ask", "none.jpg", "What?"], "none.jpg: no such file"),
        (["ask", "IN/mid.png", "What?", "--all", "--tokens", "9"], "exclude each other"),
        (["ask", "IN/mid.png", "What?", "--answer", "9"], "need --all"),
        (["ask", "IN/mid.png", "What?", "--all", "--metric", "exact"], "needs --answer"),
        (["nonsense"], "nonsense"),
    ],
)
def test_usage_errors_are_short_and_exit_code_2(
    arguments: list[str], expected: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.csv").mkdir()
    places = {"IN": str(folder), "IN/mid.png": str(folder / "mid.png"), "EMPTY": "empty.csv"}
    result = run(*(places.get(argument, argument) for argument in arguments))
    assert (result.exit_code, result.stdout) == (2, "")
    assert expected in result.stderr


def test_existing_files_are_not_replaced_unasked(folder: Path, tmp_path: Path, fake: FakeAnswerer) -> None:
    out = tmp_path / "scores.csv"
    out.write_text("mine")
    for option in ("--out", "--traces"):
        result = run("rank", *ASKED, folder, option, out)
        assert result.exit_code == 2 and "--overwrite" in result.stderr
    assert out.read_text() == "mine" and not fake.batches
    assert run("rank", *ASKED, folder, "--out", out, "--overwrite").exit_code == 0
    assert out.read_text().startswith("rank,")


def test_questions_for_all_and_for_each(folder: Path, tmp_path: Path, fake: FakeAnswerer) -> None:
    run("rank", folder, "--question", "One?", "--question", "Two?")
    assert fake.asked[0] == ("One?", "Two?")
    asked = tmp_path / "asked.csv"
    asked.write_text("image,question,answers\nmid.png,How many?,36 is needed\nowl.png,Who?,\n")
    result = run("rank", folder, "--questions", asked)
    rows = {Path(row["path"]).stem: row for row in table(result.stdout)}
    assert result.exit_code == 3 and rows["dark"]["error"] == "no question for this image among those given"
    assert rows["mid"]["required_tokens"] == "36"
    assert "owl.png" in result.stderr
    fake.asked.clear()
    assert run("rank", folder, "--questions", asked, "--question", "Else?").exit_code == 0
    assert sorted(fake.asked) == [("Else?",), ("Else?",), ("How many?",)]


def test_results_survive_a_crash(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from m3score.scoring.scorers.model_stream import RankedImage

    real = RankedImage.to_row

    def crash_at_the_end(result: RankedImage) -> dict[str, Any]:
        if "white" in result.path:
            raise RuntimeError("a bug")
        return real(result)

    monkeypatch.setattr(RankedImage, "to_row", crash_at_the_end)
    result = runner.invoke(app, ["rank", *ASKED, str(folder), "-o", str(tmp_path / "s.csv")])
    assert isinstance(result.exception, RuntimeError)
    assert len(table((tmp_path / "s.csv").read_text())) == 2


def test_progress_without_a_terminal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from m3score.cli import progress

    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    assert "2 images, " in run("rank", *ASKED, folder).stderr


def test_progress_on_a_terminal() -> None:
    from rich.console import Console

    from m3score.cli.progress import progress

    screen = io.StringIO()
    with progress(Console(file=screen, force_terminal=True, width=100), lambda: 4) as advance:
        for _ in range(4):
            advance()
        time.sleep(0.3)
    assert "4/4" in screen.getvalue() and "images/s, 0:00:00 left" in screen.getvalue()


def test_limit(folder: Path) -> None:
    assert len(table(run("rank", *ASKED, folder, "--limit", "2").stdout)) == 2


def test_traces_can_be_rescored(folder: Path, tmp_path: Path) -> None:
    (folder / "broken.png").write_bytes(b"x")
    traces = tmp_path / "traces.jsonl"
    ranked = run("rank", *ASKED, folder, "--traces", traces)
    again = run("rescore", traces)
    assert again.exit_code == 3 and table(again.stdout)[:3] == table(ranked.stdout)[:3]
    first = run("rescore", traces, "--rule", "first", "-o", tmp_path / "first.csv")
    assert first.stdout == "" and (tmp_path / "first.csv").exists()
    bad = run("rescore", traces, "--rule", "last")
    assert bad.exit_code == 2 and "stays" in bad.stderr


def test_model_from_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    def load(name: str, **options: object) -> FakeAnswerer:
        loaded.append(name)
        return FakeAnswerer()

    monkeypatch.setattr("m3score.models.loading.load_model", load)
    monkeypatch.setenv("M3SCORE_MODEL", "from-the-environment")
    run("rank", *ASKED, folder)
    run("rank", *ASKED, folder, "--model", "from-the-flag")
    assert loaded == ["from-the-environment", "from-the-flag"]


def test_markup_and_control_characters_in_names_are_harmless(folder: Path) -> None:
    (folder / "[bold]x[\x1b[31m.png").write_bytes(b"")
    result = run("rank", *ASKED, folder)
    assert "[bold]x[\\x1b[31m.png: empty file" in result.stderr and "\x1b" not in result.stderr


def test_ask_prints_the_answer_and_only_that(folder: Path) -> None:
    result = run("ask", folder / "mid.png", "What?", "--tokens", "9")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "no idea\n", "")
    assert run("ask", folder / "mid.png", "What?").stdout == "36 is needed\n"


def test_ask_at_every_scale(folder: Path) -> None:
    shown = run("ask", folder / "mid.png", "What?", "--all").stdout
    assert shown.index("576") < shown.index("144") < shown.index(" 36 ")
    assert shown.count("✓") == 3 and shown.count("✗") == 2
    judging = ("--answer", "no idea", "--metric", "exact_match")
    judged = run("ask", folder / "mid.png", "What?", "--all", *judging).stdout
    assert judged.count("✓") == 2 and judged.count("✗") == 3
    lines = run("ask", folder / "mid.png", "What?", "--all", "--json").stdout.splitlines()
    assert [json.loads(line)["tokens"] for line in lines] == [1, 9, 36, 144, 576]


def test_info(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "very secret")
    facts = json.loads(run("info", "--json").stdout)
    assert facts["versions"]["torch"] and facts["devices"][-1].startswith("cpu")
    assert facts["environment"]["HF_TOKEN"] == "(set)"
    shown = run("info").stdout
    assert "transformers" in shown and "very secret" not in shown


SLOW = """
import sys, time
from pathlib import Path
from m3score.cli.main import main
from m3score.models import loading
from tests.support.fakes import FakeAnswerer

class Slow(FakeAnswerer):
    def answer_ladder(self, *arguments, **options):
        if len(self.batches) == 2:
            Path(sys.argv[-1]).with_suffix(".ready").touch()
            time.sleep(30)
        return super().answer_ladder(*arguments, **options)

loading.load_model = lambda name, **options: Slow()
main()
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_keeps_what_was_done(number: signal.Signals, folder: Path, tmp_path: Path) -> None:
    for level in range(6):
        grey(level).save(folder / f"more{level}.png")
    out, traces = tmp_path / "s.csv", tmp_path / "t.csv"
    arguments = ["rank", *ASKED, folder, "--batch-size", "2", "--traces", traces, "--out", out]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs inherit it ignored
    )
    ready = out.with_suffix(".ready")
    for _ in range(1200):
        if ready.exists() or process.poll() is not None:
            break
        time.sleep(0.05)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == 130, stderr
    assert stdout == "" and "Interrupted after 4 images" in stderr and "Traceback" not in stderr
    assert len(table(out.read_text())) == 4
    assert len(table(traces.read_text())) == 4 * 5


@pytest.mark.skipif(not INSTALLED.exists(), reason="the m3score command is not installed: pip install -e .")
def test_installed_command_from_end_to_end(folder: Path, tmp_path: Path) -> None:
    model = next((path for path in MODELS if (path / "config.json").exists()), None)
    if model is None:
        pytest.skip("no small model to load")
    (folder / "broken.png").write_bytes(b"x")
    command = [
        INSTALLED,
        "rank",
        *ASKED,
        folder,
        "--model",
        model,
        "--device",
        "cpu",
        "--max-new-tokens",
        "4",
    ]
    done = subprocess.run(
        [*map(str, command), "--traces", str(tmp_path / "t.parquet")],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 3, done.stderr
    rows = table(done.stdout)
    assert [row["rank"] for row in rows] == ["1", "2", "3", ""]
    assert all(0 <= float(row["complexity"]) <= 1 for row in rows[:3])
    assert run("rescore", tmp_path / "t.parquet").stdout == done.stdout


@pytest.mark.skipif(os.name == "nt", reason="locales of POSIX")
def test_questions_in_a_locale_without_their_letters(folder: Path, tmp_path: Path) -> None:
    bare = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "POSIX"}

    def m3score(*arguments: object) -> str:
        command = [sys.executable, "-m", "m3score", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, env=bare, cwd=ROOT)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    traces = tmp_path / "t.jsonl"
    m3score("rank", folder, "--question", "Qué?", "--limit", 1, "--traces", traces)
    assert json.loads(traces.read_text().splitlines()[0])["question"] == "Qué?"
    assert "Qué?" in m3score("ask", folder / "mid.png", "Qué?", "--all", "--answer", "más")
    m3score("predict", folder / "mid.png", "--question", "Qué?")


def test_python_dash_m() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "m3score", "--version"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0 and done.stdout.startswith("m3score ")
