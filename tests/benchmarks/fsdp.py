"""Whether m3score train, sharded by fsdp.yaml, has the curve of one process: on CPUs.

    python tests/benchmarks/fsdp.py [--precision bf16]

accelerate shards on accelerators only, so here a gloo group on CPUs passes for one; the yaml is used as it is
but for the number of processes and the precision. A sharded run is then killed and gone on with. The model is
tiny.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import typer
from PIL import Image

from m3score.calibration.drawings.drawing import draw

ROOT = Path(__file__).resolve().parents[2]
RECIPE = f"""
model = "{ROOT / "tests/data/parity/checkpoints/tiny-llava-v1.5-7b-m3"}"
batch_size = 4
batch_per_device = 2
learning_rate = 1e-2
tower_learning_rate = 1e-3
projector_learning_rate = 1e-2
epochs = 2
workers = 0
save_steps = 2
"""


def prepare(folder: Path, precision: str, processes: int) -> None:
    """The recipe, 9 records (6 with a drawing, 3 of text) and the configuration."""
    (folder / "recipe.toml").write_text(RECIPE + f"bf16 = {str(precision == 'bf16').lower()}\n")
    records: list[dict[str, Any]] = []
    rng = np.random.default_rng(0)
    for index in range(9):
        answer = " ".join(rng.choice(["red", "blue", "a", "cat"], size=1 + index))
        record: dict[str, Any] = {"id": index}
        if index % 3:
            record["image"] = f"{index}.png"
            draw(5, index).image.resize((40, 30), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
        asked = "What is it?" + "\n<image>" * ("image" in record)
        record["conversations"] = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
        records.append(record)
    (folder / "data.json").write_text(json.dumps(records))
    yaml = (ROOT / "calibration/training/finetune/fsdp.yaml").read_text()
    for old, new in (("num_processes: 8", f"num_processes: {processes}"), ("bf16", f'"{precision}"')):
        assert old in yaml
        yaml = yaml.replace(old, new)
    (folder / "fsdp.yaml").write_text(yaml)


def command(folder: Path, out: str) -> list[str]:
    data = ["--data", str(folder / "data.json"), "--out", str(folder / out), "--quiet"]
    return ["train", str(folder / "recipe.toml"), *data]


def sharded(folder: Path, out: str) -> list[str]:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(folder / "fsdp.yaml")]
    return [*launch, "--main_process_port", "0", str(Path(__file__).resolve()), *command(folder, out)]


def curve(folder: Path, out: str) -> np.ndarray:
    rows = [json.loads(row) for row in (folder / out / "log.jsonl").read_text().splitlines()]
    return np.array([[row[name] for name in sorted(row) if name.startswith("scale_")] for row in rows])


def weights(folder: Path, out: str) -> np.ndarray:
    from safetensors.torch import load_file

    found = load_file(folder / out / "model/model.safetensors")
    return np.concatenate([found[name].float().numpy().ravel() for name in sorted(found)])


def main(
    precision: Annotated[str, typer.Option(help="no or bf16.")] = "no",
    processes: Annotated[int, typer.Option()] = 2,
    verbose: Annotated[bool, typer.Option()] = False,
) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    shown: dict[str, Any] = {} if verbose else {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, precision, processes)
        one = [sys.executable, "-m", "m3score", *command(folder, "one")]
        subprocess.run(one, check=True, env=environment, **shown)
        subprocess.run(sharded(folder, "many"), check=True, env=environment, **shown)
        run = psutil.Popen(sharded(folder, "killed"), env=environment, **shown)
        while not list((folder / "killed").glob("checkpoint-*/trainer_state.json")):
            assert run.poll() is None
            time.sleep(0.01)
        for process in [run, *run.children(recursive=True)]:
            process.kill()
        run.wait()
        assert not (folder / "killed/model").exists()
        subprocess.run(sharded(folder, "killed"), check=True, env=environment, **shown)
        typer.echo("| | steps | largest difference of a loss | of a weight |\n|---|--:|--:|--:|")
        for out in ("many", "killed"):
            losses = np.abs(curve(folder, out) - curve(folder, "one")).max()
            apart = np.abs(weights(folder, out) - weights(folder, "one")).max()
            typer.echo(f"| {out} | {len(curve(folder, out))} | {losses:.1e} | {apart:.1e} |")


def train() -> None:
    """One process of a sharded run."""
    import torch
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    begin, barrier = PartialState.__init__, torch.distributed.barrier

    def pretend(self: Any, *arguments: Any, **options: Any) -> None:
        begin(self, *arguments, **options)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    setattr(PartialState, "__init__", pretend)  # noqa: B010
    setattr(torch.distributed, "barrier", lambda *_, **__: barrier())  # noqa: B010
    from m3score.cli.main import main as m3score

    m3score()


if __name__ == "__main__":
    train() if "LOCAL_RANK" in os.environ else typer.run(main)
