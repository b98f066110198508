"""Write docs/commands.md: what --help says of every command, at a fixed width and without colours.

python tests/write_reference.py            # after a change of a command or an option
python tests/write_reference.py --check    # exit code 1 if the file is not what would be written
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

WIDTH = 100
FILE = Path(__file__).parent.parent / "docs" / "commands.md"
_HEAD = """# The commands

What `--help` says, as `python tests/write_reference.py` writes it; a test fails where the two differ.
"""


def reference() -> str:
    """The page. To be called before typer is imported: it looks at the environment when it is."""
    for name in list(os.environ):
        if name.startswith("M3SCORE_") or name in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "COLUMNS"):
            del os.environ[name]
    os.environ |= {"TERMINAL_WIDTH": str(WIDTH), "NO_COLOR": "1", "TERM": "dumb", "LC_ALL": "C.UTF-8"}
    from typer.testing import CliRunner

    from m3score.cli.main import COMMANDS, app

    def page(*words: str) -> str:
        result = CliRunner().invoke(app, [*words, "--help"], prog_name="m3score")
        if result.exit_code:
            raise SystemExit(f"m3score {' '.join(words)} --help failed:\n{result.output}")
        lines = [line.rstrip() for line in result.stdout.splitlines()]
        title = " ".join(["m3score", *words])
        return "\n".join([f"\n## {title}\n", "```text", "\n".join(lines).strip("\n"), "```", ""])

    return _HEAD + page() + "".join(page(name) for name in COMMANDS)


def main(arguments: list[str]) -> int:
    """Write or check the page; the exit code."""
    text = reference()
    if "--check" in arguments:
        same = FILE.is_file() and FILE.read_text() == text
        sys.stderr.write("" if same else f"{FILE} is out of date: python {Path(__file__).name} writes it.\n")
        return 0 if same else 1
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
