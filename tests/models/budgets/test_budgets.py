"""Budgets of visual tokens: exact counts, held against the real processors, and errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from m3score.common.errors import M3ScoreError
from m3score.models.budgets.base import Family, Size
from m3score.models.budgets.gemma import Gemma3, Gemma4
from m3score.models.budgets.internvl import InternVL
from m3score.models.budgets.llava_onevision import LlavaOnevision
from m3score.models.budgets.qwen_vl import Qwen3VL, QwenVL
from m3score.models.budgets.smolvlm import SmolVLM
from m3score.models.budgets.table import (
    FAMILIES,
    family_of,
    find_family,
    guess_family,
    read_family,
    restore,
)
from tests.support.golden_budgets import RUNGS, Counter, stored

GOLDEN = stored()
"""Visual tokens of 40 sizes at all rungs as the processors of transformers 5.23 have them, with the settings
of stock_checkpoints.py, which are the published ones."""
SIZES: list[Size] = [(width, height) for width, height in GOLDEN["sizes"]]
TYPES = list(RUNGS)
FEW = [(640, 480), (333, 778)]


def published(model_type: str) -> Family:
    family = family_of(model_type)
    assert family is not None
    return family() if family is not Gemma3 else Gemma3(image_side=448)


@pytest.mark.parametrize("model_type", TYPES)
def test_counts_are_those_of_the_processors(model_type: str) -> None:
    golden = GOLDEN["families"][model_type]
    family = published(model_type)
    counts = [[family.visual_tokens(size, rung) for rung in golden["rungs"]] for size in SIZES]
    assert counts == golden["counts"]
    assert all(count <= rung for row in counts for count, rung in zip(row, golden["rungs"], strict=True))


def compare(folder: Path, model_type: str, sizes: list[Size]) -> None:
    counter, golden = Counter(folder), GOLDEN["families"][model_type]
    family = read_family(folder, model_type)
    assert family == published(model_type)  # the processor's files say what was published
    for size in sizes:
        row = [counter.count(family, size, rung) for rung in golden["rungs"]]
        assert row == golden["counts"][SIZES.index(size)], size


@pytest.mark.parametrize("model_type", TYPES)
def test_the_golden_counts_are_those_of_this_transformers(
    model_type: str, stock_folder: Callable[[str], Path]
) -> None:
    compare(stock_folder(model_type), model_type, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", TYPES)
def test_all_golden_counts_are_those_of_this_transformers(
    model_type: str, stock_folder: Callable[[str], Path]
) -> None:
    compare(stock_folder(model_type), model_type, SIZES)


@pytest.mark.parametrize("family", [QwenVL(), Qwen3VL(), InternVL(), LlavaOnevision()])
def test_a_resized_picture_keeps_to_the_budget_of_an_untold_server(family: Family) -> None:
    for size, rung in product(SIZES, family.default_rungs):
        sent = family.client_size(size, rung)
        assert sent is not None
        least = 64 if isinstance(family, Qwen3VL) else 0  # and more for a long picture: whole rows
        assert family.visual_tokens(sent) <= max(rung, least * 2)
        if isinstance(family, QwenVL):
            assert family.visual_tokens(sent) * family.token_side**2 == sent[0] * sent[1]  # not resized again
        if isinstance(family, InternVL):
            assert family.visual_tokens(sent) == family.visual_tokens(size, rung)


@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "qwen3_vl", "internvl", "llava_onevision"])
def test_an_untold_processor_agrees_about_resized_pictures(
    model_type: str, stock_folder: Callable[[str], Path]
) -> None:
    family = published(model_type)
    sent = family.client_size((700, 400), family.default_rungs[1])
    assert sent is not None
    assert Counter(stock_folder(model_type)).count(family, sent) == family.visual_tokens(sent)


@pytest.mark.parametrize("family", [SmolVLM(), Gemma3(), Gemma4()])
def test_resizing_does_not_help_where_the_processor_enlarges(family: Family) -> None:
    assert family.client_size((640, 480), family.default_rungs[0]) is None


def test_default_ladders() -> None:
    assert {family.name: family().default_rungs for family in FAMILIES} == {
        "qwen2.5-vl": (64, 256, 1024, 4096),
        "qwen3-vl": (64, 256, 1024, 4096),
        "internvl": (256, 1280, 1792, 3328),
        "smolvlm": (64, 320, 640, 1088),
        "llava-onevision": (1485, 2241, 3753, 7371, 8829),
        "gemma3": (256, 768),
        "gemma4": (70, 140, 280),
    }


def test_the_finest_rung_is_what_the_processor_does_unless_told_otherwise() -> None:
    assert QwenVL.from_settings({"max_pixels": 1280 * 28 * 28}).default_rungs == (64, 256, 1024, 1280)
    assert InternVL.from_settings({"max_patches": 6}).default_rungs == (256, 1280, 1792)
    assert SmolVLM.from_settings({"size": {"longest_edge": 1536}}).default_rungs == (64, 320, 640)
    assert Gemma4.from_settings({"max_soft_tokens": 1120}).default_rungs == (70, 140, 280, 560, 1120)
    assert Gemma3.from_settings({"do_pan_and_scan": True}).default_rungs == (256, 1280)
    for family in (InternVL(), SmolVLM(), LlavaOnevision(), Gemma4()):
        finest = family.default_rungs[-1]
        assert [family.visual_tokens(size) for size in SIZES] == [
            family.visual_tokens(size, finest) for size in SIZES
        ]


def test_settings_of_another_checkpoint() -> None:
    idefics = SmolVLM.from_settings(
        {"max_image_size": {"longest_edge": 364}, "size": {"longest_edge": 1456}, "image_seq_len": 169}
    )
    assert idefics.default_rungs == (169, 845, 1690, 2873)
    assert QwenVL.from_settings({"patch_size": 16, "merge_size": 2}).token_side == 32


def test_rungs_of_ones_own() -> None:
    assert QwenVL().ladder([500, 100, 100]) == (100, 500)
    assert Gemma4().ladder([1120, 70]) == (70, 1120)
    with pytest.raises(M3ScoreError, match=r"gemma4 has no budget of 100 .* 70, 140, 280, 560, 1120"):
        Gemma4().ladder([100])
    with pytest.raises(M3ScoreError, match="any number from 4 on"):
        QwenVL().ladder([3])
    with pytest.raises(M3ScoreError, match="at least one budget"):
        QwenVL().ladder([])


def test_pictures_that_a_processor_refuses() -> None:
    with pytest.raises(M3ScoreError, match="at most 200 times as long"):
        QwenVL().visual_tokens((5000, 10), 64)


def test_grids_of_one_count_may_show_other_pixels() -> None:
    family = LlavaOnevision()
    nine, all_tiles = 7371, 8829
    size = (2304, 2304)
    assert family.visual_tokens(size, nine) == family.visual_tokens(size, all_tiles)
    assert not family.same_pixels(size, nine, all_tiles)
    assert family.same_pixels((200, 200), nine, all_tiles)


def test_families_are_found_by_name() -> None:
    assert guess_family("Qwen/Qwen2.5-VL-3B-Instruct-AWQ") is QwenVL
    assert guess_family("google/gemma-4-e2b-it") is Gemma4
    assert guess_family("HuggingFaceTB/SmolVLM2-500M-Video-Instruct") is SmolVLM
    assert guess_family("llava-hf/llava-onevision-qwen2-7b-ov-hf") is LlavaOnevision
    assert guess_family("gpt-4o") is None
    assert find_family("internvl") is InternVL
    with pytest.raises(M3ScoreError, match="no family 'gpt'"):
        find_family("gpt")


def test_a_family_is_stored_and_restored() -> None:
    for family in (QwenVL(least=1), LlavaOnevision(canvases=((384, 384), (768, 384))), Gemma4()):
        assert restore(json.loads(json.dumps(family.to_dict()))) == family


def test_an_unknown_family_says_how_to_add_one(tmp_path: Path) -> None:
    with pytest.raises(M3ScoreError, match=r"type 'mystery'.*qwen2_5_vl.*CONTRIBUTING.md"):
        read_family(tmp_path, "mystery")


def test_settings_that_make_no_sense(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text('{"max_patches": "many"}')
    with pytest.raises(M3ScoreError, match="settings of the internvl processor"):
        read_family(tmp_path, "internvl")
