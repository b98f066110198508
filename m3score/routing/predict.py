"""Predict the scale of images without running a model: the public calls.

Imports neither torch nor scikit-learn. Pictures become features in workers (features.map_images), features
become ln(tokens) in arrays (ensemble.py), and a certified margin makes a scale of these (predictor.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, overload

import numpy as np

from m3score.common.errors import M3ScoreError
from m3score.common.limits import Limits
from m3score.data.item import ImageItem
from m3score.images.given import ImageSource
from m3score.images.parallel import map_images
from m3score.routing.decision import Wish
from m3score.routing.feature_jobs import Asked, extract_features, failed_features, feature_job, with_questions
from m3score.routing.features.question import question_features
from m3score.routing.predictor import Predictor
from m3score.routing.promises.certify import PROMISES, check_levels
from m3score.routing.registry import check_model, load_predictor, warn_once
from m3score.scoring.rules import check_choice

_NO_VISION = (
    "This predictor does not know the vision score: without a question its complexity is of the tokens that "
    "answers need. `m3score calibrate` fits the other for a model with a vision tower."
)


@dataclass(frozen=True)
class Prediction:
    """What is foreseen for one image, or why nothing is."""

    path: str | None
    """As given, printable; None for an image that came as bytes, as an array or as an image."""
    tokens: int | None
    """Visual tokens per grid to use: a scale of the ladder."""
    complexity: float | None
    """In [0, 1]: the predicted ln(tokens) / ln(finest), without any safety margin: of the tokens that an
    answer needs; where nothing is asked, of the effective tokens of the scorer `vision`."""
    certified: bool | None
    """Whether `tokens` keeps a promise that the calibration certified; never for frames seen one by one."""
    error: str | None
    spread: float | None = None
    """How unsure the predictor is, in ln(tokens): Predictor.spread. Only where it was asked for."""
    promise: str | None = None
    """What the certified share is of: "image", one question about each, or "question"; None without."""
    reason: str | None = None
    """Why it is not certified; None where it is."""
    transient: bool = field(default=False, repr=False)
    """Whether the error may be gone when the same is tried again."""
    size: tuple[int, int] | None = field(default=None, repr=False)
    """(width, height) of the picture in pixels; None for frames of a video that are looked at one by one."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields of the prediction itself."""
        fields = asdict(self)
        del fields["transient"], fields["size"]
        return fields


# ---- one image or a list --------------------------------------------------------------------------------


@overload
def predict_scale(
    img: ImageSource,
    question: str | None = None,
    *,
    max_drop: float | None = 0.02,
    confidence: float = 0.95,
    per: str = "image",
    mean_tokens: float | None = None,
    predictor: str | os.PathLike[str] | Predictor = "m3-tiny",
    model: Any = None,
    workers: int | None = None,
    frames: int | None = None,
) -> int: ...


@overload
def predict_scale(
    img: list[Any] | tuple[Any, ...],
    question: str | Sequence[str | None] | None = None,
    *,
    max_drop: float | None = 0.02,
    confidence: float = 0.95,
    per: str = "image",
    mean_tokens: float | None = None,
    predictor: str | os.PathLike[str] | Predictor = "m3-tiny",
    model: Any = None,
    workers: int | None = None,
    frames: int | None = None,
) -> list[int]: ...


def predict_scale(
    img: Any,
    question: Any = None,
    *,
    max_drop: float | None = 0.02,
    confidence: float = 0.95,
    per: str = "image",
    mean_tokens: float | None = None,
    predictor: str | os.PathLike[str] | Predictor = "m3-tiny",
    model: Any = None,
    workers: int | None = None,
    frames: int | None = None,
) -> int | list[int]:
    """How many visual tokens per grid an image needs, predicted from its pixels; a list in, a list out.

    Args:
        img: a path, the bytes of an image file, a PIL image or a numpy array; or a list of them, which is
            worked on in parallel.
        question: what will be asked; for a list one text for all, or one (or None) per image. Without it the
            image alone decides, which costs tokens or accuracy: see the predictor's card.
        max_drop: the share that may be answered wrongly although the finest scale is right, in
            (0, 1); None promises nothing and takes predictions as they are.
        confidence: of that promise, in (0, 1); see Predictor.certificate. Where nothing can be certified the
            finest scale is the answer, and a warning says so once. It is the answer also for a picture
            unlike those of the calibration, for which no promise holds (see predict_many, which says so).
        per: what max_drop is a share of: "image", one question about each image; or "question", all of them.
        mean_tokens: instead of a promise, a budget: so many tokens per grid on the average of images like
            those of the calibration, spent where they help most. max_drop is then not looked at.
        predictor: a name in BUNDLED, a file, or a Predictor.
        model: the target model, if it should be checked; see load_predictor.
        workers: how many work on a list; by default features.map_images decides.
        frames: of a video that is to have a grid of tokens for each of so many frames: each is looked at, and
            the most demanding decides. By default six frames make one picture.

    Raises:
        M3ScoreError: an image that cannot be read (named), or an argument that cannot be used.
    """
    many = isinstance(img, list | tuple)
    stream = predict_many(
        img if many else [img],
        question if many else [question],
        max_drop=max_drop,
        confidence=confidence,
        per=per,
        mean_tokens=mean_tokens,
        predictor=predictor,
        model=model,
        workers=workers if many else 1,  # to start a thread takes longer than to do it
        frames=frames,
        complexity=False,
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
    frames: int | None = None,
) -> float: ...


@overload
def predict_complexity(
    img: list[Any] | tuple[Any, ...],
    question: str | Sequence[str | None] | None = None,
    *,
    predictor: str | os.PathLike[str] | Predictor = "m3-tiny",
    workers: int | None = None,
    frames: int | None = None,
) -> list[float]: ...


def predict_complexity(
    img: Any,
    question: Any = None,
    *,
    predictor: str | os.PathLike[str] | Predictor = "m3-tiny",
    workers: int | None = None,
    frames: int | None = None,
) -> float | list[float]:
    """Complexity in [0, 1] of an image, predicted: ln(tokens) / ln(finest). A list in, a list out.

    With a question it predicts the tokens that the answer needs. Without one it predicts what `m3score rank`
    finds without one, the score of the scorer `vision`; a predictor without a regressor of that score (an
    older file, or of a model without a vision tower) predicts from the image alone the tokens that answers
    need, and a warning says so once. Arguments and errors are those of predict_scale; there is no safety
    margin in it.
    """
    many = isinstance(img, list | tuple)
    stream = predict_many(
        img if many else [img],
        question if many else [question],
        max_drop=None,
        predictor=predictor,
        workers=workers if many else 1,
        frames=frames,
    )
    values = [_or_raise(result).complexity or 0.0 for result in stream]
    return values if many else values[0]


def _or_raise(result: Prediction) -> Prediction:
    if result.error is not None:
        raise M3ScoreError(result.error if result.path is None else f"{result.path}: {result.error}")
    return result


# ---- many -----------------------------------------------------------------------------------------------


def predict_many(
    images: Iterable[ImageSource | ImageItem],
    questions: str | Iterable[str | None] | None = None,
    *,
    max_drop: float | None = 0.02,
    confidence: float = 0.95,
    per: str = "image",
    mean_tokens: float | None = None,
    predictor: str | os.PathLike[str] | Predictor = "m3-tiny",
    model: Any = None,
    workers: int | None = None,
    limits: Limits | None = None,
    spread: bool = False,
    frames: int | None = None,
    complexity: bool = True,
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
        complexity: tell it; without, the vision score is not predicted, which saves a little time.

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
    check_choice("promise", per, PROMISES)
    wish = Wish(
        None if mean_tokens is not None else max_drop, confidence, per, mean_tokens, complexity, spread
    )
    if wish.max_drop is not None:
        check_levels(wish.max_drop, confidence)
    for option, values in (("images", images), ("questions", questions)):
        if isinstance(values, bytes | os.PathLike) or (option == "images" and isinstance(values, str)):
            raise M3ScoreError(f"{option} must be a list, even of one.")
    if isinstance(images, Sequence) and isinstance(questions, list | tuple) and len(images) != len(questions):
        raise M3ScoreError(f"{len(images)} images need as many questions, not {len(questions)}.")
    looked_at = frames_to_look_at(chosen, frames)
    return _predict_many(chosen, images, questions, wish, workers, limits, looked_at)


def frames_to_look_at(predictor: Predictor, frames: int | None) -> int | None:
    """How many frames of a video are looked at one by one; None for six as one picture.

    A predictor that was calibrated on videos with a grid of tokens per frame saw six frames as one picture
    then, and does so now.

    Raises:
        M3ScoreError: its videos had another number of frames.
    """
    if frames is not None and frames < 1:
        raise M3ScoreError(f"frames must be at least 1, not {frames}.")
    own = predictor.data.get("frames")
    if own is not None and own != frames:
        raise M3ScoreError(f"this predictor is of videos with --frames {own}: give it that many frames.")
    return frames if own is None else None


def _predict_many(
    predictor: Predictor,
    images: Iterable[ImageSource | ImageItem],
    questions: str | Iterable[str | None] | None,
    wish: Wish,
    workers: int | None,
    limits: Limits | None,
    frames: int | None,
) -> Iterator[Prediction]:
    pairs = with_questions(images, questions)
    items = (feature_job(image, asked, limits or Limits(), frames) for image, asked in pairs)
    for path, asked, found, size in map_images(
        extract_features, items, workers, limits=limits, instead=failed_features
    ):
        if isinstance(found, tuple):
            reason, transient = found
            yield Prediction(path, None, None, None, reason, transient=transient)
            continue
        try:
            yield replace(_prediction(predictor, path, found, asked, wish), size=size)
        except M3ScoreError as error:
            yield Prediction(path, None, None, None, str(error))


def _prediction(
    predictor: Predictor, path: str | None, found: np.ndarray, asked: Asked, wish: Wish
) -> Prediction:
    """One image from its features: a row per frame, each with all that is asked.

    The most demanding frame and question decides about tokens; complexity and spread are means.
    """
    texts = [text for text in asked if text is not None]
    rows = np.repeat(found, max(1, len(texts)), axis=0)
    questions = (
        np.tile(np.stack([question_features(text) for text in texts]), (len(found), 1)) if texts else None
    )
    decision = predictor.decide(rows, questions, wish)
    if wish.complexity and questions is None and predictor.vision is None:
        warn_once(_NO_VISION, "vision", predictor.fingerprint)
    if decision.certificate is not None and not decision.certificate.certified:
        note = decision.certificate.note
        warn_once(note, "certificate", note, predictor.fingerprint)
    certified = len(found) == 1 and bool(decision.certified.all())
    reason = next((text for text in decision.reasons if text is not None), None)
    if reason is None and not certified:
        reason = "frames are looked at one by one, and the promise is of whole pictures"
    return Prediction(
        path=path,
        tokens=int(decision.tokens.max()),
        complexity=None if decision.complexity is None else float(decision.complexity.mean()),
        certified=certified,
        error=None,
        spread=None if decision.spread is None else float(decision.spread.mean()),
        promise=wish.per if certified else None,
        reason=reason,
    )
