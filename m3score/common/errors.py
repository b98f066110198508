"""The one exception that users of m3score are meant to see: one clear sentence, naming what is allowed."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)


class M3ScoreError(ValueError):
    """Bad input: names the file or option at fault and what is allowed.

    Args:
        reason: what is wrong and what is allowed, in words for people.
        subject: the file, image or option that it is about; the message begins with it.
        transient: whether it may be gone when the same is tried again, as when a process died.
    """

    transient: bool = False

    def __init__(self, reason: object = "", *, subject: str | None = None, transient: bool | None = None):
        super().__init__(str(reason) if subject is None else f"{subject}: {reason}")
        self.reason = str(reason)
        self.subject = subject
        if transient is not None:
            self.transient = transient


class OutputError(M3ScoreError):
    """An output can't be written: the disk is full, say. Nothing that was done before is lost."""

    @classmethod
    def of(cls, error: OSError, path: object) -> OutputError:
        """What the system says about writing to `path`."""
        return cls(f"cannot write ({error.strerror or error}).", subject=str(path))


class StopRunError(M3ScoreError):
    """Nothing that follows can work either: a server is gone, say. The run stops; what is done is kept."""

    transient = True


class MissingExtraError(M3ScoreError):
    """An optional dependency is not installed; the message holds the pip line that installs it."""

    def __init__(self, what: str, extra: str, *, subject: str | None = None) -> None:
        super().__init__(
            f"{what} needs an optional dependency: pip install 'm3score[{extra}]'.", subject=subject
        )

    def __reduce__(self) -> tuple[object, ...]:
        return M3ScoreError, self.args, self.__dict__


def image_failure(error: Exception, what: str) -> M3ScoreError:
    """What is wrong with the one image that was being worked on.

    What nobody foresaw must not cost the other images: it becomes `what` ("can't be opened") with the
    exception's kind and words.
    """
    if isinstance(error, M3ScoreError):
        return error
    logger.debug("an image %s", what, exc_info=error)
    return M3ScoreError(f"{what} ({type(error).__name__}: {one_line(error)})")


def model_failure(error: Exception) -> M3ScoreError:
    """What a model raised, as one line; a user error as it is. A device may work again next time."""
    if isinstance(error, StopRunError):
        return error
    if isinstance(error, M3ScoreError):
        return M3ScoreError(one_line(error), transient=error.transient)
    logger.debug("the model failed", exc_info=error)
    return M3ScoreError(f"the model failed ({type(error).__name__}: {one_line(error)})", transient=True)


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
