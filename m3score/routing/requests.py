"""What to send to a model, so that each picture gets the visual tokens that it is predicted to need."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, overload

from PIL import Image

from m3score.common.errors import M3ScoreError
from m3score.images.decode import open_image
from m3score.images.given import ImageSource
from m3score.routing.predict import Prediction, predict_many
from m3score.routing.predictor import Predictor
from m3score.routing.registry import load_predictor
from m3score.routing.target import TokenRequest


@overload
def request_for(
    img: ImageSource,
    question: str | None = None,
    *,
    predictor: str | os.PathLike[str] | Predictor,
    max_drop: float | None = 0.02,
    confidence: float = 0.95,
    per: str = "image",
    mean_tokens: float | None = None,
    workers: int | None = None,
) -> TokenRequest: ...


@overload
def request_for(
    img: list[Any] | tuple[Any, ...],
    question: str | Sequence[str | None] | None = None,
    *,
    predictor: str | os.PathLike[str] | Predictor,
    max_drop: float | None = 0.02,
    confidence: float = 0.95,
    per: str = "image",
    mean_tokens: float | None = None,
    workers: int | None = None,
) -> list[TokenRequest]: ...


def request_for(
    img: Any,
    question: Any = None,
    *,
    predictor: str | os.PathLike[str] | Predictor,
    max_drop: float | None = 0.02,
    confidence: float = 0.95,
    per: str = "image",
    mean_tokens: float | None = None,
    workers: int | None = None,
) -> TokenRequest | list[TokenRequest]:
    """What to send with a picture to the model that a predictor was calibrated on: a list in, a list out.

    The budget is that of predict_scale, whose arguments and errors these are. What `fields` of the result
    holds follows from how the model was asked when the predictor was calibrated:

        request = m3score.request_for("photo.jpg", "Who signed it?", predictor="my.predictor")
        processor(images=..., text=..., **request.fields)          # a model in transformers
        client.chat.completions.create(..., **request.fields)      # behind a server that takes a knob
        picture = request.image or Image.open("photo.jpg")         # behind one that takes none

    Returns:
        A TokenRequest; its `image` is the resized picture where that is what to send, otherwise None.
    """
    many = isinstance(img, list | tuple)
    chosen = predictor if isinstance(predictor, Predictor) else load_predictor(predictor)
    images = list(img) if many else [img]
    stream = predict_many(
        images,
        question if many else [question],
        max_drop=max_drop,
        confidence=confidence,
        per=per,
        mean_tokens=mean_tokens,
        predictor=chosen,
        workers=workers if many else 1,
        complexity=False,
    )
    made = [_with_picture(asked(chosen, one), image) for one, image in zip(stream, images, strict=True)]
    return made if many else made[0]


def asked(predictor: Predictor, prediction: Prediction) -> TokenRequest:
    """What to send for one prediction. M3ScoreError for a picture that can't be read or be asked about so."""
    if prediction.tokens is None:
        raise M3ScoreError(str(prediction.error), subject=prediction.path)
    if prediction.size is None:
        raise M3ScoreError("a video's frames are looked at one by one: ask for each", subject=prediction.path)
    return predictor.request(prediction.tokens, prediction.size)


def _with_picture(request: TokenRequest, image: ImageSource) -> TokenRequest:
    size = request.fields.get("resize")
    if size is None:
        return request
    picture = open_image(image)
    if list(picture.size) != size:
        picture = picture.resize(tuple(size), Image.Resampling.BICUBIC)
    return replace(request, image=picture)
