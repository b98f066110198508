"""Pictures that nobody has vouched for: what they do to a decoder costs one error, and the run goes on."""

from __future__ import annotations

import csv
import io
import os
import shutil
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from m3score.common import files
from m3score.common.errors import M3ScoreError
from m3score.common.limits import Limits
from m3score.data.discover import find_images
from m3score.images import protocol
from m3score.images.decode import asking_before_large, open_image
from m3score.images.parallel import map_images
from m3score.images.sandbox import Decoder, Preparation
from m3score.images.worker_pool import FailedThere, PoolSession, WorkerError
from m3score.models.m3.config import M3Config
from m3score.models.m3.preprocess import preprocess, tiles_from_worker, tiles_in_worker
from m3score.routing.predict import predict_many
from m3score.runs.ranking import rank
from m3score.tables.formats import guard_cell
from m3score.tables.io import write_scores
from tests.benchmarks.fuzz import cases, originals, outcome
from tests.support.fakes import FakeAnswerer
from tests.support.fragile import DIES, HANGS, fragile
from tests.support.predictors import small_predictor

TILES = Preparation(tiles_in_worker, (asdict(M3Config()),), tiles_from_worker)


def noise(width: int = 40, height: int = 30) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def png_of(width: int, height: int) -> bytes:
    """A PNG file that says it has so many pixels, and has none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


# ---- messages -----------------------------------------------------------------------------------------

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda one: st.lists(one) | st.lists(one).map(tuple) | st.dictionaries(st.text(), one),
    max_leaves=12,
)


def there_and_back(value: object, largest: int = 2**20) -> object:
    pipe = io.BytesIO()
    protocol.send(pipe, protocol.pack(value))
    pipe.seek(0)
    back = protocol.receive(pipe, largest)
    assert not pipe.read()
    return back


@settings(max_examples=60, deadline=None)
@given(plain)
def test_what_is_sent_arrives(value: object) -> None:
    assert there_and_back(value) == value


def test_names_arrays_and_pictures_arrive_to_the_last_bit() -> None:
    name = os.fsdecode(b"caf\xe9\n\"'.jpg")
    assert there_and_back((name, Path(name))) == (name, Path(name))
    for array in (
        np.array([1e-45, np.inf], np.float32),
        np.zeros((0, 3), np.uint8),
        np.arange(6).reshape(2, 3)[:, ::2],
    ):
        back = there_and_back(array)
        assert isinstance(back, np.ndarray) and back.dtype == array.dtype and np.array_equal(back, array)
    back = there_and_back(noise())
    assert isinstance(back, Image.Image) and back.tobytes() == noise().tobytes()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60), st.booleans())
def test_a_worker_is_not_trusted(data: bytes, framed: bool) -> None:
    pipe = io.BytesIO(struct.pack(">Q", len(data)) + data if framed else data)
    with pytest.raises((EOFError, protocol.WireError)):
        value = protocol.receive(pipe, 1000)
        raise EOFError(value)  # plain JSON is a message


@pytest.mark.parametrize(
    "header",
    [b'{"bytes": 2000}', b'{"image": [99999, 99999]}', b'{"array": ["O", [1]]}', b'{"path": 1, "x": 2}'],
)
def test_messages_of_more_than_is_allowed_are_refused(header: bytes) -> None:
    with pytest.raises(protocol.WireError):
        protocol.receive(io.BytesIO(struct.pack(">Q", len(header)) + header), 1000)


def test_what_cannot_be_sent_is_said_before_anything_is_written() -> None:
    with pytest.raises(protocol.WireError, match="a set can't be sent"), PoolSession() as crew:
        crew.call(len, {1, 2})


# ---- processes ----------------------------------------------------------------------------------------


def test_a_worker_that_dies_hangs_or_fails_is_one_error_and_is_replaced() -> None:
    with PoolSession(Limits(seconds=1.5)) as crew:
        assert crew.call(len, "ab") == 2
        with pytest.raises(WorkerError, match=r"died \(signal 6\)"):
            crew.call(os.abort)
        begun = time.monotonic()
        with pytest.raises(WorkerError, match=r"took longer than the limit of 1\.5 seconds"):
            crew.call(time.sleep, 100)
        assert time.monotonic() - begun < 30
        with pytest.raises(FailedThere, match="TypeError"):
            crew.call(len, 3)
        with pytest.raises(FailedThere, match="MemoryError"):
            crew.call(bytearray, 5_000_000_000)
        assert crew.call(len, "abc") == 3


def test_an_error_comes_back_from_a_worker_with_what_it_knows(tmp_path: Path) -> None:
    (tmp_path / "a: b.png").write_bytes(b"x")
    with PoolSession() as crew, pytest.raises(M3ScoreError) as caught:
        crew.call(open_image, str(tmp_path / "a: b.png"))
    assert caught.value.subject == str(tmp_path / "a: b.png")
    assert caught.value.reason == "not an image that Pillow can read" and not caught.value.transient
    with PoolSession() as crew, pytest.raises(WorkerError) as caught:
        crew.call(os.abort)
    assert caught.value.transient and str(caught.value) == caught.value.reason


def test_large_pictures_wait_for_their_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (4100, 4100)).save(tmp_path / "large.png")
    Image.new("1", (4000, 4000)).save(tmp_path / "small.png")
    asked: list[int] = []
    with asking_before_large(asked.append):
        open_image(tmp_path / "small.png")
        open_image(tmp_path / "large.png")
    open_image(tmp_path / "large.png")
    assert asked == [4100 * 4100]

    turns: list[str] = []

    class Turn:
        def acquire(self) -> bool:
            turns.append("in")
            return True

        def release(self) -> None:
            turns.append("out")

    monkeypatch.setattr("m3score.images.worker_pool._one_large", Turn())
    with PoolSession(Limits()) as crew:
        for name in ("small", "large", "small", "large"):
            assert crew.call(open_image, tmp_path / f"{name}.png").mode == "RGB"
    assert turns == ["in", "out"] * 2


def test_closing_ends_what_is_under_way() -> None:
    crew = PoolSession(Limits(seconds=100))
    with ThreadPoolExecutor(1) as pool:
        sleeping = pool.submit(crew.call, time.sleep, 90)
        time.sleep(0.3)
        begun = time.monotonic()
        while not sleeping.done() and time.monotonic() - begun < 30:
            crew.close()
            time.sleep(0.05)
        with pytest.raises(WorkerError):
            sleeping.result(timeout=0)


# ---- pictures -----------------------------------------------------------------------------------------


def test_isolated_pictures_and_tiles_are_the_same_to_the_last_bit(tmp_path: Path) -> None:
    noise(700, 300).save(tmp_path / "a.jpg")
    with Decoder() as decode, Decoder(preparation=TILES) as tiles:
        sources: tuple[Any, ...] = (
            tmp_path / "a.jpg",
            (tmp_path / "a.jpg").read_bytes(),
            *originals().values(),
        )
        for source in sources:
            here = open_image(source)
            there = decode(source)
            assert isinstance(there, Image.Image) and there.tobytes() == here.tobytes()
        cut: Any = tiles(tmp_path / "a.jpg")
        expected = preprocess(open_image(tmp_path / "a.jpg"), M3Config())
        assert np.array_equal(cut.pixel_values, expected.pixel_values) and cut.size == (700, 300)


def test_limits_of_pixels_and_bytes(tmp_path: Path) -> None:
    with Decoder(Limits(max_pixels=1000, max_bytes=50_000)) as decode:
        assert decode(_png(noise(20, 20))).size == (20, 20)
        with pytest.raises(M3ScoreError, match=r"more than the limit of 1,000"):
            decode(_png(noise(40, 30)))
        with pytest.raises(M3ScoreError, match=r"60,000 bytes, more than the limit of 50,000"):
            decode(bytes(60_000))
    with pytest.raises(M3ScoreError, match="max_pixels must be more than 0"):
        Limits(max_pixels=0)


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "png")
    return out.getvalue()


def test_a_bomb_is_a_sentence() -> None:
    with Decoder(Limits(max_pixels=10**9)) as decode:
        for size, reason in (
            ((30_000, 30_000), "memory|truncated|damaged"),
            ((2**31 - 1, 2**31 - 1), "pixels"),
        ):
            with pytest.raises(M3ScoreError, match=reason):
                decode(png_of(*size))


def test_a_pipe_that_takes_a_files_place_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "a.png")
    monkeypatch.setattr(files, "why_not_a_file", lambda *_: None)  # as if it had been a file a moment ago
    with pytest.raises(M3ScoreError, match="is a named pipe"):
        open_image(tmp_path / "a.png")


NAMES = [b"new\nline.png", b"quote\"'.png", b"=cmd().png", b"<script>.png", b"caf\xe9.png", b"a;b,c.png"]


def test_the_working_folder_may_change_and_the_old_one_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(_png(noise()))
    with Decoder() as decode:  # holds the worker: the next call is its second
        monkeypatch.chdir(tmp_path / "one")
        assert decode("a.png").size == (40, 30)
        monkeypatch.chdir(tmp_path / "two")
        shutil.rmtree(tmp_path / "one")
        assert decode("a.png").size == (40, 30)


def test_each_hostile_input_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        (tmp_path / os.fsdecode(name)).write_bytes(_png(noise()))
    (tmp_path / "zero.png").touch()
    (tmp_path / "dangling.png").symlink_to("nowhere")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "bomb.png").write_bytes(png_of(60_000, 60_000))
    (tmp_path / "cut.png").write_bytes(_png(noise())[:500])
    table = rank(tmp_path, model=FakeAnswerer())
    assert len(table) == len(NAMES) + 7
    assert table["error"].isna().sum() == len(NAMES)
    assert not table["error"].dropna().str.contains("\n").any()
    predicted = list(
        predict_many(find_images(tmp_path), max_drop=None, predictor=small_predictor(), limits=Limits())
    )
    assert sum(one.error is None for one in predicted) == len(NAMES)
    assert sorted(one.error or "" for one in predicted) == sorted(table["error"].fillna(""))


def test_a_name_that_spreadsheets_take_for_a_formula_stays_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("=cmd().png", "-1+1.png", "@x.png", "+x.png", "\tx.png"):
        (tmp_path / name).write_bytes(_png(noise()))
        (found,) = find_images(name)
        assert found.shown == f"./{name}" and guard_cell(found.shown) == found.shown
        assert os.path.samefile(found.shown, name) and not found.error
        (tmp_path / name).write_bytes(b"x")
    table = rank(["=cmd().png", "<script>.png"], model=FakeAnswerer())
    write_scores(table, tmp_path / "t.csv")
    with open(tmp_path / "t.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == ["./=cmd().png", "<script>.png"]
    assert rows[0]["error"] == "not an image that Pillow can read" and rows[1]["error"] == "no such file"


def test_a_deadly_picture_costs_its_row_only() -> None:
    codes = [9, 8, 7]
    found = list(
        map_images(os._exit, codes, 2, limits=Limits(), instead=lambda code, error: (code, str(error)))
    )
    assert found == [(code, f"the process that worked on it died (exit code {code})") for code in codes]


def test_one_of_a_batch_costs_its_row_only() -> None:
    found = list(
        map_images(
            fragile,
            range(90),
            2,
            limits=Limits(seconds=3),
            instead=lambda number, error: 1000 + number,
        )
    )
    assert found == [1000 + number if number in (DIES, HANGS) else -number for number in range(90)]


def test_what_one_of_a_batch_raises_comes_in_its_turn() -> None:
    numbers = map_images(int, [*map(str, range(70)), "x", "1"], 2, limits=Limits())
    assert [next(numbers) for _ in range(70)] == list(range(70))
    with pytest.raises(FailedThere, match="ValueError"):
        next(numbers)


def test_a_slow_source_holds_nothing_back() -> None:
    """Batches are not waited for: what is done is given while the source thinks."""
    taken = []

    def slowly() -> Iterator[str]:
        for k in range(50):
            taken.append(k)
            time.sleep(0.06 if k > 20 else 0)
            yield str(k)

    behind = [len(taken) - number for number in map_images(int, slowly(), 2, limits=Limits())]
    assert min(behind[25:40]) <= 4  # not the last ones: they come when the source has ended


def test_damaged_files_of_every_format() -> None:
    """A slice of tests/benchmarks/fuzz.py."""
    kinds = {name.split()[0] for name in originals()}
    assert {"JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "JPEG2000", "ICO", "TGA", "PPM"} <= kinds
    with Decoder(Limits(seconds=30)) as decode, ThreadPoolExecutor(2) as pool:
        results = list(pool.map(partial(outcome, decode), cases(300, seed=1)))
    assert len(results) == 300
    assert {came for _, came, _, _ in results} == {"picture", "sentence"}
