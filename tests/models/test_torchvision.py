"""A torchvision that was built for another torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LACKING = """
import torch


@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, iou_threshold):
    raise NotImplementedError
"""


def imported(folder: Path, *, mended: bool) -> str:
    """What a process says that imports the torchvision in a folder."""
    mend = "from m3score.models.torchvision import mend_torchvision; mend_torchvision(); " if mended else ""
    path = os.pathsep.join((str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")))
    done = subprocess.run(
        [sys.executable, "-c", mend + "import torchvision; print(torchvision.__file__)"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    return done.stdout + done.stderr


def test_one_without_its_operators_is_mended(tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(LACKING)
    assert "torchvision::nms" in imported(tmp_path, mended=False)
    said = imported(tmp_path, mended=True)
    assert said.strip() == str(tmp_path / "torchvision" / "__init__.py")


def test_one_that_is_broken_otherwise_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('something else')")
    assert "something else" in imported(tmp_path, mended=True)
