"""The one exception that users of m3score are meant to see: one clear sentence, naming what is allowed."""


class M3ScoreError(ValueError):
    """Bad input: names the file or option at fault and what is allowed."""


class MissingExtraError(M3ScoreError):
    """An optional dependency is not installed; the message holds the pip line that installs it."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional dependency: pip install 'm3score[{extra}]'.")


def one_line(error: BaseException, most: int = 200) -> str:
    """What an exception says, in one line of at most so many characters; its kind where it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of what an exception says; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def unreachable(error: BaseException | None) -> bool:
    """Whether there is no network, or none wanted, behind an error of the hub's libraries."""
    names = (
        "ConnectionError",
        "TransportError",
        "OfflineModeIsEnabled",
        "LocalEntryNotFoundError",
        "Timeout",
    )
    while error is not None:
        if any(name in kind.__name__ for kind in type(error).__mro__ for name in names):
            return True
        error = error.__cause__ or error.__context__
    return False
