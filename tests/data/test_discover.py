"""Finding images: folders, files, patterns, stdin; nothing hangs, nothing gets lost."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from m3score.data.discover import exists_somewhere, find_images
from m3score.data.item import ImageItem

Tree = Path


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """A folder with most of what folders can hold; the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "b" / "folder.jpg").mkdir(parents=True)
    (tmp_path / "a" / ".hidden").mkdir()
    for name in (
        "a/1.JPG",
        "a/b/2.webp",
        "a/b/folder.jpg/3.TiFf",
        "a/notes.txt",
        "a/no_suffix",
        "a/.dot.png",
        "a/.hidden/4.png",
    ):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "a" / "loop").symlink_to("..")
    (tmp_path / "a" / "gone.png").symlink_to("nowhere")
    (tmp_path / "link.jpeg").symlink_to("a/1.JPG")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    return tmp_path


def paths(found: list[ImageItem]) -> list[str]:
    return [item.path for item in found]


def test_folder_is_searched_in_order_with_what_is_skipped(tree: Tree) -> None:
    skipped: list[str] = []
    found = list(find_images("a", on_skip=skipped.append))
    assert paths(found) == [
        "a/1.JPG",
        "a/b/2.webp",
        "a/b/folder.jpg/3.TiFf",
        "a/gone.png",
        "a/loop/link.jpeg",
        "a/pipe.png",
    ]
    assert found[1].relative == "b/2.webp"
    errors = {item.path: item.error for item in found if item.error}
    assert errors == {
        "a/gone.png": "broken link: its target nowhere does not exist",
        "a/pipe.png": "is a named pipe, not an image file",
    }
    assert sorted(skipped) == ["a/no_suffix", "a/notes.txt"]


def test_named_files_are_always_taken(tree: Tree) -> None:
    found = list(find_images(["a/notes.txt", Path("a/.dot.png"), "missing.jpg", "a/1.JPG", "a/1.JPG"]))
    assert paths(found) == ["a/notes.txt", "a/.dot.png", "missing.jpg", "a/1.JPG", "a/1.JPG#2"]
    assert found[4].source == "a/1.JPG"
    assert [item.error for item in found] == [None, None, "no such file", None, None]
    assert found[0].relative == "notes.txt"


def test_one_real_folder_is_searched_once(tree: Tree) -> None:
    (tree / "again").symlink_to("a")
    assert paths(list(find_images(["a/b", "again/b", "a/b"]))) == ["a/b/2.webp", "a/b/folder.jpg/3.TiFf"]


def test_many_folders_linked_to_each_other_end(tmp_path: Path) -> None:
    names = [f"d{i}" for i in range(12)]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(b"x")
    for one in names:
        for other in names:
            (tmp_path / one / f"to_{other}").symlink_to(f"../{other}")
    assert len(list(find_images(tmp_path))) == 12
    assert len(list(find_images(str(tmp_path / "**" / "*.png")))) == 12


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a/*.JPG", ["a/1.JPG"]),
        ("a/*", ["a/1.JPG", "a/b/2.webp", "a/b/folder.jpg/3.TiFf", "a/gone.png"]),
        ("a/[1-9].*", ["a/1.JPG"]),
        ("a/*.txt", ["a/notes.txt"]),
        ("a/**", ["a/1.JPG", "a/b/2.webp", "a/b/folder.jpg/3.TiFf", "a/gone.png"]),
        ("**/*.webp", ["./a/b/2.webp"]),
        ("a/**/folder.jpg/*", ["a/b/folder.jpg/3.TiFf"]),
    ],
)
def test_patterns(pattern: str, expected: list[str], tree: Tree) -> None:
    (tree / "a" / "loop").unlink()
    (tree / "a" / "pipe.png").unlink()
    assert paths(list(find_images(pattern))) == expected


def test_pattern_without_a_match_is_a_row_with_an_error(tree: Tree) -> None:
    assert list(find_images("zz*.png")) == [ImageItem("zz*.png", "zz*.png", "no image matches this pattern")]


def test_file_whose_name_looks_like_a_pattern(tree: Tree) -> None:
    (tree / "photo[1].png").write_bytes(b"x")
    assert paths(list(find_images("photo[1].png"))) == ["photo[1].png"]


def test_pattern_does_not_use_up_a_folder(tree: Tree) -> None:
    found = list(find_images(["a/b/**/*.webp", "a/b"]))
    assert [item.name for item in found].count("a/b/2.webp") == 2


def test_stdin_lists_paths(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "with space.png").write_bytes(b"x")
    lines = b"\xef\xbb\xbfa/1.JPG\r\nwith space.png\n\na/b\nbad\xff.png\n*.png"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    found = list(find_images(["-"]))
    assert [item.shown for item in found] == [
        "a/1.JPG",
        "with space.png",
        "a/b/2.webp",
        "a/b/folder.jpg/3.TiFf",
        "bad\\xff.png",
        "*.png",
    ]


def test_search_is_lazy(tree: Tree) -> None:
    found = find_images(["a/1.JPG", "-"])  # stdin would fail under pytest
    assert next(found).path == "a/1.JPG"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folder_without_permission_is_a_row_with_an_error(tree: Tree) -> None:
    (tree / "a" / "b").chmod(0)
    errors = [item.error for item in find_images("a") if item.path == "a/b"]
    (tree / "a" / "b").chmod(0o755)
    assert errors == ["can't search this folder: permission denied"]


def test_folder_that_fails_while_listing(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> Iterator[os.DirEntry[str]]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    assert list(find_images("a")) == [ImageItem("a", ".", "can't search this folder: permission denied")]


def test_exists_somewhere(tree: Tree) -> None:
    assert exists_somewhere(["nope", "a/gone.png"])
    assert exists_somewhere(["-"]) and exists_somewhere(["x*", "a/**/*.webp"])
    assert exists_somewhere(["{nope,a}/*.JPG"])
    assert not exists_somewhere(["nope", "nope/too", "x*", "{nope,a}/*.gif"])
