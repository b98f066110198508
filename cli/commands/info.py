"""m3score info: what to put into a bug report, and what a server can do."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m3score.cli import options
from m3score.cli.console import plain, stderr
from m3score.cli.server import SERVER, Server, check_server, load_answerer, takes_server

if TYPE_CHECKING:
    from rich.table import Table

EPILOG = """Examples:

m3score info

m3score info --json > versions.json

m3score info --endpoint http://localhost:8000/v1"""

PACKAGES = (
    *("m3score", "torch", "transformers", "accelerate", "bitsandbytes", "huggingface-hub"),
    *("pillow", "numpy", "pandas", "pyarrow", "scikit-learn", "typer"),
)
PREFIXES = ("M3SCORE_", "HF_", "TRANSFORMERS_", "CUDA_", "PYTORCH_", "OMP_")
SECRETS = ("TOKEN", "KEY", "SECRET", "PASSWORD")


TWICE = 16
"""Drawings that a server is asked about twice, unless --twice says how many."""


@takes_server
def info(
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
    model: options.Model = "m3-tiny",
    rungs: options.Rungs = None,
    server: Server | None = None,
    twice: Annotated[
        int,
        typer.Option(
            "--twice", min=0, metavar="N", help="Drawings to ask about twice.", rich_help_panel=SERVER
        ),
    ] = TWICE,
) -> None:
    """Show versions, devices, bundled models, cache and environment: what a bug report needs.

    With --endpoint instead what that server can do: what its knob does to the number of visual tokens, where
    agreement comes from, and how often the finest budget answers differently when it is asked again.
    """
    if (server or {}).get("endpoint"):
        _show_server(model, rungs, server, twice, as_json=as_json)
        return
    check_server(server)
    facts = collect()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        _show(facts)


def collect() -> dict[str, Any]:
    """Everything that `m3score info` shows, JSON-ready."""
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "platform": platform.platform(),
        "devices": _devices(),
        "models": _models(),
        "cache": _cache(),
        "environment": _environment(),
    }


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> list[str]:
    """The devices that --device takes, best first."""
    try:
        import torch
    except Exception as error:  # a broken installation is what this command is there to show
        return [f"torch can't be imported ({type(error).__name__}: {error})"]
    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        found.append(f"cuda:{index} ({properties.name}, {properties.total_memory / 2**30:.0f} GiB)")
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, f"cpu ({torch.get_num_threads()} threads)"]


def _models() -> list[dict[str, Any]]:
    import m3score

    assets = Path(m3score.__file__).parent / "assets"
    folders = sorted(path.parent for path in assets.glob("*/config.json"))
    return [
        {
            "name": folder.name,
            "path": str(folder),
            "bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        }
        for folder in folders
    ]


def _cache() -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    return str(HF_HUB_CACHE)


def _environment() -> dict[str, str]:
    """Variables that change what m3score does; secrets are named, not shown."""
    return {
        name: "(set)" if any(word in name for word in SECRETS) else value
        for name, value in sorted(os.environ.items())
        if name.startswith(PREFIXES)
    }


def _show_server(model: str, rungs: str | None, server: Server | None, twice: int, *, as_json: bool) -> None:
    """Ask a server what it can do."""
    from m3score.calibration.drawings.drawing import draw
    from m3score.models.endpoint.describe import describe

    console = stderr()
    answerer = load_answerer(model, server, rungs=rungs, console=console)
    drawings = [draw(0, index) for index in range(twice)]
    with console.status(f"Asking about {twice} drawings twice ..."):
        found = describe(answerer, [(one.image, one.questions[0].question) for one in drawings])
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        _show_found(found)


def _show_found(found: Mapping[str, Any]) -> None:
    from rich.table import Table

    from m3score.cli.tables import screen
    from m3score.models.endpoint.describe import SOURCES

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for name in ("url", "model", "family"):
        grid.add_row(name, plain(found[name] or "unknown"))
    grid.add_row("knob", f"{found['knob']}: it moves the number of visual tokens")
    counts = [
        f"budget {one['rung']}: {one['counted'] or '?'} tokens more than without it"
        + ("" if one["expected"] is None else f", of which {one['expected']} visual ones")
        for one in found["visual_tokens"]
    ]
    _group(grid, f"a picture of {found['picture']}", counts)
    logprobs = f"the top {found['top_logprobs']}" if found["top_logprobs"] else "none"
    grid.add_row("log-probabilities", logprobs)
    grid.add_row("agreement from", f"{found['agreement_from']} ({SOURCES[found['agreement_from']]})")
    grid.add_row("thinks first", "yes: see --no-thinking" if found["thinks"] else "no")
    if found["asked_twice"]:
        rate = f"{found['flips']} of {found['asked_twice']} answers differ ({found['flip_rate']:.0%})"
        grid.add_row("asked twice", f"{rate}, at {found['answers_per_second']:.2f} answers/s")
    screen().print(grid)


def _show(facts: Mapping[str, Any]) -> None:
    from rich.table import Table

    from m3score.cli.tables import screen

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for name, version in facts["versions"].items():
        grid.add_row(name, version or "[dim]not installed[/]")
    grid.add_row("platform", plain(facts["platform"]))
    _group(grid, "devices", facts["devices"])
    models = [f"{m['name']} ({m['bytes'] / 1e6:.1f} MB) {m['path']}" for m in facts["models"]]
    _group(grid, "bundled models", models)
    grid.add_row("model cache", plain(facts["cache"]))
    _group(grid, "environment", [f"{name}={value}" for name, value in facts["environment"].items()])
    screen().print(grid)


def _group(grid: Table, label: str, lines: list[str]) -> None:
    grid.add_row(label, plain(lines[0]) if lines else "[dim]none[/]")
    for line in lines[1:]:
        grid.add_row("", plain(line))
