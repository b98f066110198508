"""What m3score calibrate does: ask, fit, write. The options are in calibrate.py."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from m3score.cli.console import INTERRUPTED, SOME_FAILED, load, plain, sigterm_as_interrupt
from m3score.common.errors import M3ScoreError, MissingExtraError

if TYPE_CHECKING:
    from rich.console import Console

    from m3score.calibration.predictor.collect import Collection
    from m3score.calibration.predictor.fit import Fitted
    from m3score.calibration.predictor.sources import Source


def collect(
    found: dict[str, Source | None],
    where: Path,
    model: str,
    loading: dict[str, Any],
    how: dict[str, Any],
    console: Console,
) -> list[Path]:
    """Run the oracle over the sources that have no labels yet; the folders of all labels."""
    folders = [Path(name) if source is None else where for name, source in found.items()]
    pending = [(i, name, source) for i, (name, source) in enumerate(found.items()) if source is not None]
    if not pending:
        return folders
    from m3score.calibration.predictor.collect import collect
    from m3score.cli.progress import progress
    from m3score.models.fingerprint import fingerprint
    from m3score.runs.ranking import check_frames

    answerer = load(model, console=console, **loading)
    for _, _, source in pending:
        check_frames(source.told.get("frames"), answerer)
    prints = fingerprint(model)
    for i, name, source in pending:
        if len(pending) > 1:
            slug = re.sub(r"[^\w.-]+", "-", os.path.basename(os.path.normpath(name)))
            folders[i] = where / f"{i}-{slug}"
        count = partial(_count, source, how["limit"])
        with sigterm_as_interrupt():
            try:
                with progress(console, count, f"Asking about {plain(name)}") as advance:
                    collect(
                        source,
                        answerer,
                        folders[i],
                        fingerprint=prints,
                        progress=partial(_repeat, advance),
                        **how,
                    )
            except KeyboardInterrupt:
                console.print(
                    f"Interrupted. What was done is kept in {plain(folders[i])}: run again to go on."
                )
                raise typer.Exit(INTERRUPTED) from None
    return folders


def say_what_a_promise_needs(
    found: dict[str, Source | None],
    limit: int | None,
    shares: tuple[float, ...],
    max_drop: float,
    confidence: float,
    per: str,
    anyway: bool,
    console: Console,
) -> None:
    """Before anything is asked: how many images it takes to certify something, and how many there are.

    Raises M3ScoreError where there are too few, unless `anyway`.
    """
    from m3score.calibration.predictor.collect import open_collection
    from m3score.routing.certify import images_needed

    needed, share = images_needed(max_drop, confidence), shares[1] / sum(shares)
    counts = [
        open_collection(name).traces()["image"].nunique() if source is None else _count(source, limit)
        for name, source in found.items()
    ]
    more = " (more where images have unequal numbers of questions)" if per == "question" else ""
    promise = (
        f"A promise of at most {max_drop:.4g} lost per {per}, at confidence {confidence:.4g}, needs at least "
        f"{needed:,} calibration images{more}; with {share:.0%} of the images for calibration that is "
        f"{math.ceil(needed / share - 1e-9):,} in all."
    )
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        console.print(plain(f"{promise} How many there are shows when all are read."))
        return
    there = f"There are {sum(known):,}."
    if sum(known) * share >= needed:
        console.print(plain(f"{promise} {there}"))
        return
    least = -math.expm1(math.log1p(-confidence) / max(1, int(sum(known) * share)))
    if not anyway:
        raise M3ScoreError(
            f"{promise} {there} Give more images, or --max-drop {math.ceil(1000 * least) / 1000:g} or more; "
            "--anyway fits a predictor that promises nothing."
        )
    console.print(f"[yellow]{plain(f'{promise} {there} Nothing will be certified.')}[/]")


def _repeat(advance: Callable[[], None], times: int) -> None:
    for _ in range(times):
        advance()


def _count(source: Source, limit: int | None) -> int | None:
    total = source.count()
    return limit if total is None else min(total, limit or total)


def say_collected(folders: list[Path], console: Console) -> None:
    from m3score.calibration.predictor.collect import open_collection

    failed = 0
    for folder in folders:
        collection: Collection = open_collection(folder)
        traces = collection.traces()
        failed += int(traces["tokens"].isna().sum())
        console.print(
            f"{plain(folder)}: {traces['image'].nunique():,} images, {traces['tokens'].notna().sum():,} "
            f"answers, {int(traces['tokens'].isna().sum()):,} images failed."
        )
    if failed:
        raise typer.Exit(SOME_FAILED)


def fit(
    folders: list[Path],
    tests: list[Path],
    shares: tuple[float, ...],
    sufficiency: str,
    max_drop: float,
    confidence: float,
    per: str,
    seed: int,
    workers: int | None,
    console: Console,
) -> Fitted:
    from m3score.calibration.predictor.collect import open_collection
    from m3score.calibration.predictor.fit import fit_predictor
    from m3score.calibration.predictor.gather import labels_of

    collections = [open_collection(folder) for folder in [*folders, *tests]]
    first = collections[0]
    for other in collections[1:]:
        for fact in ("fingerprint", "feature_set", "ladder"):
            if getattr(other, fact) != getattr(first, fact):
                raise M3ScoreError(f"{other.folder} and {first.folder}: labels of another {fact}.")
        if other.frames != first.frames:
            raise M3ScoreError(
                f"{other.folder} and {first.folder}: labels of other --frames "
                f"({other.frames or 'none'} and {first.frames or 'none'})."
            )
    with console.status("Reading labels ..."):
        labels = labels_of(folders, sufficiency=sufficiency, workers=workers)
        further = {str(folder): labels_of([folder], sufficiency=sufficiency) for folder in tests}
    with console.status("Fitting ...") as status:

        def say(text: str) -> None:
            line = f"{text[:1].upper()}{text[1:]} ..."
            if console.is_terminal:
                status.update(line)
            else:
                console.print(line)

        fitted = fit_predictor(
            labels,
            fingerprint=first.fingerprint,
            feature_set=first.feature_set,
            image_features=_names(first),
            seed=seed,
            shares=shares,
            max_drop=max_drop,
            confidence=confidence,
            per=per,
            tests=further,
            facts={"sufficiency": str(sufficiency)} | ({"frames": first.frames} if first.frames else {}),
            progress=say,
        )
    return fitted


def _names(collection: Collection) -> tuple[str, ...]:
    from m3score.routing.features.image import IMAGE_FEATURES

    return IMAGE_FEATURES if collection.feature_set == "pixels" else collection.feature_names


def write(
    fitted: Fitted,
    out: Path,
    folder: Path,
    max_drop: float,
    confidence: float,
    per: str,
    notes: str,
    console: Console,
) -> int:
    """The predictor with its card, and the report. Returns how many images failed."""
    from dataclasses import replace

    from m3score.calibration.predictor.card import write_card
    from m3score.tables.io import write_whole

    predictor = fitted.predictor
    card = write_card(fitted, confidence, max_drop, notes)
    replace(predictor, card=card).save(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise M3ScoreError(f"{folder}: can't be made ({error.strerror or error}).") from None
    write_whole(folder / "card.md", card.encode())
    told = [verdict.to_dict() for verdict in fitted.verdicts]
    write_whole(folder / "results.json", json.dumps(told, indent=1).encode())
    write_frontiers(fitted.verdicts, folder, f"{predictor.model}: accuracy against visual tokens", console)
    asked = predictor.with_question is not None
    certificate = predictor.certificate(max_drop, confidence, with_question=asked, per=per)
    console.print(f"{plain(certificate.note)}")
    if weak := fitted.verdicts[0].weakness(predictor.model):
        console.print(f"[yellow]{plain(weak)}[/]")
    for form in fitted.verdicts[0].forms:
        point = form.points[0]
        console.print(
            f"Test, {form.form}, {plain(point.name)}: {point.mean_tokens:.1f} tokens on average "
            f"({point.saved:.0%} saved), accuracy {point.accuracy:.1%} ({100 * point.change:+.1f} points), "
            f"random mixing {point.mixing:.1%}, oracle {point.oracle:.1%}."
        )
    console.print(f"\nWrote {plain(out)}, and its card and frontier to {plain(folder)}.")
    failed = predictor.data["failed_images"]
    if failed:
        console.print(f"[yellow]{failed:,} images failed[/]; their rows in the labels say why.")
    return int(failed)


def write_frontiers(verdicts: Any, folder: Path, title: str, console: Console) -> None:
    """frontier.csv and frontier.png of the first test set, frontier-2 ... of further ones."""
    from m3score.calibration.predictor.frontier import write_csv, write_png

    for number, verdict in enumerate(verdicts, start=1):
        stem = "frontier" if number == 1 else f"frontier-{number}"
        write_csv(verdict.curves, folder / f"{stem}.csv")
        try:
            named = f"{title} ({verdict.name})"
            write_png(verdict.curves, folder / f"{stem}.png", named, verdict.marks(), kept=not verdict.weak)
        except MissingExtraError as error:
            if number == 1:
                console.print(f"[yellow]{plain(error)}[/]")
