"""Files of feature version 2: they predict and promise what they always did; others are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from m3score.calibration.predictor.familiarity import fit_familiarity
from m3score.calibration.predictor.regressor import ScaleRegressor
from m3score.common.errors import M3ScoreError
from m3score.routing.features.image import FEATURE_VERSION, IMAGE_FEATURES
from m3score.routing.predictor import Predictor
from m3score.routing.promises.familiar import Familiarity
from m3score.routing.regression.demands import Demands
from m3score.routing.regression.ensemble import Ensemble
from tests.support.predictors import made_up, small_predictor

ADDED = {"pixels", "native_2048", "native_1024", "native_512", "letters", "letters_share"}
KEPT = [i for i, name in enumerate(IMAGE_FEATURES) if name not in ADDED]
NEW = [i for i, name in enumerate(IMAGE_FEATURES) if name in ADDED]


def of_version_2(ensemble: Ensemble) -> dict[str, np.ndarray]:
    """Arrays of a regressor as version 2 had them: without the features that it lacked."""
    arrays, size = ensemble.arrays(), len(IMAGE_FEATURES)
    questions = range(size, ensemble.n_features)
    columns = [*KEPT, *questions]
    before = np.full(ensemble.n_features, 0, np.int32)
    before[columns] = np.arange(len(columns))
    feature = arrays["feature"]
    arrays["feature"] = np.where(feature >= 0, before[feature], feature).astype(np.int32)
    arrays["coefficients"] = arrays["coefficients"][columns]
    return arrays


def regressor(asked: bool) -> Ensemble:
    """One that takes no notice of what version 2 lacked, where that never differs."""
    fit = made_up(400, seed=1)
    rows = fit.both if asked else fit.images
    rows[:, NEW] = 0
    return Ensemble.of(ScaleRegressor(max_iter=20).fit(rows, 3 + rows[:, 0] + rows[:, 20] + rows[:, -1]))


@pytest.fixture(scope="module")
def now() -> Predictor:
    """A predictor of this version that takes no notice of the new features."""
    image_only = regressor(False)
    made = small_predictor(image_only=image_only, vision=Demands(image_only, image_only))
    return replace(made, with_question=regressor(True))


@pytest.fixture(scope="module")
def familiar() -> Familiarity:
    """What is familiar, in features of version 2."""
    images = made_up(600, seed=7).images[:, KEPT]
    return fit_familiarity(images[:400], images[400:])


def as_version_2(predictor: Predictor, familiar: Familiarity, path: Path, **changes: Any) -> Path:
    """The same in a file of version 2; `changes` are other facts of the file."""
    predictor.save(path)
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    facts = json.loads(header["__metadata__"]["m3score_predictor"])
    facts |= {"feature_version": 2, "image_features": [IMAGE_FEATURES[i] for i in KEPT], **changes}
    held = safetensors.numpy.load(content)
    assert predictor.with_question is not None
    forms = {
        **dict.fromkeys(("image_only", "vision/distinct", "vision/reading"), predictor.image_only),
        "with_question": predictor.with_question,
    }
    for form, one in forms.items():
        held |= {f"{form}/{name}": array for name, array in of_version_2(one).items()}
    held |= {f"familiar/{name}": array for name, array in familiar.arrays().items()}
    held = {name: np.ascontiguousarray(array) for name, array in held.items()}
    path.write_bytes(safetensors.numpy.save(held, metadata={"m3score_predictor": json.dumps(facts)}))
    return path


def test_a_file_of_version_2_predicts_what_it_did(
    now: Predictor, familiar: Familiarity, tmp_path: Path
) -> None:
    read = Predictor.load(as_version_2(now, familiar, tmp_path / "old.predictor"))
    assert read.feature_version == FEATURE_VERSION and read.image_features == IMAGE_FEATURES
    fresh = made_up(300, seed=4)
    for asked in (None, fresh.questions):
        assert np.array_equal(read.predict(fresh.images, asked), now.predict(fresh.images, asked))
        assert np.ptp(read.predict(fresh.images, asked)) > 1
    assert np.array_equal(read.predict_vision(fresh.images), now.predict_vision(fresh.images))
    assert read.familiar is not None
    strange = familiar.strangeness(fresh.images[:, KEPT])
    assert read.familiar.strangeness(fresh.images) == pytest.approx(strange, rel=1e-6)
    assert read.certificate() == now.certificate()
    read.save(tmp_path / "new.predictor")  # written as of today
    again = Predictor.load(tmp_path / "new.predictor")
    assert np.array_equal(again.predict(fresh.images), read.predict(fresh.images))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"feature_version": 1}, "fitted on feature version 1, but this m3score computes version 3"),
        ({"image_features": ["a", "b"]}, "fitted on feature version 2, but this m3score computes version 3"),
    ],
)
def test_other_older_files_are_refused_in_one_sentence(
    now: Predictor, familiar: Familiarity, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    path = as_version_2(now, familiar, tmp_path / "old.predictor", **changes)
    with pytest.raises(M3ScoreError, match=said):
        Predictor.load(path)
