"""Predict the scale of images without running a model: the public calls.

Imports neither torch nor scikit-learn. Pictures become features in workers (features.map_images), features
become ln(tokens) in arrays (ensemble.py), and a certified margin makes a scale of these (predictor.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias, overload

import numpy as np

from m3score.certify import check_levels
from m3score.errors import M3ScoreError, one_line
from m3score.features import image_features, map_images, question_features
from m3score.found import FoundImage
from m3score.images import ImageSource, printable
from m3score.limits import Limits
from m3score.predictor import Predictor
from m3score.predictors import check_model, load_predictor, warn_once


@dataclass(frozen=True)
class Prediction:
    """What is foreseen for one image, or why nothing is."""

    path: str | None
    """As given, printable; None for an image that came as bytes, as an array or as an image."""
    tokens: int | None
    """Visual tokens per grid to use: a scale of the ladder."""
    complexity: float | None
    """In [0, 1]: the predicted ln(tokens) / ln(finest), without any safety margin."""
    certified: bool | None
    """Whether `tokens` keeps a promise that the calibration certified."""
    error: str | None
    spread: float | None = None
    """How unsure the predictor is, in ln(tokens): Predictor.spread. Only where it was asked for."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return asdict(self)


# ---- one image or a list --------------------------------------------------------------------------------


@overload
def predict_scale(
    img: ImageSource,
    question: str | None = None,
    *,
    max_drop: float | None = 0.02,
    confidence: float = 0.95,
    mean_tokens: float | None = None,
    predictor: str | os.PathLike[str] | Predictor = "m3-tiny",
    model: Any = None,
    workers: int | None = None,
) -> int: ...


@overload
def predict_scale(
    img: list[Any] | tuple[Any, ...],
    question: str | Sequence[str | None] | None = None,
    *,
    max_drop: float | None = 0.02,
    confidence: float = 0.95,
    mean_tokens: float | None = None,
    predictor: str | os.PathLike[str] | Predictor = "m3-tiny",
    model: Any = None,
    workers: int | None = None,
) -> list[int]: ...


def predict_scale(
    img: Any,
    question: Any = None,
    *,
    max_drop: float | None = 0.02,
    confidence: float = 0.95,
    mean_tokens: float | None = None,
    predictor: str | os.PathLike[str] | Predictor = "m3-tiny",
    model: Any = None,
    workers: int | None = None,
) -> int | list[int]:
    """How many visual tokens per grid an image needs, foretold from its pixels; a list in, a list out.

    Args:
        img: a path, the bytes of an image file, a PIL image or a numpy array; or a list of them, which is
            worked on in parallel.
        question: what will be asked; for a list one text for all, or one (or None) per image. Without it the
            image alone decides, which costs tokens or accuracy: see the predictor's card.
        max_drop: the share of questions that may be answered wrongly although the finest scale is right, in
            (0, 1); None promises nothing and takes predictions as they are.
        confidence: of that promise, in (0, 1); see Predictor.certificate. Where nothing can be certified the
            finest scale is the answer, and a warning says so once.
        mean_tokens: instead of a promise, a budget: so many tokens per grid on the average of images like
            those of the calibration, spent where they help most. max_drop is then not looked at.
        predictor: a name in BUNDLED, a file, or a Predictor.
        model: whom it is to route, if it should be checked; see load_predictor.
        workers: how many work on a list; by default features.map_images decides.

    Raises:
        M3ScoreError: an image that cannot be read (named), or an argument that cannot be used.
    """
    many = isinstance(img, list | tuple)
    stream = predict_many(
        img if many else [img],
        question if many else [question],
        max_drop=max_drop,
        confidence=confidence,
        mean_tokens=mean_tokens,
        predictor=predictor,
        model=model,
        workers=workers if many else 1,  # to start a thread takes longer than to do it
    )
    scales = [_or_raise(result).tokens or 0 for result in stream]
    return scales if many else scales[0]


@overload
def predict_complexity(
    img: ImageSource,
    question: str | None = None,
    *,
    predictor: str | os.PathLike[str] | Predictor = "m3-tiny",
    workers: int | None = None,
) -> float: ...


@overload
def predict_complexity(
    img: list[Any] | tuple[Any, ...],
    question: str | Sequence[str | None] | None = None,
    *,
    predictor: str | os.PathLike[str] | Predictor = "m3-tiny",
    workers: int | None = None,
) -> list[float]: ...


def predict_complexity(
    img: Any,
    question: Any = None,
    *,
    predictor: str | os.PathLike[str] | Predictor = "m3-tiny",
    workers: int | None = None,
) -> float | list[float]:
    """Complexity in [0, 1] of an image, foretold: ln(tokens) / ln(finest). A list in, a list out.

    Arguments and errors are those of predict_scale; there is no safety margin in it.
    """
    many = isinstance(img, list | tuple)
    stream = predict_many(
        img if many else [img],
        question if many else [question],
        max_drop=None,
        predictor=predictor,
        workers=workers if many else 1,
    )
    values = [_or_raise(result).complexity or 0.0 for result in stream]
    return values if many else values[0]


def _or_raise(result: Prediction) -> Prediction:
    if result.error is not None:
        raise M3ScoreError(result.error if result.path is None else f"{result.path}: {result.error}")
    return result


# ---- many -----------------------------------------------------------------------------------------------


def predict_many(
    images: Iterable[ImageSource | FoundImage],
    questions: str | Iterable[str | None] | None = None,
    *,
    max_drop: float | None = 0.02,
    confidence: float = 0.95,
    mean_tokens: float | None = None,
    predictor: str | os.PathLike[str] | Predictor = "m3-tiny",
    model: Any = None,
    workers: int | None = None,
    limits: Limits | None = None,
    spread: bool = False,
) -> Iterator[Prediction]:
    """Predict for many images, lazily and in order; an image that cannot be read is a result with its error.

    Args:
        images: any number of images, or what find_images yields. What a source itself asks about an image
            goes before one text for all; of several questions the most demanding one decides about tokens,
            and complexity is their mean.
        questions: None, one text for all, or one (or None) per image.
        limits: for images that nobody has vouched for: what one of them may cost. They are all decoded in
            worker processes then, also the first ones, and one that kills its process is an error of its own.
        spread: tell how unsure the predictor is, too.

    The other arguments are those of predict_scale. Arguments that cannot be used are M3ScoreErrors at once,
    and too few or too many questions when it shows.
    """
    chosen = predictor if isinstance(predictor, Predictor) else load_predictor(predictor)
    if model is not None:
        check_model(chosen, model)
    if chosen.feature_set != "pixels":
        raise M3ScoreError(
            f"this predictor needs {chosen.feature_set} features, which a picture alone does not give: take "
            "them from M3Model.vision_features and use Predictor.predict and Predictor.route."
        )
    routing = _Routing(None if mean_tokens is not None else max_drop, confidence, mean_tokens)
    if routing.max_drop is not None:
        check_levels(routing.max_drop, confidence)
    for option, values in (("images", images), ("questions", questions)):
        if isinstance(values, bytes | os.PathLike) or (option == "images" and isinstance(values, str)):
            raise M3ScoreError(f"{option} must be a list, even of one.")
    if isinstance(images, Sequence) and isinstance(questions, list | tuple) and len(images) != len(questions):
        raise M3ScoreError(f"{len(images)} images need as many questions, not {len(questions)}.")
    return _predict_many(chosen, images, questions, routing, workers, limits, spread)


def _predict_many(
    predictor: Predictor,
    images: Iterable[ImageSource | FoundImage],
    questions: str | Iterable[str | None] | None,
    routing: _Routing,
    workers: int | None,
    limits: Limits | None,
    spread: bool,
) -> Iterator[Prediction]:
    items = (_item(image, asked, limits or Limits()) for image, asked in _pairs(images, questions))
    for path, asked, found in map_images(_look, items, workers, limits=limits, instead=_lost):
        if isinstance(found, str):
            yield Prediction(path, None, None, None, found)
            continue
        try:
            several = [_predicted(predictor, found, one, routing) for one in asked]
            unsure = [_spread(predictor, found, one) for one in asked] if spread else []
        except M3ScoreError as error:
            yield Prediction(path, None, None, None, str(error))
            continue
        yield Prediction(
            path=path,
            tokens=max(tokens for tokens, _, _ in several),
            complexity=sum(complexity for _, complexity, _ in several) / len(several),
            certified=all(certified for _, _, certified in several),
            error=None,
            spread=sum(unsure) / len(unsure) if unsure else None,
        )


@dataclass(frozen=True)
class _Routing:
    """How predictions become scales; see Predictor.route."""

    max_drop: float | None
    confidence: float
    mean_tokens: float | None


def _predicted(
    predictor: Predictor, found: np.ndarray, question: str | None, routing: _Routing
) -> tuple[int, float, bool]:
    """(tokens, complexity, certified) of one question about an image, or of the image alone."""
    asked = question is not None
    predicted = predictor.predict(found, question_features(question) if asked else None)
    scales = predictor.route(predicted, **asdict(routing), with_question=asked)
    certified = _certified(predictor, routing, asked)
    return int(scales[0]), float(predictor.complexity(predicted)[0]), certified


def _spread(predictor: Predictor, found: np.ndarray, question: str | None) -> float:
    return float(predictor.spread(found, None if question is None else question_features(question))[0])


def _certified(predictor: Predictor, routing: _Routing, asked: bool) -> bool:
    """Whether a promise is kept; says once, aloud, that there is none to keep."""
    if routing.max_drop is None:
        return False
    certificate = predictor.certificate(routing.max_drop, routing.confidence, with_question=asked)
    if not certificate.certified:
        warn_once(certificate.note, "certificate", certificate.note, predictor.fingerprint)
    return certificate.certified


_Asked: TypeAlias = "tuple[str | None, ...]"
_Item: TypeAlias = "tuple[str | None, Any, _Asked, str | None, int, int]"
"""What goes to a worker: path, what is to be decoded, questions, error, the limits of pixels and bytes."""
_Looked: TypeAlias = "tuple[str | None, _Asked, np.ndarray | str]"
"""What comes back: path, questions, image features or what is wrong."""
_END = object()


def _pairs(
    images: Iterable[Any], questions: str | Iterable[str | None] | None
) -> Iterator[tuple[Any, _Asked]]:
    if questions is None or isinstance(questions, str):
        text = _text(questions)
        yield from ((image, _own(image) or (text,)) for image in images)
        return
    asked = iter(questions)
    for image in images:
        question = next(asked, _END)
        if question is _END:
            raise M3ScoreError("there are more images than questions.")
        yield image, (_text(question),)
    if next(asked, _END) is not _END:
        raise M3ScoreError("there are more questions than images.")


def _own(image: Any) -> _Asked:
    """What an image's source asks about it."""
    return tuple(one.question for one in image.questions) if isinstance(image, FoundImage) else ()


def _text(question: Any) -> str | None:
    """A question, or None for an empty one."""
    if question is not None and not isinstance(question, str):
        raise M3ScoreError(f"a question must be text, not {type(question).__name__}.")
    return question if question and question.strip() else None


def _item(image: Any, asked: _Asked, limits: Limits) -> _Item:
    sizes = limits.max_pixels, limits.max_bytes
    if isinstance(image, FoundImage):
        return image.shown, None if image.error else image.source, asked, image.error, *sizes
    path = printable(image) if isinstance(image, str | os.PathLike) else None
    return path, image, asked, None, *sizes


def _look(item: _Item) -> _Looked:
    """In a worker."""
    path, source, asked, error, max_pixels, max_bytes = item
    if error is not None:
        return path, asked, error
    name = printable(source) if isinstance(source, str | os.PathLike) else "the image"
    try:
        return path, asked, image_features(source, max_pixels=max_pixels, max_bytes=max_bytes)
    except M3ScoreError as problem:
        return path, asked, str(problem) if path is None else str(problem).removeprefix(f"{name}: ")
    except Exception as problem:  # not foreseen, but no reason to lose the other images
        detail = one_line(problem)
        return path, asked, f"can't be used ({type(problem).__name__}: {detail})"


def _lost(item: _Item, error: M3ScoreError) -> _Looked:
    """An image that its process did not survive."""
    return item[0], item[2], str(error)
