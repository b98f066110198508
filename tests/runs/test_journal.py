"""The journal: every record whole or not there, whatever is cut off; inputs known again; long tables."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m3score.common.errors import M3ScoreError
from m3score.data.discover import find_images
from m3score.data.item import ImageItem
from m3score.runs.ranking import score_table
from m3score.runs.resume import input_state
from m3score.runs.resume.collector import Collector, ranked_rows
from m3score.runs.resume.external_sort import external_sort
from m3score.runs.resume.input_state import digest_of, has_changed, input_key, is_same
from m3score.runs.resume.journal import Journal, Record, journal_path, open_journal, written_by_earlier_run
from m3score.tables import io
from m3score.tables.io import write_rows, write_scores
from m3score.tables.schema import SCORES
from tests.support.fakes import grey

RUN = {"--rule": "stays", "--model": "0" * 64, "--question": ["What?"]}
AS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def record(name: str, complexity: float | None = 0.5, **key: Any) -> Record:
    return Record({"path": name, **key}, {"path": name, "complexity": complexity}, [{"image": name}])


def filled(out: Path, *names: str) -> list[int]:
    journal = open_journal(out, RUN)
    places = [journal.append(record(name)) for name in names]
    journal.close()
    return places


def names_in(out: Path, *names: str) -> list[str]:
    """Those of the names that the journal of `out` has a record of."""
    journal = open_journal(out, RUN)
    there = [name for name in names if list(journal.earlier(name))]
    assert journal.rows == len(there)
    journal.close()
    return there


# ---- the file -----------------------------------------------------------------------------------------


def test_records_come_back(tmp_path: Path) -> None:
    out = tmp_path / "s.csv"
    odd = 'a\tb\n"c"\udce9.png'
    (place, *_) = filled(out, odd, "b")
    assert journal_path(out) == tmp_path / ".s.csv.journal"
    journal = open_journal(out, RUN)
    assert [(where, found.row["path"]) for where, found in journal.earlier(odd)] == [(place, odd)]
    assert journal.read(place).traces == [{"image": odd}] and journal.row(place)["complexity"] == 0.5
    assert not list(journal.earlier("c"))
    journal.append(record(odd, 0.75))
    journal.remove()
    assert not journal_path(out).exists()


def test_what_nobody_asked_for_is_counted(tmp_path: Path) -> None:
    filled(tmp_path / "s.csv", "a", "b", "a", "c")
    journal = open_journal(tmp_path / "s.csv", RUN)
    assert journal.unasked() == 3
    list(journal.earlier("a")), list(journal.earlier("new"))
    journal.append(record("d"))
    assert journal.unasked() == 2
    journal.close()


def test_the_newest_record_is_found_first(tmp_path: Path) -> None:
    filled(tmp_path / "s.csv", "a")
    journal = open_journal(tmp_path / "s.csv", RUN)
    journal.append(record("a", 0.75))
    journal.close()
    journal = open_journal(tmp_path / "s.csv", RUN)
    assert [found.row["complexity"] for _, found in journal.earlier("a")] == [0.75, 0.5]
    journal.close()


def test_a_journal_cut_off_anywhere_loses_only_what_was_cut(tmp_path: Path) -> None:
    filled(tmp_path / "s.csv", "a", "b", "c")
    whole = journal_path(tmp_path / "s.csv").read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for cut in {*range(0, len(whole), 23), *ends, *(end - 1 for end in ends)}:
        out = tmp_path / "cut.csv"
        journal_path(out).write_bytes(whole[:cut])
        left = max(0, sum(end <= cut for end in ends) - 1)
        assert names_in(out, "a", "b", "c") == ["a", "b", "c"][:left]
        filled(out, "d")  # behind whatever was torn; a record that lacked its end of line alone is whole then
        left = max(0, sum(end - 1 <= cut for end in ends) - 1)
        assert names_in(out, "a", "b", "c", "d") == [*["a", "b", "c"][:left], "d"]


def test_damage_to_any_one_byte_costs_one_record_at_most(tmp_path: Path) -> None:
    out = tmp_path / "s.csv"
    filled(out, "a", "b", "c")
    whole = journal_path(out).read_bytes()
    begin = whole.index(b"\n") + 1
    for position in range(begin, len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        journal_path(out).write_bytes(bytes(damaged))
        journal = open_journal(out, RUN)
        left = [name for name in "abc" for _, found in journal.earlier(name) if found == record(name)]
        journal.close()
        assert len(left) >= 1 + (whole[position] != 10), f"byte {position - begin} of the records"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_never_makes_a_wrong_row(tmp_path: Path, data: st.DataObject) -> None:
    out = tmp_path / "s.csv"
    journal_path(out).unlink(missing_ok=True)
    filled(out, "a", "b", "c")
    content = bytearray(journal_path(out).read_bytes())
    begin = content.index(b"\n") + 1
    position = data.draw(st.integers(begin, len(content) - 1))
    length = data.draw(st.integers(1, 40))
    content[position : position + length] = data.draw(st.binary(max_size=40))
    journal_path(out).write_bytes(bytes(content))
    journal = open_journal(out, RUN)
    for name in "abc":
        assert all(found == record(name) for _, found in journal.earlier(name))
    journal.close()


def test_other_options_are_named(tmp_path: Path) -> None:
    out = tmp_path / "s.csv"
    filled(out, "a")
    with pytest.raises(
        M3ScoreError, match=r'--rule was "stays" then and is "first" now: give .* --overwrite'
    ):
        open_journal(out, {**RUN, "--rule": "first"})
    with pytest.raises(M3ScoreError, match="--model is not what it was"):
        open_journal(out, {**RUN, "--model": "1" * 64})
    with pytest.raises(M3ScoreError, match="--dtype"):
        open_journal(out, {**RUN, "--dtype": "float16"})
    assert names_in(out, "a") == ["a"]
    anew = open_journal(out, {**RUN, "--rule": "first"}, overwrite=True)
    assert anew.rows == 0
    anew.close()


def test_what_is_no_journal_is_left_alone(tmp_path: Path) -> None:
    journal_path(tmp_path / "s.csv").write_text("my notes\n")
    with pytest.raises(M3ScoreError, match=r"not a journal that this version .* --overwrite"):
        open_journal(tmp_path / "s.csv", RUN)
    assert journal_path(tmp_path / "s.csv").read_text() == "my notes\n"


def test_two_runs_at_once(tmp_path: Path) -> None:
    first = open_journal(tmp_path / "s.csv", RUN)
    with pytest.raises(M3ScoreError, match="another run is writing to this output now"):
        open_journal(tmp_path / "s.csv", RUN, overwrite=True)
    first.append(record("a"))
    first.close()
    assert names_in(tmp_path / "s.csv", "a") == ["a"]


def test_stdout_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    journal = open_journal("-", RUN)
    place = journal.append(record("a"))
    assert journal.anonymous and not os.listdir(tmp_path) and journal.row(place)["path"] == "a"
    journal.remove()


@pytest.mark.skipif(AS_ROOT, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(M3ScoreError, match="cannot write"):
        open_journal(tmp_path / "s.csv", RUN)


def test_a_folder_that_vanishes_costs_no_row(tmp_path: Path) -> None:
    out = tmp_path / "out" / "s.csv"
    out.parent.mkdir()
    journal = open_journal(out, RUN)
    journal.append(record("a"))
    shutil.rmtree(out.parent)
    journal.append(record("b"))
    with pytest.raises(
        M3ScoreError, match=r"vanished; the 2 rows so far are safe in .*\.s\.csv\.journal: give"
    ):
        journal.sync()
    journal.close()
    assert names_in(out, "a", "b") == ["a", "b"]


def test_a_folder_that_cannot_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    out = tmp_path / "out" / "s.csv"
    out.parent.mkdir()
    journal = open_journal(out, RUN)
    journal.append(record("a"))
    shutil.rmtree(out.parent)
    out.parent.write_text("in the way")
    with pytest.raises(M3ScoreError, match=r"safe in .*: move it to"):
        journal.sync()
    journal.close()
    out.parent.unlink()
    out.parent.mkdir()
    shutil.move(tmp_path / "tmp" / ".s.csv.journal", journal_path(out))
    assert names_in(out, "a") == ["a"]


def test_own_tables_are_known(tmp_path: Path) -> None:
    out, other = tmp_path / "s.csv", tmp_path / "t.csv"
    journal = open_journal(out, RUN)
    write_rows([{"path": "a", "complexity": 1.0}], out, SCORES, before_rename=journal.wrote)
    other.write_text("mine")
    assert written_by_earlier_run(out, out) and not written_by_earlier_run(out, other)
    journal.close()
    assert written_by_earlier_run(out, out)
    out.write_text("edited since")
    assert not written_by_earlier_run(out, out)


# ---- inputs -------------------------------------------------------------------------------------------


def file_key(path: Path) -> dict[str, Any]:
    """As a run writes it down."""
    key = input_key(ImageItem(str(path), path.name))
    key["digest"] = digest_of(key)
    return dict(json.loads(json.dumps(key)))


def same(path: Path, then: dict[str, Any], *, failed: bool = False) -> bool:
    return is_same(input_key(ImageItem(str(path), path.name)), then, failed=failed)


def test_an_untouched_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    then = file_key(path)
    monkeypatch.setattr(input_state, "digest_of", lambda key: pytest.fail("read"))
    assert same(path, then) and same(path, then, failed=True)


def test_content_decides_where_times_differ(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    then = file_key(path)
    shutil.copyfile(path, tmp_path / "copy")
    os.replace(tmp_path / "copy", path)  # another inode, the same content
    assert same(path, then)
    assert not same(path, then, failed=True)
    path.write_bytes(b"two")
    assert has_changed(then | {"status": tuple(then["status"])}) and not same(path, then)
    path.write_bytes(b"three")
    assert not same(path, then)
    path.unlink()
    assert not same(path, then) and not same(path, file_key(path), failed=True)


def test_what_could_not_be_read_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    then = {**file_key(path), "digest": None}
    assert same(path, then) and not same(path, then, failed=True)


def test_pipes_are_never_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    then = input_key(ImageItem(str(path), "a"))
    path.unlink()
    os.mkfifo(path)
    assert digest_of(then) is None


def test_contents_and_errors_are_known_again() -> None:
    first, second = ImageItem("s/1", "1", content=b"x"), ImageItem("s/1", "1", content=b"y")
    assert is_same(input_key(first), input_key(first), failed=True)
    assert not is_same(input_key(first), input_key(second), failed=False)
    broken, gone = ImageItem("a", "a", error="broken link"), ImageItem("a", "a", error="no such file")
    assert is_same(input_key(broken), input_key(broken), failed=True)
    assert not is_same(input_key(broken), input_key(gone), failed=True)


# ---- inputs to rows -----------------------------------------------------------------------------------


def collected(
    out: Path, folder: Path, *, stop: int = 10**9, block: int = 1
) -> tuple[list[str], list[dict[str, Any]]]:
    """A run that reads the inputs' bytes: the names that it did, and all rows."""
    journal = open_journal(out, RUN)
    collector = Collector(journal, block=block)
    did: list[str] = []
    for item in collector.to_do(find_images(folder)):
        if len(did) == stop:
            break
        did.append(Path(item.path).name)
        collector.keep({"path": item.shown, "complexity": 0.5, "width": len(Path(item.path).read_bytes())})
    rows = list(collector.rows())
    collector.close()
    journal.close()
    return did, rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for name in "abcdefg":
        grey(0).save(tmp_path / "in" / f"{name}.png")
    return tmp_path / "in"


def test_a_run_goes_on(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "s.csv"
    assert collected(out, folder, stop=3)[0] == ["a.png", "b.png", "c.png"]
    grey(9, (99, 99)).save(folder / "b.png")
    (folder / "c.png").unlink()
    grey(0).save(folder / "aa.png")
    did, rows = collected(out, folder)
    assert did == [f"{name}.png" for name in ("aa", "b", "d", "e", "f", "g")]
    assert [Path(row["path"]).stem for row in rows] == ["a", "aa", "b", "d", "e", "f", "g"]
    assert rows[2]["width"] == (folder / "b.png").stat().st_size
    assert collected(out, folder) == ([], rows)


def test_blocks_are_done_as_a_whole(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "s.csv"
    collected(out, folder, stop=5, block=3)
    did, rows = collected(out, folder, block=3)
    assert did == ["d.png", "e.png", "f.png", "g.png"] and len(rows) == 7


def test_what_may_pass_is_done_again_whatever_its_words(tmp_path: Path, folder: Path) -> None:
    def did(*, finishing: bool) -> list[str]:
        journal = open_journal(tmp_path / "s.csv", RUN)
        collector = Collector(journal)
        names = []
        for item in collector.to_do(find_images(folder)):
            names.append(Path(item.path).name)
            words = "the process that worked on it died" if "a.png" in item.path else "too large"
            transient = "b.png" in item.path and not finishing
            collector.keep({"path": item.path, "error": words}, transient=transient)
        collector.close()
        journal.close()
        return names

    assert len(did(finishing=False)) == 7
    assert did(finishing=True) == ["b.png"] and did(finishing=True) == []


def test_what_changes_meanwhile_is_done_again(tmp_path: Path, folder: Path) -> None:
    journal = open_journal(tmp_path / "s.csv", RUN)
    collector = Collector(journal)

    def work(items: Iterator[ImageItem]) -> None:
        for item in items:
            content = Path(item.path).read_bytes()
            if "b.png" in item.path and len(content) < 100:
                grey(9, (99, 99)).save(item.path)
            collector.keep({"path": item.path, "complexity": 0.1, "width": len(content)})

    work(collector.to_do(find_images(folder)))
    work(collector.changed())
    assert not list(collector.changed())
    rows = list(collector.rows())
    assert len(rows) == 7 and rows[1]["width"] == (folder / "b.png").stat().st_size > 100
    collector.close()
    journal.close()


def test_the_same_input_twice(tmp_path: Path, folder: Path) -> None:
    journal = open_journal(tmp_path / "s.csv", RUN)
    collector = Collector(journal)
    path = folder / "a.png"
    for item in collector.to_do(find_images([path, path])):
        collector.keep({"path": item.path, "complexity": 0.1})
    assert len(list(collector.rows())) == 2
    collector.close()
    journal.close()


# ---- tables -------------------------------------------------------------------------------------------

ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "path": st.sampled_from(["a", "b", "é", "B", "a\n"]),
            "complexity": st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1 / 3, 1.0])),
            "width": st.integers(0, 9),
            "solved": st.sampled_from([None, True, False]),
            "error": st.one_of(st.none(), st.just("bad")),
        }
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(1, 7))
def test_external_sort_is_a_stable_sort(rows: list[dict[str, Any]], run_rows: int) -> None:
    def key(row: dict[str, Any]) -> Any:
        return row["path"], row["complexity"] or 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("m3score.runs.resume.external_sort.MOST_RUNS", 3)
        assert list(external_sort(rows, key, run_rows=run_rows)) == sorted(rows, key=key)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROWS)
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_streamed_tables_are_those_of_frames(tmp_path: Path, suffix: str, rows: list[dict[str, Any]]) -> None:
    columns = ("agreement_1", "agreement_9")
    write_scores(score_table(rows, columns), tmp_path / f"whole.{suffix}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io, "CHUNK_ROWS", 4)
        write_rows(ranked_rows(rows), tmp_path / f"streamed.{suffix}", SCORES, columns)
    assert (tmp_path / f"streamed.{suffix}").read_bytes() == (tmp_path / f"whole.{suffix}").read_bytes()


def test_parquet_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet as pq

    rows = [{"path": f"{i}", "complexity": i / 9, "predicted_tokens": 9} for i in range(8)]
    rows.append({"path": "x", "error": "bad"})
    monkeypatch.setattr(io, "CHUNK_ROWS", 4)
    write_rows(ranked_rows(rows), tmp_path / "s.parquet", SCORES, ("predicted_tokens",))
    table = io.read_scores(tmp_path / "s.parquet")
    assert table["path"].tolist() == [*"76543210", "x"] and table["error"].tolist()[-2:] == [None, "bad"]
    assert pq.ParquetFile(tmp_path / "s.parquet").num_row_groups == 3
    assert str(pq.read_schema(tmp_path / "s.parquet").field("predicted_tokens").type) == "int64"


def test_a_full_disk_is_said_and_costs_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = open_journal(tmp_path / "s.csv", RUN)
    journal.append(record("a"))
    room = 20
    real = os.write

    def write(file: int, content: bytes) -> int:
        nonlocal room
        if room <= 0:
            raise OSError(28, "No space left on device")
        written = real(file, content[:room])
        room -= written
        return written

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(M3ScoreError, match=r"No space left on device.*what is done is kept"):
        journal.append(record("b"))
    assert journal.broken
    monkeypatch.undo()
    journal.append(record("c"))
    journal.close()
    assert names_in(tmp_path / "s.csv", "a", "b", "c") == ["a", "c"]


def test_journal_class_is_closed_twice_without_harm(tmp_path: Path) -> None:
    journal = Journal(tmp_path / ".x.journal")
    journal.close()
    journal.close()
