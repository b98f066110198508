"""The M3 objective on packed questions, recipes, and a training run that is killed and resumed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from m3score import load_model
from m3score.calibration.drawings.drawing import draw
from m3score.calibration.training.finetune.instructions import Example, InstructionCollator
from m3score.calibration.training.finetune.packing import summed_losses
from m3score.calibration.training.tiny.model import build_model, build_tokenizer
from m3score.calibration.training.tiny.module import tower_features
from m3score.calibration.training.tiny.objective import BEFORE_IMAGE, m3_losses, pack_questions
from m3score.calibration.training.tiny.recipes import bundled_recipes, load_recipe, parse_scales
from m3score.calibration.training.tiny.train import last_whole_checkpoint, save_model
from m3score.common.errors import M3ScoreError
from m3score.models.m3.conversation import training_example
from m3score.models.m3.preprocess import preprocess

SMALL = """
seed = 5
bf16 = false
workers = 0
save_steps = 2
model = { width = 64, heads = 2, tower_layers = 2, layers = 2 }
[[stages]]
name = "symbols"
kind = "symbols"
scales = [1, 9]
steps = 3
batch_size = 2
learning_rate = 1e-3
[[stages]]
name = "m3"
kind = "m3"
scales = [1, 9, 36]
steps = 8
batch_size = 2
learning_rate = 1e-3
dense_weight = 0.1
"""


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A small untrained model as a folder, and as transformers sees it."""
    tokenizer = build_tokenizer()
    llava = build_model(tokenizer, seed=1, width=64, heads=2, tower_layers=2, layers=2)
    folder = save_model(llava, tokenizer, tmp_path_factory.mktemp("model"))
    return load_model(str(folder), device="cpu", dtype="float32")


def test_packed_questions_have_the_loss_of_questions_asked_one_by_one(untrained):
    drawing = draw(11, 3, "shapes")
    pairs = [(asked.question, asked.answer) for asked in drawing.questions[:3]]
    llava, tokenizer = untrained.hf_model, untrained.tokenizer
    prefix = torch.tensor(tokenizer.encode(BEFORE_IMAGE))
    pixels = torch.from_numpy(drawing.canvas.pixels().copy())[None]
    with torch.no_grad():
        features = llava.model.multi_modal_projector(tower_features(llava.model.vision_tower, pixels))
        packed = m3_losses(llava, prefix, features, pack_questions(tokenizer, [pairs]), untrained.ladder)
        alone = [_example(untrained, drawing.image, *pair) for pair in pairs]
        summed = summed_losses(untrained, alone, untrained.ladder, train_vision=False)
    counts = InstructionCollator(untrained.config, untrained.ladder)([*alone])["counts"]
    for tokens, loss in zip(untrained.ladder, (summed / counts).tolist(), strict=True):
        assert packed[tokens].item() == pytest.approx(loss, rel=1e-4)


def _example(model, image, question: str, answer: str) -> Example:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    ids, labels = training_example(turns, model.tokenizer, model.config.conversation)
    return Example(ids, labels, [preprocess(image, model.config)])


def _train(recipe: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "m3score", "train", str(recipe), "--out", str(out), "--quiet"]


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_as_if_undisturbed(tmp_path):
    recipe = tmp_path / "small.toml"
    recipe.write_text(SMALL)
    subprocess.run(_train(recipe, tmp_path / "whole"), check=True)
    with subprocess.Popen(_train(recipe, tmp_path / "killed")) as run:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "killed/m3").glob("checkpoint-*/trainer_state.json")):
            assert run.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        run.send_signal(signal.SIGKILL)
    subprocess.run(_train(recipe, tmp_path / "killed"), check=True)
    whole, killed = (load_file(tmp_path / name / "m3/done.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    for name, value in whole.items():
        torch.testing.assert_close(killed[name], value, rtol=1e-4, atol=1e-5)
    log = (tmp_path / "killed/log.jsonl").read_text()
    assert '"stage": "m3"' in log
    assert load_model(str(tmp_path / "killed/model"), device="cpu").ladder == (1, 9, 36, 144, 576)


def test_a_checkpoint_that_was_cut_off_is_passed_over(tmp_path):
    for step, state in ((2, "{}"), (10, "{}"), (12, "{cut")):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}/trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-14").mkdir()
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert last_whole_checkpoint(tmp_path / "checkpoint-14") is None


def test_bundled_recipes_can_be_read():
    assert "m3-tiny" in bundled_recipes()
    for name in bundled_recipes():
        assert load_recipe(name).stages


def test_a_recipe_can_be_shortened():
    recipe = load_recipe("m3-tiny")
    assert all(stage.steps >= 1 for stage in recipe.shortened(0.0001).stages)
    assert recipe.shortened(1.0) == recipe


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (('kind = "m3"', 'kind = "m4"'), "'symbols', 'tower' or 'm3'"),
        (("steps = 8", "step = 8"), "unknown key 'step'"),
        (("scales = [1, 9, 36]", "scales = [7]"), "1, 9, 36, 144, 576"),
        (("seed = 5", "seed = "), "not valid TOML"),
        (("learning_rate = 1e-3\ndense", "dense"), "lacks learning_rate"),
    ],
)
def test_a_wrong_recipe_gets_one_sentence(tmp_path, change, complaint):
    path = tmp_path / "wrong.toml"
    path.write_text(SMALL.replace(*change))
    with pytest.raises(M3ScoreError, match=complaint) as caught:
        load_recipe(str(path))
    assert "wrong.toml" in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_recipe_names_the_known(tmp_path):
    with pytest.raises(M3ScoreError, match="m3-tiny"):
        load_recipe("m3-giant")


def test_scales_are_checked():
    assert parse_scales("576, 9") == (9, 576)
    with pytest.raises(M3ScoreError, match="--scales 8: allowed are 1, 9"):
        parse_scales("8")
