"""Cheap features: what they measure, that they hold still, and that they survive any picture."""

from __future__ import annotations

import io
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageDraw, ImageFont

from m3score.common.errors import M3ScoreError
from m3score.common.limits import Limits
from m3score.images import parallel
from m3score.images.decode import open_image, open_reduced
from m3score.images.given import ImageSource
from m3score.images.parallel import map_images
from m3score.images.reduce import quick_jpeg
from m3score.routing.features.image import IMAGE_FEATURES, MEANINGS, features, image_features
from m3score.routing.features.patch_grid import SIDE, Square, pooled
from m3score.routing.features.question import QUESTION_FEATURES, question_features


def measured(image: ImageSource) -> dict[str, float]:
    return dict(zip(IMAGE_FEATURES, image_features(image).tolist(), strict=True))


def asked(question: str | None) -> dict[str, float]:
    return dict(zip(QUESTION_FEATURES, question_features(question).tolist(), strict=True))


def noise(width: int, height: int, grain: int = 1, seed: int = 0) -> Image.Image:
    """Grey noise whose grains have `grain` pixels a side."""
    values = np.random.default_rng(seed).integers(0, 256, (height // grain, width // grain), dtype=np.uint8)
    return Image.fromarray(values.repeat(grain, 0).repeat(grain, 1)).convert("RGB")


def written(height: int, lines: int = 1) -> Image.Image:
    """Black words on white, letters about `height` pixels high."""
    image = Image.new("RGB", (336, 336), "white")
    font = ImageFont.load_default(height)
    for line in range(lines):
        ImageDraw.Draw(image).text((20, 20 + line * height * 1.5), "Hamburg 1842 fox", "black", font)
    return image


def photograph(width: int, height: int) -> Image.Image:
    """Soft noise at every scale, a few shapes."""
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    for k in range(12):
        x, y, r = width * (k * 37 % 100) // 100, height * (k * 61 % 100) // 100, (k + 2) * width // 120
        pen.ellipse((x, y, x + r, y + r), fill=(k * 20, 255 - k * 20, 128))
    return image


def as_jpeg(image: Image.Image, quality: int = 90, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality, **options)
    return out.getvalue()


# ---- opening ------------------------------------------------------------------------------------------


def test_pictures_are_averaged_over_whole_blocks(tmp_path: Path) -> None:
    """The mean of 7x7 pixels, whatever the picture comes as; nothing is enlarged."""
    picture = noise(700, 490)
    picture.save(tmp_path / "a.png")
    expected = np.asarray(picture, float).reshape(70, 7, 100, 7, 3).mean((1, 3))
    for source in (tmp_path / "a.png", picture, np.asarray(picture)):
        image, size = open_reduced(source, 100)
        assert size == (700, 490) and image.size == (100, 70) and image.mode == "RGB"
        assert np.abs(np.asarray(image, float) - expected).max() <= 0.52
        whole, size = open_reduced(source, 700)
        assert size == whole.size == (700, 490)


def test_a_callers_lazy_picture_is_left_whole() -> None:
    with Image.open(io.BytesIO(as_jpeg(photograph(800, 600)))) as lazy:
        image_features(lazy)
        assert lazy.size == (800, 600)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_reduced_images_are_upright_and_the_same_as_turned_first(orientation: int) -> None:
    """Sides that blocks of 7 do not divide: what is cut off must lie at the same sides."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = as_jpeg(photograph(1102, 804), exif=exif.tobytes())
    whole = open_image(data)
    image, size = open_reduced(data, 150)
    assert size == whole.size
    assert np.array_equal(np.asarray(image), np.asarray(open_reduced(whole, 150)[0]))
    assert np.array_equal(image_features(data), image_features(np.asarray(whole)))


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}])
def test_the_quick_decoder_gives_pillows_pixels(options: dict[str, Any]) -> None:
    pytest.importorskip("simplejpeg")
    for size in ((641, 481), (1203, 90)):
        for quality in (30, 92):
            data = as_jpeg(noise(*size, grain=2).resize(size), quality, **options)
            image = Image.open(io.BytesIO(data))
            quick = quick_jpeg(image, io.BytesIO(data))
            assert quick is not None
            assert np.array_equal(np.asarray(quick)[..., :3], np.asarray(image))


def test_the_quick_decoder_leaves_alone_what_it_does_not_know() -> None:
    grey, inks = as_jpeg(photograph(64, 64).convert("L")), as_jpeg(photograph(64, 64).convert("CMYK"))
    for data in (grey, inks, as_jpeg(photograph(640, 480))[:9000]):
        image = Image.open(io.BytesIO(data))
        assert quick_jpeg(image, io.BytesIO(data)) is None


def test_errors_are_those_of_open_image(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(as_jpeg(photograph(1200, 800))[:3000])
    sources: list[ImageSource] = [tmp_path / "none.jpg", tmp_path, broken, b"", b"no image"]
    for source in sources:
        with pytest.raises(M3ScoreError) as whole:
            open_image(source)
        with pytest.raises(M3ScoreError) as reduced:
            image_features(source)
        assert str(whole.value) == str(reduced.value)


# ---- image features -----------------------------------------------------------------------------------


def test_every_feature_is_explained() -> None:
    assert tuple(MEANINGS) == IMAGE_FEATURES
    assert all(MEANINGS.values())
    assert len({*IMAGE_FEATURES, *QUESTION_FEATURES}) == len(IMAGE_FEATURES) + len(QUESTION_FEATURES)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 700),
    st.integers(1, 700),
    st.sampled_from(["noise", "black", "white", "lines"]),
    st.sampled_from(["RGB", "L", "RGBA"]),
)
def test_any_picture_has_finite_features(width: int, height: int, kind: str, mode: str) -> None:
    image = Image.new("RGB", (width, height), "white" if kind == "white" else "black")
    if kind == "noise":
        image = noise(width, height)
    elif kind == "lines":
        ImageDraw.Draw(image).line((0, 0, width, height), "red")
    row = image_features(image.convert(mode))
    assert row.dtype == np.float32
    assert row.shape == (len(IMAGE_FEATURES),)
    assert np.isfinite(row).all()
    assert np.array_equal(row, image_features(image.convert(mode)))


def test_shares_and_densities_are_within_0_and_1() -> None:
    bounded = ("_share", "edges_upright", "text_", "regions_tiny", "regions_f", "steps_", "detail_cells")
    for image in (noise(500, 400), written(12, 10), Image.new("RGB", (3, 900), "teal"), photograph(900, 300)):
        for name, value in measured(image).items():
            if any(part in name for part in bounded):
                assert -1e-6 <= value <= 1 + 1e-6, name


def test_a_plain_picture_has_no_detail() -> None:
    for size in ((288, 288), (400, 100), (7, 900)):
        found = measured(Image.new("RGB", size, (200, 60, 30)))
        for name in found:
            if name.startswith(("luma_", "chroma_", "strokes_", "corners", "steps_", "text_")):
                assert found[name] == pytest.approx(0, abs=0.1), (size, name)
        assert found["regions_first"] == 1
        assert found["colours"] == pytest.approx(math.log(2))


def test_the_loss_is_at_the_scale_of_the_grains() -> None:
    """Grains of 12 pixels are the cells: nothing is lost at 24 cells a side, most from 24 to 12."""
    names = ["luma_24", "luma_12", "luma_6", "luma_3"]
    for place, grain in enumerate((1, 12, 24, 48)):
        found = measured(noise(SIDE, SIDE, grain))
        assert max(names, key=lambda name: found[name]) == names[place]
        assert all(found[name] < 0.1 for name in names[:place])
    fine = [measured(noise(SIDE, SIDE, grain)) for grain in (1, 2, 4)]
    assert [max((f"luma_{k}px" for k in (1, 2, 4)), key=one.__getitem__) for one in fine] == [
        "luma_1px",
        "luma_2px",
        "luma_4px",
    ]


def test_the_lost_energies_add_up_to_the_variance() -> None:
    found = measured(noise(SIDE, SIDE, 3))
    parts = [math.expm1(found[f"luma_{side}"]) ** 2 for side in (24, 12, 6, 3, 1)]
    assert sum(parts) == pytest.approx((found["grey_deviation"] * 255) ** 2, rel=1e-3)
    assert found["luma_24_share"] == pytest.approx(parts[0] / (sum(parts) + 1), rel=1e-3)


def test_chroma_is_seen_where_luminance_is_flat() -> None:
    checks = np.indices((SIDE, SIDE)).sum(0) // 6 % 2
    image = Image.new("YCbCr", (SIDE, SIDE))
    image.putdata([(128, 90 if one else 166, 128) for one in checks.ravel()])
    found = measured(image)
    assert found["luma_24"] < 1
    assert found["chroma_24"] > 3


def test_strokes_and_text_tell_writing_from_noise_and_shapes() -> None:
    text, plain = measured(written(14, 12)), measured(photograph(336, 336))
    assert text["text_cells"] > 0.1 > plain["text_cells"]
    assert text["lines_1px"] > plain["lines_1px"] + 1
    assert text["two_valued"] > measured(noise(336, 336))["two_valued"]


def test_letters_of_another_height_have_strokes_at_another_scale() -> None:
    small, large = measured(written(12)), measured(written(60))
    assert small["strokes_1px"] / small["strokes_4px"] > 4 * large["strokes_1px"] / large["strokes_4px"]


def test_detail_in_one_place_is_concentrated() -> None:
    image = Image.new("RGB", (336, 336), "gray")
    image.paste(noise(42, 42), (200, 60))
    corner, everywhere = measured(image), measured(noise(336, 336))
    assert corner["detail_cells"] < 0.05 < 0.9 < everywhere["detail_cells"]
    assert corner["detail_spread"] < 0.1 < everywhere["detail_spread"]
    assert corner["luma_24_peak"] > corner["luma_24"] + 1


def test_regions_count_objects() -> None:
    counts = []
    for many in (1, 4, 9):
        image = Image.new("RGB", (SIDE, SIDE), "white")
        for k in range(many):
            x, y = 20 + k % 3 * 90, 20 + k // 3 * 90
            ImageDraw.Draw(image).rectangle((x, y, x + 40, y + 40), fill=("red", "blue", "green")[k % 3])
        counts.append(round(math.expm1(measured(image)["regions_large"])))
    assert counts == [2, 5, 10]  # the background is one


def test_a_border_adds_no_detail() -> None:
    """A wide picture is padded by the model; what pooling loses in it must not come from the padding."""
    square = Square.of(Image.new("RGB", (336, 100), "red"))
    assert np.ptp(square.luma) == 0
    assert (square.rows, square.columns) == (slice(101, 187), slice(0, SIDE))
    assert square.weights.sum() == pytest.approx(24 * 86 / 12)


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([(288, 144), (288, 24), (72, 24), (24, 12), (12, 6), (6, 3), (3, 1)]), st.integers(0, 99)
)
def test_pooling_is_the_mean_of_blocks(sides: tuple[int, int], seed: int) -> None:
    size, side = sides
    values = np.random.default_rng(seed).normal(size=(size, size)).astype(np.float32)
    step = size // side
    expected = values.reshape(side, step, side, step).mean((1, 3))
    assert np.allclose(pooled(values, side), expected, atol=1e-5)
    assert np.allclose(pooled(np.stack([values, -values]), side), np.stack([expected, -expected]), atol=1e-5)


@pytest.mark.parametrize("size", [(300, 210), (640, 480), (1401, 1003), (3999, 3002)])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_a_jpeg_gives_the_same_as_path_bytes_picture_and_array(
    size: tuple[int, int], subsampling: int, tmp_path: Path
) -> None:
    """What was calibrated on files must serve decoded columns: to the last bit, for trees have thresholds."""
    path = tmp_path / "a.jpg"
    path.write_bytes(as_jpeg(photograph(*size), 88, subsampling=subsampling))
    expected = image_features(path)
    with Image.open(path) as lazy:
        assert np.array_equal(expected, image_features(lazy))
    loaded = open_image(path)
    for source in (str(path), path.read_bytes(), loaded, np.asarray(loaded)):
        assert np.array_equal(expected, image_features(source))


# ---- questions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What does the sign say?", {"reading"}),
        ("How many shapes are there?", {"counting"}),
        ("What colour is the circle?", {"colour"}),
        ("Where is the red star?", {"place"}),
        ("Which bar is the highest?", {"comparison"}),
        ("Is there a dog?", {"yes_no"}),
        ("Describe the image.", {"description"}),
    ],
)
def test_what_a_question_asks_for(question: str, expected: set[str]) -> None:
    found = asked(question)
    assert {name[5:] for name in found if name.startswith("asks_") and found[name]} == expected


def test_no_question_is_all_zeros() -> None:
    for nothing in (None, "", "  \n"):
        assert not question_features(nothing).any()
    assert asked("Why?")["question_given"] == 1


def test_how_to_answer_is_not_what_is_asked() -> None:
    bare = asked("How many dogs?")
    dressed = asked("<image>\nHow many dogs?\nAnswer the question using a single word or phrase.")
    assert {name for name in bare if bare[name] != dressed[name]} == {"question_single_word"}
    assert asked("Which?\nA. red\nB. blue\nC. green")["question_options"] == 3


def test_hashed_words_are_the_same_on_every_machine() -> None:
    found = asked("dog dog cat")
    assert {name: value for name, value in found.items() if name.startswith("word_") and value} == {
        "word_61": 2.0,
        "word_40": 1.0,
    }


@given(st.text(max_size=300))
def test_any_text_has_finite_features(text: str) -> None:
    row = question_features(text)
    assert row.dtype == np.float32
    assert np.isfinite(row).all()


def test_features_are_both() -> None:
    image = photograph(200, 100)
    row = features(image, "How many?")
    assert np.array_equal(row, np.concatenate([image_features(image), question_features("How many?")]))
    assert len(features(image)) == len(row)


# ---- many images --------------------------------------------------------------------------------------


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "MANY", 2)


@pytest.mark.parametrize("count", [1, 2, None])
def test_results_come_in_order(count: int | None) -> None:
    assert list(map_images(lambda k: k * k, range(50), count)) == [k * k for k in range(50)]
    assert list(map_images(len, [], count)) == []


def test_few_images_are_taken_ahead() -> None:
    taken = []

    def endless() -> Iterator[int]:
        k = 0
        while True:
            taken.append(k)
            yield k
            k += 1

    results = map_images(lambda k: k, endless(), 2)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert len(taken) <= 5 + 4 * 2
    results.close()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("soon")
def test_processes_give_what_threads_give(tmp_path: Path) -> None:
    paths = []
    for k in range(6):
        paths.append(tmp_path / f"{k}.png")
        noise(60 + k, 40, seed=k).save(paths[-1])
    sources: list[ImageSource] = [*paths, noise(30, 30)]  # a decoded picture is not sent
    found = list(map_images(image_features, sources, 2))
    assert np.array_equal(found, [image_features(source) for source in sources])
    with pytest.raises(M3ScoreError, match=r"none\.png: no such file"):
        list(map_images(image_features, [*paths, tmp_path / "none.png"], 2))


def test_a_worker_that_dies_is_an_error_or_what_is_given_instead() -> None:
    with pytest.raises(M3ScoreError, match=r"7: the process that worked on it died \(exit code 7\)"):
        list(map_images(os._exit, [7] * 9, 2, limits=Limits()))
    found = list(map_images(os._exit, [1, 2, 3], 2, limits=Limits(), instead=lambda code, error: code))
    assert found == [1, 2, 3]


def test_scripts_need_no_guard(tmp_path: Path) -> None:
    """Workers never run the caller's script; predicting needs neither torch, scikit-learn nor pandas."""
    noise(40, 30).save(tmp_path / "a.png")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from m3score.images import parallel\n"
        "from m3score.routing.features.image import image_features\n"
        "parallel.MANY = 2\n"
        "rows = list(parallel.map_images(image_features, ['a.png'] * 6, 2))\n"
        "print(len(rows), *{'torch', 'sklearn', 'pandas'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.stderr, done.returncode) == ("6\n", "", 0)


def test_workers_must_be_positive() -> None:
    with pytest.raises(M3ScoreError, match="workers must be 1 or more, not 0"):
        map_images(len, [], 0)
