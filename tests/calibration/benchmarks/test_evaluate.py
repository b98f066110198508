"""Accuracy per task and scale, counted on answers that are known."""

from __future__ import annotations

import io
import json
from itertools import islice

import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from m3score.calibration.benchmarks.evaluate import evaluate_drawn, evaluate_task, held_out
from m3score.calibration.benchmarks.scoreboard import FIGURES, TextTable
from m3score.calibration.benchmarks.task_data import load_own
from m3score.calibration.predictor.labelling.gather import labels_of
from m3score.cli.main import app
from m3score.cli.tables import WIDE, table_of
from m3score.common.errors import M3ScoreError
from m3score.models.base import ScaleAnswer
from m3score.tables.io import read_table, read_traces
from tests.support.fakes import LADDER, FakeAnswerer, SingleGrid, grey


class Knowing(SingleGrid):
    """Knows every answer from `enough` tokens on, and says nonsense below."""

    name = "knowing"
    ladder = LADDER

    def __init__(self, seed: int, questions: int, enough: int) -> None:
        self.enough = enough
        self.truth = {
            (drawing.image.tobytes(), asked.question): asked
            for drawing, asked in islice(held_out(seed), questions)
        }

    def needed(self, asked) -> int:
        return self.enough

    def answer_ladder(self, images, questions, *, max_new_tokens=32):
        return [
            [self._at_all_scales(self.truth[image.tobytes(), question]) for question in own]
            for image, own in zip(images, questions, strict=True)
        ]

    def _at_all_scales(self, asked) -> tuple[ScaleAnswer, ...]:
        return tuple(
            ScaleAnswer(t, t, asked.answer if t >= self.needed(asked) else "zzz", 1.0, 0.0) for t in LADDER
        )


class NeedsMoreForSmallLetters(Knowing):
    def needed(self, asked) -> int:
        height = asked.detail.get("height", 200)
        return 576 if height < 15 else 144 if height < 30 else 36 if height < 60 else 9


def test_accuracy_is_counted_per_task_and_scale():
    result = evaluate_drawn(Knowing(5, 120, enough=36), 120, seed=5, at_once=50)
    table = result.by_task()
    assert list(table.columns) == ["questions", 576, 144, 36, 9, 1]
    assert table.loc["all", "questions"] == 120
    assert table["questions"].drop("all").sum() == 120
    assert (table[36] == 100).all() and (table[9] == 0).all()
    assert "| all | 120 | 100.0 | 100.0 | 100.0 | 0.0 | 0.0 |" in result.to_markdown()


def test_facts_of_the_card():
    facts = evaluate_drawn(NeedsMoreForSmallLetters(6, 400, enough=1), 400, seed=6).facts()
    assert facts["overall accuracy at the finest scale, %"] == 100
    assert facts["signs read, letters of 40 px and more, %"] == 100
    assert facts["Spearman of letter height and required tokens, signs read"] < -0.9
    assert facts["largest rise of overall accuracy as tokens drop, points"] == 0


def test_progress_is_told():
    told: list[int] = []
    evaluate_drawn(Knowing(5, 30, enough=1), 30, seed=5, at_once=20, progress=told.append)
    assert told == [20, 10]


@pytest.mark.parametrize("seed", [1, 2])
def test_held_out_questions_are_deterministic(seed):
    one = [asked for _, asked in islice(held_out(seed), 20)]
    assert one == [asked for _, asked in islice(held_out(seed), 20)]


# ---- benchmarks -------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path):
    """Five greys and what FakeAnswerer needs of each, as a file of one's own questions; one is no picture."""
    rows = []
    for i, level in enumerate((0, 60, 120, 180, 250)):
        grey(level).save(tmp_path / f"{i}.png")
        rows.append({"image": f"{i}.png", "question": "How many?", "answers": [f"{LADDER[i]} is needed"]})
    (tmp_path / "bad.png").write_bytes(b"nothing")
    rows.append({"image": "bad.png", "question": "How many?", "answers": ["9 is needed"]})
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_a_benchmark_is_asked_judged_and_resumed(pictures, tmp_path):
    source = load_own(pictures, None, None)
    model = FakeAnswerer()

    def run(**more):
        return evaluate_task(
            source, model, tmp_path / "w", fingerprint="f" * 64, resamples=50, batch_size=2, **more
        )

    first = run(limit=3)
    assert not first.whole and [first.score(t).value for t in LADDER] == pytest.approx(
        [1 / 3, 2 / 3, 1, 1, 1]
    )
    asked = len(model.asked)
    judged = run()
    assert judged.whole and len(model.asked) - asked == 2  # the two that were not asked before
    assert [judged.score(t).value for t in LADDER] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert judged.get("mean tokens", rule="first", unsolved="one").value == sum(LADDER) / 5
    assert list(judged.failed) == [str(tmp_path / "bad.png")]
    assert run(limit=3).figures == first.figures
    # What was written is what calibrate takes.
    labels = labels_of([tmp_path / "w"])
    assert len(labels) == 5 and labels.by_truth.all() and labels.failed == 1


def test_a_mended_answer_is_judged_anew_and_not_asked_again(pictures, tmp_path):
    model, work = FakeAnswerer(), tmp_path / "w"

    def run(**more):
        source = load_own(pictures, None, None)
        return evaluate_task(source, model, work, fingerprint="f" * 64, resamples=50, batch_size=2, **more)

    assert run().score(1).value == pytest.approx(0.2)
    asked = len(model.asked)
    rows = [json.loads(line) for line in pictures.read_text().splitlines()]
    for row in rows[:2]:
        row["answers"] = ["9 is needed"]  # mended: the first was "1 is needed"
    rows[2]["question"] = "How many now?"
    pictures.write_text("\n".join(json.dumps(row) for row in rows))
    mended = run()
    assert len(model.asked) - asked == 1  # the one with another question
    assert [mended.score(t).value for t in LADDER] == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8])
    fresh = evaluate_task(
        load_own(pictures, None, None), model, tmp_path / "fresh", fingerprint="f" * 64, resamples=50
    )
    assert mended.figures == fresh.figures
    labels = labels_of([work])  # what calibrate reads is judged anew too
    assert len(labels) == 5 and labels.by_truth.all()
    with pytest.raises(M3ScoreError, match=r"fingerprint differ\); give another --work folder, or --restart"):
        evaluate_task(load_own(pictures, None, None), model, work, fingerprint="e" * 64)


def test_files_of_one_name_in_folders_of_one_name(tmp_path):
    words = ["evaluate"]
    for place, level in (("a", 0), ("b", 250)):
        folder = tmp_path / place / "qs"
        folder.mkdir(parents=True)
        grey(level).save(folder / "1.png")
        (folder / "q.csv").write_text("image,question,answers\n1.png,How many?,3\n")
        words.append(str(folder / "q.csv"))
    words += ["--work", str(tmp_path / "w"), "--out", str(tmp_path / "r.csv"), "-q"]
    for _ in range(2):  # asked, and gone on with
        result = CliRunner().invoke(app, [*words, "--overwrite"])
        assert result.exit_code == 0, result.output
        assert list(dict.fromkeys(read_table(tmp_path / "r.csv", FIGURES)["task"])) == ["qs-q", "qs-q-2"]
    alone = CliRunner().invoke(app, ["evaluate", words[2], *words[3:], "--overwrite"])
    assert alone.exit_code == 0 and set(read_table(tmp_path / "r.csv", FIGURES)["task"]) == {"qs-q-2"}
    assert sorted(path.name for path in (tmp_path / "w" / "m3-tiny").iterdir()) == ["qs-q", "qs-q-2"]


def test_the_command_writes_tables_and_a_picture(pictures, tmp_path):
    pytest.importorskip("matplotlib")
    out, plot, traces = (tmp_path / name for name in ("r.csv", "r.png", "t.parquet"))
    words = ["evaluate", str(pictures), "--limit", "2", "--work", str(tmp_path / "w"), "-q"]
    result = CliRunner().invoke(
        app, [*words, "--out", str(out), "--plot", str(plot), "--traces", str(traces)]
    )
    assert result.exit_code == 0, result.output
    table = read_table(out, FIGURES)
    assert {"score", "oracle", "solved", "mean tokens", "needed", "not monotone"} <= set(table["measure"])
    assert table[table["measure"] == "score"]["tokens"].tolist() == list(LADDER)
    assert Image.open(plot).width > 400 and len(read_traces(traces)) == 2 * len(LADDER)
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0 and "tokens per grid" in shown.stdout and "| 576 |" in shown.stdout
    failing = CliRunner().invoke(app, [*words[:2], *words[4:]])
    assert failing.exit_code == 3 and "bad.png" in failing.stdout


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "name a task"),
        (["mmvet"], "unknown task 'mmvet'; allowed: drawn, textvqa"),
        (["drawn", "pope"], "drawn is judged by itself"),
        (["pope", "--metric", "anls"], "--metric and --suffix are for your own questions"),
        (["pope", "--out", "x.txt"], "must end in .md or .csv"),
        (["drawn", "--out", "x.csv"], "must end in .md"),
        (["egoschema"], "not on the hub; put EgoSchema.csv"),
        (["pope", "--data-dir", "nowhere"], "no such folder"),
    ],
)
def test_wrong_usage_is_one_sentence(words, error):
    result = CliRunner().invoke(app, ["evaluate", *words])
    assert result.exit_code == 2
    assert error in " ".join(result.output.split()) and "Traceback" not in result.output


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_a_terminal(width):
    header: tuple[str, ...] = (
        "tokens per grid",
        "visual tokens",
        "relaxed_accuracy",
        "95% interval",
        "right by luck",
    )
    header += ("chance-corrected", "LLaVA-NeXT-7B-M3", "difference")
    row = ("576", "2880", "59.0", "57.1 to 61.0", "10.2", "54.3", "59.0", "+10.0")
    file = io.StringIO()
    console = Console(file=file, width=width)
    console.print(table_of(TextTable("ChartQA", header, (row,)), roomy=width >= WIDE))
    lines = file.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width and "…" not in file.getvalue()
    assert lines[-2].split() == " ".join(row).split()  # on one line
    words = " ".join(header).replace("_", " ").replace("-c", " c").replace("-7", " 7").split()
    assert sorted(word for line in lines[1:-3] for word in line.split()) == sorted(words)


def test_the_tasks_are_listed():
    shown = CliRunner().invoke(app, ["evaluate", "--list"]).stdout
    assert len(shown.splitlines()) == 20 and "vinoground" in shown
