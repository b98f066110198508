"""Benchmarks: rows of each data set's schema become the questions that LLaVA and lmms-eval ask."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from m3score.calibration.benchmarks.task_data import TaskSource, load_own, load_task
from m3score.calibration.benchmarks.tasks import (
    LeftOut,
    Task,
    find_task,
    names_options,
    own_question,
    task_question,
    tasks,
)
from m3score.common.errors import M3ScoreError
from m3score.data.metrics import METRICS, grade
from m3score.data.questions import Question
from m3score.models.m3.conversation import place_image_tags
from tests.support.fakes import grey

WORD = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
OPTIONS = ["bee", "ant"]
LISTED = "\nA. bee\nB. ant"

# Of each data set on the hub: rows (without the image), and what is asked: question, references, options.
CASES: dict[str, tuple[list[dict[str, Any]], list[tuple[str, tuple[str, ...], int]]]] = {
    "textvqa": (
        [{"image_id": "i1", "question_id": 1, "question": "what IS it?", "answers": ["a"] * 9 + ["b"]},
         {"image_id": "i1", "question_id": 2, "question": "who?", "answers": ["c"] * 10}],
        [(f"What is it?{WORD}", ("a",) * 9 + ("b",), 0), (f"Who?{WORD}", ("c",) * 10, 0)],
    ),
    "ai2d": (
        [{"question": "Which flies?", "options": OPTIONS, "answer": "1"}],
        [(f"Which flies?{LISTED}{LETTER}", ("B",), 2)],
    ),
    "chartqa": (
        [{"type": "human_test", "question": "How many?", "answer": "14"}],
        [("How many?\nAnswer the question with a single word.", ("14",), 0)],
    ),
    "docvqa": (
        [{"questionId": "1", "question": "Date?", "answers": ["1 May", "May 1"], "docId": 3}],
        [(f"Date?{WORD}", ("1 May", "May 1"), 0)],
    ),
    "mmbench": (
        [{"index": 5, "question": "Which?", "hint": "Look.", "answer": "A", "A": "bee", "B": "ant",
          "C": "nan", "D": None, "L2-category": "logic"},
         {"index": 1000005, "question": "Which?", "hint": "nan", "answer": "B", "A": "ant", "B": "bee",
          "C": "nan", "D": None, "L2-category": "logic"}],
        [(f"Look.\nWhich?{LISTED}{LETTER}", ("A",), 2), (f"Which?\nA. ant\nB. bee{LETTER}", ("B",), 2)],
    ),
    "pope": (
        [{"question_id": str(i), "question": f"Is there a {what} in the image?", "answer": "yes",
          "image_source": "COCO_1", "category": "random"} for i, what in enumerate(["cat", "dog"])],
        [(f"Is there a {what} in the image?{WORD}", ("yes",), 0) for what in ("cat", "dog")],
    ),
    "scienceqa": (
        [{"question": "Which?", "choices": OPTIONS, "answer": 0, "hint": "Bees fly.", "subject": "biology"},
         {"question": "Which?", "choices": OPTIONS, "answer": 1, "hint": "", "subject": "biology"}],
        [(f"Context: Bees fly.\nWhich?{LISTED}{LETTER}", ("A",), 2), (f"Which?{LISTED}{LETTER}", ("B",), 2)],
    ),
    "mmmu": (
        [{"id": "validation_Art_1", "question": "See <image 1>. Which?", "options": str(OPTIONS),
          "answer": "B", "question_type": "multiple-choice", "subfield": "Drawing"},
         {"id": "validation_Art_2", "question": "<image 1> How much?", "options": "[]",
          "answer": "['3', '3.0']", "question_type": "open", "subfield": "Drawing"}],
        [(f"See <image>. Which?{LISTED}\nAnswer with the option letter from the given choices directly.",
          ("B",), 2), (f"<image> How much?{WORD}", ("3", "3.0"), 0)],
    ),
    "vizwiz": (
        [{"question_id": "1", "question": "what is this", "answers": ["unanswerable"] * 6 + ["can"] * 4,
          "category": "unanswerable"}],
        [("What is this\nWhen the provided information is insufficient, respond with 'Unanswerable'."
          f"{WORD}", ("unanswerable",) * 6 + ("can",) * 4, 0)],
    ),
    "seed": (
        [{"question": "Which?", "choice_a": "bee", "choice_b": "ant", "choice_c": "fly", "choice_d": "gnat",
          "answer": "C", "data_type": "image", "question_id": "1"}],
        [(f"Which?{LISTED}\nC. fly\nD. gnat{LETTER}", ("C",), 4)],
    ),
}  # fmt: skip


def cell(image: Any) -> dict[str, Any] | None:
    """An image as a data set holds it."""
    if image is None:
        return None
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}


def data_set(name: str, rows: list[dict[str, Any]]) -> datasets.Dataset:
    """Rows with an image each, as the hub's data set has them."""
    task = find_task(name)
    table = datasets.Dataset.from_list(rows)
    grays = [cell(grey(20 * i)) for i in range(len(rows))]
    if name == "seed":
        kind = datasets.List(datasets.Image())
        return table.add_column(task.image, [[g, g, g] for g in grays], feature=kind)
    return table.add_column(task.image, grays, feature=datasets.Image())


def asked(source: TaskSource) -> list[tuple[str, tuple[str, ...], int]]:
    questions = [one.question for entry in source.entries for one in entry.questions]
    return [(one.question, one.answers, len(one.options)) for one in questions]


@pytest.mark.parametrize("name", CASES)
def test_a_saved_data_set_is_asked_as_declared(name: str, tmp_path: Path) -> None:
    rows, expected = CASES[name]
    task = find_task(name)
    datasets.DatasetDict({task.split: data_set(name, rows)}).save_to_disk(str(tmp_path / name))
    source = load_task(task, tmp_path)
    assert asked(source) == expected
    items = list(source.items())
    assert len(items) == source.count() == len(source.entries)
    assert all(item.open().error is None and item.open().image.size == (16, 12) for item in items)
    assert [len(item.open().questions) for item in items] == [
        len(entry.questions) for entry in source.entries
    ]


def test_every_task_is_declared_whole() -> None:
    assert len(tasks()) == 20
    for task in tasks().values():
        assert task.metric in METRICS and (task.open_metric or task.metric) in METRICS
        assert bool(task.hub and task.split) != bool(task.file and task.origin and task.path)
        assert task.unit == "question" or task.unit_of


def test_questions_on_one_image_go_together(tmp_path: Path) -> None:
    data_set("pope", CASES["pope"][0]).save_to_disk(str(tmp_path))
    (entry,) = load_task(find_task("pope"), tmp_path).entries
    assert entry.name == "pope/0" and [one.category for one in entry.questions] == ["random", "random"]


def test_rotations_of_mmbench_are_one_unit(tmp_path: Path) -> None:
    data_set("mmbench", CASES["mmbench"][0]).save_to_disk(str(tmp_path))
    units = [entry.questions[0].unit for entry in load_task(find_task("mmbench"), tmp_path).entries]
    assert units == ["5", "5"]


def test_mmmu_about_several_images_and_rows_without_reference_are_left_out(tmp_path: Path) -> None:
    rows, _ = CASES["mmmu"]
    table = data_set("mmmu", [*rows, {**rows[0], "answer": None}])
    second = [None, cell(grey(3)), None]
    table.add_column("image_2", second, feature=datasets.Image()).save_to_disk(str(tmp_path))
    source = load_task(find_task("mmmu"), tmp_path)
    assert source.count() == 1 and source.left_out == {"several images": 1, "no reference answer": 1}


def test_gqa_has_its_images_apart(tmp_path: Path) -> None:
    instructions = [{"imageId": i, "question": "What?", "answer": "cat"} for i in ("n1", "n2", "n1")]
    images = data_set("gqa", [{"id": "n2"}, {"id": "n1"}])
    datasets.Dataset.from_list(instructions).save_to_disk(
        str(tmp_path / "gqa" / "testdev_balanced_instructions")
    )
    images.save_to_disk(str(tmp_path / "gqa" / "testdev_balanced_images"))
    source = load_task(find_task("gqa"), tmp_path)
    first, second = (item.open() for item in source.items())
    assert [len(first.questions), len(second.questions)] == [2, 1]
    assert (first.image.getpixel((0, 0)), second.image.getpixel((0, 0))) == ((20,) * 3, (0,) * 3)


def test_parquet_files_of_a_snapshot(tmp_path: Path) -> None:
    rows, expected = CASES["docvqa"]
    (tmp_path / "DocVQA").mkdir()
    data_set("docvqa", rows).to_parquet(str(tmp_path / "DocVQA" / "validation-00000-of-00001.parquet"))
    assert asked(load_task(find_task("docvqa"), tmp_path)) == expected
    with pytest.raises(M3ScoreError, match=r"neither a saved data set nor parquet files of the split 'test'"):
        load_task(find_task("ai2d"), tmp_path)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    data_set("ai2d", [{"question": "Which?", "answer": "1"}]).save_to_disk(str(tmp_path))
    with pytest.raises(M3ScoreError, match=r"ai2d, row 0 .*no column 'options'; there are question, answer"):
        load_task(find_task("ai2d"), tmp_path)
    with pytest.raises(M3ScoreError, match=r"unknown task 'mmvet'; allowed: drawn, textvqa, "):
        find_task("mmvet")
    with pytest.raises(M3ScoreError, match=r"no such folder"):
        load_task(find_task("ai2d"), tmp_path / "nowhere")
    (tmp_path / "all/pope").mkdir(parents=True)
    with pytest.raises(M3ScoreError, match=r"all: has no folder ai2d, only pope\.$"):
        load_task(find_task("ai2d"), tmp_path / "all")
    with pytest.raises(M3ScoreError, match=r"next-qa: is not on the hub; put NExT_QA.csv .*--data-dir"):
        load_task(find_task("next-qa"))


def test_without_network_a_copy_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        M3ScoreError, match=r"ChartQA is, can't be reached; put .*FOLDER/chartqa .*--data-dir"
    ):
        load_task(find_task("chartqa"))


def test_unanswerable_questions_may_be_left_out(tmp_path: Path) -> None:
    held = Task("mine", "Mine", "vqa_accuracy", hub="-", answers="answers", unanswerable="leave out")
    questions = [
        {"question": "One?", "answers": ["unanswerable"] * 6 + ["can"] * 4},
        {"question": "Two?", "answers": ["unanswerable"] * 5 + ["can"] * 5},
    ]
    table = datasets.Dataset.from_list(questions)
    table.add_column("image", [cell(grey(0))] * 2, feature=datasets.Image()).save_to_disk(str(tmp_path))
    source = load_task(held, tmp_path)
    assert [question for question, _, _ in asked(source)] == ["Two?"]
    assert source.left_out == {"unanswerable": 1}


# ---- videos -----------------------------------------------------------------------------------------------


def sheet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
        return
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


GRID = "The provided image arranges keyframes from a video in a grid view. "
FIVE = {f"a{i}": text for i, text in enumerate(["run", "sit", "jump", "eat", "sleep"])}
FIVE_LISTED = "\nA. run\nB. sit\nC. jump\nD. eat\nE. sleep"


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("msvd-qa", {"video_name": "v1", "question": "who runs?", "answer": "man", "question_type": "0"},
         (f"{GRID}who runs?{WORD}", ("man",), 0)),
        ("msrvtt-qa", {"video_name": "v1", "question": "who runs?", "answer": "man", "question_type": "0"},
         (f"{GRID}who runs?{WORD}", ("man",), 0)),
        ("activitynet-qa", {"video_name": "v1", "question": "is it day", "answer": "yes",
                            "question_type": "3"},
         (f"{GRID}is it day?{WORD}", ("yes",), 0)),
        ("next-qa", {"video_name": "v1", "question": "what did he do", "question_type": "CH", **FIVE,
                     "answer": "jump"}, (f"{GRID}what did he do?{FIVE_LISTED}{LETTER}", ("C",), 5)),
        ("intent-qa", {"video_name": "v1", "question": "why", "question_type": "CW", **FIVE,
                       "answer": "sleep"},
         (f"{GRID}why?{FIVE_LISTED}{LETTER}", ("E",), 5)),
        ("egoschema", {"video_name": "v1", "question_id": "q", "question": "Why?", "answer": "run", **FIVE},
         (f"{GRID}Why?{FIVE_LISTED}{LETTER}", ("A",), 5)),
        ("temporalbench", {"idx": "1", "video_name": "Short/v1.mp4", "question": "Which caption? A. x B. y",
                           "GT": "B", "category": "1"}, ("Which caption? A. x B. y", ("B",), 0)),
    ],
)  # fmt: skip
def test_sheets_of_video_tasks(name: str, row: dict[str, Any], expected: Any, tmp_path: Path) -> None:
    task = find_task(name)
    sheet(tmp_path / task.file[0], [row, row])
    folder = tmp_path / ("Short" if name == "temporalbench" else "videos")
    folder.mkdir()
    (folder / "v1.mp4").write_bytes(b"not really")
    source = load_task(task, tmp_path)
    assert asked(source) == [expected] * 2 and source.count() == 1  # both questions on one video
    (item,) = source.items()
    assert item.source == str(folder / "v1.mp4")
    (folder / "v1.mp4").unlink()
    (item,) = source.items()
    assert "no such file" in (item.open().error or "")


def test_vinoground_is_two_sheets(tmp_path: Path) -> None:
    task = find_task("vinoground")
    for name, kind in zip(task.file, task.kinds, strict=True):
        rows = [{"idx": f"7_{side}", "video_name": f"{kind}_{side}.mp4", "question": "Which?", "GT": "A"}
                for side in ("pos", "neg")]  # fmt: skip
        sheet(tmp_path / name, rows)
    held = [one for entry in load_task(task, tmp_path).entries for one in entry.questions]
    assert [(one.unit, one.category) for one in held] == [("7", "text")] * 2 + [("7", "video")] * 2
    assert held[0].question.question == "Which?\nPlease only output one English character."


def test_the_sheets_of_vinoground_may_lie_beside_its_folders(tmp_path: Path) -> None:
    """As its own repository has them; lmms-eval moves them into the folders of videos."""
    for name, kind in (("vinoground_textscore.json", "text"), ("vinoground_videoscore.json", "video")):
        sheet(tmp_path / name, [{"idx": "3_pos", "video_name": f"{kind}.mp4", "question": "?", "GT": "A"}])
    held = [one for entry in load_task(find_task("vinoground"), tmp_path).entries for one in entry.questions]
    assert [(one.unit, one.category) for one in held] == [("3", "text"), ("3", "video")]


def test_data_sets_are_found_where_they_were_before(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for: list[str] = []

    def load(hub: str, config: str | None, *, split: str) -> datasets.Dataset:
        asked_for.append(hub)
        if hub.startswith("lmms-lab-encoder/"):
            raise datasets.exceptions.DatasetNotFoundError(f"no {hub}")
        return data_set("chartqa", CASES["chartqa"][0])

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert asked(load_task(find_task("chartqa"))) == CASES["chartqa"][1]
    assert asked_for == ["lmms-lab-encoder/ChartQA", "lmms-lab/ChartQA"]
    monkeypatch.setattr(datasets, "load_dataset", lambda hub, *_, **__: 1 / (hub == "nowhere"))
    with pytest.raises(M3ScoreError, match="chartqa: lmms-lab-encoder/ChartQA can't be loaded"):
        load_task(find_task("chartqa"))


# ---- a user's own -------------------------------------------------------------------------------------


def test_own_questions(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"image": "a.png", "question": "How many?", "answers": ["3"]},
        {"image": "a.png", "question": "Which?", "answers": ["B"], "options": OPTIONS},
        {"image": "a.png", "question": "Is it a bee or an ant?", "answers": ["ant"], "options": OPTIONS},
        {"image": "b.png", "question": "Unknown"},
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    grey(9).save(tmp_path / "a.png")
    source = load_own(path, None, None)
    assert [text for text, _, _ in asked(source)] == [
        "How many?",
        f"Which?{LISTED}{LETTER}",
        rows[2]["question"],
    ]
    assert source.left_out == {"no reference answer": 1} and source.task.name == f"{tmp_path.name}-mine"
    (item,) = source.items()
    assert item.source == str(tmp_path / "a.png") and item.open().error is None
    ended = load_own(path, "contains", "\nBriefly.")
    assert asked(ended)[0][0] == "How many?\nBriefly." and ended.task.metric == "contains"
    with pytest.raises(M3ScoreError, match="unknown metric 'bleu'"):
        load_own(path, "bleu", None)


def test_answers_may_be_objects() -> None:
    held = find_task("vizwiz")
    row = {"question": "what", "answers": [{"answer": "can", "answer_confidence": "yes"}] * 10}
    assert task_question(held, row).question.answers == ("can",) * 10


# ---- texts that look like something else ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "right", "wrong"), [("[2013, 2016]", "[2013, 2016]", "2013"), ("['a', 'b']", "['a', 'b']", "a")]
)
def test_a_list_as_a_label_of_chartqa_is_one_text(label: str, right: str, wrong: str) -> None:
    """As in ChartQA's metric, which compares the label as it is written (9 of 2,373 labels are lists)."""
    one = task_question(find_task("chartqa"), {"question": "Which years?", "answer": label, "type": "human"})
    assert one.question.answers == (label,)
    assert grade("relaxed_accuracy", right, one.question.answers).correct
    assert not grade("relaxed_accuracy", wrong, one.question.answers).correct


def test_only_a_missing_value_is_missing() -> None:
    seed = find_task("seed")
    row = {"question": "How many?", "choice_a": "One", "choice_b": "None", "choice_c": "Two",
           "choice_d": "Three", "answer": "D", "data_type": "image"}  # fmt: skip
    one = task_question(seed, row)
    assert one.question.options == ("One", "None", "Two", "Three") and one.question.answers == ("D",)
    assert "B. None" in one.question.question
    for name in ("chartqa", "gqa", "msvd-qa"):
        assert task_question(find_task(name), {"question": "?", "answer": "none"}).question.answers == (
            "none",
        )
        assert task_question(find_task(name), {"question": "?", "answer": "nan"}).question.answers == ("nan",)
        for missing in (None, float("nan"), ""):
            with pytest.raises(LeftOut, match="no reference answer"):
                task_question(find_task(name), {"question": "?", "answer": missing})


def test_a_gap_among_options_is_left_out(tmp_path: Path) -> None:
    row = {"index": 5, "question": "?", "hint": "nan", "answer": "C", "A": "none", "B": "nan", "C": "fly"}
    with pytest.raises(LeftOut, match="an option is missing"):
        task_question(find_task("mmbench"), row)
    assert task_question(find_task("mmbench"), {**row, "B": "two"}).question.options == ("none", "two", "fly")


@pytest.mark.parametrize("answer", ["7", "-1", "B"])
def test_a_position_beyond_the_options_is_an_error(answer: str) -> None:
    with pytest.raises(M3ScoreError, match="is no position among 2 options"):
        task_question(find_task("ai2d"), {"question": "?", "options": OPTIONS, "answer": answer})


def test_mmbench_has_two_prompts(tmp_path: Path) -> None:
    rows, _ = CASES["mmbench"]
    data_set("mmbench", rows).save_to_disk(str(tmp_path / "mmbench"))  # the data is the same
    source = load_task(find_task("mmbench-lmms"), tmp_path)
    assert asked(source) == [
        (f"Look. Which? There are several options:{LISTED}\n{LETTER}", ("A",), 2),
        (f"Which? There are several options:\nA. ant\nB. bee\n{LETTER}", ("B",), 2),
    ]
    assert [entry.name for entry in source.entries] == ["mmbench-lmms/0", "mmbench-lmms/1"]
    assert {entry.questions[0].unit for entry in source.entries} == {"5"}


@pytest.mark.parametrize("name", ["seed", "temporalbench", "vinoground"])
def test_tasks_that_go_by_the_first_character(name: str) -> None:
    assert find_task(name).metric == "first_letter"


def test_mmmu_may_name_its_image_twice() -> None:
    row = {"question": "In <image 1>, what does <image 1> show?", "options": "['<image 1>', 'ant']",
           "answer": "A"}  # fmt: skip
    text = task_question(find_task("mmmu"), row).question.question
    assert text.startswith("In <image>, what does <image 1> show?\nA. <image 1>\nB. ant")
    assert place_image_tags(text, 1) == text  # one image for one tag


@pytest.mark.parametrize(
    ("text", "options", "named"),
    [
        ("How many people stood in line in 2013?", ["0", "1", "2", "3"], False),
        ("Which of the 2 dogs is in 3 of the pictures?", ["2", "3"], False),
        ("Is it a bee or an ant?", OPTIONS, True),
        ("Is it an ant or a bee?", OPTIONS, False),  # then a letter would be wrong
        ("Which?\nA. bee\nB. ant", OPTIONS, True),
        ("Which? (a) Bee (b) Ant", OPTIONS, True),
        ("Which? 1) bee; 2) ant", OPTIONS, True),
        ("bee, fly or ant?", ["bee", "fly", "ant"], True),
        ("Is the beekeeper in the pantry?", OPTIONS, False),
        ("Does the bee sit where the ant runs?", OPTIONS, False),
        ("$5 or $6?", ["$5", "$6"], True),
        ("C++ or C?", ["C++", "C"], True),
    ],
)
def test_options_that_a_question_names(text: str, options: list[str], named: bool) -> None:
    assert names_options(text, options) is named
    asked = own_question(Question(text, ("A",), tuple(options))).question
    assert asked == text if named else "\nA. " in asked and asked.endswith(LETTER)
