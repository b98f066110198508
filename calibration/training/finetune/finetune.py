"""Fine-tune a LLaVA on instruction data with the M3 objective, in transformers' Trainer.

The loss of a step is, per scale, the mean over all answer tokens of the whole batch, and then the plain mean
over scales. How many processes and parts a batch is spread over does not matter: the loss curve is the same.
(The authors average per device first; with one device and one part the result is the same.) `OUT` holds the
checkpoints, `log.jsonl` (losses of every step), `left-out.jsonl` (records that were not used, and why) and at
the end `model`, a transformers folder.
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

from m3score.calibration.training.finetune.config import FinetuneConfig
from m3score.calibration.training.finetune.instructions import (
    FILLER,
    InstructionCollator,
    Instructions,
    Records,
    check_records,
    conversation_lengths,
    grouped_order,
    read_records,
)
from m3score.calibration.training.finetune.trainer import FinetuneModule, InstructionTrainer, ResumeCallback
from m3score.calibration.training.tiny.train import ProgressBar, last_whole_checkpoint
from m3score.common.errors import M3ScoreError, MissingExtraError
from m3score.models import hub, placing
from m3score.models.m3 import loading
from m3score.models.m3.ladder import make_ladder
from m3score.models.m3.model import M3Model

logger = logging.getLogger(__name__)

_DECODER_LAYERS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def set_trainable(llava: Any, config: FinetuneConfig) -> None:
    """Mark the weights to train. What no loss reaches stays frozen: processes would wait for gradients."""
    llava.requires_grad_(False)
    core = llava.model
    parts: list[nn.Module] = [core.multi_modal_projector]
    if config.tune_decoder and config.lora is None:
        parts += [core.language_model, llava.lm_head]
    if config.tune_tower:
        tower, layer = core.vision_tower, llava.config.vision_feature_layer
        layers = tower.encoder.layers
        used = layer if layer >= 0 else len(layers) + 1 + layer
        parts += [tower.embeddings, tower.pre_layrnorm, *layers[:used]]
    for part in parts:
        part.requires_grad_(True)
    if getattr(core, "image_newline", None) is not None:
        core.image_newline.requires_grad_(True)


def finetune(config: FinetuneConfig, out: Path, *, show_progress: bool = False) -> Path:
    """Fine-tune a model; returns the folder of the finished model.

    Args:
        config: the recipe; `data` must be given.
        out: folder of everything that is written; an interrupted run resumes from what is there.
        show_progress: draw progress bars on stderr.

    Raises:
        M3ScoreError: data, images or a model that can't be read, or `out` holds another run.
    """
    if not config.data:
        raise M3ScoreError(f"The recipe {config.name} names no data: give --data FILE.")
    if (out / "model").is_dir():
        logger.info("%s is done already.", out)
        return out / "model"
    state = PartialState(cpu=not torch.cuda.is_available())
    transformers_logging.disable_progress_bar()
    out.mkdir(parents=True, exist_ok=True)
    records, kept = _checked_records(config, out, state, show_progress)
    parts = _load(config)
    scales = tuple(sorted(config.scales)) or parts.config.ladder
    make_ladder(scales, parts.config.grid)  # raises for others
    set_trainable(parts.hf_model, config)
    adapted = _with_lora(parts.hf_model, config)
    if config.gradient_checkpointing:
        parts.hf_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    places = grouped_order(conversation_lengths(records, kept), config.batch_size, config.epochs, config.seed)
    order = np.where(places == FILLER, FILLER, kept[places])
    trainer = InstructionTrainer(
        config,
        out / "log.jsonl",
        model=FinetuneModule(parts, config, scales),
        args=_arguments(config, out, len(order) // config.batch_size),
        train_dataset=Instructions(
            records, order, _image_folder(config), parts.tokenizer, parts.config, out / "left-out.jsonl"
        ),
        data_collator=InstructionCollator(parts.config, scales),
    )
    trainer.remove_callback(PrinterCallback)  # it would print to stdout
    trainer.add_callback(ResumeCallback(trainer))
    if show_progress and trainer.is_world_process_zero():
        trainer.add_callback(ProgressBar(config.name))
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(out))
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # gathered, where it is sharded
    if trainer.is_world_process_zero():
        _save_model(parts, config, weights if trainer.is_fsdp_enabled else None, adapted, out)
    trainer.accelerator.wait_for_everyone()
    return out / "model"


def left_out(out: Path) -> int:
    """How many records the run in `out` did not use."""
    file = out / "left-out.jsonl"
    rows = file.read_text().splitlines() if file.exists() else []
    return len({json.loads(row)["record"] for row in rows})


def _image_folder(config: FinetuneConfig) -> Path:
    return Path(config.image_folder) if config.image_folder else Path(config.data).parent


def _checked_records(
    config: FinetuneConfig, out: Path, state: PartialState, show_progress: bool
) -> tuple[Records, np.ndarray]:
    """The records, and which of them to use: decided once, so that all processes and resumed runs agree."""
    records = read_records(config.data)
    facts = {"records": len(records), **dataclasses.asdict(config)}
    chosen = out / "records.npy"
    if state.is_main_process:
        _check_same_run(out / "run.json", json.loads(json.dumps(facts)))
        if not chosen.exists():
            with Progress(console=Console(stderr=True), disable=not show_progress) as bar:
                line = bar.add_task("Checking the records", total=len(records))
                kept, rest = check_records(records, _image_folder(config), lambda n: bar.advance(line, n))
            (out / "left-out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rest))
            partial = out / "records.partial.npy"
            np.save(partial, kept)
            partial.rename(chosen)
    state.wait_for_everyone()
    return records, np.load(chosen, allow_pickle=False)


# Settings that a resumed run may change: the result is the same.
_MAY_DIFFER = ("batch_per_device", "workers", "save_steps", "log_steps", "packed", "gradient_checkpointing")


def _check_same_run(file: Path, facts: dict[str, Any]) -> None:
    if file.exists():
        before = json.loads(file.read_text())
        for name in facts.keys() - set(_MAY_DIFFER):
            if before.get(name) != facts[name]:
                raise M3ScoreError(
                    f"{file.parent} holds a run with {name} {before.get(name)!r}, not {facts[name]!r}: "
                    "give another --out, or the same settings to go on."
                )
    file.write_text(json.dumps(facts, indent=2))


def _load(config: FinetuneConfig) -> loading.ModelParts:
    """Load the model. Trained weights are float32; with LoRA the others may be bfloat16."""
    dtype = "bfloat16" if config.lora and config.bf16 else "float32"
    place = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if sharded and config.lora:
        raise M3ScoreError("LoRA needs no sharding: start it with torchrun, without an FSDP configuration.")
    options = placing.options("cpu" if sharded else place, dtype, None)
    parts = loading.load(hub.locate(config.model), options)
    parts.hf_model.set_attn_implementation({"text_config": config.attention, "vision_config": "sdpa"})
    if config.lora:
        parts.hf_model.model.multi_modal_projector.float()
        if config.tune_tower:
            parts.hf_model.model.vision_tower.float()
    # The Trainer places models itself, but not those with a device map.
    if hasattr(parts.hf_model, "hf_device_map"):
        del parts.hf_model.hf_device_map
    return parts


def _with_lora(llava: Any, config: FinetuneConfig) -> Any:
    """peft's wrapper of the network, whose layers are replaced in place; None without LoRA."""
    if config.lora is None:
        return None
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise MissingExtraError("Training with LoRA", "lora") from None
    torch.manual_seed(config.seed)
    trained = {name for name, value in llava.named_parameters() if value.requires_grad}
    adapted = get_peft_model(
        llava,
        LoraConfig(
            r=config.lora.rank,
            lora_alpha=config.lora.alpha,
            lora_dropout=config.lora.dropout,
            target_modules=_DECODER_LAYERS,
        ),
    )
    for name, value in llava.named_parameters():  # peft froze the tower and the projector too
        if name in trained:
            value.requires_grad_(True)
    return adapted


def _arguments(config: FinetuneConfig, out: Path, steps: int) -> TrainingArguments:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    each = min(config.batch_per_device, max(1, config.batch_size // processes))
    if config.batch_size % (processes * each):
        raise M3ScoreError(
            f"A batch of {config.batch_size} can't be spread over {processes} processes with parts of "
            f"{each}: batch_size must be a multiple of processes times batch_per_device."
        )
    steps = max(1, round(config.share * steps))
    return TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=each,
        gradient_accumulation_steps=config.batch_size // (processes * each),
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(config.warmup * steps),
        weight_decay=config.weight_decay,
        bf16=config.bf16,
        use_cpu=not torch.cuda.is_available(),
        save_steps=config.save_steps,
        save_total_limit=2,
        logging_steps=config.log_steps,
        dataloader_num_workers=config.workers,
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
        report_to="none",
        seed=config.seed,
        disable_tqdm=True,
    )


def _save_model(
    parts: loading.ModelParts,
    config: FinetuneConfig,
    gathered: dict[str, torch.Tensor] | None,
    adapted: Any,
    out: Path,
) -> None:
    """Write OUT/model atomically, and OUT/adapter beside it for LoRA.

    `gathered` holds the full weights where this process has only a shard of them.
    """
    llava = parts.hf_model
    if adapted is not None:
        adapted.save_pretrained(out / "adapter")
        llava = adapted.merge_and_unload()
    elif gathered is not None:
        llava = _unsharded(llava, gathered)
    if config.bf16:
        llava = llava.to(torch.bfloat16)
    partial = out / "model.partial"
    M3Model(llava, parts.tokenizer, parts.config, config.name).save(partial)
    partial.rename(out / "model")


def _unsharded(llava: Any, weights: dict[str, torch.Tensor]) -> Any:
    """The network on the CPU, with gathered weights."""
    with torch.device("meta"):
        whole = type(llava)(llava.config)
    stripped = {name.removeprefix("llava."): value.cpu() for name, value in weights.items()}
    whole.load_state_dict(stripped, assign=True)
    return whole
