"""Images that are no files of their own: tar shards, parquet, data sets, URLs. All are real, none is far."""

from __future__ import annotations

import functools
import http.server
import io
import json
import logging
import os
import socket
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from m3score.cli.main import app
from m3score.common.errors import M3ScoreError
from m3score.common.limits import Limits
from m3score.data.discover import count_images, find_images
from m3score.data.item import Columns, ImageItem
from m3score.data.loader import QuestionBook, open_item
from m3score.data.naming import make_names_unique
from m3score.data.questions import Question
from m3score.data.sources.hf_datasets import DataSet
from tests.support.fakes import grey


def png(level: int) -> bytes:
    """A small grey image."""
    file = io.BytesIO()
    grey(level).save(file, "png")
    return file.getvalue()


def tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as file:  # type: ignore[call-overload]
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            file.addfile(header, io.BytesIO(content))
    return path


def told(found: Any) -> list[tuple[str, str | None]]:
    return [(item.path, item.error) for item in found]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    return tmp_path


# ---- tar shards ---------------------------------------------------------------------------------------

MEMBERS = {
    "000.png": png(0),
    "000.json": json.dumps({"question": "What?", "answer": "that", "metric": "anls"}).encode(),
    "000.txt": b"a caption",
    "sub/001.JPG": png(80),
    "._002.png": b"a Mac was here",
    "003.webp": b"",
}


@pytest.mark.parametrize(
    ("suffix", "mode"), [("tar", "w"), ("tar.gz", "w:gz"), ("tar.xz", "w:xz"), ("tgz", "w")]
)
def test_a_shard_is_read_member_by_member(suffix: str, mode: str, here: Path) -> None:
    tar(here / f"s.{suffix}", MEMBERS, mode)
    skipped: list[str] = []
    found = list(find_images(f"s.{suffix}", on_skip=skipped.append))
    assert told(found) == [
        (f"s.{suffix}/000.png", None),
        (f"s.{suffix}/sub/001.JPG", None),
        (f"s.{suffix}/003.webp", "empty file (0 bytes)"),
    ]
    assert found[0].content == MEMBERS["000.png"] and skipped == [f"s.{suffix}/000.txt"]
    assert found[0].questions == (Question("What?", ("that",), metric="anls"),) and not found[1].questions
    opened = open_item(found[0], QuestionBook())
    assert opened.image.size == (16, 12) and opened.questions == found[0].questions
    assert open_item(found[1], QuestionBook({"001.JPG": "Why?"})).questions == (Question("Why?"),)


def test_braces_and_patterns_name_many_shards(here: Path) -> None:
    for number in (8, 9, 10):
        tar(here / f"d-{number:02d}.tar", {"x.png": png(number)})
    expected = ["d-08.tar/x.png", "d-09.tar/x.png", "d-10.tar/x.png"]
    assert [item.path for item in find_images("d-{08..10}.tar")] == expected
    assert [item.path for item in find_images("d-*.tar")] == expected
    assert [item.path for item in find_images("d-{10,08}.tar")] == [expected[2], expected[0]]
    assert list(find_images(here)) == []  # a folder gives its pictures, not what may be a backup


@pytest.mark.parametrize("size", [100, 512, 600, 1024, 1500, 2048, 2600])
def test_a_shard_that_ends_too_soon_costs_one_row(size: int, here: Path) -> None:
    whole = tar(here / "whole.tar", {"a.png": png(1), "b.png": png(2), "c.png": png(3)}).read_bytes()
    (here / "cut.tar").write_bytes(whole[:size])
    found = list(find_images(["cut.tar", "whole.tar"]))
    assert [item.path for item in found[-3:]] == [f"whole.tar/{name}.png" for name in "abc"]
    cut = found[:-3]
    complete = sum(size >= 1024 * (i + 1) or 1024 * i + 512 + len(png(i + 1)) <= size for i in range(3))
    assert [item.error is None for item in cut] == [True] * (len(cut) - 1) + [False]
    assert len(cut) - 1 <= complete and cut[-1].path.startswith("cut.tar") and "tar" in cut[-1].path
    assert "damaged" in str(cut[-1].error) or "not a tar file" in str(cut[-1].error)


def test_a_damaged_header_is_not_taken_for_the_end(here: Path) -> None:
    whole = bytearray(tar(here / "s.tar", {"a.png": png(1), "b.png": png(2)}).read_bytes())
    whole[1024:1100] = b"\xff" * 76
    (here / "s.tar").write_bytes(whole)
    (here / "no.tar.gz").write_bytes(b"not at all")
    first, second, third, fourth = find_images(["s.tar", "no.tar.gz", "missing.tar"])
    assert first.error is None and second.path == "s.tar" and "damaged after a.png" in str(second.error)
    assert "not a tar file" in str(third.error) and fourth.error == "no such file"


def test_a_shard_is_never_in_memory_as_a_whole(here: Path) -> None:
    noise = os.urandom(2**20)
    tar(here / "big.tar", {f"{i:04d}.jpg": noise for i in range(64)})
    code = (
        "import resource, sys; from m3score.data.discover import find_images\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak(); n = sum(1 for _ in find_images('big.tar')); print(n, peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    number, kilobytes = map(int, done.stdout.split())
    assert number == 64 and kilobytes < 16_000


def test_questions_in_a_shard_that_make_no_sense_are_an_error(here: Path) -> None:
    asked = {
        "a.png": png(1),
        "a.json": b'{"question": "Q", "metric": "no such"}',
        "b.png": png(2),
        "b.json": b"{",
    }
    tar(here / "s.tar", asked)
    first, second = find_images("s.tar")
    assert "a.json" in str(first.error) and "no such" in str(first.error)
    assert second.error is None and second.questions == ()
    assert [item.error for item in find_images("s.tar", columns=Columns(question=""))] == [None, None]


# ---- parquet ------------------------------------------------------------------------------------------


def test_parquet_with_bytes_in_every_shape(here: Path) -> None:
    (here / "on_disk.png").write_bytes(png(3))
    blobs = [png(1), None, png(2)]
    pq.write_table(pa.table({"n": [1, 2, 3], "pic": pa.array(blobs, pa.binary())}), here / "plain.parquet")
    struct = [{"bytes": png(1), "path": None}, {"bytes": None, "path": "on_disk.png"}, None]
    asked = pa.array(["One?", None, "Three?"])
    pq.write_table(pa.table({"image": struct, "question": asked}), here / "struct.parquet", row_group_size=1)
    pq.write_table(pa.table({"path": ["on_disk.png", "gone.png", "on_disk.png"]}), here / "paths.parquet")
    plain = list(find_images("plain.parquet"))
    assert told(plain) == [
        ("plain.parquet/0", None), ("plain.parquet/1", "no image in this row"), ("plain.parquet/2", None)
    ]  # fmt: skip
    rows = list(find_images("struct.parquet"))
    assert [row.questions for row in rows] == [(Question("One?"),), (), ()]
    assert [open_item(row, QuestionBook()).error for row in rows] == [None, None, "no image in this row"]
    paths = list(find_images(here / "paths.parquet"))
    assert [open_item(row, QuestionBook()).error for row in paths] == [None, "no such file", None]
    assert count_images(["plain.parquet", "struct.parquet"]) == 6


def test_parquet_that_is_damaged_costs_its_rows_only(here: Path) -> None:
    table = pa.table({"image": pa.array([os.urandom(5000) for _ in range(30)], pa.binary())})
    pq.write_table(table, here / "t.parquet", row_group_size=10, compression="zstd", write_page_checksum=True)
    where = pq.read_metadata(here / "t.parquet").row_group(1).column(0)
    raw = bytearray((here / "t.parquet").read_bytes())
    start = where.data_page_offset
    raw[start : start + 40] = b"\xff" * 40
    (here / "t.parquet").write_bytes(raw)
    (here / "no.parquet").write_bytes(b"PAR1")
    found = list(find_images(["t.parquet", "no.parquet"]))
    failed = [(item.path, str(item.error)) for item in found if item.error]
    assert [path for path, _ in failed] == ["t.parquet/10", "no.parquet"]
    assert "to row 19" in failed[0][1] and "not a parquet file" in failed[1][1]
    assert len(found) == 22


def test_columns_of_a_table_are_named_in_the_error(here: Path) -> None:
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), here / "t.parquet")
    (only,) = find_images("t.parquet")
    assert only.error == "no column 'image' (--image-column); there are a, b."
    (only,) = find_images("t.parquet", columns=Columns(image="a"))
    assert only.error == "no image in the column a, but int"


# ---- data sets ----------------------------------------------------------------------------------------


@pytest.fixture
def saved(here: Path) -> datasets.Dataset:
    rows = {
        "picture": [{"bytes": png(i), "path": None} for i in range(3)],
        "question": [["One?", "Two?"], ["One?"], []],
        "answers": [["1", "2"], ["1"], []],
    }
    strings = datasets.List(datasets.Value("string"))
    features = datasets.Features(picture=datasets.Image(), question=strings, answers=strings)
    data = datasets.Dataset.from_dict(rows, features=features)
    data.save_to_disk("saved")
    (here / "folder").mkdir()
    data.to_parquet("folder/train-0.parquet")
    data.to_parquet("folder/test-0.parquet")
    return data


def test_data_sets_saved_and_as_folders_of_parquet(saved: datasets.Dataset) -> None:
    disk, folder = DataSet("saved"), DataSet("folder", "test")
    assert [item.path for item in find_images(disk)] == ["saved/0", "saved/1", "saved/2"]
    found = list(find_images(folder))
    assert [item.path for item in found] == ["folder/test/0", "folder/test/1", "folder/test/2"]
    assert found[1].content == png(1)  # as encoded: nobody decoded it on the way
    assert found[0].questions == (Question("One?", ("1",)), Question("Two?", ("2",)))
    assert disk.count() == count_images(disk) == 3
    assert not any(item.questions for item in find_images(DataSet("saved", columns=Columns(question=""))))


def test_data_sets_that_are_not_there(saved: datasets.Dataset) -> None:
    for wrong, said in {
        DataSet("folder"): "--split has to be one of train, test",
        DataSet("saved", "test"): "no splits",
        DataSet("saved", columns=Columns(image="x")): "no column 'x'.*picture, question, answers",
        DataSet("nobody/nothing"): "nobody/nothing: can't be loaded",
    }.items():
        with pytest.raises(M3ScoreError, match=said):
            wrong.check()


# ---- URLs ---------------------------------------------------------------------------------------------


@pytest.fixture
def server(here: Path) -> Iterator[str]:
    """The folder `www`, served on this machine."""
    (here / "www" / "sub").mkdir(parents=True)
    for number in range(3):
        (here / "www" / f"{number}.png").write_bytes(png(number))
    tar(here / "www" / "s.tar", {"a.png": png(9)})
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(here / "www"))
    handler.func.log_message = lambda *args: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as http_server:
        thread = threading.Thread(target=http_server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http_server.server_port}"
        http_server.shutdown()
        thread.join()


def test_pictures_shards_and_tables_over_http(server: str, here: Path) -> None:
    pq.write_table(pa.table({"url": [f"{server}/2.png", f"{server}/none.png"]}), here / "urls.parquet")
    given = [f"{server}/{{0..1}}.png", f"{server}/gone.png", f"{server}/s.tar", "urls.parquet"]
    found = list(find_images(given))
    assert told(found) == [
        (f"{server}/0.png", None),
        (f"{server}/1.png", None),
        (f"{server}/gone.png", "can't be fetched (no such file)"),
        (f"{server}/s.tar/a.png", None),
        ("urls.parquet/0", None),
        ("urls.parquet/1", "can't be fetched (no such file)"),
    ]
    assert found[1].content == png(1) and found[3].content == png(9) and found[4].content == png(2)


def test_a_connection_that_is_refused_is_no_missing_file() -> None:
    pytest.importorskip("aiohttp")
    with socket.socket() as free:  # bound, but nobody listens
        free.bind(("127.0.0.1", 0))
        (found,) = find_images(f"http://127.0.0.1:{free.getsockname()[1]}/a.png")
    assert found.error and "connect" in found.error.lower() and "no such file" not in found.error


def test_archives_and_other_file_systems(here: Path) -> None:
    import fsspec

    with zipfile.ZipFile("x.zip", "w") as file:
        file.writestr("a/1.png", png(1))
        file.writestr("a/2.png", png(2))
    memory = fsspec.filesystem("memory")
    for name in ("b/2.png", "b/1.png", "notes.txt"):
        memory.pipe(f"/m3score/{name}", png(5))
    inside = ["zip://a/1.png::x.zip", "zip://a/2.png::x.zip"]
    assert [item.path for item in find_images("zip://a/*.png::x.zip")] == inside
    skipped: list[str] = []
    found = list(find_images("memory://m3score", on_skip=skipped.append))
    assert [item.path for item in found] == ["memory://m3score/b/1.png", "memory://m3score/b/2.png"]
    assert found[0].relative == "b/1.png" and found[0].content == png(5) and len(skipped) == 1
    os.mkfifo("pipe.png")
    (pipe,) = find_images(f"file://{here}/pipe.png")
    assert pipe.error == "is a named pipe, not an image file"


def test_a_protocol_without_its_package_is_one_sentence() -> None:
    first, second = find_images(["sftp://host/x.png", "foo://x"])
    assert "paramiko" in str(first.error) or "fetched" in str(first.error)
    assert "Protocol not known: foo" in str(second.error)


# ---- names --------------------------------------------------------------------------------------------


def test_names_that_repeat_are_kept_apart_and_said(caplog: pytest.LogCaptureFixture) -> None:
    names = ["a", "b", "a", "a#2", "a", "b"]
    with caplog.at_level(logging.WARNING):
        found = list(make_names_unique(ImageItem(name, name) for name in names))
    assert [item.path for item in found] == ["a", "b", "a#2", "a#2#2", "a#3", "b#2"]
    assert [item.source for item in found] == names
    assert caplog.text.count("more than once") == 1 and "a#2" in caplog.text


def test_many_names_take_little_memory() -> None:
    import tracemalloc

    tracemalloc.start()
    found = sum(1 for _ in make_names_unique(ImageItem(f"folder/{i}.jpg", "") for i in range(20_000)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == 20_000 and peak < 20_000 * 45  # while the table grows there are two


# ---- commands -----------------------------------------------------------------------------------------


def test_a_saved_data_set_is_read_where_a_folder_is_given(saved: datasets.Dataset, here: Path) -> None:
    def rank(*words: str) -> Any:
        return CliRunner().invoke(
            app, ["rank", "--scorer", "jpeg", "--out", "s.jsonl", "--overwrite", *words]
        )

    def paths() -> list[str]:
        return sorted(json.loads(line)["path"] for line in (here / "s.jsonl").read_text().splitlines())

    assert rank("saved", "--image-column", "picture").exit_code == 0
    assert paths() == ["saved/0", "saved/1", "saved/2"]
    datasets.DatasetDict({"one": saved, "two": saved}).save_to_disk("several")
    unsaid, wrong = rank("several"), rank("folder", "--split", "one")
    assert unsaid.exit_code == 2 and "--split has to be one of one, two." in unsaid.stderr
    assert rank("several", "--split", "two").exit_code == 0
    assert paths() == ["several/two/0", "several/two/1", "several/two/2"]
    assert wrong.exit_code == 2 and "--split goes with --dataset, or with a data set that was" in wrong.stderr
    (here / "photos").mkdir()
    (here / "photos" / "a.png").write_bytes(png(1))
    (here / "photos" / "state.json").write_text("{}")  # one such file does not make a data set
    assert rank("photos").exit_code == 0 and paths() == ["photos/a.png"]


def test_rank_takes_what_predict_takes_and_nothing_calls_home(
    saved: datasets.Dataset, monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    from typer.testing import CliRunner

    from m3score.cli.main import app
    from tests.support.predictors import small_predictor

    def refuse(*args: Any) -> Any:
        raise AssertionError(f"network: {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    small_predictor(calibration=100).save(here / "p.predictor")
    tar(here / "s.tar", {"a.png": png(1)})
    runner = CliRunner()
    sources = ["s.tar", "folder/test-0.parquet", "--dataset", "folder", "--split", "train"]
    for command in (["predict", "--predictor", "p.predictor"], ["rank", "--model", "m3-tiny"]):
        result = runner.invoke(app, [*command, *sources, "--out", f"{command[0]}.jsonl"])
        assert result.exit_code == 0, result.stderr
        rows = [json.loads(line) for line in (here / f"{command[0]}.jsonl").read_text().splitlines()]
        assert {row["path"] for row in rows} == {
            "s.tar/a.png",
            *(f"folder/test-0.parquet/{i}" for i in range(3)),
            *(f"folder/train/{i}" for i in range(3)),
        }


def test_options_of_data_sets_need_a_data_set() -> None:
    from typer.testing import CliRunner

    from m3score.cli.main import app

    for arguments in (["rank"], ["rank", "x.tar", "--split", "test"], ["rank", "--streaming", "x.tar"]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2 and "--dataset" in result.stderr


# ---- limits -------------------------------------------------------------------------------------------


def test_max_bytes_holds_wherever_an_image_lies(here: Path) -> None:
    import fsspec

    small, large = png(0), png(0) + bytes(1000)
    tar(here / "s.tar", {"a.png": small, "b.png": large})
    pq.write_table(pa.table({"image": [small, large, None]}), here / "t.parquet")
    with fsspec.open("memory://m/c.png", "wb") as file:
        file.write(large)
    rows = datasets.Dataset.from_dict({"image": [large]}).cast_column("image", datasets.Image())
    rows.save_to_disk("saved")
    given = ["s.tar", "t.parquet", "memory://m/c.png"]
    found = [*find_images(given, max_bytes=500), *DataSet("saved", max_bytes=500).images()]
    beyond = "more than the limit of 500 for an image in a shard, a row or a URL"
    assert told(found) == [
        ("s.tar/a.png", None),
        ("s.tar/b.png", f"{len(large):,} bytes, {beyond}"),
        ("t.parquet/0", None),
        ("t.parquet/1", f"{len(large):,} bytes, {beyond}"),
        ("t.parquet/2", "no image in this row"),
        ("memory://m/c.png", beyond.replace("more", "more bytes")),
        ("saved/0", f"{len(large):,} bytes, {beyond}"),
    ]


def test_a_higher_max_bytes_is_heeded_too(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--max-bytes` given means it: the default for shards does not stand in the way."""
    assert Limits().max_embedded_bytes < 2**29 == Limits.of(10, 2**29, 1).max_embedded_bytes
    tar(here / "s.tar", {"a.png": png(0)})
    seen: list[int] = []

    def no_images(*_: Any, max_bytes: int, **__: Any) -> Iterator[ImageItem]:
        seen.append(max_bytes)
        return iter(())

    monkeypatch.setattr("m3score.data.discover.shard_images", no_images)
    for option in (["--max-bytes", "9"], ["--max-bytes", str(2**29)], []):
        result = CliRunner().invoke(app, ["rank", "s.tar", "--scorer", "jpeg", *option])
        assert "no images found" in result.output
    assert seen == [9, 2**29, Limits().max_embedded_bytes]
