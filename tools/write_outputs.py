"""Run the examples of README and docs, and put what they print beside them.

python tools/write_outputs.py [PAGE ...]    # after a change of a model, a message or an example

A `console` block holds commands after "$ ", each followed by what it writes to stdout. A `pycon` block is an
interactive session, as doctest has it. Both are run in order, a page in a folder of its own that has a copy
of examples/, and the blocks that have a file's name as their title. What is shown already stays where it
differs in last digits alone.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WIDTH = 88
_BLOCK = re.compile(r"^```(console|pycon)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r'^```\w+ title="([^"]+)"\n(.*?)^```', re.DOTALL | re.MULTILINE)
_NUMBER = re.compile(r"\d+\.\d+")


def with_outputs(page: str) -> str:
    """A page with what its examples print now. Works in the current folder."""
    names: dict[str, object] = {"__name__": "__main__"}
    for name, content in _FILE.findall(page):
        Path(name).write_text(content)

    def redone(block: re.Match[str]) -> str:
        language, shown = block.groups()
        now = _commands(shown) if language == "console" else _session(shown, names)
        return block[0] if same(shown, now) else f"```{language}\n{now}```"

    return _BLOCK.sub(redone, page)


def has_outputs(page: str) -> bool:
    """Whether a page has examples to run."""
    return bool(_BLOCK.search(page))


def same(shown: str, now: str) -> bool:
    """Whether two texts are the same but for the last digit of decimals, which another CPU may compute so."""
    if _NUMBER.split(shown) != _NUMBER.split(now):
        return False
    pairs = zip(_NUMBER.findall(shown), _NUMBER.findall(now), strict=True)
    return all(
        len(old) == len(new) and abs(float(old) - float(new)) < 1.5 * 10.0 ** -len(old.partition(".")[2])
        for old, new in pairs
    )


@contextlib.contextmanager
def scratch_folder() -> Iterator[None]:
    """A folder with a copy of examples/, as the working folder; terminals in it are WIDTH wide."""
    before, kept = Path.cwd(), dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "examples", Path(folder) / "examples")
        os.chdir(folder)
        os.environ |= {"COLUMNS": str(WIDTH), "NO_COLOR": "1"}
        try:
            yield
        finally:
            os.chdir(before)
            os.environ.clear()
            os.environ.update(kept)


def _commands(shown: str) -> str:
    from typer.testing import CliRunner

    from m3score.cli.main import app

    lines = []
    for line in shown.splitlines():
        if not line.startswith("$ "):
            continue
        program, *words = shlex.split(line.removeprefix("$ "), comments=True)
        if program != "m3score":
            raise SystemExit(f"only m3score can be run, not {line}")
        result = CliRunner().invoke(app, words, prog_name="m3score")
        if result.exit_code:
            raise SystemExit(f"{line}: exit code {result.exit_code}\n{result.output}\n{result.exception!r}")
        lines += [line, *(text.rstrip() for text in result.stdout.strip("\n").splitlines())]
    return "".join(f"{line}\n" for line in lines)


def _session(shown: str, names: dict[str, object]) -> str:
    lines = []
    for example in doctest.DocTestParser().get_examples(shown):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(example.source, "<example>", "single"), names)
        first, *rest = example.source.splitlines()
        lines += [f">>> {first}", *(f"... {line}".rstrip() for line in rest), *said.getvalue().splitlines()]
    return "".join(f"{line}\n" for line in lines)


def main(arguments: list[str]) -> int:
    """Write the pages that are named, or all."""
    for page in [Path(name).resolve() for name in arguments] or PAGES:
        text = page.read_text()
        if has_outputs(text):
            with scratch_folder():
                now = with_outputs(text)
            if now != text:
                page.write_text(now)
                sys.stderr.write(f"{page.relative_to(ROOT)} has changed\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
