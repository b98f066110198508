"""A torchvision that does not fit the installed torch, made good enough for processors of images.

transformers imports torchvision wherever it is installed, for models that need none of it too. One that was
built for another torch (PyPI's beside a CPU build, say) cannot load its compiled operators and then not be
imported: it registers what the operators `nms` and `qnms` return, and they are not there. What processors
use of it (sizes, interpolation) is plain torch.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec

_kept: list[object] = []


@cache
def mend_torchvision() -> None:
    """Make torchvision importable, if it is there and only its operators are not. Call it before transformers
    is asked for a model."""
    if find_spec("torchvision") is None:
        return
    try:
        import_module("torchvision")
        return
    except (RuntimeError, ImportError, OSError) as error:
        if "nms" not in str(error):
            return  # broken otherwise: transformers says how
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)  # else the definitions go with it
    import_module("torchvision")
