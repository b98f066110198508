"""Videos as grids of frames: which frames, how laid out, turned upright; what is said of those that fail."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import m3score
from m3score.common.errors import M3ScoreError
from m3score.data.discover import find_images
from m3score.images.decode import open_image
from m3score.images.video import arrange, looks_like_video, video_frames
from tests.support.clips import write_sound, write_video
from tests.support.fakes import FakeAnswerer


def numbers(frames: Sequence[Image.Image]) -> list[int]:
    """Which frames these are."""
    found: list[int] = []
    for frame in frames:
        level = frame.convert("L").getpixel((frame.width // 2, frame.height * 2 // 3))
        assert isinstance(level, int)
        found.append(round(level / 4))
    return found


def sampled(path: Path, frames: int = 6) -> list[int]:
    with path.open("rb") as file:
        return numbers(video_frames(file, path.name, max_pixels=10**8, frames=frames))


def test_each_frame_is_the_first_of_its_part(tmp_path: Path) -> None:
    assert sampled(write_video(tmp_path / "a.mp4", range(60))) == [0, 10, 20, 30, 40, 50]
    # Whole frames, rounded down, as IG-VLM has it: 41 // 6 = 6.
    assert sampled(write_video(tmp_path / "b.mp4", range(41))) == [0, 6, 12, 18, 24, 30]
    assert sampled(tmp_path / "b.mp4", 4) == [0, 10, 20, 30]


@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".mov"])
def test_other_containers(suffix: str, tmp_path: Path) -> None:
    assert sampled(write_video(tmp_path / f"a{suffix}", range(60))) == [0, 10, 20, 30, 40, 50]


def test_variable_frame_rates_are_sampled_by_time(tmp_path: Path) -> None:
    """Thirty frames in the first three seconds, then one a second: the second half has few frames."""
    times = [*range(30), *range(30, 61, 10)]
    found = sampled(write_video(tmp_path / "a.mkv", times))
    assert found[0] == 0 and found == sorted(found)
    assert found[3:] == [30, 31, 32] or all(number >= 29 for number in found[3:])


def test_short_videos_repeat_frames(tmp_path: Path) -> None:
    assert sampled(write_video(tmp_path / "a.mp4", range(1))) == [0] * 6
    assert set(sampled(write_video(tmp_path / "b.mp4", range(3)))) <= {0, 1, 2}


def test_grids_read_like_text() -> None:
    frames = [Image.new("L", (20, 10), 40 * number) for number in range(6)]
    grid = arrange([frame.convert("RGB") for frame in frames])
    assert grid.size == (40, 30)
    places = [(10, 5), (30, 5), (10, 15), (30, 15), (10, 25), (30, 25)]
    assert [grid.getpixel(place) for place in places] == [(40 * n,) * 3 for n in range(6)]
    assert arrange([grid] * 3).getpixel((79, 59)) == (255, 255, 255)
    assert np.prod(arrange([Image.new("RGB", (3840, 2160))] * 6).size) <= 16_777_216


def test_a_video_is_a_picture_wherever_pictures_go(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    clip = write_video(folder / "clip.mp4", range(12))
    assert open_image(clip).size == (128, 144)
    assert open_image(clip.read_bytes()).tobytes() == open_image(clip).tobytes()
    (folder / "renamed.jpg").write_bytes(clip.read_bytes())
    (folder / "text.mp4").write_text("no video")
    (folder / "empty.webm").touch()
    write_sound(folder / "sound.m4a").rename(folder / "sound.mp4")
    assert len(list(find_images(folder))) == 5
    table = m3score.rank(folder, model=FakeAnswerer()).set_index("path")
    errors = {Path(str(path)).name: error for path, error in table["error"].items()}
    assert errors["text.mp4"] == "not a video that can be read"
    assert errors["empty.webm"] == "empty file (0 bytes)"
    assert "no pictures" in errors["sound.mp4"]
    assert table["complexity"].notna().sum() == 2


def test_truncated_videos_are_told(tmp_path: Path) -> None:
    data = write_video(tmp_path / "a.mkv", range(60)).read_bytes()
    for part in (0.02, 0.3, 0.6):
        with pytest.raises(M3ScoreError, match=r"^the image: (truncated|damaged|has)"):
            open_image(data[: int(part * len(data))])


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = write_video(tmp_path / "a.mp4", range(30))
    with pytest.raises(M3ScoreError, match=r"3,072 pixels \(64x48\), more than the limit of 3,000"):
        open_image(clip, max_pixels=3000)
    monkeypatch.setattr("m3score.images.video.MAX_SECONDS", 2)
    with pytest.raises(M3ScoreError, match="3 seconds long, more than the limit of 2"):
        open_image(clip)


def test_without_pyav_the_pip_line_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = write_video(tmp_path / "a.mp4", range(6))
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(M3ScoreError, match=r"m3score\[video\]"):
        open_image(clip)


@pytest.mark.parametrize("name", ["photo.avif", "photo.jpg", "anim.gif", "page.webp"])
def test_pictures_are_no_videos(name: str, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / name)
    assert not looks_like_video((tmp_path / name).read_bytes()[:16])
    assert open_image(tmp_path / name).size == (32, 32)


def test_a_grid_of_tokens_per_frame(tmp_path: Path) -> None:
    model = m3score.load_model("m3-tiny", device="cpu")
    clip = write_video(tmp_path / "a.mp4", range(30))
    encoded = model.encode_frames(clip, 3)
    assert [model.visual_token_count(encoded, tokens) for tokens in (1, 9)] == [3, 27]
    assert model.visual_tokens(encoded, 9).shape[0] == 27
    with clip.open("rb") as file:
        second = video_frames(file, "a.mp4", max_pixels=10**8, frames=3)[1]
    np.testing.assert_allclose(
        model.visual_tokens(encoded, 1)[1].numpy(),
        model.visual_tokens(model.encode(second), 1)[0].numpy(),
        atol=1e-4,
    )
    assert isinstance(model.answer(encoded, "What color is at the middle?", 9), str)
