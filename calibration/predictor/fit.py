"""From labels to a predictor: candidates by cross-validation, certificates, and a verdict on unseen images.

Three splits by image that share nothing: `fit` chooses and fits the regressors, `calibrate` certifies their
margins and shrinks what more tokens are thought to gain, `test` is looked at once, at the end. Candidates are
compared by what they are for: the accuracy over the whole frontier of out-of-fold predictions (a mean over
ln(tokens)), not by their error in ln(tokens).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from m3score.calibration.predictor.familiarity import fit_familiarity
from m3score.calibration.predictor.judge import FORMS, RANKED, Verdict, judge
from m3score.calibration.predictor.labels import SHARES, SPLITS, Labels
from m3score.calibration.predictor.regressor import UNSOLVED, ScaleRegressor
from m3score.calibration.predictor.vision_score import (
    VisionLabels,
    VisionVerdict,
    fit_vision,
    join_vision,
    judge_vision,
)
from m3score.common.errors import M3ScoreError
from m3score.common.statistics import spearman
from m3score.routing.features.question import QUESTION_FEATURES
from m3score.routing.predictor import Predictor, clip_predictions
from m3score.routing.promises import frontier
from m3score.routing.promises.certify import margins as all_margins
from m3score.routing.promises.certify import route_levels
from m3score.routing.record import CalibrationRecord, QuestionRecord
from m3score.routing.regression.ensemble import Ensemble
from m3score.routing.regression.gains import Gains, over_coarsest, shrunk, steps_of
from m3score.routing.regression.prices import SufficiencyCurve

CANDIDATES: dict[str, dict[str, Any]] = {
    "ridge": {"kind": "linear", "alpha": 10.0},
    "trees, few": {"learning_rate": 0.05, "max_iter": 100, "max_leaf_nodes": 7},
    "trees": {"learning_rate": 0.05, "max_iter": 250, "max_leaf_nodes": 15, "l2_regularization": 1.0},
    "trees, many": {"learning_rate": 0.04, "max_iter": 450, "max_leaf_nodes": 31, "l2_regularization": 5.0},
}
"""Each is tried without the unsolved questions; the best one also with expected values for them, which takes
five fits instead of one and was far behind on drawn images."""
GAINS: dict[str, Any] = {
    "learning_rate": 0.08,
    "max_iter": 100,
    "max_leaf_nodes": 15,
    "min_samples_leaf": 40,
    "l2_regularization": 5.0,
}
"""The regressors of gains, one per step of the ladder. On drawn images fewer trees, larger leaves and more
trees came out alike, as gains are shrunk by what they foresee."""
FOLDS = 5
ENOUGH = 12_000
"""Questions that the choice among candidates is made on, in whole images; the chosen one is fitted to all."""
DROPS = (0.01, 0.02, 0.05)
"""Max_drops for which verdicts show the certified margin, beside the one that is asked for."""
SMALL_LOSS = 0.01
"""The uncertified operating point: at most so much accuracy lost on the calibration split."""


@dataclass(frozen=True)
class Tried:
    """A candidate's out-of-fold result on the fit split."""

    name: str
    unsolved: str
    mean_accuracy: float
    """Over the frontier; see Curve.log_mean."""
    spearman: float
    """With required tokens, over the solved questions."""

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of ScaleRegressor."""
        return {**CANDIDATES[self.name], "unsolved": self.unsolved}


@dataclass(frozen=True)
class Fitted:
    """A predictor (without its card yet) and what is known about it."""

    predictor: Predictor
    tried: dict[str, list[Tried]]
    """Of each form, the best first."""
    verdicts: list[Verdict]
    """On the test split, then on further test sets."""
    parts: dict[str, Labels]
    vision: list[VisionVerdict] = field(default_factory=list)
    """On the test split's pictures; empty where no vision score is predicted."""


def fit_predictor(
    labels: Labels,
    *,
    fingerprint: str,
    feature_set: str,
    image_features: Sequence[str],
    seed: int = 0,
    shares: Sequence[float] = SHARES,
    max_drop: float = 0.02,
    confidence: float = 0.95,
    per: str = "image",
    tests: Mapping[str, Labels] | None = None,
    vision: VisionLabels | None = None,
    facts: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Fitted:
    """Choose, fit, certify and judge.

    Args:
        labels: questions with features and sufficient scales.
        fingerprint: hash of the routed model's weights.
        feature_set, image_features: what the features are, and their names.
        seed: of the splits, of the questions drawn for calibration, and of the regressors.
        shares: of the images for fit, calibrate and test.
        max_drop, confidence, per: whose margin is shown first in the verdicts; any other is certified later,
            without refitting.
        tests: further test sets by name, of images that are not among the labels.
        vision: pictures with their vision scores; they are split as the labels are.
        facts: what else the file is to carry in Predictor.data, ready for JSON.
        progress: told what is being done.

    Raises:
        M3ScoreError: too few images, nothing solved, or test images that are among those of the fit.
    """
    say = progress or (lambda text: None)
    parts = labels.split(seed, shares)
    fit, calibrate = parts["fit"], parts["calibrate"]
    for name, other in (tests or {}).items():
        if shared := {*other.keys} & ({*fit.keys} | {*calibrate.keys}):
            raise M3ScoreError(f"{name}: {len(shared):,} of its images were fitted or calibrated on.")
    asks = len(set(fit.questions)) > 1
    forms = FORMS if asks else FORMS[:1]
    tried = {form: compare(inputs(fit, form), fit, seed, say, form) for form in forms}
    say("fitting")
    ensembles = {form: train(inputs(fit, form), fit, tried[form][0].options, seed) for form in forms}
    drawn = calibrate.one_per_image(seed)
    gains = {}
    for form in forms:
        learnt = train_gains(form, fit, calibrate, seed, say)
        if better_by_gains(learnt, inputs(calibrate, form), _predict(ensembles, form, calibrate), calibrate):
            gains[form] = learnt
    foreseen = {form: learnt.predict(inputs(drawn, form)) for form, learnt in gains.items()}
    record = CalibrationRecord(
        image_only=_predict(ensembles, FORMS[0], drawn),
        with_question=_predict(ensembles, FORMS[1], drawn) if asks else None,
        sufficient=drawn.sufficient,
        gains_image_only=foreseen.get(FORMS[0]),
        gains_with_question=foreseen.get(FORMS[1]),
        questions=_all_questions(ensembles, fit, calibrate, seed),
    )
    seen = vision.split(seed, shares) if vision is not None else None
    known = join_vision([seen["fit"], seen["calibrate"]]) if seen is not None else None  # nothing to certify
    looks = fit_vision(known, labels.ladder[-1], seed) if known is not None else None
    say("what is familiar")
    predictor = Predictor(
        model=labels.model,
        fingerprint=fingerprint,
        ladder=labels.ladder,
        feature_set=feature_set,
        image_features=tuple(image_features),
        question_features=tuple(QUESTION_FEATURES) if asks else (),
        image_only=ensembles[FORMS[0]],
        with_question=ensembles.get(FORMS[1]),
        calibration=record,
        image_only_gains=gains.get(FORMS[0]),
        with_question_gains=gains.get(FORMS[1]),
        vision=looks,
        familiar=fit_familiarity(fit.one_per_image(seed).features, drawn.features, seed),
        data={
            **_data(labels, parts, seed, shares, tried),
            "vision_pictures": len(known) if known is not None and looks is not None else 0,
            **(facts or {}),
        },
    )
    size = train(fit.size_features(), fit, CANDIDATES["trees, few"], seed)
    drops = [max_drop, *(drop for drop in DROPS if drop != max_drop)]
    verdicts = []
    for name, test in {"test split": parts["test"], **(tests or {})}.items():
        say(f"judging on {name}")
        margins = {
            form: operating_points(predictor, form, calibrate, drops, confidence, per) for form in forms
        }
        predictions = {form: _predict(ensembles, form, test) for form in forms}
        sizes = clip_predictions(size.predict(test.size_features()), labels.ladder)
        budgets = {form: budget_prices(predictor, form) for form in forms}
        utility = {form: utility_of(predictor, form, test) for form in forms}
        verdicts.append(judge(name, test, predictions, margins, utility, sizes, budgets))
    judged = (
        judge_vision(looks, seen["test"], labels.ladder[-1]) if seen is not None and looks is not None else []
    )
    return Fitted(predictor, tried, verdicts, parts, judged)


def _all_questions(
    ensembles: Mapping[str, Ensemble], fit: Labels, calibrate: Labels, seed: int
) -> QuestionRecord:
    """The questions of the calibration images, for promises per question.

    The most about one image is that of the fit's images: it must not hang on the images that certify. Of a
    calibration image with more, so many are drawn.
    """
    most = int(np.unique(fit.keys.astype(str), return_counts=True)[1].max())
    kept = calibrate.at_most_per_image(most, seed)
    _, image = np.unique(kept.keys.astype(str), return_inverse=True)
    return QuestionRecord(
        image=image.astype(np.int32),
        most=most,
        image_only=_predict(ensembles, FORMS[0], kept),
        with_question=_predict(ensembles, FORMS[1], kept) if FORMS[1] in ensembles else None,
        sufficient=kept.sufficient,
    )


def inputs(labels: Labels, form: str) -> np.ndarray:
    """(m, features): what a form sees of each question."""
    if form == FORMS[0]:
        return labels.features
    return np.hstack([labels.features, labels.question_features()])


def train(X: np.ndarray, labels: Labels, options: Mapping[str, Any], seed: int) -> Ensemble:
    """A fitted regressor as arrays."""
    target, unsolved = labels.targets()
    return Ensemble.of(ScaleRegressor(**options, random_state=seed).fit(X, target, unsolved))


def train_gains(
    form: str, fit: Labels, calibrate: Labels, seed: int, say: Callable[[str], None] = lambda text: None
) -> Gains:
    """What each step of the ladder gains, of one form: fitted on one part, shrunk by another."""
    X, gained = inputs(fit, form), steps_of(fit.sufficient)
    steps = []
    for k in range(gained.shape[1]):
        say(f"{form}: gains from {fit.ladder[k]} to {fit.ladder[k + 1]} tokens")
        steps.append(Ensemble.of(ScaleRegressor(**GAINS, random_state=seed).fit(X, gained[:, k])))
    return shrunk(steps, (X, fit.sufficient), (inputs(calibrate, form), calibrate.sufficient))


def better_by_gains(gains: Gains, X: np.ndarray, predicted: np.ndarray, calibrate: Labels) -> bool:
    """Whether gains route calibration images better by price than the chances by their predictions do, which
    few images suffice for. Each half of the images is judged by the chances of the other half."""
    _, image = np.unique(calibrate.keys.astype(str), return_inverse=True)
    learnt = over_coarsest(gains.predict(X))
    scores = np.zeros(2)
    for half in (0, 1):
        known, fresh = np.flatnonzero(image % 2 == half), np.flatnonzero(image % 2 != half)
        if not len(known) or not len(fresh):
            return False
        chances = SufficiencyCurve.of(predicted[known], calibrate.sufficient[known]).at(predicted[fresh])
        judged = calibrate.take(fresh)
        for i, utility in enumerate((learnt[fresh], chances)):
            curve = frontier.priced(utility, judged.sufficient, judged.ladder, judged.exact())
            scores[i] += curve.log_mean(*judged.ends())
    return bool(scores[0] > scores[1])


def utility_of(predictor: Predictor, form: str, labels: Labels) -> np.ndarray:
    """(m, scales) the utility of each scale to each question, in one form."""
    return predictor.utility(labels.features, labels.question_features() if form == FORMS[1] else None)


def compare(X: np.ndarray, labels: Labels, seed: int, say: Callable[[str], None], form: str) -> list[Tried]:
    """Every candidate, and the best one with the other way of treating the unsolved, by cross-validation
    grouped by image, on at most ENOUGH questions; the best first."""
    if len(labels) > ENOUGH:
        some = _some_images(labels, ENOUGH, seed)
        X, labels = X[some], labels.take(some)
    target, unsolved = labels.targets()
    if unsolved.all():
        raise M3ScoreError("no question is solved at any scale: there is nothing to fit.")

    def tried(name: str, way: str) -> Tried:
        say(f"{form}: {name}, unsolved: {way}")
        found = Tried(name, way, 0.0, 0.0)
        predicted = _out_of_fold(X, labels, target, unsolved, found.options, seed)
        chances = SufficiencyCurve.of(predicted, labels.sufficient).at(predicted)
        curve = frontier.priced(chances, labels.sufficient, labels.ladder, labels.exact())
        score = curve.log_mean(*labels.ends())
        rank = float(spearman(predicted[~unsolved], target[~unsolved], RANKED))
        return replace(found, mean_accuracy=score, spearman=rank)

    results = [tried(name, UNSOLVED[0]) for name in CANDIDATES]
    if unsolved.any():
        best = max(results, key=lambda one: one.mean_accuracy)
        results += [tried(best.name, way) for way in UNSOLVED[1:]]
    return sorted(results, key=lambda one: -one.mean_accuracy)


def _some_images(labels: Labels, questions: int, seed: int) -> np.ndarray:
    """Positions of the rows of images that are drawn until they have so many questions."""
    _, image = np.unique(labels.keys.astype(str), return_inverse=True)
    place = np.random.default_rng(seed).permutation(image.max() + 1)[image]
    order = np.argsort(place, kind="stable")
    last = place[order[min(questions, len(order)) - 1]]
    return np.flatnonzero(place <= last)


def _out_of_fold(
    X: np.ndarray,
    labels: Labels,
    target: np.ndarray,
    unsolved: np.ndarray,
    options: Mapping[str, Any],
    seed: int,
) -> np.ndarray:
    from sklearn.model_selection import GroupKFold

    folds = min(FOLDS, len(set(labels.keys)))
    if folds < 2:
        raise M3ScoreError("too few images to fit on: cross-validation needs two at least.")
    predicted = np.zeros(len(target))
    for known, held in GroupKFold(folds).split(X, groups=labels.keys.astype(str)):
        if unsolved[known].all():  # tiny data: nothing to learn from in this fold
            predicted[held] = np.log(labels.ladder[-1])
            continue
        regressor = ScaleRegressor(**options, random_state=seed)
        predicted[held] = regressor.fit(X[known], target[known], unsolved[known]).predict(X[held])
    return clip_predictions(predicted, labels.ladder)


def _predict(ensembles: Mapping[str, Ensemble], form: str, labels: Labels) -> np.ndarray:
    return clip_predictions(ensembles[form].predict(inputs(labels, form)), labels.ladder)


def operating_points(
    predictor: Predictor,
    form: str,
    calibrate: Labels,
    drops: Sequence[float],
    confidence: float,
    per: str = "image",
) -> list[tuple[str, float, float | None]]:
    """(name, margin, promised max_drop): certified margins, the small-loss margin, and no margin at all."""
    asked = form == FORMS[1]
    points: list[tuple[str, float, float | None]] = []
    for drop in drops:
        certificate = predictor.certificate(drop, confidence, with_question=asked, per=per)
        name = f"certified {drop:.0%}" if certificate.certified else f"{drop:.0%}: none certified"
        points.append((name, certificate.margin, drop if certificate.certified else None))
    predicted = predictor.predict(calibrate.features, calibrate.question_features() if asked else None)
    points.append((f"{SMALL_LOSS:.0%} lost on calibration", small_loss_margin(predicted, calibrate), None))
    return [*points, ("no margin", 0.0, None)]


def budget_prices(predictor: Predictor, form: str) -> list[tuple[str, float]]:
    """(name, price) of routes that spend, on the calibration, what the fixed scales in between would."""
    if not len(predictor.calibration.sufficient):
        return []
    return [
        (f"budget of {tokens}", predictor.price(tokens, with_question=form == FORMS[1]))
        for tokens in predictor.ladder[1:-1]
    ]


def small_loss_margin(predicted: np.ndarray, labels: Labels, loss: float = SMALL_LOSS) -> float:
    """The margin with the fewest tokens at which accuracy is at most `loss` below the finest scale's: what
    people choose who want no promise."""
    best, spent = float(all_margins(labels.ladder)[0]), np.inf
    floor = float(labels.sufficient[:, -1].mean()) - loss
    for margin in all_margins(labels.ladder):
        levels = route_levels(predicted, float(margin), labels.ladder)
        tokens, accuracy = frontier.outcome(levels, labels.sufficient, labels.ladder, labels.exact())
        if accuracy >= floor and tokens < spent:
            best, spent = float(margin), tokens
    return best


def _data(
    labels: Labels,
    parts: Mapping[str, Labels],
    seed: int,
    shares: Sequence[float],
    tried: Mapping[str, list[Tried]],
) -> dict[str, Any]:
    """The summary that a predictor's file carries."""
    sources = sorted(set(labels.sources))
    return {
        "images": len(set(labels.keys)),
        "questions": len(labels),
        "failed_images": labels.failed,
        "sources": {name: int((labels.sources == name).sum()) for name in sources},
        "judged_by_truth": float(labels.by_truth.mean()),
        "seed": seed,
        "shares": [float(share) for share in shares],
        "split_images": {name: len(set(parts[name].keys)) for name in SPLITS},
        "regressors": {form: f"{best[0].name}, unsolved: {best[0].unsolved}" for form, best in tried.items()},
    }
