"""What transformers' Trainer needs to fine-tune on instruction data with the M3 objective.

The network as the Trainer sees it, and a Trainer with a loss over the whole batch, a learning rate per part,
a log of the loss per scale, and checkpoints of the trained weights only. Knows no data files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback

from m3score.calibration.training.finetune.config import FinetuneConfig
from m3score.calibration.training.finetune.instructions import Conversations
from m3score.calibration.training.finetune.packing import summed_losses
from m3score.common.errors import M3ScoreError
from m3score.models.m3 import loading
from m3score.models.m3.encoder import Embedder


class FinetuneModule(nn.Module):
    """The network as the Trainer sees it: a batch of conversations in, summed losses per scale out."""

    def __init__(self, parts: loading.ModelParts, config: FinetuneConfig, scales: tuple[int, ...]) -> None:
        super().__init__()
        self.llava = parts.hf_model
        self.embedder = Embedder(parts.hf_model, parts.tokenizer, parts.config, config.model)
        self.finetune_config, self.scales = config, scales
        self.recent_losses: dict[str, float] = {}
        """For the progress bar, by name."""

    def forward(self, conversations: Conversations) -> torch.Tensor:
        return summed_losses(
            self.embedder,
            conversations.examples,
            self.scales,
            train_vision=self.finetune_config.tune_tower,
            packed=self.finetune_config.packed,
        )


class InstructionTrainer(Trainer):
    """A Trainer with a loss over the whole batch, a learning rate per part, and small checkpoints."""

    def __init__(self, config: FinetuneConfig, log_file: Path, **options: Any) -> None:
        super().__init__(**options)
        self.finetune_config, self.log_file = config, log_file
        self.model_accepts_loss_kwargs = True  # compute_loss divides by the batch's tokens
        self.loss_is_scaled_for_ga = True
        self._shares: torch.Tensor | None = None
        self._logged_step = 0
        if self.is_fsdp_enabled and self.accelerator.mixed_precision == "bf16":
            # accelerate would also keep the losses and the summed gradients in bfloat16
            precision = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
            self.accelerator.state.fsdp_plugin.mixed_precision_policy = precision

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        data: Any = train_dataset or self.train_dataset
        return SequentialSampler(data)  # the data set is in its final order

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """(scales,) int64: supervised positions in the whole batch."""
        if not batch_samples:
            return None
        counts = torch.stack([batch["counts"].to(device) for batch in batch_samples]).sum(dim=0)
        return self.accelerator.reduce(counts, reduction="sum")

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        summed = model(inputs["conversations"])
        share = summed / num_items_in_batch.clamp(min=1)
        self._shares = share.detach() if self._shares is None else self._shares + share.detach()
        loss = share.mean() * self.accelerator.num_processes  # gradients are averaged over processes
        return (loss, summed) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._shares is not None:
            steps = self.state.global_step - self._logged_step
            per_scale = (self.accelerator.reduce(self._shares, reduction="sum") / steps).tolist()
            named = {f"scale_{n}": loss for n, loss in zip(self._scales(), per_scale, strict=True)}
            logs = {**logs, "loss": sum(per_scale) / len(per_scale), **named}
            self._shares, self._logged_step = None, self.state.global_step
            unwrapped: Any = self.model
            unwrapped.recent_losses = {"loss": logs["loss"]}
            if self.is_world_process_zero():
                row = {name: round(value, 6 if value > 1e-3 else 10) for name, value in logs.items()}
                with self.log_file.open("a") as file:
                    file.write(json.dumps({"step": self.state.global_step, **row}) + "\n")
        super().log(logs, start_time)

    def _scales(self) -> tuple[int, ...]:
        collator: Any = self.data_collator
        return collator.scales

    def resume_log_at(self, step: int) -> None:
        """Set the step after which losses are averaged for the log."""
        self._logged_step = step

    def create_optimizer(self, model: Any = None) -> Any:
        if self.optimizer is None:
            rates: dict[float, list[Any]] = {}
            network: Any = model or self.model
            for name, parameter in network.named_parameters():
                if parameter.requires_grad:
                    rates.setdefault(self._rate(name), []).append(parameter)
            groups = [{"params": group, "lr": rate} for rate, group in rates.items()]
            self.optimizer = torch.optim.AdamW(groups, weight_decay=self.finetune_config.weight_decay)
        return self.optimizer

    def _rate(self, name: str) -> float:
        if "vision_tower" in name:
            return self.finetune_config.tower_learning_rate
        if "multi_modal_projector" in name or "image_newline" in name:
            return self.finetune_config.projector_learning_rate
        return self.finetune_config.learning_rate

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save the trained weights only: the rest is in the starting weights."""
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        network: Any = self.model
        trained = {name for name, value in network.named_parameters() if value.requires_grad}
        state = network.state_dict() if state_dict is None else state_dict
        kept = {name: value.detach().cpu().contiguous() for name, value in state.items() if name in trained}
        save_file(kept, folder / "model.safetensors")

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Frozen weights are not in a checkpoint; trained ones must be."""
        network: Any = self.model
        trained = {name for name, value in network.named_parameters() if value.requires_grad}
        if lacking := sorted(trained & set(load_result.missing_keys)):
            raise M3ScoreError(
                f"The checkpoint lacks {len(lacking)} trained tensors, {lacking[0]} among them."
            )


class ResumeCallback(TrainerCallback):
    """Makes the log of a resumed run continue where its checkpoint was written."""

    def __init__(self, trainer: InstructionTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.resume_log_at(state.global_step)
        if state.is_world_process_zero and self.trainer.log_file.exists():
            _cut_log(self.trainer.log_file, state.global_step)


def _cut_log(file: Path, step: int) -> None:
    """Drop the rows logged after the checkpoint: those steps are taken again."""
    rows = [row for row in file.read_text().splitlines(keepends=True) if row.endswith("}\n")]
    file.write_text("".join(row for row in rows if json.loads(row)["step"] <= step))
