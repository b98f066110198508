"""A predictor's card: what it was made of, what it promises, and what it did on unseen images. Markdown.

Knows the results of fit.py and judge.py; computes nothing but rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from m3score.calibration.predictor.fit import DROPS, Fitted
from m3score.calibration.predictor.judge import FORMS, Point, RouterEvaluation, Verdict
from m3score.routing.predictor import Predictor
from m3score.routing.promises.certify import PROMISES
from m3score.routing.promises.familiar import LEVEL, fewest

HOW = """\
A question's *required tokens* are the fewest visual tokens per grid that suffice together with every finer
scale. An answer suffices if it is correct where the truth is known, else if it is the finest scale's.
The regressor predicts ln(required tokens); a safety margin is added and the sum is rounded up to a scale.
Unsolved questions (no scale suffices) are right-censored: left out of the fit ("exclude") or given their
expected value beyond the finest scale ("impute", Schmee & Hahn 1979), whichever cross-validation prefers.
*Regret* is the share of questions that the finest scale answers and the routed one does not; it bounds the
loss of accuracy from above. Margins are certified by fixed-sequence testing with exact binomial p-values on
calibration images that the fit never saw. A promise *per image* is of one question about each image; one *per
question* is of all questions alike, with images as the independent units, and is tested by betting
(Waudby-Smith and Ramdas 2024). Promises hold for images and questions that are drawn as those were;
`m3score check-predictor` tells whether that still is so.
A *budget* promises nothing: tokens get a price at which the calibration images cost so many on the average,
and each question the scale whose utility, less the price of its tokens, is best. What the step to each finer
scale gains is learnt by a regressor of its own, and shrunk towards the mean gain by what it foresaw on the
calibration images: a gain that is only noise is not paid for. Where that does not route the calibration
images better, worth is the chance that a scale suffices, by prediction. The frontier is by price.
"""


def write_card(fitted: Fitted, confidence: float, max_drop: float, notes: str = "") -> str:
    """The card.

    Args:
        fitted: from fit_predictor.
        confidence, max_drop: as given to it.
        notes: Markdown that is put in as it is: what the data were, further measurements, limits.
    """
    predictor = fitted.predictor
    data = predictor.data
    lines = [
        f"# Predictor of the visual tokens that {predictor.model} needs",
        "",
        f"Routes {predictor.model} (weights {predictor.fingerprint[:12]}) over the ladder "
        f"{', '.join(map(str, predictor.ladder))}, from {_features(predictor)}.",
        "",
        "## Data",
        "",
        *(f"- {name}{_seeds(data, name)}: {count:,} questions" for name, count in data["sources"].items()),
        f"- in all {data['images']:,} images with {data['questions']:,} questions, "
        f"{data['judged_by_truth']:.0%} of them judged by a known answer and the others by consistency; "
        f"{data['failed_images']:,} images failed",
        "- split by image (seed {seed}): ".format(**data)
        + ", ".join(f"{count:,} to {name}" for name, count in data["split_images"].items()),
        "",
        *([notes.strip(), ""] if notes.strip() else []),
        *([weak, ""] if (weak := fitted.verdicts[0].weakness(predictor.model)) else []),
        "## How",
        "",
        HOW,
        *_tried(fitted),
        *_certificates(predictor, sorted({max_drop, *DROPS, 0.1}), confidence),
        *_familiar(predictor),
        *_vision(fitted),
    ]
    for verdict in fitted.verdicts:
        lines += [f"## Result: {verdict.name}", "", *verdict_lines(verdict)]
    return "\n".join(lines).rstrip() + "\n"


def _seeds(data: dict[str, Any], name: str) -> str:
    seeds = data.get("seeds", {}).get(name, [])
    return f" (seeds {', '.join(map(str, seeds))})" if seeds else ""


def _features(predictor: Predictor) -> str:
    what = {"pixels": "cheap features of the pixels", "vision": "features of its own vision tower"}[
        predictor.feature_set
    ]
    asked = " and, in a second form, of the question" if predictor.with_question is not None else ""
    return f"{len(predictor.image_features)} {what}{asked} (feature version {predictor.feature_version})"


def _tried(fitted: Fitted) -> list[str]:
    rows = [
        [form if i == 0 else "", f"{one.name}{' *' if i == 0 else ''}", one.unsolved,
         f"{100 * one.mean_accuracy:.2f}", _number(one.spearman)]
        for form, tried in fitted.tried.items()
        for i, one in enumerate(tried)
    ]  # fmt: skip
    head = ["form", "regressor", "unsolved", "mean accuracy over the frontier, %", "Spearman"]
    return [
        "Candidates, by cross-validation on the fit split, grouped by image (* = chosen):",
        "",
        *_table(head, rows),
        "",
    ]


def _certificates(predictor: Predictor, drops: Sequence[float], confidence: float) -> list[str]:
    rows = []
    asked = predictor.calibration.questions
    for form in FORMS[: 1 + (predictor.with_question is not None)]:
        for per in PROMISES if asked is not None else PROMISES[:1]:
            for drop in drops:
                found = predictor.certificate(drop, confidence, with_question=form == FORMS[1], per=per)
                tokens = "" if found.mean_tokens is None else f"{found.mean_tokens:.1f}"
                rows.append(
                    [form, per, f"{drop:.0%}",
                     "yes" if found.certified else f"no ({found.images_needed} needed)",
                     f"{found.margin:+.2f}", f"{found.regret:.2%}", tokens]
                )  # fmt: skip
    images = len(predictor.calibration.sufficient)
    per_question = (
        f", of which {len(asked.sufficient):,} questions count per question (for images with at most "
        f"{asked.most} questions)"
        if asked is not None
        else "; promises per question need all of their questions, which this predictor does not hold"
    )
    return [
        f"Certified at confidence {confidence:.0%} on {images:,} calibration images{per_question}:",
        "",
        *_table(["form", "per", "max drop", "certified", "margin, ln tokens", "regret", "mean tokens"], rows),
        "",
    ]


def _familiar(predictor: Predictor) -> list[str]:
    if predictor.familiar is None:
        return []
    images = len(predictor.familiar.scores)
    few = f" It takes {fewest()} calibration images to notice any." if images < fewest() else ""
    return [
        f"A picture whose features are unlike those of the calibration images (conformal p-value at most "
        f"{LEVEL:g}, from {images:,} of them) gets the finest scale and is not certified: at most "
        f"{LEVEL:.0%} of the pictures that are drawn as those were.{few}",
        "",
    ]


def _vision(fitted: Fitted) -> list[str]:
    predictor = fitted.predictor
    if predictor.vision is None:
        return [
            "It does not know the vision score: without a question `predict_complexity` predicts from the "
            "image alone the tokens that answers need.",
            "",
        ]
    rows = [
        [one.source, f"{one.pictures:,}", _number(one.spearman), f"{one.error:.3f}"] for one in fitted.vision
    ]
    return [
        "With a question `predict_complexity` predicts the tokens that the answer needs; without one it "
        "predicts the score of the scorer `vision`, by regressors of its own (fitted to "
        f"{predictor.data['vision_pictures']:,} {_pictures(fitted)}). On pictures that the fit never saw:",
        "",
        *_table(["pictures", "number", "Spearman with the vision score", "mean error, ln tokens"], rows),
        "",
    ]


def _pictures(fitted: Fitted) -> str:
    """What the vision score's regressors were fitted to."""
    names = [one.source for one in fitted.vision if one.source != "all"]
    if len(names) != 1:
        return "pictures"
    return names[0] + _seeds(fitted.predictor.data, names[0])


def verdict_lines(verdict: Verdict) -> list[str]:
    """One test set: its facts, and a table per form."""
    finest = max(verdict.fixed)
    fixed = ", ".join(f"{tokens}: {accuracy:.1%}" for tokens, accuracy in verdict.fixed.items())
    lines = [
        f"{verdict.images:,} images, {verdict.questions:,} questions; {verdict.by_truth:.0%} judged by a "
        f"known answer; {verdict.solved:.1%} solved; {verdict.non_monotone:.1%} answered at some scale and "
        "not at a finer one.",
        "",
        f"Accuracy of fixed scales: {fixed}. The oracle, which no router can beat (the fewest "
        f"tokens that are right, the coarsest scale for the unsolved): {verdict.oracle[1]:.1%} at "
        f"{verdict.oracle[0]:.1f} tokens of {finest}. Required tokens, right there and at every finer scale: "
        f"{verdict.stays[1]:.1%} at {verdict.stays[0]:.1f}.",
        "",
    ]
    for form in verdict.forms:
        lines += [
            f"**{form.form.capitalize()}**: Spearman with required tokens {_number(form.spearman)}; mean "
            f"accuracy over the frontier {form.mean_accuracy:.1%}; lead over random mixing at equal tokens: "
            f"{100 * form.least_lead:+.2f} points at its least, {100 * form.mean_lead:+.2f} on average.",
            "",
            *_points(form, verdict.fixed),
            "",
        ]
    return lines


def _points(form: RouterEvaluation, fixed: dict[int, float]) -> list[str]:
    head = ["route (margin)", "mean tokens", "saved", "accuracy, %", "against the finest (95 %)", "regret",
            "random mixing", "best fixed scale within", "size alone", "oracle", "gap closed"]  # fmt: skip
    return _table(head, [_point(point, fixed) for point in form.points])


def _point(point: Point, fixed: dict[int, float]) -> list[str]:
    low, high = point.interval
    within = [accuracy for tokens, accuracy in fixed.items() if tokens <= point.mean_tokens + 1e-9]
    kept = {None: "", True: " (kept)", False: " (broken)"}[point.promised]
    return [
        point.name if point.margin is None else f"{point.name} ({point.margin:+.2f})",
        f"{point.mean_tokens:.1f}",
        f"{point.saved:.0%}",
        f"{100 * point.accuracy:.1f}",
        f"{100 * point.change:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})",
        f"{point.regret:.2%}{kept}",
        f"{100 * point.mixing:.1f}",
        f"{100 * max(within):.1f}" if within else "",
        "" if point.size is None else f"{100 * point.size:.1f}",
        f"{100 * point.oracle:.1f}",
        "" if point.gap_closed is None else f"{point.gap_closed:.0%}",
    ]


def _number(value: float) -> str:
    return "undefined" if value != value else f"{value:.2f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Markdown; all columns but the first to the right."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return [*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)]
