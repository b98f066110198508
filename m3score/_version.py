"""The version of the installed package, for every room: none of them imports the package's face."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("m3score")
except PackageNotFoundError:  # a checkout that was not installed
    __version__ = "0+unknown"
