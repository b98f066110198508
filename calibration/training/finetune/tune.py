"""Fine-tune a LLaVA on instruction data with the M3 objective, in transformers' Trainer.

The loss of a step is, per scale, the mean over all answer tokens of the whole batch, however many processes
and parts it is spread over; then the plain mean over scales. So any number of processes gives the same curve.
(The authors average per device first; with one device and one part it is the same.) `OUT` holds the
checkpoints, `log.jsonl` (losses of every step), `left-out.jsonl` (records that were not learnt from, and why)
and at the end the `model`, a transformers folder.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from rich.console import Console
from rich.progress import Progress
from torch import nn
from transformers import PrinterCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

from m3score.calibration.training.finetune.instructions import (
    FILLER,
    InstructionCollator,
    Instructions,
    Records,
    check_records,
    grouped_order,
    lengths_of,
    read_records,
)
from m3score.calibration.training.finetune.trainer import InstructionTrainer, StartedAt, Tuned
from m3score.calibration.training.finetune.tuning import Tuning
from m3score.calibration.training.tiny.train import ProgressBar, last_whole_checkpoint
from m3score.common.errors import M3ScoreError, MissingExtraError
from m3score.models import loading
from m3score.models.m3.ladder import make_ladder
from m3score.models.m3.model import M3Model

logger = logging.getLogger(__name__)

_DECODER_LAYERS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def choose_trained(llava: Any, tuning: Tuning) -> None:
    """Which weights may change. What no loss reaches never does: processes would wait for its gradients."""
    llava.requires_grad_(False)
    core = llava.model
    parts: list[nn.Module] = [core.multi_modal_projector]
    if tuning.tune_decoder and tuning.lora is None:
        parts += [core.language_model, llava.lm_head]
    if tuning.tune_tower:
        tower, layer = core.vision_tower, llava.config.vision_feature_layer
        layers = tower.encoder.layers
        used = layer if layer >= 0 else len(layers) + 1 + layer
        parts += [tower.embeddings, tower.pre_layrnorm, *layers[:used]]
    for part in parts:
        part.requires_grad_(True)
    if getattr(core, "image_newline", None) is not None:
        core.image_newline.requires_grad_(True)


def tune(tuning: Tuning, out: Path, *, show_progress: bool = False) -> Path:
    """Fine-tune by a recipe; returns the folder of the finished model.

    Args:
        tuning: what to train on what; `data` and `model` must be given.
        out: folder of everything that is written; a run that was cut off goes on from what lies there.
        show_progress: draw progress bars on stderr.

    Raises M3ScoreError for data, images or a model that can't be read, or a folder of another run.
    """
    if not tuning.data:
        raise M3ScoreError(f"The recipe {tuning.name} names no data: give --data FILE.")
    if (out / "model").is_dir():
        logger.info("%s is done already.", out)
        return out / "model"
    state = PartialState(cpu=not torch.cuda.is_available())
    transformers_logging.disable_progress_bar()
    out.mkdir(parents=True, exist_ok=True)
    records, kept = _checked_records(tuning, out, state, show_progress)
    parts = _load(tuning)
    scales = tuple(sorted(tuning.scales)) or parts.settings.ladder
    make_ladder(scales, parts.settings.grid)  # complains about others
    choose_trained(parts.hf_model, tuning)
    adapted = _with_lora(parts.hf_model, tuning)
    if tuning.gradient_checkpointing:
        parts.hf_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    places = grouped_order(lengths_of(records, kept), tuning.batch_size, tuning.epochs, tuning.seed)
    order = np.where(places == FILLER, FILLER, kept[places])
    trainer = InstructionTrainer(
        tuning,
        out / "log.jsonl",
        model=Tuned(parts, tuning, scales),
        args=_arguments(tuning, out, len(order) // tuning.batch_size),
        train_dataset=Instructions(
            records, order, _folder(tuning), parts.tokenizer, parts.settings, out / "left-out.jsonl"
        ),
        data_collator=InstructionCollator(parts.settings, scales),
    )
    trainer.remove_callback(PrinterCallback)  # it would print to stdout
    trainer.add_callback(StartedAt(trainer))
    if show_progress and trainer.is_world_process_zero():
        trainer.add_callback(ProgressBar(tuning.name))
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(out))
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # gathered, where it is sharded
    if trainer.is_world_process_zero():
        _save_model(parts, tuning, weights if trainer.is_fsdp_enabled else None, adapted, out)
    trainer.accelerator.wait_for_everyone()
    return out / "model"


def left_out(out: Path) -> int:
    """How many records the run in `out` couldn't learn from."""
    file = out / "left-out.jsonl"
    rows = file.read_text().splitlines() if file.exists() else []
    return len({json.loads(row)["record"] for row in rows})


def _folder(tuning: Tuning) -> Path:
    return Path(tuning.image_folder) if tuning.image_folder else Path(tuning.data).parent


def _checked_records(
    tuning: Tuning, out: Path, state: PartialState, show_progress: bool
) -> tuple[Records, np.ndarray]:
    """The records, and which to learn from: found once, so that all processes and resumed runs agree."""
    records = read_records(tuning.data)
    facts = {"records": len(records), **dataclasses.asdict(tuning)}
    chosen = out / "records.npy"
    if state.is_main_process:
        _same_run(out / "run.json", json.loads(json.dumps(facts)))
        if not chosen.exists():
            with Progress(console=Console(stderr=True), disable=not show_progress) as bar:
                line = bar.add_task("Checking the records", total=len(records))
                kept, rest = check_records(records, _folder(tuning), lambda n: bar.advance(line, n))
            (out / "left-out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rest))
            partial = out / "records.partial.npy"
            np.save(partial, kept)
            partial.rename(chosen)
    state.wait_for_everyone()
    return records, np.load(chosen, allow_pickle=False)


# What may differ between a run and its resumption without changing what is learnt.
_FREE = ("batch_per_device", "workers", "save_steps", "log_steps", "packed", "gradient_checkpointing")


def _same_run(file: Path, facts: dict[str, Any]) -> None:
    if file.exists():
        before = json.loads(file.read_text())
        for name in facts.keys() - set(_FREE):
            if before.get(name) != facts[name]:
                raise M3ScoreError(
                    f"{file.parent} holds a run with {name} {before.get(name)!r}, not {facts[name]!r}: "
                    "give another --out, or the same settings to go on."
                )
    file.write_text(json.dumps(facts, indent=2))


def _load(tuning: Tuning) -> loading.Parts:
    """Weights that learn are float32; with LoRA the others may be bfloat16."""
    dtype = "bfloat16" if tuning.lora and tuning.bf16 else "float32"
    place = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if sharded and tuning.lora:
        raise M3ScoreError("LoRA needs no sharding: start it with torchrun, without an FSDP configuration.")
    parts = loading.load(
        tuning.model, device="cpu" if sharded else place, dtype=dtype, quantize=None, revision=None
    )
    parts.hf_model.set_attn_implementation({"text_config": tuning.attention, "vision_config": "sdpa"})
    if tuning.lora:
        parts.hf_model.model.multi_modal_projector.float()
        if tuning.tune_tower:
            parts.hf_model.model.vision_tower.float()
    # The Trainer places models itself, and leaves alone those that say they are placed.
    if hasattr(parts.hf_model, "hf_device_map"):
        del parts.hf_model.hf_device_map
    return parts


def _with_lora(llava: Any, tuning: Tuning) -> Any:
    """peft's view of the network, whose layers are replaced in place; None without LoRA."""
    if tuning.lora is None:
        return None
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise MissingExtraError("Training with LoRA", "lora") from None
    torch.manual_seed(tuning.seed)
    trained = {name for name, value in llava.named_parameters() if value.requires_grad}
    adapted = get_peft_model(
        llava,
        LoraConfig(
            r=tuning.lora.rank,
            lora_alpha=tuning.lora.alpha,
            lora_dropout=tuning.lora.dropout,
            target_modules=_DECODER_LAYERS,
        ),
    )
    for name, value in llava.named_parameters():  # peft froze the tower and the projector too
        if name in trained:
            value.requires_grad_(True)
    return adapted


def _arguments(tuning: Tuning, out: Path, steps: int) -> TrainingArguments:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    each = min(tuning.batch_per_device, max(1, tuning.batch_size // processes))
    if tuning.batch_size % (processes * each):
        raise M3ScoreError(
            f"A batch of {tuning.batch_size} can't be spread over {processes} processes with parts of "
            f"{each}: batch_size must be a multiple of processes times batch_per_device."
        )
    steps = max(1, round(tuning.share * steps))
    return TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=each,
        gradient_accumulation_steps=tuning.batch_size // (processes * each),
        learning_rate=tuning.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(tuning.warmup * steps),
        weight_decay=tuning.weight_decay,
        bf16=tuning.bf16,
        use_cpu=not torch.cuda.is_available(),
        save_steps=tuning.save_steps,
        save_total_limit=2,
        logging_steps=tuning.log_steps,
        dataloader_num_workers=tuning.workers,
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
        report_to="none",
        seed=tuning.seed,
        disable_tqdm=True,
    )


def _save_model(
    parts: loading.Parts, tuning: Tuning, gathered: dict[str, torch.Tensor] | None, adapted: Any, out: Path
) -> None:
    """Write OUT/model, and OUT/adapter beside it; whole or not at all.

    gathered: the whole weights, where this process holds a part of them only.
    """
    llava = parts.hf_model
    if adapted is not None:
        adapted.save_pretrained(out / "adapter")
        llava = adapted.merge_and_unload()
    elif gathered is not None:
        llava = _unsharded(llava, gathered)
    if tuning.bf16:
        llava = llava.to(torch.bfloat16)
    partial = out / "model.partial"
    M3Model(llava, parts.tokenizer, parts.settings, tuning.name).save(partial)
    partial.rename(out / "model")


def _unsharded(llava: Any, weights: dict[str, torch.Tensor]) -> Any:
    """The network on the CPU with gathered weights."""
    with torch.device("meta"):
        whole = type(llava)(llava.config)
    stripped = {name.removeprefix("llava."): value.cpu() for name, value in weights.items()}
    whole.load_state_dict(stripped, assign=True)
    return whole
