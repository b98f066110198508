"""How complex is an image? The fewest visual tokens with which a Matryoshka multimodal model still answers.

import m3score

model = m3score.load_model("m3-tiny")
m3score.score("photo.jpg", model=model).required_tokens
m3score.rank("photos/", model=model)          # a pandas.DataFrame, most complex first
m3score.predict_scale("photo.jpg")            # foretold from the pixels, without running the model

Names are imported on first use, so that importing m3score costs next to nothing and no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from m3score.dataset_columns import map_batch, map_features
    from m3score.errors import M3ScoreError
    from m3score.model import load_model
    from m3score.oracle import score
    from m3score.predict import predict_complexity, predict_scale
    from m3score.predictor import Predictor
    from m3score.predictors import load_predictor
    from m3score.ranking import rank
    from m3score.selection import select

    __version__: str

__all__ = [
    "M3ScoreError",
    "Predictor",
    "__version__",
    "load_model",
    "load_predictor",
    "map_batch",
    "map_features",
    "predict_complexity",
    "predict_scale",
    "rank",
    "score",
    "select",
]

_WHERE = {
    "M3ScoreError": "m3score.errors",
    "Predictor": "m3score.predictor",
    "load_model": "m3score.model",
    "load_predictor": "m3score.predictors",
    "map_batch": "m3score.dataset_columns",
    "map_features": "m3score.dataset_columns",
    "predict_complexity": "m3score.predict",
    "predict_scale": "m3score.predict",
    "rank": "m3score.ranking",
    "score": "m3score.oracle",
    "select": "m3score.selection",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = _version()
    elif name in _WHERE:
        value = getattr(import_module(_WHERE[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("m3score")
    except PackageNotFoundError:  # a checkout that was not installed
        return "0+unknown"
