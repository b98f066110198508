"""Options of a model that a server runs, added to a command in one place.

A command that is decorated with `takes_server` has all of them. Those that load a model themselves get them
as one argument, `server`; where a scorer loads it, they are options of the scorer (scorer_options.py).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_type_hints

import typer
from rich.console import Console

from m3score.cli.console import load
from m3score.common.errors import M3ScoreError

SERVER = "Model behind a server"

Endpoint = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        metavar="URL",
        help="Ask a model that an OpenAI-compatible server runs: the base URL, such as "
        "http://localhost:8000/v1. --model is then what the server calls it, and can be left out where it "
        "has one only.",
        rich_help_panel=SERVER,
    ),
]
Knob = Annotated[
    str | None,
    typer.Option(
        "--knob",
        metavar="NAME",
        help="How the server is told a budget of visual tokens: vllm, transformers, lmdeploy, sglang, "
        "detail, or resize (pictures are sent smaller).",
        show_default="that of the server's kind",
        rich_help_panel=SERVER,
    ),
]
FamilyName = Annotated[
    str | None,
    typer.Option(
        "--family",
        metavar="NAME",
        help="The model's family, such as qwen2.5-vl.",
        show_default="what its name says",
        rich_help_panel=SERVER,
    ),
]
KeyEnv = Annotated[
    str | None,
    typer.Option(
        "--key-env",
        metavar="VARIABLE",
        help="The environment variable that holds the key.",
        show_default="OPENAI_API_KEY, if it is set",
        rich_help_panel=SERVER,
    ),
]
Concurrency = Annotated[
    int | None,
    typer.Option(
        "--concurrency",
        min=1,
        metavar="N",
        help="Requests at once.",
        show_default="8",
        rich_help_panel=SERVER,
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        metavar="SECONDS",
        help="A reply that takes longer is asked for once more.",
        show_default="120",
        rich_help_panel=SERVER,
    ),
]
Thinking = Annotated[
    bool,
    typer.Option(
        "--thinking/--no-thinking",
        help="--no-thinking: tell the model's chat template that it is not to think before it answers.",
        rich_help_panel=SERVER,
    ),
]
PriceIn = Annotated[
    float | None,
    typer.Option(
        "--price-in",
        metavar="PRICE",
        help="Of a million prompt tokens: the summary says what the run cost.",
        rich_help_panel=SERVER,
    ),
]
PriceOut = Annotated[
    float | None,
    typer.Option(
        "--price-out", metavar="PRICE", help="Of a million tokens of answers.", rich_help_panel=SERVER
    ),
]

_OPTIONS: dict[str, tuple[Any, Any]] = {
    "endpoint": (Endpoint, None),
    "knob": (Knob, None),
    "family": (FamilyName, None),
    "key_env": (KeyEnv, None),
    "concurrency": (Concurrency, None),
    "timeout": (Timeout, None),
    "thinking": (Thinking, True),
}
_PRICES: dict[str, tuple[Any, Any]] = {"price_in": (PriceIn, None), "price_out": (PriceOut, None)}

Server = Mapping[str, Any]
"""What the user gave of these options, by their names."""


def takes_server(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command with the options of a model that a server runs.

    If it has a parameter `server`, it gets them there. Prices are options of the other commands only: there a
    scorer counts what a run costs.
    """
    signature, hints = inspect.signature(command), get_type_hints(command, include_extras=True)
    takes = "server" in signature.parameters
    added = _OPTIONS if takes else {**_OPTIONS, **_PRICES}

    @functools.wraps(command)
    def with_options(*args: Any, **kwargs: Any) -> Any:
        told = {name: kwargs.pop(name) for name in added if name in kwargs}
        return command(*args, **kwargs, **({"server": told} if takes else {}))

    kind = inspect.Parameter.KEYWORD_ONLY
    own = [
        one.replace(annotation=hints[one.name], kind=kind)
        for one in signature.parameters.values()
        if one.name != "server"
    ]
    others = [
        inspect.Parameter(name, kind, default=default, annotation=hint)
        for name, (hint, default) in added.items()
    ]
    at = next((n for n, one in enumerate(own) if one.name == "max_new_tokens"), len(own))
    parameters = [*own[:at], *others, *own[at:]]
    vars(with_options)["__signature__"] = signature.replace(parameters=parameters)
    with_options.__annotations__ = {one.name: one.annotation for one in parameters} | {"return": None}
    return with_options


def check_server(server: Server | None) -> None:
    """M3ScoreError for options that go with --endpoint, without it."""
    from m3score.scoring.scorers.served import ServedOptions

    ServedOptions(**(server or {})).check_served()


def load_answerer(
    model: str, server: Server | None, *, rungs: str | None, console: Console, **loading: Any
) -> Any:
    """The model that a server runs if the options name one, else that of load_model.

    Args:
        model: --model.
        server: what the command got under this name.
        rungs: --rungs.
        console: for a sign of life.
        loading: further arguments of console.load.
    """
    from m3score.scoring.scorers.served import ServedOptions

    told = ServedOptions(**(server or {}))
    told.check_served()
    if told.endpoint is None:
        return load(model, rungs=rungs, console=console, **loading)
    if given := [f"--{name}" for name, value in loading.items() if value not in (None, "auto")]:
        raise M3ScoreError(f"{' and '.join(given)}: with --endpoint the server decides.")
    with console.status(f"Asking {told.endpoint} what it can do ..."):
        return told.connect(told.endpoint, model, rungs)


def called(model: str, server: Server | None) -> str:
    """What to call the model in names of folders, before it is known what the server calls it."""
    from m3score.scoring.scorers.served import DEFAULT_MODEL

    url = (server or {}).get("endpoint")
    return str(url).partition("://")[2] if url and model == DEFAULT_MODEL else model
