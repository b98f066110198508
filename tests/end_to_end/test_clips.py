"""Videos wherever pictures go, as one picture and with a grid of tokens per frame."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

import m3score
from m3score.calibration.predictor.labelling.collection import open_collection
from m3score.cli.main import app
from m3score.common.errors import M3ScoreError
from m3score.images.video import arrange, open_frames
from m3score.models.m3.ladder import count_visual_tokens
from m3score.routing.features.image import image_features
from m3score.routing.predict import predict_many
from m3score.routing.registry import load_predictor
from m3score.tables.io import read_table, read_traces
from m3score.tables.schema import PREDICTIONS, SCORES
from tests.support.clips import folder_of_clips, turn, write_video
from tests.support.fakes import FakeAnswerer

NEXT = Path(__file__).parents[1] / "data/parity/checkpoints/tiny-llava-next-vicuna-7b-m3"
TALK = {576: 2880, 144: 720, 36: 180, 9: 45, 1: 5}
"""Visual tokens of a LLaVA-NeXT image at each scale, as the M3 authors count them: five grids."""


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str | None]]]:
    folder = tmp_path_factory.mktemp("videos") / "clips"
    yield folder, folder_of_clips(folder)


def run(*words: object, code: int = 0, shown: str = "stdout") -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return str(getattr(result, shown))


def per_frame(frames: int | None) -> tuple[object, ...]:
    """Options for so many grids; the bundled model has room for one only."""
    return ("--frames", frames, "--model", NEXT, "--max-new-tokens", 2) if frames else ()


def by_name(table: pd.DataFrame, column: str) -> pd.DataFrame:
    return table.set_index(pd.Index([Path(str(path)).name for path in table[column]]))


def check_errors(table: pd.DataFrame, expected: dict[str, str | None], column: str) -> None:
    assert sorted(Path(str(path)).name for path in table["path"]) == sorted(expected)
    for path, error, value in zip(table["path"], table["error"], table[column], strict=True):
        reason = expected[Path(str(path)).name]
        assert (reason is None) == pd.isna(error) == pd.notna(value), (path, error)
        assert reason is None or reason in error, (path, error)


@pytest.mark.parametrize("frames", [None, 2])
def test_rank_takes_videos(
    clips: tuple[Path, dict[str, str | None]], frames: int | None, tmp_path: Path
) -> None:
    folder, expected = clips
    out, traces = tmp_path / "scores.csv", tmp_path / "traces.jsonl"
    asked = ("--question", "What color is at the top?", "-q", "--out", out, "--traces", traces)
    run("rank", folder, *asked, *per_frame(frames), code=3)
    table = read_table(out, SCORES)
    check_errors(table, expected, "complexity")
    seen = read_traces(traces)
    at_nine = seen[seen["tokens"] == 9].pipe(by_name, "image")
    grids = {name: frames or 1 for name in ("good.mp4", "variable.mkv", "turned.mp4")} | {"still.mp4": 1}
    assert {name: at_nine["visual_tokens"].to_dict()[name] // 9 for name in grids} == grids
    sizes = table.pipe(by_name, "path")[["width", "height"]]
    assert tuple(sizes.loc["good.mp4"]) == ((64, 48) if frames else (128, 144))
    assert tuple(sizes.loc["turned.mp4"]) == ((48, 64) if frames else (96, 192))
    assert tuple(sizes.loc["still.mp4"]) == (64, 48)


@pytest.mark.parametrize("frames", [None, 3])
def test_predict_takes_videos(
    clips: tuple[Path, dict[str, str | None]], frames: int | None, tmp_path: Path
) -> None:
    folder, expected = clips
    out = tmp_path / "scales.csv"
    run("predict", folder, "-q", "--out", out, *(("--frames", frames) if frames else ()), code=3)
    table = read_table(out, PREDICTIONS)
    check_errors(table, expected, "predicted_tokens")
    clip = folder / "good.mp4"
    alone = m3score.predict_scale(clip, frames=frames)
    assert alone in (1, 9, 36, 144, 576)
    row = table.pipe(by_name, "path").loc["good.mp4"]
    assert row["predicted_tokens"] == alone
    assert row["complexity"] == pytest.approx(m3score.predict_complexity(clip, frames=frames))
    pictures = open_frames(clip, frames or 6).pictures
    shown = list(pictures) if frames else [arrange(pictures)]
    assert alone == max(m3score.predict_scale(shown))
    assert m3score.predict_scale(clip.read_bytes(), frames=frames) == alone
    with pytest.raises(M3ScoreError, match=r"empty\.mp4: empty file"):
        m3score.predict_scale(folder / "empty.mp4", frames=frames)


def test_a_predictor_looks_at_the_grid_of_frames(clips: tuple[Path, Any]) -> None:
    clip = clips[0] / "good.mp4"
    np.testing.assert_array_equal(image_features(clip), image_features(arrange(open_frames(clip).pictures)))


def test_ask_takes_videos(clips: tuple[Path, dict[str, str | None]]) -> None:
    folder, expected = clips
    words = ("ask", folder / "good.mp4", "What color is at the top?", "--all", "--json", "-q")
    for frames, grids in ((None, 1), (3, 3)):
        rows = run(*words, *per_frame(frames)).splitlines()
        counts = {row["tokens"]: row["visual_tokens"] for row in map(json.loads, rows)}
        assert counts == {tokens: grids * tokens for tokens in (1, 9, 36, 144, 576)}
    assert run("ask", folder / "still.mp4", "What is it?", "--frames", 3, "-q")
    for name, reason in expected.items():
        if reason is not None:
            result = CliRunner().invoke(
                app, ["ask", str(folder / name), "What is it?", *map(str, per_frame(2))]
            )
            shown = " ".join(result.output.split())
            assert result.exit_code == 2 and reason in shown and "Traceback" not in shown, shown


def test_evaluate_takes_videos(clips: tuple[Path, dict[str, str | None]], tmp_path: Path) -> None:
    folder, expected = clips
    asked = [{"image": name, "question": "What is at the top?", "answers": ["white"]} for name in expected]
    questions = folder / "mine.jsonl"
    questions.write_text("\n".join(map(json.dumps, asked)))
    work, failed = tmp_path / "work", sum(reason is not None for reason in expected.values())
    for frames, grids in ((None, 1), (2, 2)):
        traces = tmp_path / f"{frames}.jsonl"
        words = ("--work", work, "--traces", traces, "-q", *per_frame(frames)[:4])
        text = run("evaluate", questions, *words, code=3)
        assert f"Failed: {failed} images" in text and "on 4 questions about 4 images" in text
        table = read_traces(traces)
        good = table[table["image"].str.endswith("good.mp4") & (table["tokens"] == 144)]
        assert list(good["visual_tokens"]) == [144 * grids]
        assert table["error"].notna().sum() == failed
    questions.unlink()
    assert sorted(path.name for path in work.glob("*/*")) == ["clips-mine", "clips-mine-2-frames"]


def test_calibrate_takes_videos(clips: tuple[Path, Any], tmp_path: Path) -> None:
    clip = clips[0] / "good.mp4"
    words = ("calibrate", clip, "--collect-only", "-q", "--model", NEXT, "--max-new-tokens", 2)
    works = {None: tmp_path / "grid", 2: tmp_path / "frames"}
    for frames, work in works.items():
        run(*words, "--work", work, *(("--frames", frames) if frames else ()))
        held = open_collection(work)
        counts = held.traces().groupby("tokens")["visual_tokens"].unique()
        assert frames is None or counts[144].tolist() == [144 * frames]
        np.testing.assert_array_equal(held.features()["values"][0], image_features(clip))
    refused = "another run (source differ)", "labels of other --frames (2 and none)"
    for more, reason in zip(
        (
            (*words, "--work", works[2]),
            ("calibrate", *works.values(), "--out", tmp_path / "x.predictor", "--anyway"),
        ),
        refused,
        strict=True,
    ):
        assert reason in " ".join(run(*more, code=2, shown="output").split())
    assert "--frames is for videos" in run("calibrate", "drawn", "--frames", 2, *words[2:],
                                           "--work", tmp_path / "x", code=2, shown="output")  # fmt: skip


def test_a_predictor_of_videos_sees_them_as_in_its_calibration(clips: tuple[Path, Any]) -> None:
    clip = clips[0] / "good.mp4"
    bundled = replace(load_predictor("m3-tiny"), familiar=None)  # the clip is unlike its drawings
    own = replace(bundled, data={**bundled.data, "frames": 2})
    assert m3score.predict_complexity(clip, frames=2, predictor=own) == m3score.predict_complexity(clip)
    promised = {one: next(predict_many([clip], predictor=one, frames=2)).certified for one in (own, bundled)}
    assert promised == {own: True, bundled: False}
    for frames in (None, 3):
        with pytest.raises(M3ScoreError, match="of videos with --frames 2"):
            m3score.predict_scale(clip, frames=frames, predictor=own)


@pytest.mark.parametrize("command", ["rank", "ask", "evaluate", "calibrate"])
def test_too_many_frames_are_one_sentence(command: str, clips: tuple[Path, Any], tmp_path: Path) -> None:
    clip = clips[0] / "good.mp4"
    asked = clip.with_name("one.jsonl")
    asked.write_text(json.dumps({"image": clip.name, "question": "What?", "answers": ["white"]}))
    more: dict[str, tuple[object, ...]] = {
        "rank": (clip, "--question", "What?"),
        "ask": (clip, "What?"),
        "evaluate": (asked, "--work", tmp_path),
        "calibrate": (clip, "--collect-only", "--work", tmp_path / "w"),
    }
    said = " ".join(run(command, *more[command], "--frames", 4, code=2, shown="output").split())
    asked.unlink()
    assert "--frames 4 makes 2,304 visual tokens at scale 576, more than the 1,024" in said
    assert "at most --frames 1" in said and "Traceback" not in said


def test_a_model_without_grids_takes_one_picture(clips: tuple[Path, Any]) -> None:
    clip = clips[0] / "good.mp4"
    assert m3score.rank(clip, model=FakeAnswerer())["error"].isna().all()
    with pytest.raises(M3ScoreError, match="fake takes whole pictures only"):
        m3score.rank(clip, model=FakeAnswerer(), frames=2)
    with pytest.raises(M3ScoreError, match="frames must be at least 1, not 0"):
        m3score.predict_scale(clip, frames=0)


# ---- how many visual tokens ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 48), (64, 36), (48, 48)])
def test_a_six_frame_grid_has_the_totals_of_the_talk(size: tuple[int, int], tmp_path: Path) -> None:
    """Five grids of each scale; less the padding of tiles, and a newline per row, is what the model sees."""
    model = m3score.load_model(NEXT, device="cpu")
    clip = write_video(tmp_path / "a.mp4", range(12), (size[0] * 10, size[1] * 10))
    encoded = model.encode(clip)
    assert encoded.tiles == (2, 2) and encoded.grids == 5
    assert {tokens: encoded.grids * tokens for tokens in model.ladder} == TALK
    width, height = encoded.size
    assert (width, height) == (20 * size[0], 30 * size[1])
    for tokens in model.ladder:
        side = int(tokens**0.5)
        assert count_visual_tokens(tokens, 24, encoded.size, (2, 2), "flat") == TALK[tokens]
        rows = columns = 2 * side  # of the joined tiles, then without padding: the authors' arithmetic
        if width > height:
            cut = (rows - int(height * (columns / width))) // 2
            rows -= 2 * cut
        else:
            cut = (columns - int(width * (rows / height))) // 2
            columns -= 2 * cut
        seen = tokens + rows * (columns + 1)
        assert len(model.visual_tokens(encoded, tokens)) == model.visual_token_count(encoded, tokens) == seen
        assert seen <= TALK[tokens] + 2 * side


def test_a_grid_per_frame_has_no_tiles(tmp_path: Path) -> None:
    model = m3score.load_model(NEXT, device="cpu")
    encoded = model.encode_frames(write_video(tmp_path / "a.mp4", range(12)), 4)
    assert encoded.grids == 4 and [model.visual_token_count(encoded, t) for t in model.ladder] == [
        4 * t for t in model.ladder
    ]


# ---- frames --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("degrees", "bright"), [(0, "top"), (90, "right"), (180, "bottom"), (270, "left")])
def test_frames_are_turned_as_the_file_says(degrees: int, bright: str, tmp_path: Path) -> None:
    frame = open_frames(turn(write_video(tmp_path / "a.mp4", range(6)), degrees)).pictures[0]
    assert frame.size == ((64, 48) if degrees % 180 == 0 else (48, 64))
    grey = np.asarray(frame.convert("L"))
    edges = {"top": grey[:8], "bottom": grey[-8:], "left": grey[:, :8], "right": grey[:, -8:]}
    assert {name: edge.min() > 200 for name, edge in edges.items() if name == bright} == {bright: True}
    assert sum(edge.min() > 200 for edge in edges.values()) == 1


def test_hours_of_video_are_sampled_without_decoding_them(tmp_path: Path) -> None:
    """Two frames an hour: what is shown at a time is the last frame before it."""
    hours = 5
    times = [1800 * 10 * n for n in range(2 * hours + 1)]
    clip = write_video(tmp_path / "long.mkv", times)
    levels = [np.asarray(one.convert("L"))[-10:].mean() / 4 for one in open_frames(clip, 5).pictures]
    assert [round(level) for level in levels] == pytest.approx([0, 2, 4, 6, 8], abs=1)


def test_a_still_picture_may_be_called_a_video(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.png")
    still = (tmp_path / "a.png").rename(tmp_path / "a.mp4")
    table = m3score.rank(still, model=FakeAnswerer())
    assert tuple(table.loc[0, ["width", "height"]]) == (30, 20) and table["error"].isna().all()
