"""m3score.rank from Python: what the command does, it does too."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import m3score
from m3score.common.errors import M3ScoreError
from m3score.common.limits import Limits
from m3score.runs.progress import Progress
from m3score.runs.ranking import RankSummary
from m3score.runs.resume.journal import journal_path
from m3score.tables.io import read_scores
from tests.support.fakes import FakeAnswerer, grey
from tests.support.predictors import small_predictor
from tests.support.runs import invoke

IMAGES = 24


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """IMAGES pictures of rising brightness and one that can't be read."""
    (tmp_path / "in").mkdir()
    for number in range(IMAGES):
        grey(number * 10).save(tmp_path / "in" / f"{number:02}.png")
    (tmp_path / "in" / "05b.png").write_bytes(b"x")
    return tmp_path / "in"


def stop_after(images: int) -> Callable[[Progress], None]:
    """Ctrl-C after so many."""

    def stop(progress: Progress) -> None:
        if progress.done == images:
            raise KeyboardInterrupt

    return stop


def test_command_and_call_write_the_same_tables(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("m3score.models.loading.load_model", lambda *_, **__: FakeAnswerer())
    asked = ("--question", "How many?", "--rule", "first", "--batch-size", 4)
    invoke("rank", folder, "--out", tmp_path / "a.csv", "--traces", tmp_path / "a.jsonl", *asked)
    told = m3score.rank(
        folder,
        out=tmp_path / "b.csv",
        traces=tmp_path / "b.jsonl",
        questions="How many?",
        rule="first",
        batch_size=4,
    )
    assert isinstance(told, RankSummary)
    assert (told.images, told.failed, told.resumed) == (IMAGES + 1, 1, 0)
    assert 0 < (told.mean_complexity or 0) < 1
    for suffix in ("csv", "jsonl"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
    table = m3score.rank(folder, questions="How many?", rule="first")
    written = pd.read_csv(tmp_path / "b.csv")
    assert table["path"].tolist() == written["path"].tolist()


def test_fewer_inputs_lose_nothing_that_was_done(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.csv"
    with pytest.raises(KeyboardInterrupt):
        m3score.rank(folder, scorer="jpeg", out=out, on_progress=stop_after(8))
    done = len(pd.read_csv(out))
    said = invoke("rank", folder, "--scorer", "jpeg", "--out", out, "--limit", 3).stderr
    assert f"{done - 3} images of an earlier run are not among these inputs" in " ".join(said.split())
    assert len(pd.read_csv(out)) == 3 and journal_path(out).exists()
    told = m3score.rank(folder, scorer="jpeg", out=out)
    assert isinstance(told, RankSummary) and told.resumed >= done - 1  # what can't be read is tried again
    assert len(pd.read_csv(out)) == IMAGES + 1 and not journal_path(out).exists()


def test_the_same_call_goes_on_where_it_was_stopped(folder: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole.csv", tmp_path / "s.csv"
    m3score.rank(folder, model=FakeAnswerer(), out=whole, batch_size=2)
    with pytest.raises(KeyboardInterrupt):
        m3score.rank(folder, model=FakeAnswerer(), out=out, batch_size=2, on_progress=stop_after(17))
    assert journal_path(out).exists() and len(pd.read_csv(out)) == 17
    with pytest.raises(M3ScoreError, match=r'--rule was "stays" then and is "first" now'):
        m3score.rank(folder, model=FakeAnswerer(), out=out, batch_size=2, rule="first")

    model, seen = FakeAnswerer(), []

    def note(now: Progress) -> None:
        seen.append((now.done, now.skipped))

    told = m3score.rank(folder, model=model, out=out, batch_size=2, on_progress=note)
    assert told.resumed == 16 and sum(model.batches) == IMAGES + 1 - 16
    assert seen[15] == (16, 16) and seen[-1] == (25, 16)
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["in", "s.csv", "whole.csv"]


def test_what_is_there_is_not_replaced_unasked(folder: Path, tmp_path: Path) -> None:
    out, model = tmp_path / "s.csv", FakeAnswerer()
    with pytest.raises(KeyboardInterrupt):
        m3score.rank(folder, model=FakeAnswerer(), out=out, batch_size=2, on_progress=stop_after(17))
    assert m3score.rank(folder, model=model, out=out, batch_size=2, resume=False).resumed == 0
    assert sum(model.batches) == IMAGES
    with pytest.raises(M3ScoreError, match="exists already"):
        m3score.rank(folder, model=model, out=out)
    m3score.rank(folder, model=model, out=out, overwrite=True)


def test_progress_is_told_by_pass(folder: Path, tmp_path: Path) -> None:
    small_predictor(with_question=False).save(tmp_path / "p.predictor")
    passes: dict[str, tuple[int, int | None]] = {}

    def note(now: Progress) -> None:
        passes[now.phase] = now.done, now.total()
        assert now.row is not None and now.row["path"]

    how: dict[str, Any] = {"scorer": "cascade", "model": FakeAnswerer(), "on_progress": note}
    table = m3score.rank(folder, predictor=tmp_path / "p.predictor", max_model_images=6, **how)
    assert passes == {"Predicting": (IMAGES + 1, IMAGES + 1), "Asking": (6, 6)}
    assert table["scorer"].value_counts().to_dict() == {"predictor": IMAGES - 6, "model": 6}


def test_cascade_says_where_scores_are_not_on_one_scale(folder: Path, tmp_path: Path) -> None:
    small_predictor(with_question=False).save(tmp_path / "p.predictor")
    how: dict[str, Any] = {"scorer": "cascade", "model": FakeAnswerer()}
    how["predictor"] = tmp_path / "p.predictor"
    told = m3score.rank(folder, out=tmp_path / "a.csv", max_model_images=6, **how)
    assert any("not mapped onto the model's scale" in note for note in told.notes)
    told = m3score.rank(folder, out=tmp_path / "b.csv", budget="100%", **how)
    assert not any("not mapped" in note for note in told.notes)


def test_limits_hold_for_every_scorer(folder: Path) -> None:
    scorers: dict[str, dict[str, Any]] = {"model": {"model": FakeAnswerer()}, "jpeg": {}, "predictor": {}}
    for scorer, more in scorers.items():
        table = m3score.rank(folder, scorer=scorer, limits=Limits(max_pixels=100), **more)
        assert table["error"].notna().all() and "pixels" in table["error"].iloc[0], scorer


def test_rows_one_by_one(folder: Path) -> None:
    model = FakeAnswerer()
    rows = m3score.rank_iter(folder, model=model, batch_size=2)
    assert not model.batches
    first = next(rows)
    assert first["path"].endswith("00.png") and first["required_tokens"] == 1 and first["error"] is None
    assert sum(model.batches) <= 4
    rows.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("m3score-open")]
    everything = list(m3score.rank_iter(folder, model=model))
    assert [Path(row["path"]).name for row in everything] == sorted(os.listdir(folder))
    with pytest.raises(M3ScoreError, match="unknown rule"):
        m3score.rank_iter(folder, questions="q", rule="last")


def test_rows_of_a_cascade_come_at_its_end(folder: Path, tmp_path: Path) -> None:
    small_predictor(with_question=False).save(tmp_path / "p.predictor")
    rows = m3score.rank_iter(
        folder,
        scorer="cascade",
        model=FakeAnswerer(),
        predictor=tmp_path / "p.predictor",
        max_model_images=3,
    )
    assert [row.get("scorer") for row in rows].count("model") == 3


@pytest.mark.parametrize("kind", [str, Path])
def test_a_file_of_questions_by_name(kind: Callable[[str], Any], folder: Path, tmp_path: Path) -> None:
    """Never asked as a text."""
    (tmp_path / "asked.csv").write_text("image,question\n03.png,How many?\n04.png,Why?\n")
    model, wanted = FakeAnswerer(), [folder / "03.png", folder / "04.png", folder / "05.png"]
    table = m3score.rank(wanted, model=model, questions=kind(str(tmp_path / "asked.csv")), question="Else?")
    assert sorted(model.asked) == [("Else?",), ("How many?",), ("Why?",)] and table["error"].isna().all()
    with pytest.raises(M3ScoreError, match=r"gone\.csv"):
        m3score.rank(wanted, model=model, questions=kind(str(tmp_path / "gone.csv")))
    m3score.rank(wanted, model=model, questions="What is in asked.csv")
    assert model.asked[-1] == ("What is in asked.csv",)


def test_table_without_a_file_is_that_of_the_file(folder: Path, tmp_path: Path) -> None:
    for scorer in ("edges", "predictor"):
        table = m3score.rank(folder, scorer=scorer)
        m3score.rank(folder, scorer=scorer, out=tmp_path / f"{scorer}.parquet")
        pd.testing.assert_frame_equal(table, read_scores(tmp_path / f"{scorer}.parquet"))


def test_a_device_takes_any_table(folder: Path) -> None:
    """As in the example of m3score check-predictor."""
    assert invoke("rank", folder, "--scorer", "jpeg", "--out", os.devnull).exit_code == 3
    assert invoke("predict", folder, "--out", os.devnull).exit_code == 3
    assert not os.path.isfile(os.devnull)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"engine": "cloud"}, "unknown engine 'cloud'; allowed: local, ray"),
        ({"address": "auto"}, "go with --engine ray"),
        ({"scorer": "jpeg", "traces": "t.csv"}, "no answers to write down"),
        ({"out": "t.csv", "traces": "t.csv"}, "need different files"),
        ({"modle": "m3-tiny"}, "the scorer vision has no modle"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(M3ScoreError, match=told):
        m3score.rank(folder, **options)


def test_old_callback_sees_results(folder: Path) -> None:
    seen: list[Any] = []
    m3score.rank(folder, scorer="edges", progress=seen.append)
    assert len(seen) == IMAGES + 1 and seen[0].to_row()["path"].endswith("00.png")


def test_large_pictures_are_in_memory_once(tmp_path: Path) -> None:
    """A generator of pictures is taken as it comes."""
    pictures = (Image.fromarray(np.full((8, 8, 3), level, np.uint8)) for level in (0, 255))
    table = m3score.rank(pictures, model=FakeAnswerer())
    assert table["required_tokens"].tolist() == [576, 1]
