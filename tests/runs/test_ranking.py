"""Ranking many images with a fake model: order, errors, questions, bounded memory."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from m3score.common.errors import M3ScoreError
from m3score.data import loader
from m3score.data.discover import find_images
from m3score.data.item import ImageItem
from m3score.data.loader import Opened, QuestionBook, opened_ahead
from m3score.data.questions import Question
from m3score.images.decode import open_image
from m3score.images.sandbox import Decoder
from m3score.runs.ranking import rank
from m3score.scoring.scorers.model_stream import RankedImage, rank_stream
from tests.support.fakes import LADDER, FakeAnswerer, grey

LEVELS = {"dark": 0, "dim": 60, "mid": 120, "light": 180, "white": 255}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images that need 1, 9, 36, 144 and 576 tokens, and three that can't be read."""
    for name, level in LEVELS.items():
        grey(level).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.jpg").write_bytes(b"hello")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "gone.png").symlink_to("nowhere")
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def test_table_is_sorted_with_one_row_per_input(folder: Path) -> None:
    table = rank(folder, model=FakeAnswerer(), batch_size=2)
    agreements = [f"agreement_{tokens}" for tokens in LADDER]
    assert list(table.columns) == [
        *(
            "rank",
            "path",
            "complexity",
            "effective_tokens",
            "required_tokens",
            "judged_by",
            "solved",
            "monotone",
        ),
        *agreements,
        *("questions", "cut_questions", "width", "height"),
        *("visual_tokens", "model", "ladder", "agreement_from", "error"),
    ]
    assert [Path(path).stem for path in table["path"]] == [
        *("white", "light", "mid", "dim", "dark"),
        *("broken", "empty", "gone"),
    ]
    assert table["rank"].tolist()[:5] == [1, 2, 3, 4, 5] and table["rank"][5:].isna().all()
    assert table["required_tokens"].tolist()[:5] == [576, 144, 36, 9, 1]
    assert table["complexity"][1] == pytest.approx(math.log(144) / math.log(576))
    assert table["effective_tokens"][1] == pytest.approx(144)
    assert (table["width"][0], table["height"][0]) == (16, 12)
    assert table["error"].tolist()[5:] == [
        "not an image that Pillow can read",
        "empty file (0 bytes)",
        "broken link: its target nowhere does not exist",
    ]


def test_ties_are_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for name in ("c", "a", "b"):
        grey(0).save(tmp_path / f"{name}.png")
    table = rank([tmp_path / "c.png", tmp_path / "a.png", tmp_path / "b.png"], model=FakeAnswerer())
    assert [Path(path).stem for path in table["path"]] == ["a", "b", "c"]


def test_table_has_its_columns_even_if_every_input_failed(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"x")
    table = rank(tmp_path, model=FakeAnswerer())
    assert len(table) == 1 and "agreement_576" in table.columns and table["rank"].isna().all()


def test_nothing_found_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(M3ScoreError, match="no images found"):
        rank(tmp_path, model=FakeAnswerer())


def test_same_file_twice_gives_two_rows(folder: Path) -> None:
    table = rank([folder / "mid.png", folder / "mid.png"], model=FakeAnswerer())
    assert table["required_tokens"].tolist() == [36, 36]
    assert table["questions"].tolist() == [1] * 2


def test_failing_image_does_not_cost_its_batch(folder: Path) -> None:
    model = FakeAnswerer(fail=lambda image: image.getpixel((0, 0)) == (120, 120, 120))
    table = rank(folder, model=model, batch_size=5).set_index("path")
    assert table.loc[str(folder / "mid.png"), "error"] == "the model failed (RuntimeError: device lost)"
    assert table.loc[str(folder / "mid.png"), "width"] == 16
    assert table["complexity"].notna().sum() == 4


def test_what_nobody_foresaw_is_a_row_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_badly(self: Decoder, path: str) -> Image.Image:
        if "mid" in path:
            raise KeyError("surprise")
        return open_image(path)

    monkeypatch.setattr(Decoder, "__call__", open_badly)
    table = rank(folder, model=FakeAnswerer()).set_index("path")
    assert table.loc[str(folder / "mid.png"), "error"] == "can't be opened (KeyError: 'surprise')"
    assert table["complexity"].notna().sum() == 4


def test_batch_too_large_for_the_device_is_split(folder: Path) -> None:
    model = FakeAnswerer(largest_batch=2)
    table = rank(folder, model=model, batch_size=5)
    assert table["complexity"].notna().sum() == 5


def test_errors_of_models_are_one_line(folder: Path) -> None:
    table = rank(folder / "mid.png", model=FakeAnswerer(largest_batch=0))
    assert table["error"][0] == "the model failed (RuntimeError: out of memory with a long explanation)"


def test_batches_are_as_large_as_asked_despite_broken_files(tmp_path: Path) -> None:
    for number in range(12):
        grey(0).save(tmp_path / f"{number:02}.png")
        (tmp_path / f"{number:02}_bad.png").write_bytes(b"x")
    model = FakeAnswerer()
    rank(tmp_path, model=model, batch_size=4)
    assert model.batches == [4, 4, 4]


def test_stream_opens_few_images_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grey(0).save(tmp_path / "a.png")
    taken = 0

    def endless() -> Iterator[ImageItem]:
        nonlocal taken
        while True:
            taken += 1
            yield ImageItem(str(tmp_path / "a.png"), "a.png")

    stream = rank_stream(endless(), FakeAnswerer(), batch_size=4, workers=2)
    for _ in range(40):
        next(stream)
    assert taken <= 40 + 4 + (4 + 2) + 1
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("m3score-open")]


def test_large_images_wait_and_go_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "MAX_PIXELS_HELD", 250)
    for number in range(4):
        grey(0).save(tmp_path / f"{number}.png")  # 192 pixels each
    model = FakeAnswerer()
    assert len(rank(tmp_path, model=model, batch_size=4)) == 4
    assert model.batches == [1, 1, 1, 1]


def test_few_encoded_images_wait_to_be_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However large the images of a shard are, memory holds but so many bytes of them."""
    monkeypatch.setattr(loader, "MAX_BYTES_HELD", 100)
    taken = []

    def items() -> Iterator[ImageItem]:
        for k in range(20):
            taken.append(k)
            yield ImageItem(f"{k}", f"{k}", content=bytes(60))

    def slowly(item: ImageItem) -> Opened:
        time.sleep(0.05)
        return Opened(item.path, None)

    with ThreadPoolExecutor(1) as pool:
        opened = opened_ahead(items(), slowly, pool, ahead=16)
        assert next(opened).path == "0" and len(taken) == 2
        assert [one.path for one in opened] == [str(k) for k in range(1, 20)]


def test_limit_and_progress(folder: Path) -> None:
    seen: list[RankedImage] = []
    table = rank(folder, model=FakeAnswerer(), limit=3, progress=seen.append)
    assert len(table) == len(seen) == 3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"rule": "last", "questions": "q"}, "rule.*last"),
        ({"sufficiency": "maybe", "questions": "q"}, "sufficiency.*maybe"),
        ({"questions": []}, "no question given"),
        ({"traces": "t.xlsx"}, r"t\.xlsx: unknown table suffix"),
    ],
)
def test_options_are_checked_before_anything_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], told: str
) -> None:
    monkeypatch.setattr(
        "m3score.models.loading.load_model", lambda *_, **__: pytest.fail("a model was loaded")
    )
    monkeypatch.setattr(
        "m3score.runs.request.find_images", lambda *_, **__: pytest.fail("images were looked for")
    )
    with pytest.raises(M3ScoreError, match=told):
        rank(folder, model="m3-tiny", **options)


def test_several_questions_for_every_image(folder: Path) -> None:
    model = FakeAnswerer()
    table = rank(folder / "mid.png", model=model, questions=["What is it?", "How many?"])
    assert model.asked == [("What is it?", "How many?")] and table["questions"].tolist() == [2]


def test_ground_truth_counts(folder: Path) -> None:
    asked = {
        "mid.png": [Question("How many?", answers=("36 is needed",))],
        "dim.png": [Question("?", ("nope",))],
    }
    table = rank([folder / "mid.png", folder / "dim.png"], model=FakeAnswerer(), questions=asked)
    # What no scale solves says nothing of complexity: it comes last.
    assert [Path(path).stem for path in table["path"]] == ["mid", "dim"]
    assert table["solved"].tolist() == [True, False]
    assert table["required_tokens"].isna().tolist() == [False, True]
    assert table["complexity"].tolist() == pytest.approx([math.log(36) / math.log(576), 1.0])


def test_images_without_questions_of_their_own(folder: Path) -> None:
    paths = [folder / "mid.png", folder / "dim.png"]
    table = rank(paths, model=FakeAnswerer(), questions={"mid.png": ["Q?"]}).set_index("path")
    assert table.loc[str(paths[1]), "error"] == "no question for this image among those given"
    assert table["error"].isna().tolist().count(True) == 1
    book = QuestionBook({"mid.png": ["Q?"]}, fallback=["F?"])
    assert [book.of(str(path))[0].question for path in paths] == ["Q?", "F?"]


def test_questions_are_matched_by_the_end_of_the_path() -> None:
    book = QuestionBook(
        {"a/cat.jpg": ["longer"], "cat.jpg": ["short"], "./x/../dog.jpg": ["dog"], "owl.jpg": ["?"]}
    )
    assert book.of("/data/a/cat.jpg")[0].question == "longer"
    assert book.of("/data/b/cat.jpg")[0].question == "short"
    assert book.of("dog.jpg")[0].question == "dog"
    assert book.unused() == ["owl.jpg"]
    with pytest.raises(M3ScoreError, match="no question for this image"):
        book.of("/data/concat.jpg")


def test_traces_are_written_with_errors(folder: Path, tmp_path: Path) -> None:
    from m3score.scoring.oracle import rescore
    from m3score.tables.io import read_traces

    out = tmp_path / "out" / "traces.csv"
    out.parent.mkdir()
    table = rank(folder, model=FakeAnswerer(), traces=out)
    traces = read_traces(out)
    assert len(traces) == 5 * len(LADDER) + 3
    again = rescore(traces).set_index("path")
    assert again.loc[table["path"], "complexity"].tolist()[:5] == table["complexity"].tolist()[:5]
    assert again["error"].notna().sum() == 3


def test_other_ladders(folder: Path) -> None:
    table = rank(folder / "white.png", model=FakeAnswerer(ladder=(4, 16)))
    assert [name for name in table.columns if name.startswith("agreement_")] == [
        "agreement_4",
        "agreement_16",
        "agreement_from",
    ]
    assert table["ladder"].tolist() == ["4,16"] and table["model"].tolist() == ["fake"]
    assert table["agreement_from"].tolist() == ["logits"] and table["visual_tokens"].tolist() == [16]
    assert table["required_tokens"].tolist() == [16]


def test_stream_keeps_the_order_of_the_inputs(folder: Path) -> None:
    found = list(find_images(folder))
    results = list(rank_stream(iter(found), FakeAnswerer(), batch_size=2))
    assert [result.path for result in results] == [item.shown for item in found]


def test_file_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = tmp_path / "caf\udce9.png"
    try:
        Image.new("L", (3, 3)).save(name)
    except OSError:
        pytest.skip("this file system wants UTF-8")
    table = rank(tmp_path, model=FakeAnswerer())
    assert table["path"][0].endswith("caf\\xe9.png") and table["complexity"].notna().all()
