"""Collecting labels: from every kind of source, resumed after any interruption, errors as rows."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest

import m3score
from m3score.calibration.drawings.drawing import draw
from m3score.calibration.predictor.labelling.collect import collect
from m3score.calibration.predictor.labelling.collection import Collection, is_collection, open_collection
from m3score.calibration.predictor.labelling.gather import (
    labels_of,
    labels_of_traces,
    recomputed,
    vision_labels_of,
)
from m3score.calibration.predictor.labelling.sources import Assorted, Drawn, Rows, find_source, image_named
from m3score.common.errors import M3ScoreError
from m3score.routing.features.image import IMAGE_FEATURES, image_features
from tests.support.fakes import LADDER, FakeAnswerer, grey

ROOT = Path(__file__).parents[3]


def gather(source: Any, folder: Path, model: Any = None, **more: Any) -> Collection:
    return collect(source, model or FakeAnswerer(), folder, fingerprint="f" * 64, per_shard=4, **more)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, level in enumerate((0, 60, 120, 180, 250, 30, 90)):
        grey(level, (20 + i, 16)).save(folder / f"{i}.png")
    return folder


def task_question(folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "asked.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "question", "answers"])
        for image in sorted(folder.iterdir()):
            writer.writerow([image.name, "How many tokens?", "36 is needed"])
            writer.writerow([image.name, "Why?", ""])
    return path


def test_drawn_images_with_their_answers(tmp_path: Path):
    held = gather(Drawn(5), tmp_path / "w", limit=6)
    traces, features = held.traces(), held.features()
    assert list(dict.fromkeys(traces["image"])) == [f"drawn:5/{i}" for i in range(6)]
    assert traces["correct"].notna().all() and set(traces["metric"]) == {"exact_match"}
    assert features["key"].tolist() == features["image"].tolist()
    expected = image_features(draw(5, 3).image)
    np.testing.assert_array_equal(np.asarray(features["values"][3], np.float32), expected)
    labels = labels_of([tmp_path / "w"])
    assert labels.by_truth.all() and len(labels) == len(traces) / 5 and labels.ladder == LADDER
    assert labels.features.shape[1] == len(IMAGE_FEATURES) and labels.failed == 0


def test_drawn_images_have_no_end(tmp_path: Path):
    with pytest.raises(M3ScoreError, match="--limit"):
        gather(Drawn(5), tmp_path / "w")


def test_files_with_questions_and_one_that_is_broken(photos: Path, tmp_path: Path):
    questions = task_question(photos, tmp_path)
    (photos / "3.png").write_bytes(b"not an image")
    held = gather(find_source(str(photos), questions=questions), tmp_path / "w")
    traces = held.traces()
    (broken,) = traces[traces["tokens"].isna()].to_dict("records")
    assert broken["image"].endswith("3.png") and "not an image" in broken["error"]
    labels = labels_of([tmp_path / "w"])
    assert len(labels) == 12 and labels.failed == 1
    assert labels.by_truth.tolist() == [True, False] * 6
    consistent = labels_of([tmp_path / "w"], sufficiency="consistent")
    needed = {
        Path(name).name: int(row.sum())
        for name, row in zip(labels.images, consistent.sufficient, strict=True)
    }
    assert needed == {"0.png": 5, "1.png": 4, "2.png": 3, "4.png": 1, "5.png": 5, "6.png": 4}


def test_copies_of_a_file_have_one_key(photos: Path, tmp_path: Path):
    (photos / "copy.png").write_bytes((photos / "2.png").read_bytes())
    labels = labels_of([gather(find_source(str(photos)), tmp_path / "w").folder])
    by_name = dict(zip((Path(name).name for name in labels.images), labels.keys, strict=True))
    assert by_name["copy.png"] == by_name["2.png"] != by_name["1.png"]


@pytest.fixture
def saved(photos: Path, tmp_path: Path) -> Path:
    """A data set of the datasets library, on disk, with a row whose image is damaged."""
    blobs = [path.read_bytes() for path in sorted(photos.iterdir())]
    blobs[2] = blobs[2][:40]
    rows = {
        "picture": [{"bytes": blob, "path": None} for blob in blobs],
        "question": ["How many?", "Why?"] * 3 + ["How many?"],
        "answers": [["36 is needed"], ["nothing"]] * 3 + [["1 is needed"]],
    }
    features = datasets.Features(
        picture=datasets.Image(), question=datasets.Value("string"),
        answers=datasets.List(datasets.Value("string")),
    )  # fmt: skip
    folder = tmp_path / "saved"
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder))
    return folder


def test_a_data_set_on_disk(saved: Path, tmp_path: Path):
    source = find_source(str(saved), image="picture")
    assert isinstance(source, Rows) and source.count() == 7
    held = gather(source, tmp_path / "w")
    traces = held.traces()
    assert traces["image"].nunique() == 7
    failed = traces[traces["tokens"].isna()]
    assert failed["image"].tolist() == [f"{saved}/2"]
    labels = labels_of([held.folder])
    assert len(labels) == 6 and labels.by_truth.all() and len(set(labels.keys)) == 6


def test_data_set_columns_and_splits_are_checked(saved: Path, tmp_path: Path):
    with pytest.raises(M3ScoreError, match=r"no column 'image'.*picture, question, answers"):
        find_source(str(saved), image="image")
    with pytest.raises(M3ScoreError, match="no splits"):
        find_source(str(saved), image="picture", split="train")
    one = datasets.load_from_disk(str(saved))
    datasets.DatasetDict(a=one, b=one).save_to_disk(str(tmp_path / "two"))
    with pytest.raises(M3ScoreError, match="one of a, b"):
        find_source(str(tmp_path / "two"), image="picture")
    chosen = find_source(str(tmp_path / "two"), image="picture", split="b")
    assert next(chosen.items()).name == f"{tmp_path / 'two'}/b/0"


def test_questions_go_with_files_only(saved: Path):
    with pytest.raises(M3ScoreError, match="--questions goes with image files"):
        find_source("drawn", questions="asked.csv")
    with pytest.raises(M3ScoreError, match="no such source"):
        find_source("nowhere")


class Dies(FakeAnswerer):
    """Stops after a few images, as Ctrl-C does."""

    def answer_ladder(self, images: Any, questions: Any, *, max_new_tokens: int = 32) -> Any:
        if sum(self.batches) >= 6:
            raise KeyboardInterrupt
        return super().answer_ladder(images, questions, max_new_tokens=max_new_tokens)


def test_interrupted_and_resumed_gives_the_same_as_one_run(tmp_path: Path):
    whole = gather(Drawn(9), tmp_path / "whole", limit=11)
    with pytest.raises(KeyboardInterrupt):
        gather(Drawn(9), tmp_path / "parts", Dies(), limit=11, batch_size=2)
    kept = open_collection(tmp_path / "parts").done()
    assert 0 < len(kept) < 11
    again = FakeAnswerer()
    told: list[int] = []
    parts = gather(Drawn(9), tmp_path / "parts", again, limit=11, progress=told.append)
    assert sum(again.batches) == 11 - len(kept) and told[0] == len(kept) and sum(told) == 11
    by = ["image", "question_id", "tokens"]
    tables = [held.traces().sort_values(by).reset_index(drop=True) for held in (whole, parts)]
    pd.testing.assert_frame_equal(tables[0], tables[1])
    a, b = (labels_of([held.folder]) for held in (whole, parts))
    np.testing.assert_array_equal(a.features, b.features)


def test_a_higher_limit_goes_on(tmp_path: Path):
    gather(Drawn(9), tmp_path / "w", limit=3)
    model = FakeAnswerer()
    assert len(gather(Drawn(9), tmp_path / "w", model, limit=5).done()) == 5
    assert sum(model.batches) == 2


def test_features_without_traces_are_no_shard(tmp_path: Path):
    held = gather(Drawn(9), tmp_path / "w", limit=8)
    (tmp_path / "w" / "traces-00001.parquet").unlink()  # as if killed between the two files
    assert len(held.done()) == 4
    assert len(gather(Drawn(9), tmp_path / "w", limit=8).done()) == 8
    assert len(labels_of([tmp_path / "w"]).images) == len(held.traces()) / 5


def test_labels_of_another_run_are_refused(tmp_path: Path):
    gather(Drawn(9), tmp_path / "w", limit=2)
    with pytest.raises(M3ScoreError, match=r"another run \(source differ\)"):
        gather(Drawn(10), tmp_path / "w", limit=2)
    other = FakeAnswerer()
    other.name = "other"
    with pytest.raises(M3ScoreError, match=r"\(model differ\)"):
        gather(Drawn(9), tmp_path / "w", other, limit=2)
    assert gather(Drawn(10), tmp_path / "w", limit=2, overwrite=True).done() == {"drawn:10/0", "drawn:10/1"}


class Prepares(FakeAnswerer):
    """Preprocesses images in the workers, and cannot do so with one of them."""

    def tiles(self, image: Any) -> Any:
        assert threading.current_thread().name.startswith("m3score-open")
        if image.width == 22:
            raise ValueError("odd")
        return image


def test_workers_preprocess_and_a_failure_is_a_row(photos: Path, tmp_path: Path):
    held = gather(find_source(str(photos)), tmp_path / "w", Prepares())
    (broken,) = held.traces().query("tokens.isna()").to_dict("records")
    assert broken["image"].endswith("2.png") and broken["error"] == "can't be used (ValueError: odd)"
    features = held.features()
    assert features["values"].isna().tolist() == [i == 2 for i in range(7)]
    assert len(set(features["key"])) == 7


def test_only_a_model_that_has_them_gives_vision_features(tmp_path: Path):
    with pytest.raises(M3ScoreError, match="fake has none"):
        gather(Drawn(1), tmp_path / "w", limit=1, feature_set="vision")
    with pytest.raises(M3ScoreError, match="allowed: pixels, vision"):
        gather(Drawn(1), tmp_path / "w", limit=1, feature_set="sound")


def test_traces_find_their_images_again(photos: Path, tmp_path: Path):
    from m3score.tables.io import write_traces

    held = gather(find_source(str(photos)), tmp_path / "w")
    drawn = gather(Drawn(3), tmp_path / "d", limit=3)
    write_traces(pd.concat([held.traces(), drawn.traces()]), tmp_path / "t.parquet")
    found = labels_of_traces(tmp_path / "t.parquet", "pixels")
    expected = [labels_of([tmp_path / name]) for name in "wd"]
    np.testing.assert_array_equal(found.features, np.concatenate([one.features for one in expected]))
    assert found.keys.tolist() == [*expected[0].keys, *expected[1].keys]
    with pytest.raises(M3ScoreError, match="a trace table"):
        labels_of_traces(tmp_path / "t.parquet", "vision")
    with pytest.raises(M3ScoreError, match="none that m3score calibrate made"):
        labels_of_traces(photos, "pixels")
    with pytest.raises(M3ScoreError, match="draws and asks otherwise"):
        recomputed({"drawn:3/0": ["Who drew this?"]})


KILLED = """
import sys, time
from m3score.calibration.predictor.labelling.collect import collect
from m3score.calibration.predictor.labelling.sources import Drawn
from tests.support.fakes import FakeAnswerer
class Slow(FakeAnswerer):
    def answer_ladder(self, *args, **more):
        time.sleep(0.02)
        return super().answer_ladder(*args, **more)
collect(Drawn(4), Slow(), sys.argv[1], fingerprint="f" * 64, limit=400, per_shard=4, batch_size=1)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_killed_and_resumed(tmp_path: Path):
    folder = tmp_path / "w"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(folder)], cwd=ROOT)
    deadline = time.monotonic() + 60
    while len(list(folder.glob("traces-*.parquet"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert is_collection(folder)
    done = open_collection(folder).done()
    assert 8 <= len(done) < 400 and len(done) % 4 == 0
    model = FakeAnswerer()
    wanted = len(done) + 5
    held = gather(Drawn(4), folder, model, limit=wanted)
    assert held.done() == {f"drawn:4/{i}" for i in range(wanted)} and sum(model.batches) == 5
    assert held.traces()["image"].nunique() == wanted


def test_a_source_without_images_leaves_no_folder(photos: Path, tmp_path: Path):
    empty, work = tmp_path / "empty", tmp_path / "w"
    empty.mkdir()
    with pytest.raises(M3ScoreError, match=r"empty: no images found\.$"):
        gather(find_source(str(empty)), work)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(M3ScoreError, match=r"bad\.png: none of its images was answered \(.*not an image"):
        gather(find_source(str(tmp_path / "bad.png")), work)
    assert not work.exists()
    # A run that was killed before its first answer leaves a folder, which is no obstacle either.
    with pytest.raises(KeyboardInterrupt):
        gather(find_source(str(tmp_path / "photos" / "*.png")), work, FailsAtOnce())
    assert is_collection(work)
    assert len(gather(find_source(str(photos)), work).done()) == 7


class FailsAtOnce(FakeAnswerer):
    def answer_ladder(self, *args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt


def test_vision_scores_are_kept_beside_answers_and_without_any(tmp_path: Path):
    model = m3score.load_model("m3-tiny", device="cpu")
    asked = gather(Drawn(5), tmp_path / "asked", model, limit=2)
    looked = gather(Assorted(5), tmp_path / "looked", model, limit=5)
    for held in (asked, looked):
        for row in held.features().to_dict("records"):
            score = model.vision_score(image_named(row["image"]))
            assert row["distinct_tokens"] == pytest.approx(score.distinct_tokens, rel=1e-3)
            assert row["reading_tokens"] == pytest.approx(score.reading_tokens, abs=1e-3)
            np.testing.assert_array_equal(
                np.asarray(row["values"], np.float32), image_features(image_named(row["image"]))
            )
    assert len(asked.traces()) and not len(looked.traces())
    folders = [tmp_path / "asked", tmp_path / "looked"]
    both = vision_labels_of(folders)
    assert both is not None and len(both) == 7
    assert labels_of(folders).keys.tolist() == labels_of(folders[:1]).keys.tolist()
    with pytest.raises(M3ScoreError, match="nothing was asked about its images"):
        labels_of(folders[1:])
    assert gather(Assorted(5), tmp_path / "looked", model, limit=6).done() >= looked.done()  # goes on
    plain = gather(Drawn(5), tmp_path / "plain", model, limit=2, vision=False)
    assert plain.features()["distinct_tokens"].isna().all()
    assert vision_labels_of([tmp_path / "plain"]) is None


def test_assorted_drawings_need_a_vision_tower_and_an_end(tmp_path: Path):
    with pytest.raises(M3ScoreError, match="for a vision tower to look at; fake has none"):
        gather(Assorted(5), tmp_path / "w", limit=5)
    with pytest.raises(M3ScoreError, match="--limit"):
        gather(Assorted(5), tmp_path / "w")


def test_collections_without_vision_scores_are_read(photos: Path, tmp_path: Path):
    held = gather(find_source(str(photos)), tmp_path / "w")
    for path in (tmp_path / "w").glob("features-*.parquet"):
        frame = pd.read_parquet(path).drop(columns=["distinct_tokens", "reading_tokens"])
        frame.to_parquet(path)
    assert held.features()["distinct_tokens"].isna().all() and len(labels_of([tmp_path / "w"]))
