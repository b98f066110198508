"""Train an M3 from a recipe, stage by stage, with transformers' Trainer.

The same code runs on a CPU, on one GPU and, through accelerate, on many. Each stage keeps its checkpoints in
`OUT/STAGE/`; a run that is started again resumes from the last one. The finished model is in `OUT/model`, a
transformers folder; the losses are in `OUT/log.jsonl`.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

from m3score.calibration.drawings.canvas import GRID, PATCH, PIXEL_CHANNELS
from m3score.calibration.drawings.drawing import draw
from m3score.calibration.training.tiny.model import build_model, build_tokenizer
from m3score.calibration.training.tiny.module import TinyTrainingModule
from m3score.calibration.training.tiny.objective import BEFORE_IMAGE, CONVERSATION, pack_questions
from m3score.calibration.training.tiny.recipes import LADDER, Recipe, Stage
from m3score.common.errors import M3ScoreError

logger = logging.getLogger(__name__)


class Drawings(Dataset[dict[str, Any]]):
    """Drawn images of one stage: a map-style data set, so that a resumed run skips without drawing."""

    def __init__(self, seed: int, first: int, length: int, stage: Stage) -> None:
        self.seed, self.first, self.length, self.stage = seed, first, length, stage

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, self.first + index, 1))
        shares = self.stage.shares
        kind = str(rng.choice(list(shares), p=list(shares.values()))) if shares else None
        drawing = draw(self.seed, self.first + index, kind, ask_all=True)
        item: dict[str, Any] = {}
        if self.stage.kind != "m3" or self.stage.dense_weight:
            item["dense"] = drawing.canvas.labels()
        if self.stage.kind != "symbols":
            item["pixels"] = drawing.canvas.pixels()
        if self.stage.kind == "tower":
            tiled = drawing.kind == "words" and not any(GRID % side for side in self.stage.window)
            return self._windows(item, rng, whole=tiled)
        order = rng.permutation(len(drawing.questions))[: self.stage.questions]
        item["pairs"] = [(drawing.questions[i].question, drawing.questions[i].answer) for i in order]
        return item

    def _windows(self, item: dict[str, Any], rng: np.random.Generator, whole: bool) -> dict[str, Any]:
        """The picture cut into windows of the grid, or one window, which mostly has something in it."""
        size = np.array(self.stage.window)
        if whole:
            corners = [
                np.array((y, x)) for y in _steps(GRID, int(size[0])) for x in _steps(GRID, int(size[1]))
            ]
        else:
            filled = np.nonzero(item["dense"][:, :-PIXEL_CHANNELS].any(axis=1))[0]
            chosen = rng.choice(filled) if len(filled) and rng.random() < 0.9 else rng.integers(GRID * GRID)
            corners = [np.clip(np.array(divmod(int(chosen), GRID)) - rng.integers(size), 0, GRID - size)]
        grid = np.arange(GRID * GRID).reshape(GRID, GRID)
        patches = [grid[y : y + size[0], x : x + size[1]].ravel() for y, x in corners]
        boxes = [np.concatenate([corner, corner + size]) * PATCH for corner in corners]
        return {
            "patches": np.stack(patches),
            "dense": np.stack([item["dense"][inside] for inside in patches]),
            "pixels": np.stack(
                [item["pixels"][top:bottom, left:right] for top, left, bottom, right in boxes]
            ),
        }


def _steps(length: int, step: int) -> range:
    return range(0, length - step + 1, step)


class Collator:
    """Makes batches of items of Drawings."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = {}
        for key in ("dense", "pixels", "patches"):
            if key in items[0]:
                join = np.concatenate if "patches" in items[0] else np.stack
                batch[key] = torch.from_numpy(join([item[key] for item in items]))
        if "pairs" in items[0]:
            text = pack_questions(self.tokenizer, [item["pairs"] for item in items])
            batch.update(vars(text))
        return batch


class LossLog(TrainerCallback):
    """Appends the smoothed losses to a JSON-lines file."""

    def __init__(self, path: Path, stage: str) -> None:
        self.path, self.stage = path, stage

    def on_log(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        seen = {name: round(value, 4) for name, value in model.recent_losses.items()}
        with self.path.open("a") as log:
            log.write(json.dumps({"stage": self.stage, "step": state.global_step, **seen}) + "\n")


class ProgressBar(TrainerCallback):
    """One line per stage on stderr: steps, time left, loss."""

    def __init__(self, stage: str) -> None:
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            console=Console(stderr=True),
        )
        self.line = self.bar.add_task(stage, total=None, loss=float("nan"))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.start()
        self.bar.update(self.line, total=state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.bar.update(
            self.line, completed=state.global_step, loss=model.recent_losses.get("loss", float("nan"))
        )

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.stop()


def _arguments(recipe: Recipe, stage: Stage, folder: Path) -> TrainingArguments:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if stage.batch_size % processes:
        raise M3ScoreError(
            f"Stage {stage.name}: {processes} processes can't share a batch of {stage.batch_size}."
        )
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=stage.steps,
        per_device_train_batch_size=stage.batch_size // processes,
        learning_rate=stage.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(stage.warmup * stage.steps)),
        weight_decay=0.02,
        adam_beta2=0.98,
        bf16=recipe.bf16,
        use_cpu=not torch.cuda.is_available(),
        save_steps=recipe.save_steps,
        save_total_limit=2,
        logging_steps=25,
        dataloader_num_workers=recipe.workers,
        ddp_find_unused_parameters=True,  # not every stage uses every head
        remove_unused_columns=False,
        report_to="none",
        seed=recipe.seed,
        disable_tqdm=True,
    )


@dataclass
class TrainContext:
    """What all stages of one training run share."""

    recipe: Recipe
    out: Path
    llava: Any
    tokenizer: Any
    show_progress: bool


def _choose_attention(llava: Any, stage: Stage) -> None:
    """On a CPU, written-out attention is faster than the fused one, up to a few hundred places."""
    if torch.cuda.is_available():
        return
    few = GRID * GRID // 2
    seen = stage.window[0] * stage.window[1] if stage.kind == "tower" else GRID * GRID
    llava.set_attn_implementation(
        {
            "vision_config": "eager" if seen <= few else "sdpa",
            "text_config": "eager" if max(stage.scales) <= few else "sdpa",
        }
    )


def run_stage(context: TrainContext, stage: Stage, first: int, state: Path | None) -> Path:
    """Train one stage, unless its weights are there already.

    Args:
        context: what all stages share.
        stage: what to train.
        first: number of the first drawing.
        state: file of the weights to start from; None for the untrained model.

    Returns:
        The file of the stage's weights.
    """
    folder = context.out / stage.name
    done = folder / "done.safetensors"
    if done.exists():
        logger.info("Stage %s is done already.", stage.name)
        return done
    folder.mkdir(parents=True, exist_ok=True)
    _choose_attention(context.llava, stage)
    model = TinyTrainingModule(context.llava, context.tokenizer.encode(BEFORE_IMAGE), stage)
    if state is None:
        model.symbols.start_as_words(
            context.llava.model.language_model.embed_tokens.weight, context.tokenizer
        )
    else:
        model.load_state_dict(load_file(state))
    trainer = Trainer(
        model=model,
        args=_arguments(context.recipe, stage, folder),
        train_dataset=Drawings(context.recipe.seed, first, stage.steps * stage.batch_size, stage),
        data_collator=Collator(context.tokenizer),
    )
    trainer.remove_callback(PrinterCallback)  # it would print to stdout
    if trainer.is_world_process_zero():
        trainer.add_callback(LossLog(context.out / "log.jsonl", stage.name))
        if context.show_progress:
            trainer.add_callback(ProgressBar(stage.name))
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(folder))
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # gathered, where it is sharded
    if trainer.is_world_process_zero():
        partial = done.with_suffix(".partial")
        save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, partial)
        partial.rename(done)
    trainer.accelerator.wait_for_everyone()
    return done


def last_whole_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint; a run may have been killed while it wrote a later one."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for path in reversed(checkpoints):
        try:
            json.loads((path / "trainer_state.json").read_text())  # the Trainer writes it last
        except (OSError, ValueError):
            logger.warning("%s is incomplete; resuming from the one before.", path)
        else:
            return str(path)
    return None


def train(
    recipe: Recipe,
    out: Path,
    scales: tuple[int, ...] | None = None,
    tune_tower: bool | None = None,
    *,
    show_progress: bool = False,
) -> Path:
    """Train from a recipe; returns the folder of the finished model.

    Args:
        recipe: what to build, and the stages of its training.
        out: folder of checkpoints, log and model; an interrupted run resumes from what is there.
        scales: replaces the scales of every stage; a single one gives the scale-specific baseline.
        tune_tower: overrides `tune_tower` of every "m3" stage.
        show_progress: draw a progress bar on stderr.
    """
    out.mkdir(parents=True, exist_ok=True)
    transformers_logging.disable_progress_bar()
    tokenizer = build_tokenizer()
    llava = build_model(tokenizer, recipe.seed, **recipe.model)
    context = TrainContext(recipe, out, llava, tokenizer, show_progress)
    state, first = None, 0
    for stage in recipe.stages:
        tuned = stage.tune_tower if tune_tower is None else tune_tower
        state = run_stage(
            context, replace(stage, scales=scales or stage.scales, tune_tower=tuned), first, state
        )
        first += stage.steps * stage.batch_size
    model = TinyTrainingModule(llava, tokenizer.encode(BEFORE_IMAGE), recipe.stages[-1])
    model.load_state_dict(load_file(str(state)))
    if int(os.environ.get("RANK", "0")) == 0:
        save_model(llava, tokenizer, out / "model")
    return out / "model"


def save_model(llava: Any, tokenizer: Any, folder: Path) -> Path:
    """Write a transformers folder in bfloat16, with the `m3score` entry in its configuration."""
    llava.to(torch.bfloat16)
    llava.config.m3score = {
        "ladder": list(LADDER),
        "image_aspect_ratio": "pad",
        "conversation": CONVERSATION,
        "max_length": 1024,
    }
    llava.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
