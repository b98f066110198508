"""What to send to the model that a predictor routes: by family, by knob, for one picture and for a table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import m3score
from m3score.common.errors import M3ScoreError
from m3score.models.budgets.gemma import Gemma3, Gemma4
from m3score.models.budgets.internvl import InternVL
from m3score.models.budgets.llava_onevision import LlavaOnevision
from m3score.models.budgets.qwen_vl import QwenVL
from m3score.routing.predictor import Predictor
from m3score.routing.target import Target
from m3score.tables.io import read_table
from m3score.tables.schema import PREDICTIONS
from tests.support.predictors import small_predictor
from tests.support.runs import invoke

LADDER = (64, 144, 256, 576, 1024)


def predictor_of(target: Target | None, ladder: tuple[int, ...] = LADDER) -> Predictor:
    """A predictor that promises nothing about real pictures, of a target with five rungs."""
    told = {} if target is None else {"target": target.to_dict()}
    return small_predictor(ladder=ladder, data=told)


def test_each_family_is_told_in_its_own_words() -> None:
    size, ladder = (1600, 1200), (256, 1280, 1792, 2304, 3328)
    qwen = Target(QwenVL()).request(size, 1024, LADDER)
    assert qwen.budget == 1024 and qwen.visual_tokens == 972  # as in the golden counts of the budgets
    told = {"shortest_edge": 3136, "longest_edge": 1024 * 784}
    assert qwen.fields == {"processor_kwargs": {"images_kwargs": {"size": told}}}
    intern = Target(InternVL()).request(size, 1280, ladder)
    assert intern.visual_tokens == 1280
    assert intern.fields == {"processor_kwargs": {"images_kwargs": {"max_patches": 4}}}
    gemma = Target(Gemma4()).request(size, 140, (70, 140, 280))
    assert gemma.fields == {"processor_kwargs": {"images_kwargs": {"max_soft_tokens": 140}}}
    (attributes,) = Target(family := LlavaOnevision()).request(size, family.default_rungs[0], ()).fields
    assert attributes == "image_processor"  # it takes nothing with a call


def test_knobs_of_servers_become_fields_of_requests() -> None:
    size, told = (640, 480), {"shortest_edge": 3136, "longest_edge": 256 * 784}
    by = {
        knob: Target(QwenVL(), knob).request(size, 256, LADDER) for knob in ("vllm", "transformers", "resize")
    }
    assert by["vllm"].fields == {"extra_body": {"mm_processor_kwargs": {"size": told}}}
    assert by["transformers"].fields == {"extra_body": {"chat_template_kwargs": {"size": told}}}
    wide, high = by["resize"].fields["resize"]
    assert wide * high // 784 == by["resize"].visual_tokens == by["vllm"].visual_tokens == 234
    older = Target(QwenVL(), "vllm", 1).request(size, 256, LADDER)
    pixels = {"min_pixels": 3136, "max_pixels": 256 * 784}
    assert older.fields == {"extra_body": {"mm_processor_kwargs": pixels}}
    detail = Target(None, "detail").request(size, 85, (85, 1105))
    assert detail.fields == {"image_url": {"detail": "low"}} and detail.visual_tokens is None
    with pytest.raises(M3ScoreError, match="resizing does nothing for gemma3"):
        Target(Gemma3(), "resize").request(size, 256, (256, 768))


@pytest.mark.parametrize("family", [None, QwenVL(), InternVL(max_patches=6), LlavaOnevision(), Gemma4()])
def test_a_target_comes_back_from_a_file(family: Any, tmp_path: Path) -> None:
    target = Target(family, "detail" if family is None else None)
    stored = json.loads(json.dumps(target.to_dict()))
    assert stored == target.to_dict()
    assert Target.from_dict(stored) == target


@pytest.mark.parametrize(
    ("stored", "wrong"),
    [
        ("qwen", "no description"),
        ({"family": {"family": "nobody"}, "knob": None, "spelling": 0}, "no family 'nobody'"),
        ({"family": None, "knob": None, "spelling": 0}, "has no family"),
        ({"family": None, "knob": "dial", "spelling": 0}, "--knob dial is none"),
        ({"family": None, "knob": "detail", "spelling": 7}, "spells the knob"),
        ({"family": "x", "knob": "detail", "spelling": 0}, "no description"),
    ],
)
def test_a_target_that_cannot_be_understood_is_refused(stored: Any, wrong: str) -> None:
    with pytest.raises(M3ScoreError, match=wrong):
        small_predictor(data={"target": stored})


def test_rungs_that_the_family_lacks_are_refused() -> None:
    with pytest.raises(M3ScoreError, match="no budget of 64"):
        predictor_of(Target(InternVL()))


def test_one_picture_a_list_and_a_resized_one(tmp_path: Path) -> None:
    image = Image.effect_noise((640, 480), 90).convert("RGB")
    image.save(path := tmp_path / "a.png")
    predictor = predictor_of(Target(QwenVL()))
    tokens = m3score.predict_scale(path, max_drop=None, predictor=predictor)
    one = m3score.request_for(path, max_drop=None, predictor=predictor)
    assert one.budget == tokens and one.image is None
    assert one.visual_tokens == QwenVL().visual_tokens((640, 480), tokens)
    both = m3score.request_for([image, path], ["What?", None], max_drop=None, predictor=predictor)
    assert [type(each.budget) for each in both] == [int, int] and both[1].fields == one.fields
    by_client = m3score.request_for(path, max_drop=None, predictor=predictor_of(Target(QwenVL(), "resize")))
    assert by_client.image is not None
    assert list(by_client.image.size) == by_client.fields["resize"]
    m3 = m3score.request_for(path, max_drop=None, predictor=small_predictor())
    assert m3.fields == {"tokens": m3.budget} and m3.visual_tokens == m3.budget
    with pytest.raises(M3ScoreError, match=r"none\.png"):
        m3score.request_for(tmp_path / "none.png", predictor=predictor)


def test_the_command_writes_what_to_send(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.effect_noise((640, 480), 90).save(folder / "a.png")
    Image.new("RGB", (30, 9000)).save(folder / "b.png")  # longer than Qwen takes
    (folder / "c.jpg").write_bytes(b"broken")
    predictor = predictor_of(Target(QwenVL()))
    predictor.save(file := tmp_path / "my.predictor")
    asked = ("predict", folder, "--predictor", file, "--max-drop", 0.3)
    out = tmp_path / "requests.jsonl"
    assert invoke(*asked, "--as", "request", "--out", out).exit_code == 3
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    sent = rows[0]["request"]["processor_kwargs"]["images_kwargs"]["size"]["longest_edge"]
    assert sent == rows[0]["predicted_tokens"] * 784 and rows[0]["visual_tokens"]
    assert rows[1]["request"] is None and "too long for qwen2.5-vl" in rows[1]["error"]
    assert rows[2]["request"] is None and rows[2]["error"]
    assert json.loads(read_table(out, PREDICTIONS).request[0]) == rows[0]["request"]
    for suffix in ("csv", "parquet"):
        other = tmp_path / f"requests.{suffix}"
        assert invoke(*asked, "--as", "request", "--out", other).exit_code == 3
        assert json.loads(read_table(other, PREDICTIONS).request[0]) == rows[0]["request"]
    plain = tmp_path / "scales.jsonl"
    invoke(*asked, "--out", plain)
    assert "request" not in plain.read_text()


def test_labels_and_predictors_of_a_stock_model_know_it() -> None:
    class Stock:
        family = QwenVL(most=28 * 28 * 1024)

    class Served(Stock):
        class findings:
            class knob:
                name, spelling = "vllm", 1

    assert Target.of(Stock()) == Target(Stock.family)
    assert Target.of(Served()) == Target(Stock.family, "vllm", 1)
    assert Target.of(object()) is None
    assert replace(Target(Stock.family), knob="vllm") != Target(Stock.family)
