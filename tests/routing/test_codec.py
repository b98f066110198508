"""Predictors' files: what is saved is what is loaded, and files that nobody should trust."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from m3score.common.errors import M3ScoreError
from m3score.routing import codec
from m3score.routing.features.image import FEATURE_VERSION, IMAGE_FEATURES
from m3score.routing.predictor import Predictor
from m3score.routing.record import CalibrationRecord
from tests.support.predictors import made_up, small_predictor


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return small_predictor()


@pytest.fixture
def file(predictor: Predictor, tmp_path: Path) -> Path:
    path = tmp_path / "my.predictor"
    predictor.save(path)
    return path


def test_what_is_loaded_is_what_was_saved(predictor: Predictor, file: Path) -> None:
    again, fresh = Predictor.load(file), made_up(300, seed=4)
    for name in ("model", "fingerprint", "ladder", "feature_set", "image_features", "question_features"):
        assert getattr(again, name) == getattr(predictor, name)
    assert (again.data, again.card, again.feature_version) == (
        predictor.data,
        predictor.card,
        FEATURE_VERSION,
    )
    for asked in (None, fresh.questions):
        assert np.array_equal(again.predict(fresh.images, asked), predictor.predict(fresh.images, asked))
        with_question = asked is not None
        assert again.certificate(with_question=with_question) == predictor.certificate(
            with_question=with_question
        )
    again.save(file.with_name("copy.predictor"))
    assert file.with_name("copy.predictor").read_bytes() == file.read_bytes()
    assert sorted(path.name for path in file.parent.iterdir()) == ["copy.predictor", "my.predictor"]


def test_image_only_file(tmp_path: Path) -> None:
    small_predictor(with_question=False).save(tmp_path / "a.predictor")
    assert Predictor.load(tmp_path / "a.predictor").with_question is None


@pytest.mark.parametrize("name", ["my.pkl", "my", "predictor"])
def test_other_suffixes_are_not_written(predictor: Predictor, tmp_path: Path, name: str) -> None:
    with pytest.raises(M3ScoreError, match=rf"{name}: a predictor's file name must end in \.predictor"):
        predictor.save(tmp_path / name)


def test_places_and_data_that_cannot_be_written(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(M3ScoreError, match="cannot write"):
        predictor.save(tmp_path / "no" / "such.predictor")
    for bad in ({"a": np.zeros(2)}, {"a": float("nan")}):
        with pytest.raises(M3ScoreError, match="must be JSON-ready"):
            replace(predictor, data=bad).save(tmp_path / "x.predictor")
    assert not list(tmp_path.iterdir())


class Malicious:
    """Unpickling it would leave a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def _zipped(trace: Path) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Malicious(trace)))
    return stream.getvalue()


FOREIGN: dict[str, Callable[[Path], bytes]] = {
    "nothing": lambda trace: b"",
    "pickle": lambda trace: pickle.dumps(Malicious(trace)),
    "old pickle": lambda trace: pickle.dumps(Malicious(trace), protocol=0),
    "zip with a pickle": _zipped,
    "pickle behind a header": lambda trace: (
        (len(pickle.dumps(Malicious(trace)))).to_bytes(8, "little") + pickle.dumps(Malicious(trace))
    ),
    "endless header": lambda trace: (2**62).to_bytes(8, "little") + b"{}",
    "header of brackets": lambda trace: (90_000).to_bytes(8, "little") + b"[" * 90_000,
    "other tensors": lambda trace: safetensors.numpy.save({"a": np.zeros(3)}),
    "text": lambda trace: b"import os\nos.mkdir('x')\n",
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files_are_refused_and_execute_nothing(kind: str, tmp_path: Path) -> None:
    path, trace = tmp_path / "evil.predictor", tmp_path / "executed"
    path.write_bytes(FOREIGN[kind](trace))
    with pytest.raises(M3ScoreError) as caught:
        Predictor.load(path)
    _is_one_sentence(caught.value, path)
    assert not trace.exists()


def test_the_malicious_pickle_would_have_worked(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Malicious(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


def _is_one_sentence(error: M3ScoreError, path: Path) -> None:
    text = str(error)
    assert text.startswith(str(path)) and "\n" not in text and len(text) < len(str(path)) + 300


def test_truncated_files_are_refused(file: Path) -> None:
    content = file.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(M3ScoreError, match="not a predictor's file, or damaged"):
            Predictor.load(file)
    file.write_bytes(content + b"x")
    with pytest.raises(M3ScoreError, match="not a predictor's file, or damaged"):
        Predictor.load(file)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_random_damage_is_refused_or_harmless(data: st.DataObject) -> None:
    """Bytes written anywhere give an M3ScoreError, or a predictor that still routes onto its ladder."""
    content = bytearray(_FILE.read_bytes())
    header = int.from_bytes(content[:8], "little") + 8
    for _ in range(data.draw(st.integers(1, 3))):
        end = data.draw(st.sampled_from([8, header, len(content)]))
        content[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    path = _FILE.with_name("damaged.predictor")
    path.write_bytes(content)
    try:
        again = Predictor.load(path)
        predictions = again.predict(np.zeros((2, len(IMAGE_FEATURES))))
    except M3ScoreError as error:
        assert "\n" not in str(error)
        return
    assert set(again.route(predictions).tolist()) <= set(again.ladder)


@pytest.fixture(scope="module", autouse=True)
def _file(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> None:
    global _FILE
    _FILE = tmp_path_factory.mktemp("damage") / "good.predictor"
    predictor.save(_FILE)


_FILE: Path


def _rewrite(path: Path, facts: dict[str, Any], arrays: dict[str, Any]) -> None:
    """Change a file's description and arrays (None = leave out), as somebody would who knows the format."""
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    text = json.loads(header["__metadata__"]["m3score_predictor"]) | facts
    text = {key: value for key, value in text.items() if value is not None}
    kept = safetensors.numpy.load(content) | arrays
    kept = {key: value for key, value in kept.items() if value is not None}
    path.write_bytes(safetensors.numpy.save(kept, metadata={"m3score_predictor": json.dumps(text)}))


TAMPERED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "other format": ({"format_version": 2}, {}, "format version 2; this m3score reads 1"),
    "other feature version": (
        {"feature_version": FEATURE_VERSION + 1},
        {},
        rf"fitted on feature version {FEATURE_VERSION + 1}, but this m3score computes version "
        rf"{FEATURE_VERSION}: calibrate anew with `m3score calibrate`\.$",
    ),
    "other ladder": ({"ladder": [1, 9, 36, 144]}, {}, "each of the 4 scales of the ladder"),
    "ladder of texts": ({"ladder": ["1", "9"]}, {}, "is no ladder"),
    "huge ladder": ({"ladder": [1, 9, 36, 144, 10**400]}, {}, "is no ladder"),
    "falling ladder": ({"ladder": [9, 1, 36, 144, 576]}, {}, "is no ladder"),
    "other features": ({"image_features": ["a", "b"]}, {}, "image features are not those"),
    "features of numbers": ({"image_features": [1, 2]}, {}, "'image_features' must hold names"),
    "card of another type": ({"card": ["x"]}, {}, "'card' must be text"),
    "data of another type": ({"data": "x"}, {}, "'data' must be an object"),
    "long-winded": ({"format_version": "x" * 10_000}, {}, "format version 'xxxx"),
    "a long name": ({"feature_set": "x" * 10_000}, {}, "unknown feature set 'xxxx"),
    "no model": ({"model": None}, {}, "'model' must be text"),
    "a code path": ({"feature_set": "os.system"}, {}, "unknown feature set"),
    "no trees": ({}, {"image_only/roots": None}, "image_only: 'roots' must be a list"),
    "cyclic trees": ({}, {"image_only/left": "cycle"}, "image_only: its trees are damaged"),
    "cut trees": (
        {},
        {"image_only/value": np.zeros(3)},
        "image_only: the trees' arrays are not equally long",
    ),
    "no calibration": ({}, {"calibration/sufficient": None}, "calibration is missing"),
    "calibration of another ladder": (
        {},
        {"calibration/sufficient": np.zeros((600, 3), dtype=bool)},
        "each of the 5 scales",
    ),
    "half a form": ({}, {"calibration/with_question": None}, "with_question needs its calibration"),
}


@pytest.mark.parametrize("kind", TAMPERED)
def test_tampered_files_are_refused(kind: str, file: Path) -> None:
    facts, arrays, message = TAMPERED[kind]
    if arrays.get("image_only/left") is not None:
        left = safetensors.numpy.load(file.read_bytes())["image_only/left"]
        arrays = {"image_only/left": np.where(left > 3, 0, left).astype(np.int32)}
    _rewrite(file, facts, arrays)
    with pytest.raises(M3ScoreError, match=message) as caught:
        Predictor.load(file)
    _is_one_sentence(caught.value, file)


def test_description_that_is_nested_without_end(file: Path) -> None:
    arrays = safetensors.numpy.load(file.read_bytes())
    for text in ("[" * 100_000, "[]", "nonsense"):
        file.write_bytes(safetensors.numpy.save(arrays, metadata={"m3score_predictor": text}))
        with pytest.raises(M3ScoreError, match="damaged predictor: its description is no JSON"):
            Predictor.load(file)


def test_places_without_a_predictor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    os.mkfifo(tmp_path / "pipe.predictor")
    for path, message in [
        (tmp_path / "none.predictor", "no such file"),
        (tmp_path, "not a file"),
        (tmp_path / "pipe.predictor", "not a file"),
    ]:
        with pytest.raises(M3ScoreError, match=message):
            Predictor.load(path)
    monkeypatch.setattr(codec, "MAX_PREDICTOR_BYTES", 1 << 10)
    with pytest.raises(M3ScoreError, match="larger than"):
        Predictor.load(file)


WITHOUT = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("sklearn", "torch", "pandas", "joblib"):
            raise ImportError(f"{name} is not to be imported")

sys.meta_path.insert(0, Refuse())
import m3score
import numpy as np
predictor = m3score.load_predictor(sys.argv[1])
picture = np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3)
tokens = m3score.predict_scale([picture, picture], ["What is it?", None], predictor=predictor)
complexity = m3score.predict_complexity(picture, predictor=sys.argv[1])
sys.stdout.write(f"{tokens} {complexity!r} {predictor.certificate().margin!r}")
"""


def test_saved_predictor_needs_neither_scikit_learn_nor_torch(predictor: Predictor, file: Path) -> None:
    import m3score

    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(file)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    picture = np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3)
    tokens = m3score.predict_scale([picture, picture], ["What is it?", None], predictor=predictor)
    complexity = m3score.predict_complexity(picture, predictor=predictor)
    assert ran.stdout == f"{tokens} {complexity!r} {predictor.certificate().margin!r}"


@pytest.fixture(scope="module")
def gaining() -> Predictor:
    return small_predictor(gains=True)


def test_gains_travel_with_the_file(gaining: Predictor, tmp_path: Path) -> None:
    gaining.save(tmp_path / "x.predictor")
    back, fresh = Predictor.load(tmp_path / "x.predictor"), made_up(300, seed=4)
    for asked in (None, fresh.questions):
        assert np.array_equal(back.utility(fresh.images, asked), gaining.utility(fresh.images, asked))
        for budget in (5, 60, 200):
            scales = back.route_within(budget, fresh.images, asked)
            assert np.array_equal(scales, gaining.route_within(budget, fresh.images, asked))


def test_files_without_gains_route_by_their_predictions(predictor: Predictor, file: Path) -> None:
    old, fresh = Predictor.load(file), made_up(600, seed=2)
    assert old.image_only_gains is None
    utility = old.utility(fresh.images)
    assert ((utility >= 0) & (utility <= 1)).all()
    assert 1 < old.route_within(60, fresh.images).mean() <= 60
    empty = replace(
        old,
        with_question=None,
        calibration=CalibrationRecord(np.zeros(0, np.float32), None, np.zeros((0, 5), bool)),
    )
    for call in (lambda: empty.price(60), lambda: empty.utility(fresh.images)):
        with pytest.raises(M3ScoreError, match="holds no calibration"):
            call()


_KEPT = "calibration/gains_image_only"
BAD_GAINS: dict[str, tuple[dict[str, Any], str]] = {
    "a step too few": ({"image_only_gains/3": None}, "must have 4 steps from 75 features, not 3"),
    "a step in between": ({"image_only_gains/1": None}, "numbered from 0 on"),
    "none but its calibration": ({"image_only_gains/": None}, "gains need each other"),
    "without its calibration": ({_KEPT: None}, "gains need each other"),
    "a name for a number": ({"image_only_gains/x/roots": np.zeros(1, np.int32)}, "numbered from 0 on"),
    "a part of a step": ({"image_only_gains/2/roots": None}, "image_only_gains/2: 'roots' must be a list"),
    "trees without end": ({"image_only_gains/2/left": np.zeros(3, np.int32)}, "not equally long"),
    "values that are none": (
        {"image_only_gains/0/intercept": np.array([np.nan])},
        "holds values that are not finite",
    ),
    "other features": (
        {"image_only_gains/0/coefficients": np.zeros(500)},
        "all of them the same features",
    ),
    "calibration of texts": ({_KEPT: np.zeros((600, 4))}, "float32 gains of 4 steps"),
    "calibration of other rows": ({_KEPT: np.zeros((7, 4), np.float32)}, "float32 gains of 4 steps"),
    "calibration beyond chances": ({_KEPT: np.full((600, 4), 2, np.float32)}, "between -1 and 1"),
    "calibration that is none": ({_KEPT: np.full((600, 4), np.nan, np.float32)}, "between -1 and 1"),
}


@pytest.mark.parametrize("kind", BAD_GAINS)
def test_gains_that_are_none_are_refused(kind: str, gaining: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "x.predictor"
    gaining.save(path)
    arrays, message = BAD_GAINS[kind]
    held = safetensors.numpy.load(path.read_bytes())
    changed: dict[str, Any] = {}
    for key, value in arrays.items():
        changed |= {name: None for name in held if name.startswith(key)} if value is None else {key: value}
    _rewrite(path, {}, changed)
    with pytest.raises(M3ScoreError, match=message) as caught:
        Predictor.load(path)
    _is_one_sentence(caught.value, path)
