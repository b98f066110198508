"""Train an M3 from a recipe, stage by stage, with transformers' Trainer.

The same code serves a CPU, one GPU and, through accelerate, many. Each stage keeps its checkpoints in
`OUT/STAGE/`; a run that is started again goes on from the last one. The finished model lies in `OUT/model`, a
transformers folder; `OUT/log.jsonl` holds the losses.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging as transformers_logging

from m3score.calibration.canvas import GRID, PATCH
from m3score.calibration.drawn import draw
from m3score.calibration.objective import PackedText, m3_losses, pack_questions
from m3score.calibration.recipes import Recipe, Stage
from m3score.calibration.symbols import DenseHeads, Symbols, patch_weights
from m3score.calibration.tiny import build_model, build_tokenizer
from m3score.settings import CLIP_MEAN, CLIP_STD

logger = logging.getLogger(__name__)

DENSE_SHARES = {"char": 1.0, "slot": 0.5, "glyph": 1.0, "objects": 1.0, "centres": 0.5, "pixels": 4.0}


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
        drawing = draw(self.seed, self.first + index, kind)
        item: dict[str, Any] = {}
        if self.stage.kind != "m3" or self.stage.dense_weight:
            item["dense"] = drawing.canvas.labels()
        if self.stage.kind != "symbols":
            item["pixels"] = drawing.canvas.pixels()
        if self.stage.kind == "tower":
            return self._band(item, rng)
        order = rng.permutation(len(drawing.asked))[: self.stage.questions]
        item["pairs"] = [(drawing.asked[i].question, drawing.asked[i].answer) for i in order]
        return item

    def _band(self, item: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """A band of grid rows, most often one with something on it."""
        rows = self.stage.rows
        filled = np.nonzero(item["dense"][:, :-6].any(axis=1))[0] // GRID
        middle = int(rng.choice(filled)) if len(filled) and rng.random() < 0.9 else int(rng.integers(GRID))
        first = int(np.clip(middle - rng.integers(rows), 0, GRID - rows))
        dense = item["dense"].reshape(GRID, GRID, -1)[first : first + rows].reshape(rows * GRID, -1)
        pixels = item["pixels"][first * PATCH : (first + rows) * PATCH]
        return {"dense": dense, "pixels": pixels, "row": first}


class Collator:
    """Makes batches of what Drawings gives."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = {}
        for key in ("dense", "pixels", "row"):
            if key in items[0]:
                batch[key] = torch.from_numpy(np.stack([item[key] for item in items]))
        if "pairs" in items[0]:
            text = pack_questions(self.tokenizer, [item["pairs"] for item in items])
            batch.update(vars(text))
        return batch


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """(batch, height, width, 3) uint8 -> (batch, 3, height, width) as CLIP takes it."""
    mean, std = (
        torch.tensor(values, device=pixels.device).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD)
    )
    return (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std


def tower_features(tower: Any, pixels: torch.Tensor, row: torch.Tensor | None = None) -> torch.Tensor:
    """Patch features (batch, patches, width) of pictures, or of bands that begin at grid row `row`."""
    parts = tower.embeddings
    patches = parts.patch_embedding(normalised(pixels)).flatten(2).transpose(1, 2)
    places = parts.position_embedding.weight
    if row is None:
        here = places[None, 1:]
    else:
        here = torch.stack([places[1 + GRID * r : 1 + GRID * r + patches.shape[1]] for r in row.tolist()])
    first = (parts.class_embedding + places[0]).expand(len(pixels), 1, -1)
    embedded = torch.cat([first, patches + here], dim=1)
    return tower.encoder(inputs_embeds=tower.pre_layrnorm(embedded)).last_hidden_state[:, 1:]


class Apprentice(nn.Module):
    """The model in training with its crutches: symbol embeddings and dense heads, dropped at the end."""

    def __init__(self, llava: Any, prefix: list[int], stage: Stage) -> None:
        super().__init__()
        width = llava.config.text_config.hidden_size
        self.llava, self.stage = llava, stage
        self.symbols, self.heads = Symbols(width), DenseHeads(llava.config.vision_config.hidden_size)
        self.register_buffer("prefix", torch.tensor(prefix), persistent=False)
        self.seen: dict[str, float] = {}
        self._freeze()

    def _freeze(self) -> None:
        kind = self.stage.kind
        tower = [self.llava.model.vision_tower, self.heads]
        decoder = [self.llava.model.language_model, self.llava.lm_head]
        tuned = {
            "symbols": [*decoder, self.symbols],
            "tower": [*tower, self.llava.model.multi_modal_projector],
            "m3": [self.llava.model.multi_modal_projector]
            + tower * self.stage.tune_tower
            + decoder * self.stage.tune_decoder,
        }[kind]
        self.requires_grad_(False)
        for part in tuned:
            part.requires_grad_(True)

    def forward(self, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
        losses = getattr(self, f"_{self.stage.kind}")(batch)
        for name, loss in losses.items():
            old = self.seen.get(name)
            value = float(loss.detach())
            self.seen[name] = value if old is None else 0.95 * old + 0.05 * value
        return {"loss": losses["loss"]}

    def _text(self, batch: dict[str, torch.Tensor]) -> PackedText:
        return PackedText(batch["ids"], batch["labels"], batch["positions"], batch["segments"])

    def _answers(self, features: torch.Tensor, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        prefix: Any = self.prefix
        per_scale = m3_losses(self.llava, prefix, features, self._text(batch), self.stage.scales)
        named = {f"scale_{tokens}": loss for tokens, loss in per_scale.items()}
        return {**named, "loss": torch.stack(list(per_scale.values())).mean()}

    def _symbols(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return self._answers(self.symbols(batch["dense"], noise=self.stage.noise), batch)

    def _dense(
        self, features: torch.Tensor, projected: torch.Tensor, batch: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Losses of the heads, and the distance of the projector's output from the symbols' embeddings."""
        losses = self.heads(features, batch["dense"])
        total = sum((DENSE_SHARES[name] * loss for name, loss in losses.items()), torch.zeros(()))
        if self.stage.kind == "tower":
            with torch.no_grad():
                target = self.symbols(batch["dense"], batch.get("row"))
            weights = patch_weights(batch["dense"])
            errors = (projected.float() - target).pow(2).mean(-1)
            losses["embedding"] = (errors * weights).sum() / weights.sum() / target.pow(2).mean()
            total = total + 4 * losses["embedding"]
        return {**losses, "loss": total}

    def _tower(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        features = tower_features(self.llava.model.vision_tower, batch["pixels"], batch.get("row"))
        return self._dense(features, self.llava.model.multi_modal_projector(features), batch)

    def _m3(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        with torch.set_grad_enabled(self.stage.tune_tower):
            features = tower_features(self.llava.model.vision_tower, batch["pixels"])
        projected = self.llava.model.multi_modal_projector(features)
        losses = self._answers(projected, batch)
        if self.stage.dense_weight:
            dense = self._dense(features, projected, batch)
            losses["dense"] = dense["loss"]
            losses["loss"] = losses["loss"] + self.stage.dense_weight * dense["loss"]
        return losses


class LossLog(TrainerCallback):
    """Appends the smoothed losses to a JSON-lines file that can be plotted."""

    def __init__(self, path: Path, stage: str) -> None:
        self.path, self.stage = path, stage

    def on_log(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        seen = {name: round(value, 4) for name, value in model.seen.items()}
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
        self.bar.update(self.line, completed=state.global_step, loss=model.seen.get("loss", float("nan")))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.stop()


def _arguments(recipe: Recipe, stage: Stage, folder: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=stage.steps,
        per_device_train_batch_size=stage.batch_size,
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
        remove_unused_columns=False,
        report_to="none",
        seed=recipe.seed,
        disable_tqdm=True,
    )


@dataclass
class Workshop:
    """What all stages of one training share."""

    recipe: Recipe
    out: Path
    llava: Any
    tokenizer: Any
    show_progress: bool


def run_stage(shop: Workshop, stage: Stage, first: int, state: Path | None) -> Path:
    """Train one stage on drawings from number `first` on, starting from the weights in `state`.

    Returns the file of its weights. A stage that is done is not done again.
    """
    llava, tokenizer, out, recipe = shop.llava, shop.tokenizer, shop.out, shop.recipe
    folder = out / stage.name
    done = folder / "done.safetensors"
    if done.exists():
        logger.info("Stage %s is done already.", stage.name)
        return done
    folder.mkdir(parents=True, exist_ok=True)
    model = Apprentice(llava, tokenizer.encode("USER: "), stage)
    if state is not None:
        model.load_state_dict(load_file(state))
    data = Drawings(recipe.seed, first, stage.steps * stage.batch_size, stage)
    trainer = Trainer(
        model=model,
        args=_arguments(recipe, stage, folder),
        train_dataset=data,
        data_collator=Collator(tokenizer),
        callbacks=[LossLog(out / "log.jsonl", stage.name)],
    )
    trainer.remove_callback(PrinterCallback)  # it would print to stdout
    if shop.show_progress:
        trainer.add_callback(ProgressBar(stage.name))
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)))
    partial = done.with_suffix(".partial")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, partial)
    partial.rename(done)
    return done


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
        recipe: what to build and the stages it goes through.
        out: folder of checkpoints, log and model; a run that was cut off goes on from what lies there.
        scales: replaces the scales of every stage; a single one gives the scale-specific baseline.
        tune_tower: replaces the choice of every "m3" stage whether the vision tower is tuned.
        show_progress: draw a progress bar on stderr.
    """
    out.mkdir(parents=True, exist_ok=True)
    transformers_logging.disable_progress_bar()
    tokenizer = build_tokenizer()
    llava = build_model(tokenizer, recipe.seed, **recipe.model)
    shop = Workshop(recipe, out, llava, tokenizer, show_progress)
    state, first = None, 0
    for stage in recipe.stages:
        tuned = stage.tune_tower if tune_tower is None else tune_tower
        state = run_stage(shop, replace(stage, scales=scales or stage.scales, tune_tower=tuned), first, state)
        first += stage.steps * stage.batch_size
    model = Apprentice(llava, tokenizer.encode("USER: "), recipe.stages[-1])
    model.load_state_dict(load_file(str(state)))
    return save_model(llava, tokenizer, out / "model")


def save_model(llava: Any, tokenizer: Any, folder: Path) -> Path:
    """Write a transformers folder in bfloat16, with what m3score needs to know in its config."""
    llava.to(torch.bfloat16)
    llava.config.m3score = {
        "ladder": [1, 9, 36, 144, 576],
        "image_aspect_ratio": "pad",
        "conversation": "short",
        "max_length": 1024,
    }
    llava.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
