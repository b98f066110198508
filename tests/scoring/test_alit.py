"""Complexity after ALIT: the fewest tokens of a recurrent tokenizer that rebuild the picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3score import M3ScoreError
from tests.support.runs import invoke as run


def test_fewest_tokens_under_the_threshold() -> None:
    from m3score.scoring.scorers.alit_score import passed, score_errors

    counts = (4, 8, 12)
    found = score_errors([0.3, 0.2, 0.1, 0.05], counts, 0.15)
    assert (found.tokens, found.error) == (8, 0.05)
    assert passed([0.3, 0.2, 0.1, 0.05], counts, 0.15) == pytest.approx(6 / 12)
    assert score_errors([0.01, 0.2, 0.1, 0.05], counts, 0.15).complexity == 0
    never = score_errors([0.3, 0.2, 0.1, 0.05], counts, 0.01)
    assert never.tokens is None and never.complexity == 1
    assert score_errors([0.3, 0.1, 0.2, 0.05], counts, 0.15).tokens == 4  # the fewest, whatever comes later


def test_pictures_that_no_tokens_rebuild_do_not_all_tie() -> None:
    from m3score.scoring.scorers.alit_score import score_errors

    counts = (4, 8, 12)
    bad, worse = ([0.9, 0.8, 0.7, last] for last in (0.18, 0.25))
    assert score_errors(bad, counts, 0.15).tokens is None is score_errors(worse, counts, 0.15).tokens
    assert score_errors(bad, counts, 0.15).complexity < score_errors(worse, counts, 0.15).complexity < 1
    # by hand: 1 at the six lowest of the nine thresholds, 0 at the highest
    assert score_errors([0.29, 0.2, 0.2, 0.2], counts, 0.15).complexity == pytest.approx(
        (6 + sum((0.29 - 0.15 * 2**k) / 0.09 / 3 for k in (0.5, 0.75))) / 9
    )


def test_the_threshold_tells_most_drawings_apart() -> None:
    import torch

    from m3score.calibration.training.alit import _ties

    errors = torch.tensor([[0.4, 0.3, 0.2], [0.4, 0.35, 0.1], [0.4, 0.05, 0.05], [0.01, 0.01, 0.01]])
    assert _ties(errors, 0.15) == (1 + 1 + 4) / 16  # more than all, all, and twice the fewest
    assert _ties(errors, 0.5) == 1


@given(
    st.lists(st.floats(0.001, 0.6), min_size=4, max_size=4),
    st.floats(0.001, 0.6),
    st.floats(0.001, 0.6),
)
def test_a_stricter_threshold_never_needs_fewer_tokens(errors: list[float], one: float, other: float) -> None:
    from m3score.scoring.scorers.alit_score import score_errors

    strict, loose = (score_errors(errors, (4, 8, 12), value) for value in sorted((one, other)))
    assert 0 <= loose.complexity <= strict.complexity <= 1


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from m3score.calibration.training.alit import train
    from m3score.scoring.scorers.alit_model import AlitSettings

    size: dict[str, int] = {"image_size": 16, "patch_size": 4, "thumbnail_size": 8, "width": 16}
    small = AlitSettings(**size, heads=2, layers=1, token_size=12, tokens_per_round=4, rounds=3)
    model, known = train(small, seed=0, pool=24, seconds=600, steps=60, batch_size=8, unseen=24)
    assert known["steps"] == 60 and known["mean_error_by_tokens"][12] < 0.3
    folder = tmp_path_factory.mktemp("alit")
    model.save(folder)
    return folder


def test_training_lowers_the_error(tokenizer: Path) -> None:
    import torch

    from m3score.calibration.training.alit import drawings
    from m3score.scoring.scorers.alit_model import AlitModel, load_alit

    trained = load_alit(str(tokenizer))
    torch.manual_seed(0)
    untrained = AlitModel(trained.settings).eval()
    seen = drawings(77, 12, 16).float() / 255
    assert trained.errors(seen)[:, -1].mean() < 0.95 * untrained.errors(seen)[:, -1].mean()


def test_a_stopped_training_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from m3score.calibration.training import alit
    from m3score.scoring.scorers.alit_model import AlitSettings

    size: dict[str, int] = {"image_size": 16, "patch_size": 4, "thumbnail_size": 8, "width": 8}
    small = AlitSettings(**size, heads=2, layers=1, rounds=2)

    def trained(folder: Path | None, seed: int = 0) -> dict[str, torch.Tensor]:
        how: dict[str, Any] = {"pool": 8, "seconds": 600, "steps": 8, "batch_size": 4, "unseen": 4}
        return alit.train(small, seed=seed, folder=folder, **how)[0].state_dict()

    undisturbed = trained(None)
    monkeypatch.setattr(alit, "SAVE_SECONDS", 0)
    saves, save = [], alit.Run.save

    def stop_after_three(run: alit.Run, file: Path) -> None:
        save(run, file)
        saves.append(file)
        if len(saves) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(alit.Run, "save", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path)
    with pytest.raises(M3ScoreError, match="other options"):
        trained(tmp_path, seed=1)
    for name, value in trained(tmp_path).items():
        assert torch.equal(value, undisturbed[name]), name
    assert len(saves) == 8


def test_rank_by_adaptive_tokens(pictures: Path, tokenizer: Path) -> None:
    asked = ("rank", pictures, "--scorer", "alit", "--alit-model", tokenizer)
    done = run(*asked, "--alit-threshold", "0.05", "--out", "alit.csv")
    assert done.exit_code == 3, done.stderr
    table = pd.read_csv("alit.csv").set_index("path")
    assert {"alit_tokens", "alit_error"} <= set(table.columns)
    scores = {Path(str(path)).stem: row for path, row in table.iterrows()}
    assert scores["plain"]["complexity"] == 0 and scores["plain"]["alit_tokens"] == 4
    assert scores["half"]["complexity"] > 0
    loose = run(
        "rank",
        pictures,
        "--scorer",
        "alit",
        "--alit-model",
        tokenizer,
        "--alit-threshold",
        "1",
        "-o",
        "l.csv",
    )
    assert loose.exit_code == 3 and pd.read_csv("l.csv")["complexity"].dropna().eq(0).all()


def test_the_bundled_tokenizer(pictures: Path) -> None:
    from m3score.calibration.drawings.drawing import draw

    for kind in ("plane", "chart"):
        draw(11, 0, kind).image.save(pictures / f"{kind}.png")
    done = run("rank", pictures, "--scorer", "alit", "--out", "alit.csv")
    assert done.exit_code == 3, done.stderr
    rows = pd.read_csv("alit.csv").dropna(subset=["complexity"]).to_dict("records")
    scores = {Path(row["path"]).stem: row["complexity"] for row in rows}
    assert scores["plain"] == 0 and 0 <= scores["plane"] < scores["chart"] <= 1


def test_what_is_no_tokenizer(tokenizer: Path, tmp_path: Path) -> None:
    from m3score.scoring.scorers.alit_model import load_alit

    (tmp_path / "config.json").write_text('{"kind": "other"}')
    with pytest.raises(M3ScoreError, match="no tokenizer"):
        load_alit(str(tmp_path))
    (tmp_path / "config.json").write_bytes((tokenizer / "config.json").read_bytes())
    with pytest.raises(M3ScoreError, match="can't be loaded"):
        load_alit(str(tmp_path))
