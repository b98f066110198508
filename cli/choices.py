"""What options choose among, where the choices have names."""

from __future__ import annotations

from enum import StrEnum


class Format(StrEnum):
    """Table formats; the values are the names in m3score.tables.formats.FORMATS."""

    csv = "csv"
    jsonl = "jsonl"
    parquet = "parquet"


class Rule(StrEnum):
    """The values are the names in m3score.scoring.rules.RULES."""

    stays = "stays"
    first = "first"


class Sufficiency(StrEnum):
    """The values are those of m3score.scoring.oracle.SUFFICIENCY."""

    auto = "auto"
    correct = "correct"
    consistent = "consistent"


class Promise(StrEnum):
    """The values are those of m3score.routing.promises.certify.PROMISES."""

    image = "image"
    question = "question"


class WrittenAs(StrEnum):
    """The values are those of m3score.routing.scorer.AS."""

    scale = "scale"
    request = "request"


class Engine(StrEnum):
    """Where the work is done."""

    local = "local"
    ray = "ray"


class Features(StrEnum):
    """The values are those of m3score.routing.predictor.FEATURE_SETS."""

    pixels = "pixels"
    vision = "vision"


class Bits(StrEnum):
    """Ways to quantise the language model's weights."""

    four = "4bit"
    eight = "8bit"


class Dtype(StrEnum):
    """Number types a model may be loaded in."""

    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class Unsolved(StrEnum):
    """The values are those of m3score.analysis.select.Unsolved."""

    exclude = "exclude"
    include = "include"
    only = "only"
