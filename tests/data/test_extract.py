"""Pictures of a report that are no files: members of shards, rows of tables and data sets, URLs."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from m3score.analysis.report.content import gather
from m3score.analysis.report.page import render
from m3score.analysis.report.pictures import Thumbnail
from m3score.cli.main import app
from m3score.common.errors import M3ScoreError
from m3score.data import extract
from m3score.data.discover import find_images
from m3score.data.extract import opened_images
from m3score.images.decode import open_image
from m3score.tables.io import write_scores
from tests.analysis.test_report import page_data
from tests.support.fakes import FakeAnswerer


def picture(level: int, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (level, 0, 255 - level)).save(buffer, form)
    return buffer.getvalue()


def write_shard(path: Path, names: list[str], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for number, name in enumerate(names):
            header, content = tarfile.TarInfo(name), picture(number)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return path


def write_parquet(path: Path, count: int) -> Path:
    images = [{"bytes": picture(number), "path": None} for number in range(count)]
    pq.write_table(pa.table({"image": images}), path, row_group_size=3)
    return path


def levels(paths: list[str], folder: Path, **options: Any) -> list[int | str]:
    """The red level of each picture, or why there is none."""
    said: list[int | str] = []
    with opened_images(paths, folder, **options) as find:
        for path in paths:
            try:
                said.append(int(np.asarray(open_image(find(path)))[0, 0, 0]))
            except M3ScoreError as error:
                said.append(str(error))
    return said


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_members_of_a_shard(tmp_path: Path, mode: str) -> None:
    suffix = {"w": "tar", "w:gz": "tar.gz"}[mode]
    names = [f"{number}.png" for number in range(9)] + ["twice.png", "twice.png", "a#2.png"]
    write_shard(tmp_path / f"s.{suffix}", names, mode)
    paths = [
        f"s.{suffix}/{name}" for name in ("8.png", "0.png", "twice.png#2", "twice.png", "a#2.png", "no.png")
    ]
    gone = ["gone.tar/1.png"]
    assert levels(paths + gone, tmp_path)[:-2] == [8, 0, 10, 9, 11]
    assert levels(paths + gone, tmp_path)[-2:] == [
        "not in there any more",
        "gone.tar, which it lies in, is gone",
    ]


def test_every_input_that_a_search_finds_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_shard(tmp_path / "s.tar", ["a.png", "b/c.png", "a.png"])
    write_parquet(tmp_path / "t.parquet", 7)
    (tmp_path / "plain.png").write_bytes(picture(200))
    raw = os.fsencode(tmp_path) + b"/\xff.png"
    Path(os.fsdecode(raw)).write_bytes(picture(201))
    sources = ["s.tar", "t.parquet", "plain.png", "plain.png", os.fsdecode(b"\xff.png"), "s.tar"]
    found = list(find_images(sources))
    expected = [0, 1, 2, *range(7), 200, 200, 201, 0, 1, 2]
    assert levels([item.shown for item in found], tmp_path / "elsewhere") == expected


def test_damage_is_told(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "s.tar", [f"{number}.png" for number in range(5)])
    shard.write_bytes(shard.read_bytes()[: 512 * 5])
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no")
    first, last, row = levels(["s.tar/0.png", "s.tar/4.png", "t.parquet/0"], tmp_path)
    assert first == 0 and "damaged" in str(last) and "parquet" in str(row)


@given(st.sets(st.integers(0, 11)))
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_of_a_parquet_file(tmp_path: Path, rows: set[int]) -> None:
    if not (tmp_path / "t.parquet").exists():
        write_parquet(tmp_path / "t.parquet", 10)
    paths = [f"t.parquet/{row}" for row in rows]
    expected = [row if row < 10 else "not in there any more" for row in rows]
    assert levels(paths, tmp_path) == expected


def test_rows_that_name_files_and_urls(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(picture(7))
    names = ["x.png", "https://example.invalid/x.png", (tmp_path / "x.png").as_uri()]
    pq.write_table(pa.table({"path": names}), tmp_path / "t.parquet")
    paths = [f"t.parquet/{row}" for row in range(3)]
    assert levels(paths, tmp_path) == [7, "at a URL, which only --fetch asks", 7]


def test_rows_of_data_sets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from m3score.data.sources.hf_datasets import DataSet

    content = [{"bytes": picture(number), "path": None} for number in range(6)]
    features = datasets.Features({"image": datasets.Image()})
    rows = datasets.Dataset.from_dict({"image": content}, features=features)
    rows.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "split"))
    (tmp_path / "files").mkdir()
    write_parquet(tmp_path / "files" / "train-0.parquet", 6)
    paths = [f"{name}/{row}" for name in ("saved", "split/train", "files/train") for row in (5, 1, 6)]
    expected = [5, 1, "not in there any more"] * 3
    assert levels(paths, tmp_path) == expected
    named = DataSet(str(tmp_path / "files"))
    assert levels([f"{tmp_path}/files/train/3"], Path("/"), data_sets=[named]) == [3]


def test_urls_are_asked_only_if_that_was_wanted(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe("/urls/a.png", picture(3))
    memory.pipe("/urls/s.tar", write_shard(tmp_path / "s.tar", ["b.png", "c.png"]).read_bytes())
    paths = ["memory://urls/a.png", "memory://urls/s.tar/c.png", "memory://urls/gone.png"]
    assert levels(paths, tmp_path) == ["at a URL, which only --fetch asks"] * 3
    *there, gone = levels(paths, tmp_path, fetch=True)
    assert there == [3, 1] and "no such file" in str(gone)


def test_copies_are_bounded_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract, "KEPT", 2 * len(picture(0)) + 20)
    write_shard(tmp_path / "s.tar", ["0.png", "1.png", "2.png"])
    with opened_images([f"s.tar/{number}.png" for number in range(3)], tmp_path) as find:
        copy = Path(find("s.tar/0.png"))
        assert copy.exists() and find("s.tar/1.png")
        with pytest.raises(M3ScoreError, match="left out"):
            find("s.tar/2.png")
    assert not copy.exists()


def test_a_page_of_a_shard_has_its_pictures_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("m3score.models.loading.load_model", lambda name, **options: FakeAnswerer())
    shard = write_shard(tmp_path / "s.tar", ["a.png", "b.png"])
    out = ["--out", str(tmp_path / "scores.csv"), "--report", str(tmp_path / "report.html")]
    result = CliRunner().invoke(app, ["rank", str(shard), "--scorer", "model", *out])
    assert result.exit_code == 0, result.stderr
    assert all(item["thumbnail"] for item in page_data((tmp_path / "report.html").read_text())["pictures"])
    shard.unlink()
    out = ["--out", str(tmp_path / "later.html")]
    result = CliRunner().invoke(app, ["report", str(tmp_path / "scores.csv"), *out])
    assert result.exit_code == 3 and "s.tar, which it lies in, is gone" in " ".join(result.stderr.split())
    page = (tmp_path / "later.html").read_text()
    assert "could not be opened for a thumbnail: s.tar, which it lies in, is gone (2)." in page


def test_a_page_that_shows_a_part_says_so(tmp_path: Path) -> None:
    rows = [
        {"path": f"{i}.png", "complexity": i / 50, "required_tokens": 9, "solved": True} for i in range(50)
    ]
    write_scores(rows, tmp_path / "scores.csv")
    report = gather(tmp_path / "scores.csv", pictures=10)
    report.thumbnails = [Thumbnail(None, None, None, "no such file")] * 10
    page = render(report)
    assert "10 of 50 pictures are shown" in page and "no such file (10)" in page
    assert page_data(page)["totals"]["show"]["9"] == 50
