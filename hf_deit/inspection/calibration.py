"""Calibration: do images with a confidence of 80 % turn out right in 80 % of the cases, and which temperature brings them there?

Reliability and expected calibration error (ECE), and temperature scaling, as in Guo et al., arXiv:1706.04599. recipes/predict.py
applies the temperatures in calibration.json.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_json
from ..hub.inspection_files import CALIBRATION_FILE
from .table import ImageTable

BINS = 15  # of equal width
FOLDS = 5
# Below this number of labelled images, a temperature is not fitted: it would follow single images.
FEWEST_IMAGES = 30
_TEMPERATURES = (0.05, 20.0)
_SMALLEST = 1e-30


@dataclass(frozen=True)
class Reliability:
    """Confidence and accuracy in bins of equal width.

    Args:
        confidence: Mean confidence of each bin that is not empty.
        accuracy: Share of right answers of each of these bins.
        images: Number of answers of each of these bins.
        error: Expected calibration error: the mean of |accuracy − confidence| over all answers.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    images: np.ndarray
    error: float


@dataclass(frozen=True)
class Calibration:
    """Calibration of one head on labelled images.

    Args:
        before: Reliability of the probabilities of the model.
        after: The same with temperatures that were fitted on other images than the ones that they are judged on; None if there are
            too few images.
        temperature: Temperature of all images, which calibration.json holds.
        scaled: Probabilities behind `after`, `(images, classes)`.
    """

    before: Reliability
    after: Reliability | None
    temperature: float | None
    scaled: np.ndarray | None


def answers(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return whether each answer is right, and its confidence.

    An answer is the most probable class of an image. For multi-label data there is one answer for each class of each image: whether
    the image has the class, with the probability of the class as its confidence.
    """
    if labels.ndim == 2:
        return labels.ravel().astype(bool), probabilities.ravel()
    return probabilities.argmax(axis=1) == labels, probabilities.max(axis=1)


def reliability(correct: np.ndarray, confidence: np.ndarray) -> Reliability:
    """Return confidence and accuracy in 15 bins of equal width, and the expected calibration error."""
    from sklearn.calibration import calibration_curve

    accuracy, mean_confidence = calibration_curve(correct, confidence, n_bins=BINS, strategy="uniform")
    # The bins of calibration_curve, which does not return how many answers they hold.
    images = np.bincount(bins_of(confidence), minlength=BINS)
    images = images[images > 0]
    error = float((np.abs(accuracy - mean_confidence) * images).sum() / images.sum())
    return Reliability(mean_confidence, accuracy, images, error)


def change_of_error(labels: np.ndarray, before: np.ndarray, after: np.ndarray, draws: int = 200) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the change of the expected calibration error, after − before, over resampled images.

    Args:
        labels: Labels, as in an `ImageTable`.
        before: Probabilities before the scaling, `(images, classes)`.
        after: Probabilities after it.
        draws: Number of resamplings; large tables get fewer.
    """
    images, generator = len(labels), np.random.default_rng(0)
    parts = [_gaps(labels, values) for values in (before, after)]
    draws = max(20, min(draws, 40_000_000 // max(labels.size, 1)))
    changes = []
    for _ in range(draws):
        weights = np.bincount(generator.integers(0, images, images), minlength=images)
        weights = np.repeat(weights, labels.size // images)
        errors = [
            np.abs(np.bincount(bins, gaps * weights, minlength=BINS)).sum() / weights.sum() for bins, gaps in parts
        ]
        changes.append(errors[1] - errors[0])
    low, high = np.percentile(changes, (2.5, 97.5))
    return float(low), float(high)


def _gaps(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the bin of each answer, and the difference of right (1) or wrong (0) to its confidence."""
    correct, confidence = answers(labels, probabilities)
    return bins_of(confidence), correct - confidence


def bins_of(confidence: np.ndarray) -> np.ndarray:
    """Return the bin of each answer, as `sklearn.calibration.calibration_curve` divides them."""
    return np.searchsorted(np.linspace(0.0, 1.0, BINS + 1)[1:-1], confidence)


def scaled(probabilities: np.ndarray, temperature: float | np.ndarray, multi_label: bool) -> np.ndarray:
    """Return the probabilities of logits that are divided by a temperature.

    Args:
        probabilities: Probabilities at temperature 1, `(images, classes)`.
        temperature: One temperature, or one for each image, `(images, 1)`.
        multi_label: Whether each probability is a sigmoid of its own.
    """
    from scipy.special import expit, logit, softmax

    if multi_label:
        return expit(logit(np.clip(probabilities, _SMALLEST, 1 - 1e-16)) / temperature)
    return softmax(np.log(np.maximum(probabilities, _SMALLEST)) / temperature, axis=1)


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the temperature with the smallest log loss on labelled images."""
    from scipy.optimize import minimize_scalar

    multi_label = labels.ndim == 2

    def loss(logarithm: float) -> float:
        found = scaled(probabilities, np.exp(logarithm), multi_label)
        if multi_label:
            true = np.where(labels == 1, found, 1 - found)
        else:
            true = found[np.arange(len(labels)), labels]
        return float(-np.log(np.maximum(true, _SMALLEST)).mean())

    bounds = np.log(_TEMPERATURES)
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-5}).x))


def cross_fitted(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return probabilities of which each was scaled by a temperature that was fitted without its image.

    The images are dealt to 5 folds at random, with a fixed seed. The temperature of a fold is fitted on the other folds.
    """
    from sklearn.model_selection import KFold

    found = np.empty_like(probabilities)
    for others, own in KFold(FOLDS, shuffle=True, random_state=0).split(labels):
        temperature = fit_temperature(labels[others], probabilities[others])
        found[own] = scaled(probabilities[own], temperature, labels.ndim == 2)
    return found


def calibrate(table: ImageTable) -> dict[str, Calibration]:
    """Return the calibration of each head on the labelled images of a table."""
    labels = table.labels
    found = {}
    for name in table.heads:
        probabilities = table.probabilities[name]
        before = reliability(*answers(labels, probabilities))
        if len(labels) < FEWEST_IMAGES:
            found[name] = Calibration(before, None, None, None)
            continue
        after = cross_fitted(labels, probabilities)
        found[name] = Calibration(
            before, reliability(*answers(labels, after)), fit_temperature(labels, probabilities), after
        )
    return found


def calibration_content(
    found: dict[str, Calibration],
    table: ImageTable,
    *,
    data: str,
    weights: str | None,
    thresholds: list[float | None] | None,
) -> dict[str, Any] | None:
    """Return the content of calibration.json; None if there are too few images for a temperature.

    Args:
        found: The calibration of each head.
        table: The labelled images.
        data: Name of the data.
        weights: Digest of the weights of the model.
        thresholds: Threshold of each class with the largest F1, for multi-label data.
    """
    if any(one.temperature is None for one in found.values()):
        return None
    content = {
        "version": 1,
        "weights": weights,
        "data": data,
        "split": table.split,
        "images": len(table),
        "bins": BINS,
        "folds": FOLDS,
        "temperatures": {name: one.temperature for name, one in found.items()},
        "expected_calibration_error": {
            name: {"before": one.before.error, "after": one.after.error} for name, one in found.items()
        },
    }
    if thresholds is not None:
        content["thresholds"] = dict(zip(table.class_names, thresholds, strict=True))
    return content


def write_calibration(folder: Path, content: dict[str, Any]) -> Path:
    """Write calibration.json into a folder."""
    write_json(folder / CALIBRATION_FILE, content)
    return folder / CALIBRATION_FILE
