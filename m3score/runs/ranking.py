"""m3score.rank: many images -> a table, most complex first. The call of the engine that users see."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from m3score.common.errors import M3ScoreError
from m3score.common.limits import Limits
from m3score.data.discover import Source
from m3score.data.item import PathLike
from m3score.runs.engine import Outcome, executor_of, iterate, run
from m3score.runs.progress import Callbacks, Progress
from m3score.runs.request import Inputs, Paths, Request, Target, as_path
from m3score.runs.resume.collector import most_complex_first
from m3score.runs.resume.journal import written_by_earlier_run
from m3score.scoring.base import Scorer
from m3score.scoring.registry import find_scorer, make_options, option_names
from m3score.tables.schema import SCORES, conform

if TYPE_CHECKING:
    import pandas as pd

    from m3score.data.loader import Questions
    from m3score.models.base import LadderAnswerer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RankSummary:
    """What `rank` came to where the table went to a file."""

    out: Path
    images: int
    """Rows of the table, those that failed included."""
    failed: int
    """Rows whose `error` is filled in."""
    mean_complexity: float | None
    """Of those that did not fail; None where all did."""
    resumed: int
    """Inputs that an earlier run had done."""
    seconds: float
    notes: tuple[str, ...]
    """What the scorer has to say of the run as a whole."""


@overload
def rank(
    paths: Paths,
    *,
    scorer: str | Scorer | None = None,
    model: str | LadderAnswerer | None = None,
    questions: Questions | PathLike = None,
    out: None = None,
    traces: PathLike | None = None,
    limit: int | None = None,
    limits: Limits | None = None,
    workers: int | None = None,
    engine: str = "local",
    address: str | None = None,
    num_gpus: float | None = None,
    on_progress: Callable[[Progress], object] | None = None,
    progress: Callable[[Any], object] | None = None,
    **options: Any,
) -> pd.DataFrame: ...


@overload
def rank(
    paths: Paths,
    *,
    out: PathLike,
    scorer: str | Scorer | None = None,
    model: str | LadderAnswerer | None = None,
    questions: Questions | PathLike = None,
    format: str | None = None,
    traces: PathLike | None = None,
    resume: bool = True,
    overwrite: bool = False,
    limit: int | None = None,
    limits: Limits | None = None,
    workers: int | None = None,
    engine: str = "local",
    address: str | None = None,
    num_gpus: float | None = None,
    on_progress: Callable[[Progress], object] | None = None,
    progress: Callable[[Any], object] | None = None,
    **options: Any,
) -> RankSummary: ...


def rank(
    paths: Paths,
    *,
    scorer: str | Scorer | None = None,
    model: str | LadderAnswerer | None = None,
    questions: Questions | PathLike = None,
    out: PathLike | None = None,
    format: str | None = None,
    traces: PathLike | None = None,
    resume: bool = True,
    overwrite: bool = False,
    limit: int | None = None,
    limits: Limits | None = None,
    workers: int | None = None,
    engine: str = "local",
    address: str | None = None,
    num_gpus: float | None = None,
    on_progress: Callable[[Progress], object] | None = None,
    progress: Callable[[Any], object] | None = None,
    **options: Any,
) -> pd.DataFrame | RankSummary:
    """Rank images by complexity, most complex first; by default by how many visual tokens a model needs.

    Args:
        paths: folders, files, glob patterns, tar shards, parquet files, URLs, "-" for a list on stdin, or a
            DataSet (m3score.data.sources.hf_datasets), see find_images; pictures too: PIL images, bytes, file
            objects, arrays, tensors, rows of data sets (see m3score.images.given.as_source).
        scorer: what gives a picture its complexity: a name ("vision", "model", "predictor", "cascade",
            "jpeg", "edges", "entropy", "cat", "alit", or one that an installed package brings), or a scorer
            that is made already. By default "model" where something is asked, here or by the inputs
            themselves, and else "vision"; see default_scorer.
        model, questions: options of the scorer, see below. For the model: a loaded model or what load_model
            takes (default "m3-tiny"), and what to ask.
        out: the table's file (.csv, .jsonl or .parquet). Then memory does not grow with the images, and every
            finished row is kept: the same call goes on where it was stopped.
        format: of the table, whatever the suffix of `out`.
        traces: write the trace table here (.csv, .jsonl or .parquet).
        resume: go on with what an earlier, unfinished run into `out` left; False forgets it.
        overwrite: replace a finished table, and forget what an unfinished run left.
        limit: at most so many inputs.
        limits: what decoding one picture may cost.
        workers: processes that open images; with engine="ray", scorers at once.
        engine: "local", or "ray" for the machines of a Ray cluster (needs m3score[ray]).
        address, num_gpus: of the cluster, and GPUs for each of its workers.
        on_progress: called after every input with a Progress.
        progress: called with every result as it is made; it has `to_row()`.
        options: of the scorer, by the names of its options class: VisionOptions (device, batch_size ...),
            ModelOptions (rule, sufficiency, max_new_tokens, frames ...), PredictorOptions, CascadeOptions,
            CatOptions, AlitOptions, or that of another package.

    Returns:
        Without `out` the score table as a DataFrame: one row per input with rank, path, complexity in [0, 1],
        effective_tokens and required_tokens (per grid), solved, monotone, agreement_T for each scale T,
        questions (how many), width and height (upright, in pixels), the scorer's own columns, and error. What
        the scorer doesn't tell is left empty. Ties are in the order of their paths; inputs that failed come
        last, without a rank. With `out` a RankSummary.

    Raises:
        M3ScoreError: nothing found, or an argument that can't be used. An image that can't be read is not an
            error, but a row with `error` filled in.
        KeyboardInterrupt: with `out`, the rows so far are in the table, and the same call goes on from there.
    """
    target = Target(as_path(out), format, as_path(traces)).checked(overwrite=overwrite)
    request = _request(
        scorer, _given(model, questions, options), paths, target,
        limit=limit, limits=limits, workers=workers, anew=overwrite or not resume,
    )  # fmt: skip
    with executor_of(engine, address=address, num_gpus=num_gpus, workers=workers) as executor:
        outcome = run(request, executor, Callbacks(on_progress, progress))
    if outcome.interrupted:
        raise KeyboardInterrupt
    if outcome.unused:
        logger.warning(
            "questions for %d images fitted none of the inputs, such as %s",
            len(outcome.unused),
            outcome.unused[0],
        )
    if target.out is None:
        return score_table(outcome.rows, outcome.facts.columns)
    return _summary(target.out, outcome)


def rank_iter(
    paths: Paths,
    *,
    scorer: str | Scorer | None = None,
    model: str | LadderAnswerer | None = None,
    questions: Questions | PathLike = None,
    limit: int | None = None,
    limits: Limits | None = None,
    workers: int | None = None,
    engine: str = "local",
    address: str | None = None,
    num_gpus: float | None = None,
    **options: Any,
) -> Iterator[dict[str, Any]]:
    """Rows of the score table as they are made, in the order of the inputs and without a rank.

    Only a few rows are in memory, however many inputs there are; close the iterator to stop early. A cascade
    knows its rows when both of its passes are done. The arguments and errors are those of `rank`; those that
    can't be used are errors at once.
    """
    request = _request(
        scorer, _given(model, questions, options), paths, Target(),
        limit=limit, limits=limits, workers=workers,
    )  # fmt: skip
    executor = executor_of(engine, address=address, num_gpus=num_gpus, workers=workers)

    def rows() -> Iterator[dict[str, Any]]:
        with executor:
            for row in iterate(request, executor):
                yield {**dict.fromkeys(("path", "complexity", "error")), **row}

    return rows()


def default_scorer(given: Mapping[str, Any], inputs: Inputs) -> str:
    """The scorer where none is named.

    "model" where a question is asked, by the options or by the inputs themselves (the first decides), and of
    a model that can only answer, as one behind a server; else "vision".
    """
    asked = any(given.get(name) is not None for name in ("question", "questions", "endpoint"))
    model = given.get("model")
    only_answers = model is not None and not isinstance(model, str) and not hasattr(model, "vision_score")
    return "model" if asked or only_answers or inputs.ask() else "vision"


def _request(
    scorer: str | Any | None,
    given: Mapping[str, Any],
    paths: Paths,
    target: Target,
    *,
    limit: int | None = None,
    limits: Limits | None = None,
    workers: int | None = None,
    anew: bool = False,
) -> Request:
    held = limits or Limits()
    inputs = Inputs(paths, limit, max_bytes=held.max_embedded_bytes)
    scorer = default_scorer(given, inputs) if scorer is None else scorer
    return request_for(scorer, given, inputs, target, limits=held, workers=workers, anew=anew)


def request_for(
    scorer: str | Any,
    given: Mapping[str, Any],
    inputs: Inputs,
    target: Target,
    *,
    spelled: Callable[[str], str] = lambda option: option,
    limits: Limits | None = None,
    workers: int | None = None,
    anew: bool = False,
) -> Request:
    """The request of a ranking.

    Args:
        scorer: a name, or a scorer that is made already.
        given: the scorer's options.
        inputs: what to rank.
        target: checked.
        spelled: how an option is called where it comes from.
        limits, workers: as for rank.
        anew: forget what an unfinished run left.

    Raises:
        M3ScoreError: no such scorer, or it has no such option.
    """
    if isinstance(scorer, str):
        found, told = find_scorer(scorer), make_options(scorer, given, spelled)
        command = "rank" if scorer == "model" else f"rank --scorer {scorer}"
    else:
        if given:
            raise M3ScoreError(f"{', '.join(given)}: options go with a scorer's name, not with a scorer.")
        found, told = scorer, scorer.options
        command = f"rank --scorer {type(scorer).__module__}.{type(scorer).__qualname__}"
    if target.traces is not None and not getattr(found, "traced", False):
        hint = ", or give a question" if scorer == "vision" else ""
        raise M3ScoreError(f"the scorer {scorer} gives no answers to write down: leave --traces out{hint}.")
    return Request(inputs, found, told, target, command, limits or Limits(), workers, anew)


def requests_for(
    scorers: Sequence[str],
    given: Mapping[str, Any],
    paths: Sequence[Source],
    folder: Path,
    *,
    spelled: Callable[[str], str] = lambda option: option,
    limit: int | None = None,
    overwrite: bool = False,
) -> dict[str, Request | None]:
    """Rankings of the same images by several scorers, each to FOLDER/SCORER.csv.

    Args:
        scorers: names.
        given: options; each scorer is told those that it knows.
        paths, limit: as for rank.
        folder: made if it is not there. An unfinished table in it is gone on with.
        spelled: how an option is called where it comes from.
        overwrite: score everything anew.

    Returns:
        A request for each scorer, those that take long last: a mistake shows before hours of work. None for
        a table that is there already.

    Raises:
        M3ScoreError: no such scorer, an option that none of them knows, or the folder can't be made.
    """
    known = {name: option_names(name) for name in scorers}
    if strangers := [option for option in given if not any(option in own for own in known.values())]:
        raise M3ScoreError(f"{', '.join(map(spelled, strangers))}: none of the scorers has such an option.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise M3ScoreError(f"{folder}: cannot make the folder ({error.strerror}).") from None
    made: dict[str, Request | None] = {}
    for name in sorted(scorers, key=lambda name: getattr(find_scorer(name), "block", None) != 1):
        out = folder / f"{name}.csv"
        if out.is_file() and not overwrite and not written_by_earlier_run(out, out):
            made[name] = None
            continue
        own = {option: value for option, value in given.items() if option in known[name]}
        target = Target(out).checked(overwrite=overwrite)
        made[name] = request_for(name, own, Inputs(paths, limit), target, spelled=spelled, anew=overwrite)
    return made


def _given(model: Any, questions: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    named = {"model": model, "questions": questions}
    return {**{name: value for name, value in named.items() if value is not None}, **options}


def _summary(out: Path, outcome: Outcome) -> RankSummary:
    tally = outcome.tally
    mean = tally.complexity_sum / tally.scored if tally.scored else None
    return RankSummary(
        out, tally.images, tally.failed, mean, outcome.resumed, outcome.seconds, tuple(outcome.notes)
    )


def score_table(rows: Iterable[Mapping[Any, Any]], columns: Sequence[str] = ()) -> pd.DataFrame:
    """Rows of a score table, ranked: see rank. `columns` are there even if every input failed."""
    import pandas as pd

    empty = dict.fromkeys(columns)
    ordered = sorted(({**empty, **row} for row in rows), key=most_complex_first)
    table = conform(ordered, SCORES)
    ranks = pd.Series(range(1, len(table) + 1), dtype="Int64")
    table["rank"] = ranks.where(table["complexity"].notna())
    return table
