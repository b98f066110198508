"""`python -m m3score` is the m3score command."""

from __future__ import annotations

from m3score.cli.main import main

if __name__ == "__main__":
    main()
