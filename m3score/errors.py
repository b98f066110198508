"""The one exception that users of m3score are meant to see: one clear sentence, naming what is allowed."""


class M3ScoreError(ValueError):
    """Bad input: names the file or option at fault and what is allowed."""


class MissingExtraError(M3ScoreError):
    """An optional dependency is not installed; the message holds the pip line that installs it."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional dependency: pip install 'm3score[{extra}]'.")
