"""A torchvision without its compiled part is enough for processors of images.

Beside a CPU build of PyTorch the package index's torchvision cannot load its compiled operators, and then not
be imported at all: it registers what the operators `nms` and `qnms` return, and they are not there.
"""

from __future__ import annotations

import importlib
import sys

_kept: list[object] = []


def mend_torchvision() -> None:
    """Make torchvision importable, if it is there and only its operators are not."""
    try:
        importlib.import_module("torchvision")
        return
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)  # else the definitions go with it
    importlib.import_module("torchvision")
