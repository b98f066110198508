"""Tables come back as they went, whatever the format; mistakes in files are named with their line."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m3score.common.errors import M3ScoreError
from m3score.data.questions import Question, read_questions
from m3score.scoring.traces import TraceRow
from m3score.tables.formats import FORMATS, guard_cell, unguard_cell
from m3score.tables.io import read_scores, read_traces, write_scores, write_traces
from m3score.tables.schema import (
    SCORE_COLUMNS,
    SCORES,
    TRACE_COLUMNS,
    TRACES,
    conform,
    printable,
    score_columns,
)

SUFFIXES = ("csv", "jsonl", "parquet")

SCORE: dict[str, Any] = {
    "rank": 1, "path": "a/b.png", "complexity": 0.1 + 0.2, "effective_tokens": 36.0, "required_tokens": 36,
    "solved": True, "monotone": False, "agreement_144": 1.0, "agreement_9": 1 / 3, "questions": 2,
    "width": 640,
    "height": 480, "error": None,
}  # fmt: skip
FAILED: dict[str, Any] = {"path": "bad.png", "error": "no image:\n truncated"}

TEXT = st.text(max_size=12)
FLOAT = st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False))
WHOLE = st.integers(-(2**63), 2**63 - 1)
BOOL = st.one_of(st.none(), st.booleans())
TRACE_ROW = st.fixed_dictionaries(
    {
        "image": TEXT, "question_id": WHOLE, "question": TEXT, "tokens": st.one_of(st.none(), WHOLE),
        "answer": TEXT, "agreement": FLOAT, "consistent": BOOL, "metric": st.sampled_from([None, "anls"]),
        "metric_score": FLOAT, "correct": BOOL, "references": st.lists(TEXT, max_size=3),
        "options": st.lists(TEXT, max_size=2), "error": st.sampled_from([None, '=a, "b"\r\n']),
    }
)  # fmt: skip


def assert_same(got: pd.DataFrame, wanted: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(got, wanted, check_exact=True)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_scores_come_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scores.{suffix}"
    write_scores([SCORE, FAILED], path)
    table = read_scores(path)
    assert_same(table, conform([SCORE, FAILED], SCORES))
    assert tuple(table.columns) == score_columns((9, 144))
    assert table["required_tokens"].tolist() == [36, pd.NA]
    assert table.loc[0, "complexity"] == 0.1 + 0.2 and table["complexity"].isna()[1]
    assert table.loc[0, "solved"] is True or bool(table.loc[0, "solved"])
    assert table.loc[0, "error"] is None and table.loc[1, "error"] == FAILED["error"]
    first = path.read_bytes()
    write_scores(table, path)
    assert path.read_bytes() == first or suffix == "parquet"
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(TRACE_ROW, max_size=4))
def test_any_trace_comes_back(tmp_path: Path, suffix: str, rows: list[dict[str, Any]]) -> None:
    path = tmp_path / f"trace.{suffix}"
    write_traces(rows, path)
    assert_same(read_traces(path), conform(rows, TRACES))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "name",
    ["a\nb.png", 'say "x".png', "a,b.png", "caf\udce9.png", "\ud800.png", "=1+1.png", "'=x", "'tis.png", "-5",
     "+5", "@x", "\tx", "\rx", "\x00", "\u2028\x85\x0b", "", " ", "NaN", "null", "true", "007", "\ufeffx"],
)  # fmt: skip
def test_odd_names_come_back(tmp_path: Path, suffix: str, name: str) -> None:
    path = tmp_path / f"scores.{suffix}"
    write_scores([{**SCORE, "path": name}], path)
    assert read_scores(path).loc[0, "path"] == printable(name)


def test_printable() -> None:
    assert printable("caf\udce9") == "caf\\xe9"
    assert printable("caf\u00e9") == "caf\u00e9"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_empty_tables(tmp_path: Path, suffix: str) -> None:
    write_traces([], tmp_path / f"t.{suffix}")
    table = read_traces(tmp_path / f"t.{suffix}")
    assert tuple(table.columns) == TRACE_COLUMNS and len(table) == 0
    assert_same(table, conform([], TRACES))


def test_csv_is_plain_and_safe(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    write_scores([{**SCORE, "path": "=cmd()", "complexity": -0.5}], path)
    header, row = csv.reader(io.StringIO(path.read_text()))
    assert header == list(score_columns((9, 144)))
    record = dict(zip(header, row, strict=True))
    assert record["path"] == "'=cmd()" and record["complexity"] == "-0.5"
    assert (record["solved"], record["required_tokens"], record["error"]) == ("true", "36", "")


@given(st.text(alphabet="'=+-@\t\r\na1", max_size=6))
def test_guard_is_undone(text: str) -> None:
    assert unguard_cell(guard_cell(text)) == text
    assert guard_cell(text)[:1] not in ("=", "+", "-", "@", "\t", "\r", "\n")


def test_jsonl_is_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    write_scores([SCORE, FAILED], path)
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first["required_tokens"] == 36 and first["solved"] is True
    assert second["complexity"] is None and second["required_tokens"] is None


def test_columns_of_the_trace_are_the_fields_of_its_rows() -> None:
    assert (*TraceRow.__dataclass_fields__, "error") == TRACE_COLUMNS
    assert SCORE_COLUMNS[0] == "rank" and SCORE_COLUMNS[-1] == "error"
    ordered = score_columns((576, 1, 36))
    assert ordered[ordered.index("monotone") + 1 :][:3] == ("agreement_1", "agreement_36", "agreement_576")


def test_extra_columns_stay_behind_the_known_ones(tmp_path: Path) -> None:
    write_scores([{"label": "=x", **SCORE}], tmp_path / "s.csv")
    table = read_scores(tmp_path / "s.csv")
    assert tuple(table.columns)[-2:] == ("label", "error") and table.loc[0, "label"] == "=x"


def test_format_by_name_and_stdout(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    write_scores([SCORE], tmp_path / "s.txt", format="jsonl")
    assert read_scores(tmp_path / "s.txt", format="jsonl").loc[0, "path"] == "a/b.png"
    write_scores([SCORE], "-")
    assert capsysbinary.readouterr().out.startswith(b"rank,path,complexity")
    write_scores([SCORE], "-", format="jsonl")
    assert json.loads(capsysbinary.readouterr().out)["rank"] == 1


def test_a_failed_write_leaves_the_old_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scores.csv"
    write_scores([SCORE], path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(M3ScoreError, match=r"scores\.csv: cannot write \(No space left"):
        write_scores([FAILED], path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["scores.csv"]


@pytest.mark.skipif(sys.platform == "win32", reason="links and modes")
def test_links_and_modes_survive(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.csv").symlink_to(tmp_path / "real" / "s.csv")
    write_scores([SCORE], tmp_path / "link.csv")
    assert (tmp_path / "link.csv").is_symlink() and (tmp_path / "real" / "s.csv").is_file()
    plain = tmp_path / "plain"
    plain.touch()
    assert (tmp_path / "real" / "s.csv").stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.xlsx", b"", r"t\.xlsx: unknown table suffix '\.xlsx'; allowed: \.csv, \.jsonl, \.ndjson"),
        ("t.csv", None, r"t\.csv: no such file"),
        ("t.csv", b"path\nx\n", r"t\.csv: a score table needs .* path, complexity; missing: complexity"),
        ("t.csv", b"path,complexity\nx\n", r"t\.csv, line 2: 1 cells under 2 columns"),
        ("t.csv", b"path,complexity\nx,much\n", r"line 2: column 'complexity': needs a number, not 'much'"),
        ("t.csv", b"path,complexity,rank\nx,1,1.5\n", "'rank': needs a whole number, not '1.5'"),
        ("t.csv", b"path,complexity,solved\nx,1,maybe\n", "'solved': needs true or false, not 'maybe'"),
        ("t.csv", b'path,complexity\n"x,1\n', r"t\.csv, line 2: unexpected end of data"),
        ("t.csv", b"path,path\nx,1\n", r"t\.csv, line 1: a column appears twice"),
        ("t.csv", b"\xff\xfe", r"t\.csv: not UTF-8 text \(byte 0\)"),
        ("t.jsonl", b'{"path": "x", "complexity": 1}\n{"path"', r"t\.jsonl, line 2: not JSON"),
        ("t.jsonl", b"[1]", r"t\.jsonl, line 1: every line has to be a JSON object"),
        ("t.jsonl", b'{"path": "x", "complexity": "much"}', r"not a score table \(column 'complexity' needs"),
        ("t.parquet", b"nonsense", r"t\.parquet: not a readable parquet file"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(M3ScoreError, match=message):
        read_scores(tmp_path / name)


def test_places_that_cannot_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(M3ScoreError, match="cannot write"):
        write_scores([SCORE], tmp_path / "none" / "s.csv")
    with pytest.raises(M3ScoreError, match="unknown table format 'xml'; allowed: csv, jsonl, parquet"):
        write_scores([SCORE], tmp_path / "s.csv", format="xml")
    assert set(FORMATS) == {"csv", "jsonl", "parquet"}


def test_tables_of_other_programs(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_bytes(
        "\ufeffpath,complexity,solved,required_tokens\r\nx,0.5,True,36.0\r\n\r\ny,,,\r\n".encode()
    )
    table = read_scores(path)
    assert table["required_tokens"].tolist() == [36, pd.NA] and table["solved"].tolist() == [True, pd.NA]


# ---- questions ----------------------------------------------------------------------------------------


def questions(tmp_path: Path, name: str, content: str) -> dict[str, list[Question]]:
    (tmp_path / name).write_text(content, encoding="utf-8")
    return read_questions(tmp_path / name)


def test_questions_from_csv(tmp_path: Path) -> None:
    found = questions(
        tmp_path,
        "q.csv",
        "\ufeffimage,question,answers,options,metric,split\n"
        'a.png,What?,"[""one, two"", 2]",,anls,test\n'
        "a.png,Who?,sofa | couch,,,\n"
        'b.png,"Which?\nA. x B. y",B,x|y,,\n'
        "b.png,Why?,,,,\n",
    )
    assert found == {
        "a.png": [Question("What?", ("one, two", "2"), (), "anls"), Question("Who?", ("sofa", "couch"))],
        "b.png": [Question("Which?\nA. x B. y", ("B",), ("x", "y")), Question("Why?")],
    }


def test_questions_from_jsonl(tmp_path: Path) -> None:
    lines = [
        {"image": "a", "question": "q", "answers": ["x|y", 3], "options": None, "id": 7},
        {"image": "a", "question": "q", "answers": "z"},
        {"image": "a", "question": "r"},
    ]
    found = questions(tmp_path, "q.jsonl", "\n".join(json.dumps(line) for line in lines) + "\n\n")
    assert found == {"a": [Question("q", ("x|y", "3", "z")), Question("r")]}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("q.csv", "image;question;answers\na;Which, of two?;x|y\n", "semicolons between its columns"),
        ("q.csv", '"image"\t"question"\t"answers"\r\na\t"Which, of two?"\tx|y\r\n', "has tabs between"),
        ("q.csv", 'Image,question ,Answer\na,"Which, of two?",x|y\n',
         "takes the column 'Image' for image, 'question ' for question, 'Answer' for answers"),
        ("q.jsonl", '{"IMAGE": "a", "question": "Which, of two?", "answer": ["x", "y"]}\n',
         "takes the column 'IMAGE' for image, 'answer' for answers"),
    ],
)  # fmt: skip
def test_other_delimiters_and_spellings_are_taken_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, content: str, said: str
) -> None:
    with caplog.at_level(logging.WARNING):
        assert questions(tmp_path, name, content) == {"a": [Question("Which, of two?", ("x", "y"))]}
    assert said in caplog.text and len(caplog.records) == 1


def test_semicolons_in_a_file_with_commas(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = questions(tmp_path, "q.csv", "image,question,answers\na,One; or two?,1;2\n")
    assert found == {"a": [Question("One; or two?", ("1;2",))]} and not caplog.records


def test_repeated_rows_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = questions(tmp_path, "q.csv", "image,question,answers\na,q,x\na,q,x\n")
    assert found == {"a": [Question("q", ("x",))]}
    assert "line 3 repeats an earlier row" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.txt", "", r"q\.txt: unknown suffix '\.txt' of questions; allowed: \.csv, \.jsonl"),
        ("q.csv", "", r"q\.csv: empty file"),
        ("q.csv", "\n", r"q\.csv, line 1: missing column image, question"),
        ("q.csv", "image,question\na,q\0\n", r"line 2: a question with a NUL character"),
        ("q.jsonl", '{"image": "a", "question": "q", "question": "r"}', r"line 1: the key 'question' appear"),
        ("q.jsonl", '{"image": "a", "question": "\\ud800"}', r"line 1: a question that is not valid Unicode"),
        ("q.jsonl", '{"image": ["a"], "question": "q"}', r"line 1: no image given"),
        ("q.csv", "image,text\n", r"missing column question; needed are image and question"),
        ("q.csv", "image,question,anwsers\n", r"unknown column 'anwsers', did you mean 'answers'\?"),
        ("q.csv", "image,question,answer,answers\n", r"columns 'answer' and 'answers' are both taken for"),
        ("q.csv", "image,question,question\n", r"the column 'question' appears twice"),
        ("q.csv", "image,question\n", r"q\.csv: holds no question\."),
        ("q.jsonl", "\n", r"q\.jsonl: holds no question\."),
        ("q.csv", "image,question\na\n", r"q\.csv, line 2: 1 cells under 2 columns"),
        ("q.csv", "image,question\n,q\n", r"q\.csv, line 2: no image given"),
        ("q.csv", "image,question\na, \n", r"q\.csv, line 2: no question given"),
        ("q.csv", "image,question,metric\na,q,bleu\n", r"line 2: unknown metric 'bleu'; allowed"),
        ("q.csv", "image,question,answers\na,q,[x\n", r"line 2: 'answers' begins like a JSON list"),
        ("q.csv", "image,question,answers,options\na,q,z,x|y\n", r"line 2: reference answer 'z' names no"),
        ("q.csv", "image,question,metric\na,q,anls\na,q,\n", r"line 3: repeats an earlier question"),
        ("q.jsonl", '{"image": "a", "question": "q"}\n{', r"q\.jsonl, line 2: not JSON"),
        ("q.jsonl", "3", r"q\.jsonl, line 1: every line has to be a JSON object"),
        ("q.jsonl", '{"image": "a", "question": "q", "answers": [true]}', r"line 1: 'answers' has to hold"),
        ("q.jsonl", '{"image": "a", "question": 3}', r"line 1: no question given"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_questions(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(M3ScoreError, match=message):
        questions(tmp_path, name, content)


def test_questions_of_monstrous_size(tmp_path: Path) -> None:
    row = '{"image": "a", "question": "q", "answers": %s}'
    for name, content, message in (
        ("q.csv", "image,question\na," + "x" * 200_000, "line 2: field larger than field limit"),
        (
            "q.jsonl",
            row.replace('"q"', f'"{"x" * 10_485_760}"') % 1,
            "line 1: a question of 10,485,760 characters",
        ),
        ("q.jsonl", row % ("[" * 200_000), "line 1: not JSON"),
        ("q.jsonl", row % ("1" * 9999), "line 1: not JSON"),
    ):
        with pytest.raises(M3ScoreError, match=message) as caught:
            questions(tmp_path, name, content)
        assert len(str(caught.value)) < 300 + len(str(tmp_path)) and "\n" not in str(caught.value)


def test_questions_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(M3ScoreError, match=r"none\.csv: no such file"):
        read_questions(tmp_path / "none.csv")
    (tmp_path / "q.csv").write_bytes(b"image,question\n\xff,q\n")
    with pytest.raises(M3ScoreError, match=r"q\.csv, line 2: not UTF-8 text \(byte 15\)"):
        read_questions(tmp_path / "q.csv")
    (tmp_path / "q.csv").write_bytes("image,question\na,q\n".encode("utf-16"))
    with pytest.raises(M3ScoreError, match=r"q\.csv, line 1: not UTF-8 text"):
        read_questions(tmp_path / "q.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(M3ScoreError, match=r"pipe\.csv: is a named pipe, not a questions file"):
        read_questions(tmp_path / "pipe.csv")


def test_other_answers_to_a_question_are_added_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = "image,question,answers\na,q,yes\na,q,no\na,q,maybe\n"
    assert questions(tmp_path, "q.csv", rows)["a"][0].answers == ("yes", "no", "maybe")
    assert "q.csv, line 3 asks again" in caplog.text and "1 more" in caplog.text
