"""What CAT asks, and what its language model's answers mean; see cat.py.

Knows texts only. Prompts and cut-offs are ours, in assets/cat.toml.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from m3score.common.errors import M3ScoreError

LOWEST, HIGHEST = 1.0, 9.0


# ---- prompts --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompts:
    """What is asked, and what ratings mean."""

    questions: tuple[str, ...]
    description_tokens: int
    system: str
    prompt: str
    rating_tokens: int
    compression: tuple[tuple[float, int], ...]
    """(highest rating, factor), ratings ascending."""
    digest: str
    """SHA-256 of the file."""

    def factor(self, rating: float) -> int:
        """The compression for a rating."""
        return next(factor for up_to, factor in self.compression if rating <= up_to)


def read_prompts(path: str | Path | None = None) -> Prompts:
    """A file of prompts, or the bundled one; M3ScoreError where it lacks something."""
    name = "cat.toml" if path is None else str(path)
    try:
        if path is None:
            raw = (resources.files("m3score") / "assets" / "cat.toml").read_bytes()
        else:
            raw = Path(path).read_bytes()
        content = tomllib.loads(raw.decode())
        describe, rate = content["describe"], content["rate"]
        compression = tuple((float(one["up_to"]), int(one["factor"])) for one in content["compression"])
        prompts = Prompts(
            questions=tuple(describe["questions"]),
            description_tokens=int(describe["max_new_tokens"]),
            system=str(rate.get("system", "")),
            prompt=str(rate["prompt"]).strip(),
            rating_tokens=int(rate["max_new_tokens"]),
            compression=compression,
            digest=hashlib.sha256(raw).hexdigest(),
        )
    except OSError as error:
        raise M3ScoreError(f"{name}: cannot read ({error.strerror or error}).") from None
    except KeyError as error:
        raise M3ScoreError(
            f"{name}: lacks {error.args[0]!r}; assets/cat.toml shows what is needed."
        ) from None
    except (ValueError, TypeError, AttributeError) as error:
        raise M3ScoreError(f"{name}: not a file of prompts ({error}).") from None
    bounds = [up_to for up_to, _ in compression]
    if "{description}" not in prompts.prompt or not prompts.questions:
        raise M3ScoreError(f"{name}: needs questions, and {{description}} in the prompt.")
    if bounds != sorted(set(bounds)) or not bounds or bounds[-1] < HIGHEST:
        raise M3ScoreError(f"{name}: up_to has to rise, the last one to {HIGHEST:.0f}.")
    return prompts


# ---- ratings --------------------------------------------------------------------------------------------

_SCALE = re.compile(r"\b1\s*(?:-|–|to|and|through)\s*9\b|(?:/|\bout\s+of|\bof)\s*9\b", re.IGNORECASE)
_NUMBER = r"(?<![\w.,-])(\d+(?:\.\d+)?)(?![\w,]*\d)"
_NAMED = re.compile(
    rf"\b(?:score|rating|rate\s+it|complexity|answer)\b[^\d\n]{{0,20}}?{_NUMBER}", re.IGNORECASE
)


def parse_rating(text: str) -> float | None:
    """The rating in a language model's answer: after a word such as "score", else the first number.

    The scale itself ("from 1 to 9", "7 out of 9") is not taken for one. None where there is no number, or one
    that is not from 1 to 9.
    """
    plain = _SCALE.sub(" ", text.replace("*", "").replace("`", ""))
    found = _NAMED.search(plain) or re.search(_NUMBER, plain)
    if found is None:
        return None
    value = float(found[1])
    return value if LOWEST <= value <= HIGHEST else None


@dataclass(frozen=True)
class Rating:
    """What CAT says of one picture."""

    caption: str
    score: float | None
    """From 1 to 9."""
    compression: int | None
    error: str | None

    @property
    def complexity(self) -> float | None:
        """The rating on [0, 1]."""
        return None if self.score is None else (self.score - LOWEST) / (HIGHEST - LOWEST)

    def to_row(self) -> dict[str, Any]:
        """Columns of a score table."""
        return {
            "complexity": self.complexity,
            "caption": self.caption,
            "cat_score": self.score,
            "cat_compression": self.compression,
            "error": self.error,
        }
