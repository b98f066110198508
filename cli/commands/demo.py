"""m3score demo: a page in the browser with a slider from one visual token to all of them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from m3score.cli import choices, options
from m3score.cli.console import load, plain, set_up, sigterm_as_interrupt
from m3score.common.errors import M3ScoreError

EPILOG = """Examples:

m3score demo

m3score demo --model mucai/llava-v1.5-7b-m3 --max-new-tokens 128

m3score demo --host 0.0.0.0 --port 8080 --max-upload 50MB"""

SEED = 8888
"""Of the drawings on offer: none that training or evaluation uses."""
_DRAWN = (("sign", 0), ("sign", 36), ("page", 6), ("sign", 11))


def demo(
    host: Annotated[
        str,
        typer.Option(
            "--host", metavar="ADDRESS", help="Who may come: 127.0.0.1 is this machine, 0.0.0.0 all."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free.")] = 7860,
    share: Annotated[
        bool,
        typer.Option("--share", help="Also a public address, through a server of Gradio's makers."),
    ] = False,
    max_upload: Annotated[
        str, typer.Option("--max-upload", metavar="SIZE", help="Largest file that is taken.")
    ] = "20MB",
    predictor: Annotated[
        str | None,
        typer.Option(
            "--predictor",
            metavar="NAME",
            help="A bundled predictor, or a file that m3score calibrate wrote.",
            show_default="the model's",
            rich_help_panel=options.ROUTING,
        ),
    ] = None,
    model: options.Model = "m3-tiny",
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = choices.Dtype.auto,
    quantize: options.Quantize = None,
    revision: options.Revision = None,
    max_new_tokens: options.MaxNewTokens = 32,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Try a model in the browser: a picture, a question, and a slider from one visual token to all of them.

    Without a question it shows how many distinct visual tokens the picture has, or how many it takes to
    read it, and where. With one, what every scale answers, where they agree, how many tokens that makes the
    picture need, and what predict_scale would have chosen. Needs m3score\\[demo].
    """
    from m3score.analysis.demo import server
    from m3score.analysis.demo.session import Demo, parse_size

    size = parse_size(max_upload)
    console = set_up(quiet=quiet, verbose=verbose)
    server.check_installed()
    if predictor is not None:
        from m3score.routing.registry import load_predictor

        load_predictor(predictor)  # complaints about it come now, not in front of visitors
    answerer = load(model, device=device, dtype=dtype, quantize=quantize, revision=revision, console=console)
    if not hasattr(answerer, "encode"):
        raise M3ScoreError(f"the demo shows tokens per grid, which {model} has not: it takes M3 models only.")
    page = Demo(answerer, predictor=predictor, max_new_tokens=max_new_tokens)
    with console.status("Warming up ..."):
        page.warm_up()
    with tempfile.TemporaryDirectory(prefix="m3score-drawn-") as folder, sigterm_as_interrupt():
        try:
            drawn = draw_examples(Path(folder))
            with server.served(page, drawn, host=host, port=port, share=share, max_upload=size) as address:
                console.print(f"The demo is at {plain(address)} (Ctrl-C ends it).")
                server.wait()
        except KeyboardInterrupt:  # how it is meant to end
            console.print("Ended.")


def draw_examples(folder: Path) -> list[tuple[str, str]]:
    """Drawings on which an answer depends on the scale: (path, question)."""
    from m3score.calibration.drawings.drawing import draw

    examples = []
    for kind, index in _DRAWN:
        drawing = draw(SEED, index, kind)
        path = folder / f"{kind}-{index}.png"
        drawing.image.save(path)
        question = drawing.questions[0].question.split(" Answer the question")[0]
        examples.append((str(path), question))
    return examples
