"""Write docs/commands/: a page for every command, from what the command says of itself.

python tools/write_command_pages.py            # after a change of a command or an option
python tools/write_command_pages.py --check    # exit code 1 where a page is not what would be written
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "commands"
_NOTE = (
    "<!-- Written by tools/write_command_pages.py from the command's own help; a test compares them. -->\n"
)
_TYPES = {int: "N", float: "NUMBER", Path: "PATH"}


def pages() -> dict[str, str]:
    """File name -> text. To be called before typer is imported: defaults come from the environment."""
    for name in [name for name in os.environ if name.startswith("M3SCORE_")]:
        del os.environ[name]
    sys.path.insert(0, str(ROOT))
    from m3score.cli.main import COMMANDS, load_command

    written = {f"{name}.md": _page(name, load_command(name)) for name in COMMANDS}
    return {"index.md": _overview(COMMANDS)} | written


def _overview(commands: dict[str, str]) -> str:
    rows = "".join(f"| [`m3score {name}`]({name}.md) | {text} |\n" for name, text in commands.items())
    return f"""{_NOTE}
# Commands

| command | what it does |
|---|---|
{rows}
`m3score --version` shows the version. `m3score --install-completion` teaches your shell (bash, zsh,
fish, PowerShell) to complete commands and options after Tab. Tables go to `--out` or to stdout, everything
else to stderr. Only a terminal gets colours; `NO_COLOR` and `FORCE_COLOR` are heeded.

| exit code | meaning |
|--:|---|
| 0 | fine |
| 1 | `check-predictor` found drift |
| 2 | wrong usage |
| 3 | some inputs failed; their rows say why |
| 4 | an output can't be written, as on a full disk; what was done is kept |
| 130 | interrupted; what was done is kept |
"""


def _page(name: str, command: Any) -> str:
    context = command.context_class(command, info_name=f"m3score {name}")
    usage = command.get_usage(context).removeprefix("Usage: ")
    parts = [_NOTE, f"# m3score {name}", _prose(command.help), f"```text\n{' '.join(usage.split())}\n```"]
    parts += _examples(command.epilog or "")
    panels: dict[str, list[Any]] = {}
    for parameter in command.params:
        if not getattr(parameter, "hidden", False):
            default = "Arguments" if parameter.param_type_name == "argument" else "Options"
            panels.setdefault(parameter.rich_help_panel or default, []).append(parameter)
    for panel in sorted(panels, key=lambda panel: (panel != "Arguments", panel != "Options")):
        rows = "\n".join(_row(parameter) for parameter in panels[panel])
        head = "argument" if panel == "Arguments" else "option"
        parts.append(f"## {panel}\n\n| {head} | meaning |\n|---|---|\n{rows}")
    return "\n\n".join(parts) + "\n"


def _examples(epilog: str) -> list[str]:
    """Examples as one block, what is said beside them as text."""
    said = [line for line in _plain(epilog).split("\n\n") if not re.match(r"Examples?:$", line)]
    typed = [line for line in said if "m3score " in line and not line.endswith(".")]
    told = [_prose(line) for line in said if line not in typed]
    return ["## Examples", "```bash\n" + "\n".join(typed) + "\n```", *told]


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        spelled = f"`{(parameter.metavar or parameter.name.upper()).strip('{}')}`"
    else:
        value = "" if parameter.is_flag or parameter.count else f" {_value(parameter)}"
        names = [*parameter.opts, *parameter.secondary_opts]
        spelled = ", ".join(f"`{name}{value if name.startswith('--') else ''}`" for name in names)
    said = [_prose(parameter.help or ""), "Required." if parameter.required else "", _default(parameter)]
    if parameter.envvar:
        said.append(f"Environment variable: `{parameter.envvar}`.")
    return f"| {_cell(spelled)} | {_cell(' '.join(filter(None, said)))} |"


def _value(parameter: Any) -> str:
    """What an option takes: its choices, or a word for its type."""
    kind = parameter.type_descriptor
    if kind.choices:
        return "|".join(str(getattr(choice, "value", choice)) for choice in kind.choices)
    return str(parameter.metavar or _TYPES.get(kind.annotation, "TEXT"))


def _default(parameter: Any) -> str:
    shown, value = getattr(parameter, "show_default", None), parameter.default
    if isinstance(shown, str):
        return f"Default: {_prose(shown)}."
    if not shown or value is None or value is False or value == []:
        return ""
    if parameter.secondary_opts:
        value = parameter.opts[0]
    return f"Default: `{getattr(value, 'value', value)}`."


def _plain(text: str) -> str:
    """Without rich's markup."""
    return re.sub(r"(?<!\\)\[/?[a-z ]*\]", "", inspect.cleandoc(text)).replace("\\[", "[")


def _prose(text: str) -> str:
    """Text in which Markdown sees nothing of its own."""
    paragraphs = [" ".join(part.split()) for part in _plain(text).split("\n\n")]
    return re.sub(r"([*_<>])", r"\\\1", "\n\n".join(paragraphs))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n\n", " ")


def main(arguments: list[str]) -> int:
    """Write or check the pages; the exit code."""
    wanted = pages()
    if "--check" in arguments:
        found = {file.name: file.read_text() for file in FOLDER.glob("*.md")}
        wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        if wrong:
            sys.stderr.write(
                f"out of date: {', '.join(wrong)}; python tools/{Path(__file__).name} writes them\n"
            )
        return int(bool(wrong))
    FOLDER.mkdir(parents=True, exist_ok=True)
    for file in FOLDER.glob("*.md"):
        file.unlink()
    for name, text in wanted.items():
        (FOLDER / name).write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
