"""What a ladder costs at the true shapes. Run on a GPU: python tests/benchmarks/gpu.py

LLaVA-NeXT-7B's shapes (CLIP ViT-L/14 at 336, a Llama of 32 layers of 4096) with random weights in bfloat16:
what it answers means nothing, what it costs is what the authors' checkpoint costs. Prints, as Markdown:

- the ratios of ladder.py, for a batch of 16 images of 640x480 (one base grid and four tiles each);
- images/s and peak memory of the whole ladder, by batch size;
- milliseconds of one prefill at each scale for a single grid (LLaVA-1.5's case), beside what the paper's
  roofline says for a V100 (Cai et al. 2024, Table 9).

Random weights give random answers, which differ from scale to scale at once: coarse scales decode on
more often than those of a model that learnt. `--shapes tiny` goes through the same steps in seconds, on a
CPU too.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

from m3score import load_model
from m3score.models.m3.model import M3Model
from tests.benchmarks.ladder import NEXT, QUESTIONS, SHORT, measure, pictures, report, say, works

PAPER_MS = {576: 58.1, 144: 19.5, 36: 18.0, 9: 17.7, 1: 17.6}
"""Prefill on a V100 by the roofline model, batch 1 (Cai et al. 2024, Table 9)."""

VISION_7B = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
TEXT_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "7b": (VISION_7B, TEXT_7B),
    "tiny": (
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2},
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
    ),
}


def random_next(shapes: str, device: str, dtype: torch.dtype) -> M3Model:
    """A LLaVA-NeXT of these shapes with random weights, made where it is to run; it never ends an answer."""
    vision, text = SHAPES[shapes]
    example = load_model(str(NEXT), device="cpu")  # lends its tokenizer and settings
    grids = [(height, width) for width, height in example.config.image_grid_pinpoints]
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(image_size=336, patch_size=14, **vision).to_dict(),
        text_config=LlamaConfig(vocab_size=32064, max_position_embeddings=8192, **text).to_dict(),
        image_grid_pinpoints=grids,
        image_token_index=32000,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            hf_model: Any = LlavaNextForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(torch.float32)
    m3 = M3Model(hf_model.eval(), example.tokenizer, example.config, f"LLaVA-NeXT {shapes}, random weights")
    m3.stop_ids = frozenset()
    with torch.no_grad():  # never a token that the lent tokenizer has no text for
        hf_model.get_output_embeddings().weight[len(example.tokenizer) :] = 0
    hf_model.generation_config.eos_token_id = None
    return m3


def by_batch_size(m3: M3Model, rounds: int) -> None:
    """Images/s and peak memory of the whole ladder with one question each."""
    on_gpu = m3.device.type == "cuda"
    say("\n| images at once | images/s, whole ladder | peak memory, GB |\n|---:|---:|---:|")
    for size in (1, 2, 4, 8, 16, 32):
        images, asked = pictures(size), [[QUESTIONS[0]]] * size
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        work = partial(m3.answer_ladder, images, asked, max_new_tokens=SHORT, batch_size=size)
        seconds = [_seconds(work, m3) for _ in range(rounds + 1)]
        peak = f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if on_gpu else ""
        say(f"| {size} | {size / statistics.median(seconds[1:]):.2f} | {peak} |")


@torch.no_grad()
def prefills(m3: M3Model, rounds: int) -> None:
    """Milliseconds of one prefill per scale: 40 tokens of text and one grid, batch 1."""
    width = m3.hf_model.config.text_config.hidden_size
    say("\n| visual tokens | prefill, ms | paper's roofline on a V100, ms |\n|---:|---:|---:|")
    for tokens in reversed(m3.ladder):
        prompt = torch.randn(1, 40 + tokens, width, device=m3.device, dtype=m3.dtype)
        work = partial(m3.hf_model.model.language_model, inputs_embeds=prompt, use_cache=True)
        times = [_seconds(work, m3) for _ in range(rounds + 3)]
        say(f"| {tokens} | {1000 * statistics.median(times[3:]):.1f} | {PAPER_MS.get(tokens, '')} |")


def _seconds(work: Any, m3: M3Model) -> float:
    """Of the work, until the device has done it."""
    begun = time.perf_counter()
    work()
    if m3.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of a ladder of answers at the shapes of a 7B model.")
    parser.add_argument("--shapes", choices=list(SHAPES), default="7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=16)
    chosen = parser.parse_args()
    if chosen.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("No CUDA device here: --device cpu --shapes tiny tries the steps.")
    dtype = torch.bfloat16 if chosen.device.startswith("cuda") else torch.float32
    m3 = random_next(chosen.shapes, chosen.device, dtype)
    where = torch.cuda.get_device_name() if m3.device.type == "cuda" else "CPU"
    say(f"{m3.name}, {where}, torch {torch.__version__}, {str(dtype).removeprefix('torch.')}")
    images = pictures(chosen.images)
    todo = works(m3, images, images[: max(1, chosen.images // 4)])
    measure(todo, 1)
    report(measure(todo, chosen.rounds), chosen.images)
    by_batch_size(m3, chosen.rounds)
    prefills(m3, chosen.rounds)


if __name__ == "__main__":
    main()
