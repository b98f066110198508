"""The report without a browser: what is counted, drawn and written."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import m3score
from m3score.analysis.report.content import MOST_PICTURES, gather
from m3score.analysis.report.page import render, write_report
from m3score.analysis.report.pictures import ALL_BYTES, detail_maps, thumbnails
from m3score.analysis.report.score_summary import FOLDERS, ScoreSummary, summarise_scores
from m3score.analysis.report.trace_summary import collect, frontier, question_tables
from m3score.cli.main import app
from m3score.common.errors import M3ScoreError
from m3score.data.extract import finder
from m3score.tables.io import read_scores, write_scores, write_traces
from m3score.tables.schema import SCORES, TRACES
from m3score.tables.streaming import stream_rows
from tests.support.fakes import FakeAnswerer
from tests.support.predictors import small_predictor
from tests.support.reports import LADDER, folder_of_pictures, looked_rows, score_rows, trace_rows


def page_data(page: str) -> dict[str, Any]:
    """What the page's script is given."""
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert match
    return json.loads(match[1])


# ---- reading row by row -----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_rows_come_one_by_one_as_they_are_read_at_once(tmp_path: Path, suffix: str) -> None:
    rows = [*score_rows(30), {"path": '=odd,"name"\n.png', "error": "truncated"}]
    path = tmp_path / f"scores.{suffix}"
    write_scores(rows, path)
    whole = read_scores(path).to_dict("records")
    streamed = list(stream_rows(path, SCORES))
    assert [row["path"] for row in streamed] == [row["path"] for row in whole]
    assert [row.get("complexity") for row in streamed[:-1]] == [row["complexity"] for row in whole[:-1]]
    assert streamed[-1]["error"] == "truncated" and "complexity" not in streamed[-1]
    assert all(type(row["required_tokens"]) is int for row in streamed if "required_tokens" in row)


def test_a_file_that_is_no_score_table_is_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    for text, reason in [("a,b\n1,2\n", "needs the columns"), ("path,complexity\nx,much\n", "line 2")]:
        bad.write_text(text)
        with pytest.raises(M3ScoreError, match=rf"bad\.csv.*{reason}"):
            list(stream_rows(bad, SCORES))
    bad.write_bytes(b"path,complexity\n\xff,1\n")
    with pytest.raises(M3ScoreError, match="not UTF-8"):
        list(stream_rows(bad, SCORES))
    with pytest.raises(M3ScoreError, match="no such file"):
        list(stream_rows(tmp_path / "none.csv", SCORES))


# ---- counting and drawing ---------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.sampled_from([*LADDER, None]), st.floats(0, 1), st.booleans()), min_size=1, max_size=200
    ),
    st.integers(1, 40),
)
@settings(max_examples=60, deadline=None)
def test_every_row_counts_once_and_the_sample_is_bounded(
    drawn: list[tuple[int | None, float, bool]], pictures: int
) -> None:
    rows = [
        {"path": f"f{i % 3}/{i}.png", "complexity": c, "required_tokens": t, "solved": t is not None}
        | {"monotone": m}
        for i, (t, c, m) in enumerate(drawn)
    ]
    rows = [{key: value for key, value in row.items() if value is not None} for row in rows]
    seen = summarise_scores([*rows, {"path": "bad.png", "error": "bad.png: broken"}], pictures)
    assert seen.rows == len(rows) + 1 and seen.failed == 1 and seen.reasons == {"broken": 1}
    known = [c for t, c, _ in drawn if t is not None]
    assert seen.unsolved == len(rows) - len(known)
    assert sum(seen.levels.values()) == sum(seen.histogram) == seen.complexity.count == len(known)
    assert seen.non_monotone == sum(not m for _, _, m in drawn)
    assert sum(seen.folders.values()) == seen.rows
    assert len(seen.shown) == len({row["path"] for row in seen.shown}) <= max(pictures, 1)
    assert len(seen.shown) == min(pictures, len(rows))
    shown = [(row.get("required_tokens", 0), row["complexity"]) for row in seen.shown if row["solved"]]
    assert shown == sorted(shown) and all(not row["solved"] for row in seen.shown[len(shown) :])
    if pictures > 1 and known:
        assert {min(known), max(known)} <= {complexity for _, complexity in shown}


def test_rare_levels_are_drawn_as_often_as_frequent_ones_and_the_draw_is_a_function_of_the_seed() -> None:
    def rows() -> Any:
        for i in range(20_000):
            tokens = 576 if i % 200 == 0 else 1 if i % 2 else 9
            yield {"path": f"{i}.png", "complexity": i / 20_000, "required_tokens": tokens, "solved": True}

    def shown(seed: int) -> ScoreSummary:
        return summarise_scores(rows(), 150, seed)

    counts = [sum(row["required_tokens"] == t for row in shown(0).shown) for t in (1, 9, 576)]
    assert all(40 <= count <= 60 for count in counts)
    assert shown(3).shown == shown(3).shown != shown(4).shown


def test_folders_are_counted_in_bounded_memory() -> None:
    rows = ({"path": f"a/b{i}/c/x.png", "complexity": 0.5} for i in range(3 * FOLDERS))
    seen = summarise_scores(rows, 5)
    assert len(seen.folders) <= FOLDERS and sum(seen.folders.values()) == 3 * FOLDERS


# ---- answers and accuracy ---------------------------------------------------------------------------------


def test_accuracy_is_that_of_the_scales_and_the_oracle_is_never_below(tmp_path: Path) -> None:
    scores = score_rows(60)
    rows = trace_rows(scores)
    answers = collect(stream_rows(rows, TRACES), [scores[0]["path"]], LADDER)
    curves = frontier(answers)
    assert curves is not None and curves["questions"] == 60
    for tokens, accuracy in curves["fixed"]:
        right = [row["correct"] for row in rows if row["tokens"] == tokens]
        assert accuracy == pytest.approx(np.mean(right))
    assert curves["oracle"][1] >= max(accuracy for _, accuracy in curves["fixed"])
    assert list(answers.images) == [scores[0]["path"]]
    (table,) = question_tables(answers, scores[0]["path"])
    assert [scale["tokens"] for scale in table["scales"]] == sorted(LADDER, reverse=True)
    assert [s["good"] for s in table["scales"]] == [
        r["correct"] for r in reversed(rows) if r["image"] == scores[0]["path"]
    ]


def test_tables_of_different_runs_do_not_go_together() -> None:
    scores = score_rows(3)
    other = [{**row, "tokens": row["tokens"] + 1} for row in trace_rows(scores)]
    with pytest.raises(M3ScoreError, match="not of one run"):
        gather(scores, traces=other)
    renamed = [{**row, "image": f"other/{row['image']}"} for row in trace_rows(scores)]
    with pytest.raises(M3ScoreError, match="none of the pictures"):
        gather(scores, traces=renamed)


# ---- pictures ---------------------------------------------------------------------------------------------


def test_thumbnails_keep_to_their_bytes_and_say_why_there_is_none(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (500, 700, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    find = finder(tmp_path)
    first, missing, *_ = thumbnails(["noise.png", "gone.png"] + ["noise.png"] * 2, find)
    assert first.data and (first.width, first.height) == (700, 500) and missing.error == "no such file"
    many = list(thumbnails(["noise.png"] + ["gone.png"] * (MOST_PICTURES - 1), find))
    content = base64.b64decode(many[0].data or "")
    assert len(content) <= ALL_BYTES / MOST_PICTURES * 1.5
    assert Image.open(io.BytesIO(content)).width >= 32


def test_detail_is_lost_where_it_is_and_the_more_the_fewer_the_tokens() -> None:
    model = m3score.load_model("m3-tiny", device="cpu")
    picture = np.full((336, 672, 3), 200, np.uint8)
    picture[100:240, 400:600] = np.random.default_rng(1).integers(0, 256, (140, 200, 1))
    (one,) = detail_maps(model, [Image.fromarray(picture)])  # type: ignore[list-item]
    assert one is not None and list(one.loss) == list(model.ladder[:-1])
    means = [float(loss.mean()) for loss in one.loss.values()]
    assert means == sorted(means, reverse=True)
    left, top, right, bottom = one.box  # padded: the grid is as wide as the picture, and twice as high
    assert (left, right) == (0, 1) and (top, bottom) == (-0.5, 1.5)
    fine = one.loss[144]
    assert fine[9:15, 15:21].mean() > 1.3 * fine[9:15, 2:10].mean()


# ---- tables judged by vision ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A score table of three examples by vision."""
    table = tmp_path_factory.mktemp("looked") / "scores.csv"
    examples = Path(__file__).parents[2] / "examples"
    names = ("one_shape.png", "page_of_text.png", "empty.png")
    write_scores(m3score.rank([examples / name for name in names], scorer="vision"), table)
    return table


def test_a_table_by_vision_leads_with_effective_tokens() -> None:
    seen = summarise_scores(looked_rows(9), 9)
    assert seen.mode == "vision" and seen.ladder == LADDER and seen.finest == 576
    assert seen.complexity.median == pytest.approx(4 / 9, abs=1e-4)
    assert seen.median_tokens == pytest.approx(576 ** (4 / 9), rel=1e-3)  # the same in both words
    data = page_data(page := render(gather(looked_rows(9))))
    assert "median effective tokens" in page and "no question was asked" in page
    assert "tokens needed" not in page.split("<script")[0] and "held by 36 tokens" in page
    two, three = data["pictures"][1:3]
    assert (two["judge"], two["letters"]) == ("vision", "no text to speak of")
    assert three["letters"].startswith("tiny letters") and three["reading"] == three["effective"]
    assert three["kept"] == [round(t / 576, 3) for t in LADDER]
    rounded = [row | {"effective_tokens": round(row["effective_tokens"])} for row in looked_rows(9)]
    assert summarise_scores(rounded, 9).finest == 576  # of the levels: nothing is made up


def test_pictures_by_vision_get_a_map_of_where_the_complexity_is(looked: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(looked), "--out", str(looked.with_name("a.html"))])
    assert result.exit_code == 0 and "left out" not in result.stderr, result.stderr
    page = looked.with_name("a.html").read_text()
    empty, shape, text = page_data(page)["pictures"]
    assert len(shape["map"]["where"]) == 24 * 24 and "map-note" not in page
    glows = np.array([int(one, 16) for one in shape["map"]["where"]]).reshape(24, 24)
    assert glows[8:16, 8:16].mean() > 2 * glows[:6].mean()  # a disc in the middle
    assert text["map"]["top"] > 1 > empty["map"]["top"]


def test_maps_of_another_model_or_picture_are_left_out_and_it_is_said(looked: Path) -> None:
    model = m3score.load_model("m3-tiny", device="cpu")
    rows: list[dict[Any, Any]] = read_scores(looked).to_dict("records")
    changed = [row | {"complexity": row["complexity"] / 2 + 0.1} for row in rows]
    report = write_report(changed, looked.with_name("b.html"), model=model)
    assert report.maps == [None] * 3 and "gives these pictures other scores" in report.map_note
    report = write_report([*rows[:2], changed[2]], looked.with_name("c.html"), model=model)
    assert report.maps.count(None) == 1 and "1 of 3 pictures have no map" in report.map_note
    without = CliRunner().invoke(
        app, ["report", str(looked), "--no-heat-maps", "--out", str(looked.with_name("d.html"))]
    )
    assert without.exit_code == 0 and "they take the model of the scores (--model)" in without.stderr
    assert "are left out" in looked.with_name("d.html").read_text()


def test_rows_judged_by_different_things_have_no_common_middle() -> None:
    rows = [*looked_rows(6), *(row | {"judged_by": "agreement"} for row in score_rows(6))]
    page = render(gather(rows))
    assert "Judged by different things (agreement, vision)" in page and "whatever judged them" in page
    assert "mean complexity" not in page and "median" not in page.split("<main")[1].split("<script")[0]


def test_predicted_pictures_come_from_few_tokens_to_many() -> None:
    rows = [{"path": f"{t}.png", "complexity": 1 / t, "predicted_tokens": t} for t in (36, 1, 9)]
    assert [row["predicted_tokens"] for row in summarise_scores(rows, 3).shown] == [1, 9, 36]


def test_unsolved_pictures_are_a_group_of_their_own() -> None:
    rows = [row | {"judged_by": "right answers"} for row in score_rows(60)]
    rows = [row if row["solved"] else row | {"complexity": 1.0} for row in rows]
    seen = summarise_scores(rows, 60)
    assert seen.unsolved == 10 and sum(seen.histogram) == 50 and seen.histogram[-1] == 0
    assert [row["solved"] for row in seen.shown] == [True] * 50 + [False] * 10
    page = render(gather(rows))
    assert "all but unsolved" in page and "the model does not know" in page
    assert page_data(page)["totals"]["scored"] == 50


# ---- the page ---------------------------------------------------------------------------------------------

HOSTILE = "</script><img src=x onerror=alert(1)>\u2028{{7*7}}'\"&.png"


def test_hostile_names_stay_text_and_only_the_known_script_may_run(tmp_path: Path) -> None:
    rows = [*score_rows(3), {"path": HOSTILE, "complexity": 0.4, "required_tokens": 9, "solved": True}]
    rows.append({"path": f"bad/{HOSTILE}", "error": f"<b>{HOSTILE}</b>"})
    page = render(gather(rows, title=HOSTILE))
    assert "<img" not in page.replace("<img src=x", "<img") or "<img src=x" not in page
    assert "<b>" not in page.split("<main")[1].split("<script")[0].replace("<b>1</b>", "")
    assert page.count("</script>") == 2 and "49" not in re.findall(r"\{\{.*?\}\}", page)
    assert HOSTILE in [item["path"] for item in page_data(page)["pictures"]]
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy and policy[1].startswith("default-src 'none'") and "unsafe" not in policy[1]
    for tag in ("style", "script"):
        (body,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy[1]
    assert not re.search(r"\b(innerHTML|insertAdjacentHTML|document\.write|eval)\b", page)


def test_the_page_loads_nothing_from_anywhere(tmp_path: Path) -> None:
    page = render(gather(score_rows(4), traces=trace_rows(score_rows(4))))
    assert not re.findall(r"(?:src|href|url\()\s*=?\s*[\"'(]?(?:https?:)?//", page)
    assert re.findall(r"https?://\S+", page) == ['http://www.w3.org/2000/svg",']


def test_a_table_with_only_paths_and_scores_makes_a_page() -> None:
    data = page_data(render(gather([{"path": "a.png", "complexity": 0.25}])))
    assert data["pictures"][0]["needed"] is None and data["ladder"] == []
    assert "Tokens needed" not in render(gather([]))
    predicted = render(gather([{"path": "a.png", "complexity": 0.25, "predicted_tokens": 9}]))
    assert "Tokens predicted" in predicted


def test_a_long_table_makes_a_bounded_page(tmp_path: Path) -> None:
    folder_of_pictures(tmp_path, 1)
    (name,) = (path.name for path in tmp_path.glob("*.png"))
    rows = ({**row, "path": f"{i % 900}/../{name}"} for i, row in enumerate(score_rows(5000)))
    report = write_report(rows, tmp_path / "report.html", pictures=300)
    assert len(report.summary.shown) == 300 and report.summary.rows == 5000
    assert (tmp_path / "report.html").stat().st_size < 15e6


# ---- the command ------------------------------------------------------------------------------------------


def test_the_command_writes_a_page_and_says_what_it_could_not_open(tmp_path: Path) -> None:
    names = folder_of_pictures(tmp_path, 5)
    scores = score_rows(5, names)
    write_scores(scores, tmp_path / "scores.csv")
    write_traces(trace_rows(scores), tmp_path / "traces.parquet")
    command = ["report", str(tmp_path / "scores.csv"), "--traces", str(tmp_path / "traces.parquet")]
    out = ["--out", str(tmp_path / "report.html")]
    result = CliRunner().invoke(app, [*command, *out])
    assert result.exit_code == 0, result.stderr
    data = page_data((tmp_path / "report.html").read_text())
    assert all(item["thumbnail"] and item["questions"] for item in data["pictures"])
    assert CliRunner().invoke(app, [*command, *out]).exit_code == 2  # it exists
    (tmp_path / names[0]).unlink()
    result = CliRunner().invoke(app, [*command, *out, "--overwrite"])
    assert result.exit_code == 3 and "1 of the 5" in result.stderr
    result = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "report.csv")])
    assert result.exit_code == 2 and ".html" in result.stderr


def test_a_router_is_judged_on_the_pictures_it_can_open(tmp_path: Path) -> None:
    names = folder_of_pictures(tmp_path, 12)
    scores = score_rows(12, names)
    write_scores(scores, tmp_path / "scores.csv")
    (tmp_path / names[0]).unlink()
    report = write_report(
        tmp_path / "scores.csv",
        tmp_path / "report.html",
        traces=trace_rows(scores),
        predictor=small_predictor(),
    )
    assert report.curves is not None and sum(report.unreadable.values()) == 1
    router = report.curves["router"]
    assert router["questions"] == 11
    tokens = [point[0] for point in router["points"]]
    assert tokens == sorted(tokens) and tokens[0] == 1 and tokens[-1] == 576
    right = [row["correct"] for row in trace_rows(scores[1:]) if row["tokens"] == 576]
    assert router["points"][-1][1] == pytest.approx(np.mean(right))
    assert "foretells it" in (tmp_path / "report.html").read_text()


def test_rank_writes_a_report_of_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m3score.models.loading.load_model", lambda name, **options: FakeAnswerer())
    (tmp_path / "in").mkdir()
    folder_of_pictures(tmp_path / "in", 3)
    command = ["rank", str(tmp_path / "in"), "--question", "What is it?"]
    command += ["--report", str(tmp_path / "report.html")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2 and "--out" in result.stderr
    tables = ["--out", str(tmp_path / "scores.csv"), "--traces", str(tmp_path / "traces.parquet")]
    result = CliRunner().invoke(app, [*command, *tables])
    assert result.exit_code == 0, result.stderr
    data = page_data((tmp_path / "report.html").read_text())
    assert len(data["pictures"]) == 3 and data["pictures"][0]["questions"]
