"""Fit the density by which a predictor notices pictures unlike its calibration: promises/familiar.py."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np

from m3score.routing.promises.familiar import Familiarity

MOST_PARTS = 32
"""Of the mixture. Tried on 8,975 drawn images: so many find 96 % of 708 SAVOIAS pictures, 99 % of 270 other
photographs and all of 100 receipts strange at the level .05, where one part (a Mahalanobis distance) finds
three photographs in ten: drawings are of several kinds, and photographs lie between them."""
IMAGES_PER_PART = 250
LARGEST = 200_000
"""Numbers in all covariances together, at most: features of a vision tower are many, and get one part."""
ROUNDS = 40


def fit_familiarity(fit: np.ndarray, calibrate: np.ndarray, seed: int = 0) -> Familiarity:
    """The density of one part of the images, and the scores of another.

    Args:
        fit: (n, features), each image once.
        calibrate: (m, features) of other images, each once.
        seed: of the mixture's start.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    X = np.asarray(fit, np.float64)
    images, size = X.shape
    middle = X.mean(axis=0).astype(np.float32)
    scale = (X.std(axis=0) + 1e-3).astype(np.float32)
    parts = max(1, min(MOST_PARTS, images // IMAGES_PER_PART, LARGEST // size**2))
    mixture = GaussianMixture(
        parts,
        reg_covar=0.02 + 0.2 * size / images,  # few images say little of a covariance
        max_iter=ROUNDS,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # valid wherever it stops
        mixture.fit((X - middle) / scale)
    factors = np.asarray(mixture.precisions_cholesky_)
    offsets = np.log(mixture.weights_) + np.log(factors[:, range(size), range(size)]).sum(axis=1)
    found = Familiarity(
        middle=middle,
        scale=scale,
        offsets=offsets.astype(np.float32),
        means=np.asarray(mixture.means_, np.float32),
        factors=factors[:, *np.triu_indices(size)].astype(np.float32),
        scores=np.zeros(1, np.float32),
    )
    return replace(found, scores=np.sort(found.strangeness(calibrate)))
