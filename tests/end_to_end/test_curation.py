"""The script of docs/curation.md and the recipes run, from images to a selection in another tool."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

import m3score
from m3score.routing import predict, registry
from m3score.tables.io import write_scores
from tests.support.predictors import small_predictor

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(str(path) for path in (ROOT / "examples").glob("*.png"))


def _blocks(page: str, word: str) -> list[str]:
    return [b for b in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL) if word in b]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In the checkout; data sets are cached elsewhere, and there is a default predictor."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    try:
        registry.load_predictor()
    except m3score.M3ScoreError:  # none is bundled yet
        made = small_predictor()
        monkeypatch.setattr(predict, "load_predictor", lambda *_, **__: made)
    yield
    datasets.enable_progress_bars()


def test_the_curation_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: dict[str, Any] = {}

    def keep(data: datasets.Dataset, name: str, **options: Any) -> None:  # all but the network is real
        data.save_to_disk(tmp_path / "pushed")
        pushed.update(options, name=name)

    monkeypatch.setattr(datasets.Dataset, "push_to_hub", keep)
    (script,) = _blocks("docs/curation.md", "push_to_hub")
    names: dict[str, Any] = {}
    exec(compile(script, "curation.md", "exec"), names)
    assert pushed["private"] is True and "/" in pushed["name"]
    assert len(names["photos"]) == len(names["readable"]) == len(EXAMPLES)
    data = datasets.load_from_disk(tmp_path / "pushed")
    assert data.features["predicted_tokens"] == datasets.Value("int32")
    assert data.features["prediction_error"] == datasets.Value("string")
    wanted = sum(tokens > 1 for tokens in names["photos"]["predicted_tokens"])
    assert len(data) == wanted and min([2, *data["predicted_tokens"]]) > 1
    complexity = list(data["predicted_complexity"])
    assert complexity == sorted(complexity, reverse=True)


def test_typed_columns_outlive_a_first_batch_of_broken_images() -> None:
    contents = [b"broken", b"", Path(EXAMPLES[0]).read_bytes()]
    images = datasets.Image(decode=False)
    rows = [{"path": None, "bytes": content} for content in contents]
    data = datasets.Dataset.from_dict({"image": rows}, features=datasets.Features({"image": images}))
    features = m3score.map_features(data.features)
    done = data.map(m3score.map_batch, batched=True, batch_size=1, features=features)
    assert done.features == features
    assert done["predicted_tokens"][:2] == [None, None] and done["predicted_tokens"][2] in (
        1,
        9,
        36,
        144,
        576,
    )
    assert [bool(error) for error in done["prediction_error"]] == [True, True, False]


@pytest.fixture
def scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A score table of the examples, in the working folder; one is unsolved, one more cannot be read."""
    rows = [
        {
            "path": path,
            "complexity": 1 - i / 20,
            "effective_tokens": 3.0,
            "required_tokens": 36 if i else None,
            "solved": i > 0,
            "agreement_1": 0.5,
            "agreement_36": 1.0,
        }
        for i, path in enumerate(EXAMPLES)
    ]
    write_scores([*rows, {"path": "broken.png", "error": "not an image"}], tmp_path / "scores.csv")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "scores.csv"


def test_the_recipe_for_pandas(scores: Path) -> None:
    (recipe,) = _blocks("docs/recipes.md", "melt")
    names: dict[str, Any] = {}
    exec(compile(recipe, "recipes.md", "exec"), names)
    assert names["hard"]["path"].tolist() == EXAMPLES[1:4]  # the unsolved one is not complex
    assert names["balanced"]["path"].tolist() == names["affordable"]["path"].tolist() == EXAMPLES[1:]
    assert len(names["agreements"]) == 2 * len(names["table"])


def test_the_recipe_for_datasets() -> None:
    (recipe,) = _blocks("docs/recipes.md", "class_encode_column")
    names: dict[str, Any] = {}
    exec(compile(recipe, "recipes.md", "exec"), names)
    assert {*names["levels"]} <= {"1", "9", "36", "144", "576"} and names["levels"]


def test_the_recipe_for_fiftyone(scores: Path) -> None:
    fiftyone = pytest.importorskip("fiftyone")
    (recipe,) = _blocks("docs/recipes.md", "import fiftyone")
    names: dict[str, Any] = {}
    try:
        exec(compile(recipe, "recipes.md", "exec"), names)
    except fiftyone.core.config.FiftyOneConfigError:
        pytest.skip("FiftyOne has no database here")
    assert names["simplest"].values("filepath") == EXAMPLES[::-1]
    assert names["photos"].values("required_tokens") == [None, *[36] * (len(EXAMPLES) - 1)]


def test_the_recipe_for_data_juicer(tmp_path: Path) -> None:
    pytest.importorskip("data_juicer")
    (recipe,) = _blocks("docs/recipes.md", "data_juicer")
    small_predictor().save(tmp_path / "own.predictor")
    own = "or []), predictor='own.predictor')"
    (tmp_path / "m3_filter.py").write_text(recipe.replace("or []))", own))
    scores = m3score.predict_complexity(EXAMPLES, predictor=tmp_path / "own.predictor")
    middle = sorted(scores)[len(scores) // 2]
    lines = [json.dumps({"text": "", "images": [path]}) for path in EXAMPLES]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    process = [{"image_m3_complexity_filter": {"min_score": middle}}]
    plan = {"dataset_path": "in.jsonl", "export_path": "out.jsonl", "np": 1, "process": process}
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    tool = Path(sys.executable).with_name("dj-process")
    done = subprocess.run(
        [tool, "--config", "plan.yaml", "--custom-operator-paths", "m3_filter.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kept = [json.loads(line)["images"][0] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert kept == [path for path, score in zip(EXAMPLES, scores, strict=True) if score >= middle]


def test_a_score_table_becomes_a_data_set(tmp_path: Path) -> None:
    write_scores([{"path": "a.png", "complexity": 0.5, "required_tokens": 36}], tmp_path / "s.parquet")
    data = datasets.Dataset.from_parquet(str(tmp_path / "s.parquet"), cache_dir=str(tmp_path / "c"))
    assert data.features["required_tokens"].dtype == "int64" and data.features["solved"].dtype == "bool"
