"""Fine-tuning on instruction data: any number of processes, kills, LoRA, recipes, through the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from m3score import load_model
from m3score.calibration.training.finetune.config import FinetuneConfig, bundled_configs, load_config
from m3score.calibration.training.finetune.finetune import finetune
from m3score.cli.main import app
from m3score.common.errors import M3ScoreError
from tests.support.goldens import CHECKPOINTS, LLAVA, NEXT

RECIPE = f"""
model = "{CHECKPOINTS / LLAVA}"
batch_size = 4
batch_per_device = 2
learning_rate = 1e-2
tower_learning_rate = 1e-3
projector_learning_rate = 1e-2
scales = [1, 9]
epochs = 2
bf16 = false
workers = 0
save_steps = 2
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a recipe and 9 records: 6 with an image, 3 of text; one image is broken."""
    folder = tmp_path_factory.mktemp("instructions")
    (folder / "recipe.toml").write_text(RECIPE)
    rng = np.random.default_rng(0)
    records = []
    for index in range(9):
        answer = " ".join(rng.choice(["red", "blue", "a", "cat"], size=1 + index))
        turns = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": answer}]
        record = {"id": index, "conversations": turns}
        if index % 3:
            record["image"] = f"{index}.png"
            turns[0]["value"] += "\n<image>"
            Image.fromarray(rng.integers(256, size=(20, 30, 3), dtype=np.uint8)).save(folder / f"{index}.png")
        records.append(record)
    (folder / "7.png").write_bytes(b"not a picture")
    (folder / "data.json").write_text(json.dumps(records))
    return folder


def _plan(place: Path, **changes) -> FinetuneConfig:
    import dataclasses

    return dataclasses.replace(
        load_config(str(place / "recipe.toml")), data=str(place / "data.json"), **changes
    )


@pytest.fixture(scope="module")
def undisturbed(place) -> Path:
    finetune(_plan(place), place / "whole")
    return place / "whole"


def _log(out: Path) -> list[dict]:
    return [json.loads(row) for row in (out / "log.jsonl").read_text().splitlines()]


def _like(out: Path, other: Path) -> None:
    """Two runs have the same curve and end in the same weights."""
    ours, theirs = _log(out), _log(other)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs] == [1, 2, 3, 4, 5, 6]
    for key in ("loss", "scale_1", "scale_9"):
        assert [row[key] for row in ours] == pytest.approx([row[key] for row in theirs], rel=2e-4)
    one, two = (load_file(folder / "model/model.safetensors") for folder in (out, other))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=2e-4)


def _command(place: Path, out: str) -> list[str]:
    files = [str(place / "recipe.toml"), "--data", str(place / "data.json"), "--out", str(place / out)]
    return ["-m", "m3score", "train", *files, "--quiet"]


def test_it_learns_and_ends_in_a_model_that_answers(undisturbed):
    rows = _log(undisturbed)
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5
    assert all(row["loss"] == pytest.approx((row["scale_1"] + row["scale_9"]) / 2, abs=2e-6) for row in rows)
    assert load_model(undisturbed / "model", device="cpu").ladder == (1, 9, 36, 144, 576)
    start, end = (
        load_model(name, device="cpu").hf_model for name in (CHECKPOINTS / LLAVA, undisturbed / "model")
    )
    changed = {
        name.split(".")[1] for (name, a), b in zip(start.named_parameters(), end.parameters(), strict=True)
        if not torch.equal(a, b)
    }  # fmt: skip
    assert {"vision_tower", "multi_modal_projector", "language_model"} <= changed


def test_a_broken_image_is_left_out_and_written_down(undisturbed):
    rows = [json.loads(row) for row in (undisturbed / "left-out.jsonl").read_text().splitlines()]
    assert {row["record"] for row in rows} == {"7"} and "7.png" in rows[0]["error"]


def test_two_processes_have_the_curve_of_one(place, undisturbed):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, *launch, *_command(place, "two")],
        check=True,
        env=environment,
        capture_output=True,
        timeout=600,
    )
    _like(place / "two", undisturbed)


def test_a_killed_run_goes_on_with_the_same_curve(place, undisturbed):
    with subprocess.Popen([sys.executable, *_command(place, "killed")]) as run:
        deadline = time.monotonic() + 400
        while not list((place / "killed").glob("checkpoint-*/trainer_state.json")):
            assert run.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
    assert not (place / "killed/model").exists()
    finetune(_plan(place), place / "killed")
    _like(place / "killed", undisturbed)


def test_one_part_or_two_and_packed_or_not_is_the_same(place, undisturbed):
    finetune(_plan(place, batch_per_device=4, packed=False, gradient_checkpointing=False), place / "other")
    _like(place / "other", undisturbed)


def test_another_recipe_does_not_go_on_in_the_same_folder(place, undisturbed):
    (undisturbed / "model").rename(undisturbed / "aside")
    try:
        with pytest.raises(M3ScoreError, match=r"holds a run with learning_rate 0.01, not 0.5"):
            finetune(_plan(place, learning_rate=0.5), undisturbed)
    finally:
        (undisturbed / "aside").rename(undisturbed / "model")


def test_lora_changes_little_and_is_merged_at_the_end(place, tmp_path):
    pytest.importorskip("peft")
    recipe = tmp_path / "lora.toml"
    recipe.write_text(RECIPE + "tune_tower = false\n[lora]\nrank = 4\nalpha = 8\ndropout = 0.0\n")
    arguments = [
        "train",
        str(recipe),
        "--data",
        str(place / "data.json"),
        "--out",
        str(tmp_path / "out"),
        "-q",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    rows = _log(tmp_path / "out")
    assert rows[-1]["loss"] < rows[0]["loss"]
    saved = load_file(next((tmp_path / "out").glob("checkpoint-*/model.safetensors")))
    assert all("lora" in name or "projector" in name for name in saved)
    start, end = (
        load_model(name, device="cpu").hf_model for name in (CHECKPOINTS / LLAVA, tmp_path / "out/model")
    )
    changed = {
        name for (name, a), b in zip(start.named_parameters(), end.named_parameters(), strict=True)
        if not torch.equal(a, b[1])
    }  # fmt: skip
    assert changed and all("_proj" in name or "projector" in name for name in changed)
    assert (tmp_path / "out/adapter/adapter_model.safetensors").is_file()


def test_the_papers_recipe():
    assert {"llava-1.5-7b-m3", "llava-1.5-7b-m3-lora"} <= set(bundled_configs())
    plan = load_config("llava-1.5-7b-m3")
    assert plan.name == "llava-1.5-7b-m3"
    assert (plan.batch_size, plan.epochs, plan.warmup, plan.weight_decay) == (128, 1, 0.03, 0.0)
    assert plan.learning_rate == plan.tower_learning_rate == 2e-5
    assert plan.scales == (1, 9, 36, 144, 576) and plan.tune_tower and plan.lora is None
    assert load_config("llava-1.5-7b-m3-lora").lora is not None


def test_the_configuration_for_sharding_is_one_of_accelerates():
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    config = load_config_from_file(str(Path(__file__).parents[3] / "calibration/training/finetune/fsdp.yaml"))
    known = vars(launch_command_parser().parse_args(["train.py"]))
    assert config.fsdp_config.keys() <= known.keys() and config.distributed_type == "FSDP"
    wrapped = set(config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"].split(","))
    for name in (LLAVA, NEXT):
        layers = load_model(CHECKPOINTS / name, device="cpu").hf_model.modules()
        assert wrapped <= {type(layer).__name__ for layer in layers}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("batch_size = 4", "batch = 4"), "unknown key 'batch'"),
        (("batch_size = 4", "batch_size = 0"), "batch_size is 0; it must be at least 1"),
        (("batch_size = 4", "batch_size = 4.5"), "batch_size is 4.5; it must be of type int"),
        (("batch_size = 4", "warmup = 2.0"), "warmup is 2.0"),
        (("learning_rate = 1e-2", "learning_rate = -1"), "can't be negative"),
    ],
)
def test_a_wrong_recipe_gets_one_sentence(tmp_path, change, complaint):
    (tmp_path / "wrong.toml").write_text(RECIPE.replace(change[0], change[1], 1))
    with pytest.raises(M3ScoreError, match=complaint):
        load_config(str(tmp_path / "wrong.toml"))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([], "give --data"),
        (["--data", "none.json"], "none.json can't be read"),
        (["--data", "DATA", "--image-folder", "."], "images aren't there"),
        (["--scales", "x"], "--scales x"),
    ],
)
def test_wrong_options_get_one_sentence(place, tmp_path, options, complaint):
    given = [str(place / "data.json") if option == "DATA" else option for option in options]
    arguments = ["train", str(place / "recipe.toml"), "--out", str(tmp_path / "out"), *given]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert complaint in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()  # it would stop the corrected command


def test_a_batch_must_fit_the_processes(place, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    from m3score.calibration.training.finetune.finetune import _arguments

    with pytest.raises(M3ScoreError, match="4 can't be spread over 3 processes"):
        _arguments(_plan(place), tmp_path, 6)
