"""What several test modules share."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.fakes import NOISE, PLAIN


def pytest_configure() -> None:
    """Test processes side by side get a thread each: with more they wait for one another."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    from m3score.models.torchvision import mend_torchvision  # after that: it imports torch

    mend_torchvision()


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a plain picture, a noisy one, one of both and one that is none; its parent is the working
    folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    folder = tmp_path / "in"
    folder.mkdir()
    half = np.array(PLAIN)
    half[:, 160:] = np.array(NOISE)[:, 160:]
    for name, image in {"plain": PLAIN, "half": Image.fromarray(half), "noise": NOISE}.items():
        image.save(folder / f"{name}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="session")
def stock_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of tiny random checkpoints, made once per session, by family; see stock_checkpoints."""
    from tests.support.stock_checkpoints import make_checkpoint

    return cache(lambda family: make_checkpoint(family, tmp_path_factory.mktemp("stock") / family))
