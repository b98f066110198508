"""The jinja2 templates, style sheets and scripts in m3score/templates/. Everything inserted is escaped."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any


@cache
def environment() -> Any:
    """The jinja2 environment of all pages: autoescaping, and strict about undefined names."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("m3score"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )


def template_text(name: str) -> str:
    """A file in m3score/templates/ as it is."""
    return (resources.files("m3score") / "templates" / name).read_text(encoding="utf-8")
