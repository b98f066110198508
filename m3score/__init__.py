"""How complex is an image? The fewest visual tokens with which a Matryoshka multimodal model still answers.

import m3score

model = m3score.load_model("m3-tiny")
m3score.score("photo.jpg", model=model).required_tokens
m3score.rank("photos/", model=model)          # a pandas.DataFrame, most complex first
m3score.predict_scale("photo.jpg")            # predicted from the pixels, without running the model

Names are imported on first use, so that importing m3score costs next to nothing and no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from m3score._version import __version__
    from m3score.analysis.select import select
    from m3score.common.errors import M3ScoreError
    from m3score.models.endpoint.loading import load_endpoint
    from m3score.models.loading import load_model
    from m3score.routing.hf_map import map_batch, map_features
    from m3score.routing.predict import predict_complexity, predict_scale
    from m3score.routing.predictor import Predictor
    from m3score.routing.registry import load_predictor
    from m3score.routing.requests import request_for
    from m3score.runs.ranking import rank, rank_iter
    from m3score.scoring.oracle import score

__all__ = [
    "M3ScoreError",
    "Predictor",
    "__version__",
    "load_endpoint",
    "load_model",
    "load_predictor",
    "map_batch",
    "map_features",
    "predict_complexity",
    "predict_scale",
    "rank",
    "rank_iter",
    "request_for",
    "score",
    "select",
]

_WHERE = {
    "__version__": "m3score._version",
    "M3ScoreError": "m3score.common.errors",
    "Predictor": "m3score.routing.predictor",
    "load_endpoint": "m3score.models.endpoint.loading",
    "load_model": "m3score.models.loading",
    "load_predictor": "m3score.routing.registry",
    "map_batch": "m3score.routing.hf_map",
    "map_features": "m3score.routing.hf_map",
    "predict_complexity": "m3score.routing.predict",
    "predict_scale": "m3score.routing.predict",
    "rank": "m3score.runs.ranking",
    "rank_iter": "m3score.runs.ranking",
    "request_for": "m3score.routing.requests",
    "score": "m3score.scoring.oracle",
    "select": "m3score.analysis.select",
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(import_module(_WHERE[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
