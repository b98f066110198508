"""calibrate, predict, rank --scorer predictor and check-predictor, with the bundled model on drawn images."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import m3score
from m3score.calibration.drawings.drawing import draw, draw_or_leave_empty
from m3score.calibration.predictor import fit
from m3score.calibration.predictor.labelling.collection import open_collection
from m3score.cli.main import app
from m3score.models.fingerprint import fingerprint
from m3score.routing.features.image import IMAGE_FEATURES
from m3score.routing.features.question import question_features
from m3score.routing.predictor import Predictor
from tests.support.predictors import LADDER, small_predictor

INSTALLED = Path(sys.executable).with_name("m3score")
DRAWN = 14
DROP = 0.6
"""What so few images can certify."""


def run(*arguments: object) -> Any:
    """A command in this process. Whatever it does, it does not end in a traceback."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.stderr
    return result


def refused(*arguments: object) -> str:
    """The one sentence of a command that ends with exit code 2 and no data."""
    result = run(*arguments)
    assert result.exit_code == 2 and result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    notes = [line for line in lines if line.startswith(("Nothing certified", "A promise of"))]
    (sentence,) = [line for line in lines if line not in notes]
    assert sentence.startswith("error: ")
    return sentence.removeprefix("error: ")


@pytest.fixture(scope="module", autouse=True)
def one_candidate() -> Any:
    """Choosing a regressor is tested elsewhere and takes a while."""
    kept = dict(fit.CANDIDATES)
    fit.CANDIDATES.clear()
    fit.CANDIDATES["trees, few"] = {"max_iter": 20, "max_leaf_nodes": 5, "min_samples_leaf": 3}
    yield
    fit.CANDIDATES.clear()
    fit.CANDIDATES.update(kept)


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels of drawn images from the bundled model, in two runs: the second goes on after the first."""
    folder = tmp_path_factory.mktemp("calibrated") / "labels"
    begin = ("calibrate", "drawn", "--seed", 5, "--work", folder, "--collect-only", "--limit")
    assert run(*begin, 4).exit_code == 0
    first = (folder / "traces-00000.parquet").read_bytes()
    again = run(*begin, DRAWN)
    assert again.exit_code == 0 and f"{DRAWN} images" in again.stderr and again.stdout == ""
    assert (folder / "traces-00000.parquet").read_bytes() == first
    return folder


@pytest.fixture(scope="module")
def predictor(labels: Path) -> Path:
    """A predictor of the same images, by the command that collects and fits: all labels are there."""
    out = labels.parent / "my.predictor"
    begin = ("calibrate", "drawn", "--seed", 5, "--limit", DRAWN, "--work", labels, "--shares", "1,1,1")
    done = run(*begin, "--max-drop", DROP, "--out", out)
    assert done.exit_code == 0, done.stderr
    assert done.stdout == "" and "Test, image and question" in done.stderr
    assert "exists already; give --overwrite" in refused(*begin, "--out", out)
    return out


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three drawings as files."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(3):
        draw(77, index).image.save(folder / f"{index}.png")
    return folder


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_labels_are_of_the_bundled_model(labels: Path) -> None:
    held = open_collection(labels)
    assert (held.model, held.fingerprint) == ("m3-tiny", fingerprint("m3-tiny"))
    traces = held.traces()
    assert traces["image"].nunique() == DRAWN and traces["error"].isna().all()
    assert set(traces["tokens"]) == set(LADDER) and traces["correct"].notna().all()


def assorted(labels: Path, folder: Path, pictures: int) -> Path:
    """Made-up labels of so many assorted drawings, by the model of other labels."""
    held = replace(open_collection(labels), folder=folder, told={"source": "assorted", "seed": 3})
    held.begin(overwrite=False)
    features = np.random.default_rng(0).normal(size=(pictures, len(IMAGE_FEATURES))).astype(np.float32)
    rows = [
        {"image": f"assorted:3/{i}", "key": f"assorted:3/{i}", "values": row.tolist(),
         "distinct_tokens": float(np.exp(3 + row[5])), "reading_tokens": 0.0}
        for i, row in enumerate(features)
    ]  # fmt: skip
    held.add(rows, [])
    return folder


def test_one_run_makes_a_predictor_of_all_collections(labels: Path, tmp_path: Path) -> None:
    """As the bundled predictor is made: drawn, varied and assorted labels, and labels to test on."""
    varied, test, out = tmp_path / "varied", tmp_path / "test", tmp_path / "all.predictor"
    for source, seed, folder in (("varied", 6, varied), ("drawn", 9, test)):
        done = run("calibrate", source, "--limit", 6, "--seed", seed, "--work", folder, "--collect-only",
                   "--device", "cpu")  # fmt: skip
        assert done.exit_code == 0
    looked = assorted(labels, tmp_path / "assorted", 200)
    sources = (labels, varied, looked)
    done = run("calibrate", *sources, "--test", test, "--seed", 5, "--shares", "1,1,1", "--max-drop", DROP,
               "--out", out)  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert f"There are {DRAWN + 6}." in done.stderr.replace("\n", " ")  # nothing is asked about the others
    made = Predictor.load(out)
    assert made.vision is not None and 100 < made.data["vision_pictures"] < 170  # of 200, a third held out
    assert made.data["seeds"] == {"drawn images": [5], "varied drawings": [6], "assorted drawings": [3]}
    assert set(made.data["sources"]) == {"drawn images", "varied drawings"}
    card = made.card
    assert "- drawn images (seeds 5): " in card and "assorted drawings (seeds 3)" in card
    assert f"## Result: {test}" in card
    refusal = refused("calibrate", looked, "--out", tmp_path / "x.predictor", "--anyway")
    assert "nothing was asked about its images" in refusal or "are 0" in refusal


def test_calibrate_writes_a_predictor_and_a_report(predictor: Path) -> None:
    loaded = Predictor.load(predictor)
    assert loaded.fingerprint == fingerprint("m3-tiny") and loaded.with_question is not None
    assert loaded.data["images"] == DRAWN and sum(loaded.data["split_images"].values()) == DRAWN
    report = predictor.with_suffix(".report")
    assert (report / "card.md").read_text() == loaded.card
    frontier = rows((report / "frontier.csv").read_text())
    assert {"fixed scales", "random mixing", "oracle", "image only", "image and question"} <= {
        row["curve"] for row in frontier
    }
    assert (report / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((report / "results.json").read_text())[0]["name"] == "test split"


def test_predict_gives_a_row_per_input(predictor: Path, pictures: Path, tmp_path: Path) -> None:
    (pictures / "broken.png").write_bytes(b"no image")
    done = run("predict", pictures, "--predictor", predictor, "--max-drop", DROP, "--question", "What?")
    assert done.exit_code == 3
    table = rows(done.stdout)
    columns = ["path", "predicted_tokens", "complexity", "certified", "promise", "reason", "error"]
    assert list(table[0]) == columns
    assert [Path(row["path"]).name for row in table] == ["0.png", "1.png", "2.png", "broken.png"]
    loaded = Predictor.load(predictor)
    certified = loaded.certificate(DROP, with_question=True).certified
    for row in table[:3]:
        assert int(row["predicted_tokens"]) in LADDER and 0 <= float(row["complexity"]) <= 1
        assert row["certified"] == str(certified).lower() and row["error"] == ""
        assert (row["promise"], row["reason"]) == ("image", "")
    assert table[3]["predicted_tokens"] == "" and "not an image" in table[3]["error"]
    (pictures / "broken.png").unlink()
    out = tmp_path / "scales.parquet"
    done = run("predict", pictures, "--predictor", predictor, "--out", out)
    assert done.exit_code == 0 and "3 of 3 got the finest scale: the calibration certifies" in done.stderr
    strict = pd.read_parquet(out)
    assert strict["predicted_tokens"].tolist() == [576] * 3 and not strict["certified"].any()


def test_nothing_certified_is_said(predictor: Path, pictures: Path) -> None:
    done = run("predict", pictures, "--predictor", predictor)
    assert done.exit_code == 0, done.stdout
    assert "Nothing certified" in done.stderr and "at least 149" in done.stderr


def test_how_many_images_a_promise_needs_is_said_before_anything_is_asked(
    labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "m3score.cli.commands.calibrate.load_answerer", lambda *a, **k: pytest.fail("a model was loaded")
    )
    out = tmp_path / "a.predictor"
    said = refused("calibrate", "drawn", "--limit", 100, "--out", out)
    assert "needs at least 149 calibration images; with 20% of the images for calibration that is 745" in said
    assert "There are 100. Give more images, or --max-drop 0.14 or more" in said and "--anyway" in said
    assert not out.with_suffix(".labels").exists()
    for where in (labels, "drawn"):  # those that were collected count as those to be collected do
        begin = ("calibrate", where, "--limit", DRAWN, "--out", out)
        assert f"There are {DRAWN}." in refused(*begin)
        assert "0.6 lost per question" in refused(*begin, "--max-drop", 0.6, "--per", "question")


def test_anyway_fits_a_predictor_that_promises_nothing(labels: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.predictor"
    done = run("calibrate", labels, "--out", out, "--shares", "1,1,1", "--anyway")
    assert done.exit_code == 0 and "Nothing will be certified" in done.stderr
    assert not Predictor.load(out).certificate(0.02).certified


def test_promises_per_question_are_kept_in_the_file_and_named(predictor: Path, pictures: Path) -> None:
    loaded = Predictor.load(predictor)
    assert loaded.calibration.questions is not None and "| question |" in loaded.card
    asked = ("predict", pictures, "--predictor", predictor, "--max-drop", 0.95, "--question", "What?")
    for per in ("image", "question"):
        certified = loaded.certificate(0.95, with_question=True, per=per).certified
        for row in rows(run(*asked, "--per", per).stdout):
            assert row["certified"] == str(certified).lower()
            assert row["promise"] == (per if certified else "")
            assert certified or "certifies nothing" in row["reason"]


def test_a_model_that_answers_next_to_nothing_gets_a_sentence(labels: Path, tmp_path: Path) -> None:
    """No "200 % of the accuracy kept" of 5 %."""
    weak = tmp_path / "labels"
    shutil.copytree(labels, weak)
    for path in sorted(weak.glob("traces-*.parquet")):
        traces = pd.read_parquet(path)
        some = (traces["question_id"] == 0) & (traces["question"].str.len() % 2 == 0)
        traces["correct"] = some & (traces["tokens"] >= 9)
        traces["metric_score"] = traces["correct"].astype(float)
        traces.to_parquet(path)
    out = tmp_path / "weak.predictor"
    done = run("calibrate", weak, "--out", out, "--shares", "1,1,1", "--max-drop", DROP)
    assert done.exit_code == 0, done.stderr
    said = " ".join(done.stderr.split())
    assert "of the questions at 576 tokens: too few for a router to keep much" in said
    card = Predictor.load(out).card
    assert "too few for a router" in card and "Spearman with required tokens undefined" in card
    results = json.loads((tmp_path / "weak.report" / "results.json").read_text())
    assert results[0]["forms"][0]["spearman"] is None


def test_rank_by_predictor(predictor: Path, pictures: Path) -> None:
    (pictures / "broken.png").write_bytes(b"no image")
    done = run("rank", pictures, "--scorer", "predictor", "--predictor", predictor)
    assert done.exit_code == 3
    table = rows(done.stdout)
    assert [row["rank"] for row in table] == ["1", "2", "3", ""]
    scores = [float(row["complexity"]) for row in table[:3]]
    assert scores == sorted(scores, reverse=True) and Path(table[3]["path"]).name == "broken.png"


def test_check_predictor_on_labels_and_on_a_trace_table(
    predictor: Path, labels: Path, tmp_path: Path
) -> None:
    for traces in (labels, tmp_path / "fresh.parquet"):
        if traces is not labels:
            open_collection(labels).traces().to_parquet(traces)
        done = run("check-predictor", predictor, traces, "--json", "--max-drop", DROP)
        found = json.loads(done.stdout)
        assert done.exit_code == int(found["drifted"]) and found["images"] == DRAWN
        done = run("check-predictor", predictor, traces, "--report", tmp_path / "report")
        assert done.stdout.startswith("drift: no (p = ") and done.exit_code == 0
    assert "Image and question" in (tmp_path / "report" / "report.md").read_text()


def test_traces_of_needier_images_are_drift(labels: Path, tmp_path: Path) -> None:
    """Exit code 1: labels under which hardly anything but the finest scale suffices."""
    path = tmp_path / "old.predictor"
    small_predictor(fingerprint=fingerprint("m3-tiny"), calibration=600).save(path)
    traces = open_collection(labels).traces()
    traces["correct"] = (traces["tokens"] == 576).astype(float)
    traces.to_parquet(tmp_path / "needy.parquet")
    done = run("check-predictor", path, tmp_path / "needy.parquet")
    assert done.exit_code == 1 and done.stdout.startswith("drift: yes")


def test_predictor_of_other_weights_is_warned_about(labels: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.predictor"
    small_predictor(model="another").save(path)
    done = run("check-predictor", path, labels)
    assert (
        done.exit_code in (0, 1) and "The traces are of m3-tiny, the predictor is for another" in done.stderr
    )


def test_errors_are_one_sentence(labels: Path, predictor: Path, pictures: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.predictor"
    text.write_text("no predictor")
    image = pictures / "0.png"
    assert "not a predictor's file" in refused("predict", image, "--predictor", text)
    assert "There is no predictor" in refused("predict", image, "--predictor", tmp_path / "gone.predictor")
    assert "max_drop must lie between" in refused("predict", image, "--predictor", predictor, "--max-drop", 2)
    assert "no such file or folder" in refused(
        "predict", tmp_path / "nowhere", "--predictor", predictor, "--max-drop", DROP
    )
    assert "no folder" in refused(
        "predict", image, "--predictor", predictor, "--out", tmp_path / "gone" / "a.csv"
    )
    assert "no such source" in refused("calibrate", tmp_path / "gone", "--out", tmp_path / "a.predictor")
    assert "--limit has to say how many" in refused("calibrate", "drawn", "--out", tmp_path / "a.predictor")
    assert "end in .predictor" in refused("calibrate", labels, "--out", tmp_path / "a.pkl")
    assert "no folder" in refused("calibrate", labels, "--out", tmp_path / "gone" / "a.predictor")
    assert "--out FILE.predictor" in refused("calibrate", labels)
    assert "--shares has to be" in refused(
        "calibrate", labels, "--out", tmp_path / "a.predictor", "--shares", "1,2"
    )
    assert "too few images" in refused(
        "calibrate", labels, "--out", tmp_path / "a.predictor", "--shares", "1e9,1,1", "--anyway"
    )
    assert "another run" in refused(
        "calibrate", "drawn", "--seed", 6, "--limit", 3, "--work", labels, "--collect-only"
    )
    assert "none that m3score calibrate made" in refused("check-predictor", predictor, pictures)
    assert "gone.parquet" in refused("check-predictor", predictor, tmp_path / "gone.parquet")


def test_another_ladder_is_refused(labels: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.predictor"
    plain = small_predictor()
    record = plain.calibration
    replace(
        plain,
        ladder=LADDER[1:],
        calibration=replace(record, sufficient=np.ascontiguousarray(record.sufficient[:, 1:])),
    ).save(path)
    assert "ladder (1, 9, 36, 144, 576), but the predictor is for (9, 36, 144, 576)" in refused(
        "check-predictor", path, labels
    )


@pytest.mark.skipif(not INSTALLED.exists(), reason="the m3score command is not installed: pip install -e .")
def test_installed_commands(labels: Path, predictor: Path, pictures: Path, tmp_path: Path) -> None:
    """As a user types them, in processes of their own."""

    def m3score(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(INSTALLED), *map(str, arguments)], capture_output=True, text=True, cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    shutil.copy(predictor, tmp_path / "my.predictor")
    done = m3score("predict", pictures, "--predictor", "my.predictor", "--out", "scales.csv")
    assert (done.returncode, done.stdout) == (0, "") and "Wrote scales.csv" in done.stderr
    assert len(rows((tmp_path / "scales.csv").read_text())) == 3
    done = m3score("check-predictor", "my.predictor", labels)
    assert done.returncode == 0 and done.stdout.startswith("drift: no")


def test_vision_features_from_end_to_end(tmp_path: Path) -> None:
    """Fitted on what the model's own tower sees, then used the way a serving stack would."""
    out, image = tmp_path / "vision.predictor", draw(77, 0).image
    done = run("calibrate", "drawn", "--features", "vision", "--limit", 6, "--shares", "1,1,1",
               "--anyway", "--out", out)  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert "features of its own vision tower" in (tmp_path / "vision.report" / "card.md").read_text()
    model, loaded = m3score.load_model("m3-tiny"), Predictor.load(out)
    assert loaded.feature_set == "vision"
    assert loaded.image_features == model.vision_feature_names
    encoded = model.encode(image)  # for the answer as for the route
    values = model.vision_features(encoded)
    held = open_collection(tmp_path / "vision.labels").features()
    again = model.vision_features(draw_or_leave_empty(0, 3).image)
    np.testing.assert_allclose(np.asarray(held["values"][3], np.float32), again, rtol=1e-4, atol=1e-4)
    predictions = loaded.predict(values, question_features("What word is on the sign?"))
    (tokens,) = loaded.route(predictions, max_drop=None, with_question=True)
    assert tokens in LADDER and model.answer(encoded, "What word is on the sign?", tokens=int(tokens))
    image.save(tmp_path / "one.png")
    assert "needs vision features" in refused(
        "predict", tmp_path / "one.png", "--predictor", out, "--max-drop", DROP
    )
    open_collection(tmp_path / "vision.labels").traces().to_parquet(tmp_path / "t.parquet")
    assert "not a trace table" in refused("check-predictor", out, tmp_path / "t.parquet")
    done = run("check-predictor", out, tmp_path / "vision.labels", "--max-drop", DROP)
    assert done.exit_code in (0, 1) and done.stdout.startswith("drift: ")
