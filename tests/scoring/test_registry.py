"""Scorers by name: those of installed packages too, and what becomes of options."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import m3score
from m3score.common.errors import M3ScoreError
from m3score.scoring.base import BatchScorer, PictureScorer, Scorer, ScorerOptions
from m3score.scoring.registry import BUILT_IN, find_scorer, make_options, option_names
from tests.support.runs import ROOT
from tests.support.runs import invoke as run

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "brightness-scorer"
version = "1.0"

[project.entry-points."m3score.scorers"]
shine = "brightness_scorer:BrightnessScorer"
broken = "brightness_scorer:nothing"
empty = "brightness_scorer:Nothing"

[tool.setuptools]
py-modules = ["brightness_scorer"]
"""
MODULE = '''
"""Brightness as a complexity."""

from dataclasses import dataclass

from m3score.images.decode import open_image
from m3score.scoring.base import PictureScorer, ScorerOptions


@dataclass(frozen=True)
class Options(ScorerOptions):
    scale: float = 1.0
    dark: bool = False


class BrightnessScorer(PictureScorer):
    Options = Options
    columns = ("brightness",)

    def measure(self, source, *, max_pixels, max_bytes):
        image = open_image(source, max_pixels=max_pixels, max_bytes=max_bytes)
        share = image.convert("L").resize((1, 1)).getpixel((0, 0)) / 255 * self.options.scale
        share = 1 - share if self.options.dark else share
        return {"complexity": share, "brightness": share, "width": image.width, "height": image.height}


class Nothing:
    pass
'''


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip installed a package with a scorer; nothing is fetched for that."""
    home = tmp_path_factory.mktemp("package")
    (home / "source").mkdir()
    (home / "source" / "pyproject.toml").write_text(PROJECT)
    (home / "source" / "brightness_scorer.py").write_text(MODULE)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    more = ["--no-build-isolation", "--disable-pip-version-check", "--target", str(home / "site")]
    done = subprocess.run([*pip, *more, str(home / "source")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return home / "site"


def python(site: Path, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own that finds what pip installed."""
    path = os.pathsep.join(map(str, (site, ROOT)))
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
    )


def test_an_installed_package_brings_a_scorer(installed: Path, pictures: Path) -> None:
    command = ("-m", "m3score", "rank", pictures, "--scorer", "shine")
    done = python(installed, pictures.parent, *command, "--scorer-option", "dark=true", "--out", "dark.csv")
    assert done.returncode == 3, done.stderr
    table = pd.read_csv(pictures.parent / "dark.csv")
    assert [Path(path).stem for path in table["path"]] == ["plain", "half", "noise", "broken"]
    assert table["brightness"].equals(table["complexity"]) and "Pillow" in table["error"].iloc[3]
    assert "shine" in python(installed, pictures.parent, *command[:3], "--help").stdout

    code = (
        "import m3score, sys; table = m3score.rank('in', scorer='shine', scale=0.5, out='half.csv'); "
        "print(table.images, table.failed, next(iter(m3score.rank_iter('in', scorer='shine')))['path'])"
    )
    done = python(installed, pictures.parent, "-c", code)
    assert done.stdout.split() == ["4", "1", "in/broken.png"], done.stderr
    halved = pd.read_csv(pictures.parent / "half.csv").set_index("path")["complexity"]
    dark = table.assign(path=table["path"].map(lambda path: f"in/{Path(path).name}"))
    expected = (1 - dark.set_index("path")["complexity"]) / 2
    pd.testing.assert_series_equal(halved.sort_index(), expected.sort_index())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--scorer", "shine", "--scorer-option", "scale=much"), "scale=... needs a value of type float"),
        (
            ("--scorer", "shine", "--scorer-option", "size=3"),
            "has no --scorer-option size=...; it takes --scorer-option dark=..., --scorer-option scale=...",
        ),
        (("--scorer", "shine", "--scorer-option", "scale"), "give KEY=VALUE"),
        (("--scorer", "shin"), "Did you mean shine?"),
        (("--scorer", "broken"), "can't be imported (AttributeError"),
        (("--scorer", "empty"), "it lacks identity and stream"),
    ],
)
def test_what_goes_wrong_with_it_is_one_sentence(
    arguments: Sequence[str], told: str, installed: Path, pictures: Path
) -> None:
    done = python(installed, pictures.parent, "-m", "m3score", "rank", pictures, *arguments)
    assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr, done.stderr


# ---- options --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_scorers_keep_to_the_protocol(name: str) -> None:
    found = find_scorer(name)
    assert issubclass(found.Options, ScorerOptions) and isinstance(found.traced, bool)
    for part in ("identity", "stream"):
        assert callable(getattr(found, part))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--scorer", "jpeg", "--model", "m3-tiny"], "the scorer jpeg has no --model; it takes no options."),
        (
            ["--scorer", "alit", "--dtype", "float16"],
            "the scorer alit has no --dtype; it takes --alit-model,",
        ),
        (["--budget", "10%"], "--budget is for the scorers cascade."),
        (["--scorer", "predictor", "--no-answers", "--rule", "first"], "has no --answers and --rule"),
        (["--scorer", "predictor", "--question", "a", "--question", "b"], "takes one --question"),
        (["--scorer", "predictor", "--traces", "t.csv"], "no answers to write down"),
        (["--image-column", "picture"], "none of the inputs is a parquet file or a data set"),
        (["--scorer", "beauty"], "no scorer 'beauty'; there are vision, model,"),
    ],
)
def test_options_that_would_be_ignored_are_refused(arguments: list[str], told: str, pictures: Path) -> None:
    done = run("rank", pictures, *arguments)
    assert done.exit_code == 2 and told in " ".join(done.stderr.split()), done.stderr
    assert done.stdout == ""


def test_budget_and_promise_exclude_each_other(pictures: Path) -> None:
    done = run("predict", pictures, "--mean-tokens", 60, "--max-drop", 0.02)
    assert done.exit_code == 2 and "give one or the other" in " ".join(done.stderr.split())


def test_a_model_named_in_the_environment_is_for_those_that_have_one(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("M3SCORE_MODEL", "nowhere")
    assert run("rank", pictures, "--scorer", "jpeg").exit_code == 3
    assert run("rank", pictures).exit_code == 2


def test_options_from_python_are_called_as_in_python(pictures: Path) -> None:
    with pytest.raises(M3ScoreError, match="the scorer jpeg has no model; it takes no options"):
        m3score.rank(pictures, scorer="jpeg", model="m3-tiny")
    with pytest.raises(M3ScoreError, match="options go with a scorer's name"):
        m3score.rank(pictures, scorer=Half(HalfOptions()), share=0.5)


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("batch_size", "4", 4),
        ("batch_size", "auto", "auto"),
        ("frames", "3", 3),
        ("coarse_answers", "false", False),
        ("rule", "first", "first"),
        ("model", "m3-tiny", "m3-tiny"),
    ],
)
def test_texts_become_what_fields_hold(field: str, text: str, value: Any) -> None:
    assert field in option_names("model")
    assert getattr(make_options("model", {field: text}), field) == value


# ---- scorers that are made already ----------------------------------------------------------------------


@dataclass(frozen=True)
class HalfOptions(ScorerOptions):
    """Of Half."""

    share: float = 0.5


class Half(BatchScorer):
    """Says the same of every picture."""

    Options = HalfOptions
    columns = ("pixels",)
    BATCH = 2

    def identity(self) -> dict[str, Any]:
        return {"share": getattr(self.options, "share", None)}

    def score(self, images: Sequence[Any]) -> list[dict[str, Any]]:
        if len(images) > 1:
            raise RuntimeError("too many at once")
        return [{"complexity": 0.5, "pixels": one.width * one.height, "error": None} for one in images]


def test_a_scorer_that_is_made_already(pictures: Path) -> None:
    table = m3score.rank(pictures, scorer=Half(HalfOptions()))
    assert table["complexity"].tolist()[:3] == [0.5] * 3 and table["pixels"].tolist()[:3] == [64000.0] * 3
    assert isinstance(Half(HalfOptions()), Scorer)


def test_a_scorer_of_a_notebook_works_in_threads(pictures: Path) -> None:
    """Its class can't be had in another process."""

    class Width(PictureScorer):
        def measure(self, source: str | bytes, *, max_pixels: int, max_bytes: int) -> dict[str, Any]:
            from m3score.images.decode import open_image

            return {"complexity": open_image(source).width / 1000}

    table = m3score.rank(pictures, scorer=Width(ScorerOptions()))
    assert table["complexity"].dropna().tolist() == [0.32] * 3 and "Pillow" in table["error"].iloc[3]


def test_the_scorer_of_the_documentation_works(pictures: Path) -> None:
    text = (ROOT / "docs" / "scorers.md").read_text()
    code = text[text.index("```python") :].removeprefix("```python").partition("```")[0]
    made: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code, "scorers.md", "exec"), made)
    scorer = made["BrightnessScorer"](made["BrightnessOptions"](scale=0.5))
    table = m3score.rank(pictures / "plain.png", scorer=scorer)
    assert 0 < table["brightness"].iloc[0] < 0.5 and table["error"].isna().all()
