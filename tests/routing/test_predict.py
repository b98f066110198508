"""The public calls: predict_scale and its like, on real files, in order, broken ones among them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import m3score
from m3score.calibration.predictor.regressor import ScaleRegressor
from m3score.common.errors import M3ScoreError
from m3score.data.discover import find_images
from m3score.data.item import ImageItem
from m3score.models.fingerprint import fingerprint
from m3score.routing import feature_jobs, registry
from m3score.routing.features.image import image_features
from m3score.routing.features.question import question_features
from m3score.routing.predict import Prediction, predict_many
from m3score.routing.predictor import Predictor
from m3score.routing.regression.ensemble import Ensemble
from tests.support.predictors import LADDER, demands, made_up, small_predictor


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twelve files of noise that is finer and finer, in several formats."""
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    paths = []
    for i in range(12):
        cells = random.integers(0, 255, (4 + 3 * i, 5 + 2 * i, 3), dtype=np.uint8)
        path = folder / f"{i:02}.{('jpg', 'png', 'webp')[i % 3]}"
        Image.fromarray(cells).resize((120 + i, 90), Image.Resampling.NEAREST).save(path)
        paths.append(path)
    return paths


@pytest.fixture(scope="module")
def predictor(pictures: list[Path]) -> Predictor:
    """Tells these pictures apart: fitted to them, and to a question each, from hardly anything to all."""
    needs = np.linspace(0.1, 6.2, len(pictures))
    X = np.array([image_features(path) for path in pictures])
    asked = np.array([question_features(f"What is number {i}?") for i in range(len(pictures))])
    return replace(
        small_predictor(),
        image_only=Ensemble.of(ScaleRegressor("linear").fit(X, needs)),
        with_question=Ensemble.of(ScaleRegressor("linear").fit(np.hstack([X, asked]), needs[::-1])),
    )


@pytest.fixture(autouse=True)
def _fresh_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_warned", set())


def expected(predictor: Predictor, path: Any, question: str | None = None) -> int:
    """The scale, one step after the other."""
    asked = None if question is None else question_features(question)
    predictions = predictor.predict(image_features(path), asked)
    return int(predictor.route(predictions, with_question=question is not None)[0])


def test_one_image_of_any_kind(predictor: Predictor, pictures: list[Path]) -> None:
    path = pictures[1]
    tokens = m3score.predict_scale(path, predictor=predictor)
    assert type(tokens) is int and tokens == expected(predictor, path) and tokens in LADDER
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    for source in (str(path), path.read_bytes(), image, np.asarray(image)):
        assert m3score.predict_scale(source, predictor=predictor) == tokens
    complexity = m3score.predict_complexity(path, predictor=predictor)
    value = float(predictor.predict(image_features(path))[0]) / np.log(576)
    assert type(complexity) is float and complexity == pytest.approx(value)


def test_list_in_list_out_in_order(predictor: Predictor, pictures: list[Path]) -> None:
    one_by_one = [m3score.predict_complexity(path, predictor=predictor) for path in pictures]
    assert len(set(one_by_one)) == len(pictures)
    for workers in (None, 1, 4):
        assert m3score.predict_complexity(pictures, predictor=predictor, workers=workers) == one_by_one
    assert m3score.predict_scale(tuple(pictures), predictor=predictor) == [
        expected(predictor, path) for path in pictures
    ]
    assert m3score.predict_scale([], predictor=predictor) == []


def test_questions(predictor: Predictor, pictures: list[Path]) -> None:
    asked = ["What does the sign say?", "What colour is it?", None] * 4
    scales = m3score.predict_scale(pictures, asked, predictor=predictor)
    assert scales == [expected(predictor, *pair) for pair in zip(pictures, asked, strict=True)]
    same = m3score.predict_complexity(pictures, "How many birds?", predictor=predictor)
    assert same == m3score.predict_complexity(pictures, ["How many birds?"] * 12, predictor=predictor)
    assert same != m3score.predict_complexity(pictures, predictor=predictor)
    for empty in ("", "  "):  # is no question
        assert m3score.predict_complexity(
            pictures[0], empty, predictor=predictor
        ) == m3score.predict_complexity(pictures[0], predictor=predictor)


def test_without_a_question_complexity_is_the_vision_score(
    predictor: Predictor, pictures: list[Path]
) -> None:
    looking = replace(predictor, vision=demands(lambda images: 1 + images[:, 5], lambda images: images[:, 6]))
    one = next(predict_many(pictures[:1], predictor=looking, max_drop=None, spread=True))
    rows = image_features(pictures[0])[None]
    assert one.complexity == pytest.approx(float(looking.predict_vision(rows)[0]) / np.log(576))
    assert one.spread == pytest.approx(float(looking.spread_vision(rows)[0]))
    alone = next(predict_many(pictures[:1], predictor=predictor, max_drop=None, spread=True))
    assert one.complexity != alone.complexity and one.tokens == alone.tokens
    assert m3score.predict_complexity(pictures[0], predictor=looking) == one.complexity
    asked = m3score.predict_complexity(pictures[0], "How many birds?", predictor=looking)
    assert asked == m3score.predict_complexity(pictures[0], "How many birds?", predictor=predictor)
    bare = next(predict_many(pictures[:1], predictor=looking, max_drop=None, complexity=False))
    assert (bare.complexity, bare.tokens) == (None, one.tokens)


def test_a_predictor_that_does_not_know_the_vision_score_says_so(
    predictor: Predictor, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.warns(UserWarning, match="does not know the vision score.*tokens that answers need"):
        m3score.predict_complexity(pictures[0], predictor=predictor)
    monkeypatch.setattr(registry, "_warned", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        m3score.predict_complexity(pictures[0], "How many birds?", predictor=predictor)
        m3score.predict_scale(pictures[0], predictor=predictor, max_drop=None)


def test_broken_image_among_many(predictor: Predictor, pictures: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(pictures[0].read_bytes()[:200])
    mixed = [*pictures[:5], broken, *pictures[5:]]
    with pytest.raises(M3ScoreError, match=rf"^{broken}: truncated"):
        m3score.predict_scale(mixed, predictor=predictor)
    with pytest.raises(M3ScoreError, match=rf"^{broken}: truncated"):
        m3score.predict_scale(broken, predictor=predictor)
    results = list(predict_many(mixed, predictor=predictor, workers=3))
    assert [result.path for result in results] == [str(path) for path in mixed]
    assert results[5] == Prediction(
        str(broken), None, None, None, "truncated: the file ends before the image does"
    )
    assert [result.tokens for result in results if not result.error] == m3score.predict_scale(
        pictures, predictor=predictor
    )
    assert results[0].to_dict() == {
        "path": str(pictures[0]),
        "tokens": expected(predictor, pictures[0]),
        "complexity": m3score.predict_complexity(pictures[0], predictor=predictor),
        "certified": True,
        "error": None,
        "spread": None,
        "promise": "image",
        "reason": None,
    }


def test_what_nobody_foresaw_is_a_row_too(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: object, **limits: int) -> np.ndarray:
        raise KeyError("surprise")

    monkeypatch.setattr(feature_jobs, "sized_features", fail)
    (result,) = predict_many(["a.png"], predictor=predictor)
    assert result.error == "can't be used (KeyError: 'surprise')"


def test_found_images_bring_their_errors(predictor: Predictor, pictures: list[Path]) -> None:
    found = [*find_images(pictures[0].parent), ImageItem("dark", "dark", "permission denied")]
    results = list(predict_many(found, predictor=predictor))
    assert len(results) == 13 and results[-1].error == "permission denied" and results[-1].path == "dark"
    assert results[3].path == str(pictures[3]) and results[3].error is None


def test_many_are_taken_lazily(predictor: Predictor, pictures: list[Path]) -> None:
    taken = 0

    def endless() -> Iterator[Path]:
        nonlocal taken
        while True:
            taken += 1
            yield pictures[0]

    stream = predict_many(endless(), predictor=predictor, workers=2)
    assert next(stream).error is None and next(stream).error is None
    assert taken < 40
    stream.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("images", "questions", "message"),
    [
        (["a.png", "b.png"], ["What?"], "2 images need as many questions, not 1"),
        (iter(["a.png", "b.png"]), iter(["What?"]), "more images than questions"),
        (iter(["a.png"]), iter(["What?", "Who?"]), "more questions than images"),
        ("a.png", None, "images must be a list"),
        (b"...", None, "images must be a list"),
        (["a.png"], [3], "a question must be text, not int"),
    ],
)
def test_arguments_that_do_not_fit(predictor: Predictor, images: Any, questions: Any, message: str) -> None:
    with pytest.raises(M3ScoreError, match=message):
        list(predict_many(images, questions, predictor=predictor))


def test_levels_are_checked_before_anything_is_read(predictor: Predictor) -> None:
    with pytest.raises(M3ScoreError, match="max_drop must lie between 0 and 1"):
        predict_many(["none.png"], max_drop=2.0, predictor=predictor)
    with pytest.raises(M3ScoreError, match="vision features, which a picture alone does not give"):
        predict_many(["none.png"], predictor=_vision(predictor))


def _vision(predictor: Predictor) -> Predictor:
    return replace(predictor, feature_set="vision")


def test_nothing_certified_is_said_once(pictures: list[Path]) -> None:
    poor = small_predictor(calibration=100)
    with pytest.warns(UserWarning, match="at least 149 calibration images, and there are 100") as caught:
        results = list(predict_many(pictures, predictor=poor, complexity=False))
    assert len(caught) == 1
    assert {(result.tokens, result.certified) for result in results} == {(576, False)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert m3score.predict_scale(pictures[0], predictor=poor) == 576
        free = m3score.predict_scale(pictures, predictor=poor, max_drop=None)
    assert free == [int(poor.route(poor.predict(image_features(p)), max_drop=None)[0]) for p in pictures]


def test_question_for_an_image_only_predictor(pictures: list[Path]) -> None:
    alone = small_predictor(with_question=False)
    with pytest.raises(M3ScoreError, match="fitted on images alone"):
        m3score.predict_scale(pictures[0], "What?", predictor=alone)


# ---- data sets ------------------------------------------------------------------------------------------


def test_map_batch_gives_columns_for_every_row(predictor: Predictor, pictures: list[Path]) -> None:
    batch: dict[str, list[Any]] = {
        "picture": [
            str(pictures[0]),
            {"bytes": pictures[1].read_bytes(), "path": None},
            {"bytes": None, "path": str(pictures[2])},
            None,
            Image.new("RGB", (8, 8)),
        ],
        "q": ["What?", None, "Where?", "Who?", ""],
    }
    columns = m3score.map_batch(batch, image="picture", question="q", predictor=predictor)
    assert list(columns) == [
        "predicted_tokens",
        "predicted_complexity",
        "certified",
        "uncertified_reason",
        "prediction_error",
    ]
    assert columns["predicted_tokens"][0] == expected(predictor, pictures[0], "What?")
    assert columns["predicted_tokens"][1] == expected(predictor, pictures[1])
    assert columns["predicted_tokens"][3] is None and "not NoneType" in columns["prediction_error"][3]
    assert columns["certified"] == [True, True, True, None, True]
    with pytest.raises(M3ScoreError, match="no column 'image'; it has picture, q"):
        m3score.map_batch(batch, predictor=predictor)


def test_map_batch_in_a_data_set(predictor: Predictor, pictures: list[Path]) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"image": [str(path) for path in pictures]}).cast_column(
        "image", datasets.Image()
    )
    mapped = table.map(
        m3score.map_batch,
        batched=True,
        batch_size=5,
        fn_kwargs={"predictor": predictor},
    )
    assert mapped["predicted_complexity"] == pytest.approx(
        m3score.predict_complexity(pictures, predictor=predictor)
    )


# ---- which predictor, for which model ------------------------------------------------------------------


def test_file_is_read_once_until_it_changes(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "a.predictor"
    predictor.save(path)
    first = m3score.load_predictor(path)
    assert m3score.load_predictor(str(path)) is first
    small_predictor(model="another").save(path)
    assert m3score.load_predictor(path).model == "another"


@pytest.mark.parametrize("name", ["m3-huge", "none.predictor", "a\0b"])
def test_unknown_predictor(name: str) -> None:
    with pytest.raises(M3ScoreError, match=r"There is no predictor .* Bundled: m3-tiny"):
        m3score.load_predictor(name)


@dataclass
class Loaded:
    """What a loaded model shows of itself."""

    name: str = "m3-tiny"
    ladder: tuple[int, ...] = LADDER


def test_own_model_is_routed_silently(predictor: Predictor, pictures: list[Path]) -> None:
    own = small_predictor(fingerprint=fingerprint("m3-tiny"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model in ("m3-tiny", Loaded()):
            m3score.predict_scale(pictures[0], predictor=own, model=model)


@pytest.mark.parametrize("model", ["m3-tiny", Loaded(), Loaded("/gone/away")])
def test_other_weights_warn_once(predictor: Predictor, pictures: list[Path], model: Any) -> None:
    name = model if isinstance(model, str) else model.name
    with pytest.warns(UserWarning, match=f"does not hold for {name}, whose weights are others") as caught:
        for _ in range(3):
            m3score.predict_scale(pictures[:2], predictor=predictor, model=model)
    assert len(caught) == 1


def test_other_ladder_is_an_error(predictor: Predictor, pictures: list[Path], tmp_path: Path) -> None:
    with pytest.raises(M3ScoreError, match=r"m3-tiny has the ladder \(1, 4, 16\): calibrate one"):
        m3score.predict_scale(pictures[0], predictor=predictor, model=Loaded(ladder=(1, 4, 16)))
    (tmp_path / "config.json").write_text('{"m3score": {"ladder": [16, 4, 1]}}')
    with pytest.raises(M3ScoreError, match=r"has the ladder \(1, 4, 16\)"):
        registry.check_model(predictor, tmp_path)
    with pytest.raises(M3ScoreError, match="There is no model"):
        registry.check_model(predictor, "m3-huge")


# ---- fingerprints ---------------------------------------------------------------------------------------


def weights(folder: Path, **files: bytes) -> Path:
    """A folder with weight files."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.safetensors").write_bytes(content)
    return folder


def test_fingerprint_follows_the_weights_and_nothing_else(tmp_path: Path) -> None:
    small, large = bytes(1000), np.random.default_rng(0).bytes(8 << 20)
    folder = weights(tmp_path / "a", one=small, two=large)
    original = fingerprint(folder)
    assert len(original) == 64 and original == fingerprint(str(folder))
    assert original == fingerprint(weights(tmp_path / "b", one=small, two=large))
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"older")
    assert fingerprint(folder) == original
    changed = bytearray(large)
    changed[0] ^= 1
    for files in (
        {"one": b"\1" + small[1:]},
        {"one": small + b"\0"},
        {"two": bytes(changed)},
        {"two": large[:-1] + bytes([large[-1] ^ 1])},
        {"two": large[: 4 << 20]},
        {"three": b""},
    ):
        copy = weights(tmp_path / "c", one=small, two=large)
        assert fingerprint(weights(copy, **files)) != original
        for path in copy.iterdir():
            path.unlink()


def test_fingerprint_without_weights(tmp_path: Path) -> None:
    with pytest.raises(M3ScoreError, match="holds no weights"):
        fingerprint(tmp_path)
    (tmp_path / "pytorch_model-1-of-1.bin").write_bytes(b"x")
    assert len(fingerprint(tmp_path)) == 64
    with pytest.raises(M3ScoreError, match="There is no model"):
        fingerprint("m3-huge")


def test_a_budget_of_tokens_is_kept_and_spent_where_it_helps(predictor: Predictor) -> None:
    spent = []
    for budget in (1, 9, 30, 100, 300, 576):
        scales = predictor.route_within(budget, made_up(600, seed=2).images)  # those of its calibration
        assert scales.mean() <= budget and set(scales) <= set(predictor.ladder)
        spent.append(scales.mean())
    assert spent == sorted(spent) and spent[0] == 1


@pytest.mark.parametrize("budget", [0, 0.5, 577])
def test_a_budget_outside_the_ladder_is_refused(
    predictor: Predictor, pictures: list[Path], budget: float
) -> None:
    with pytest.raises(M3ScoreError, match="mean_tokens must lie between 1 and 576"):
        m3score.predict_scale(pictures[0], mean_tokens=budget, predictor=predictor)


def test_a_budget_promises_nothing(predictor: Predictor, pictures: list[Path]) -> None:
    (result,) = predict_many([pictures[0]], mean_tokens=9, max_drop=0.02, predictor=predictor)
    assert result.certified is False and result.tokens in predictor.ladder
