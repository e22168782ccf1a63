"""The numbers of a report, computed by scikit-learn from the table of predictions.

A number that is not defined, such as the recall of a class without images, is None.
"""

import math
from dataclasses import dataclass

import numpy as np

from .table import PREDICTION, TEACHER, ImageTable

DECISION = 0.5  # a class of a multi-label model is predicted above this probability
_CONFIDENCE = 1.959963984540054  # 97.5 % of a normal distribution lie below
_BOOTSTRAP_DRAWS, _BOOTSTRAP_CELLS = 100, 100_000_000  # of labels, over all draws


def wilson_interval(hits: int, images: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share (Wilson's score interval), which also holds near 0 and 1 and for few images."""
    share, squared = hits / images, _CONFIDENCE**2
    centre = (share + squared / (2 * images)) / (1 + squared / images)
    half = _CONFIDENCE / (1 + squared / images) * math.sqrt(share * (1 - share) / images + squared / (4 * images**2))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def paired_interval(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two shares of the same images.

    It is Newcombe's score interval for paired shares (Statistics in Medicine 17, 1998, 2635-2650, method 10), built from the Wilson
    intervals of both shares and their correlation. It also holds for few images, and if both are right for the same ones.

    Args:
        one: Whether each image counts for the first share, `(images,)` of bool.
        other: The same for the second share, which is subtracted.
    """
    images = len(one)
    both, neither = int((one & other).sum()), int((~one & ~other).sum())
    first, second = int((one & ~other).sum()), int((~one & other).sum())
    hits, others = both + first, both + second
    correlation, product = 0.0, hits * (images - hits) * others * (images - others)
    if product:
        above = both * neither - first * second
        correlation = (max(above - images / 2, 0.0) if above > 0 else above) / math.sqrt(product)
    (low, high), (other_low, other_high) = wilson_interval(hits, images), wilson_interval(others, images)
    share, other_share = hits / images, others / images
    down, other_up = share - low, other_high - other_share
    up, other_down = high - share, other_share - other_low
    below = math.sqrt(max(down**2 - 2 * correlation * down * other_up + other_up**2, 0.0))
    over = math.sqrt(max(up**2 - 2 * correlation * up * other_down + other_down**2, 0.0))
    return share - other_share - below, share - other_share + over


@dataclass(frozen=True)
class ClassRow:
    """The figures of one class; None where a figure is not defined.

    Args:
        name: Name of the class.
        precision: Share of the images predicted as the class that have it.
        recall: Share of the images of the class that are predicted as it.
        f1: Harmonic mean of the two.
        images: Number of images of the class.
        predicted: Number of images that are predicted as the class.
        average_precision: Of multi-label data.
    """

    name: str
    precision: float | None
    recall: float | None
    f1: float | None
    images: int
    predicted: int
    average_precision: float | None = None


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def headline(table: ImageTable) -> dict[str, float | tuple[float, float] | None]:
    """Return the main figures of the labelled images.

    Returns:
        `accuracy` with its `interval`, those of each head and of the teacher (`cls_accuracy`, …), `majority` (share of the most frequent
        class), `balanced_accuracy`, `agreement` with the teacher and, for more than 5 classes, `top5_accuracy`. For multi-label images
        `mean_average_precision`, `f1_macro` and `f1_micro` take the place of the accuracies. With a teacher also `teacher_interval`,
        and `difference` (student − teacher) with its `difference_interval`, on the same images.
    """
    return _multi_label_headline(table) if table.multi_label else _single_label_headline(table)


def _single_label_headline(table: ImageTable) -> dict[str, float | tuple[float, float] | None]:
    from sklearn.metrics import accuracy_score, recall_score

    labels, predicted = table.labels, table.predicted()
    figures = {"accuracy": accuracy_score(labels, predicted)}
    figures["interval"] = wilson_interval(int((labels == predicted).sum()), len(labels))
    for name in table.probabilities:
        if name != PREDICTION:
            figures[f"{name}_accuracy"] = accuracy_score(labels, table.predicted(name))
    present = np.unique(labels)
    # The mean recall of the classes that occur: balanced_accuracy_score without its warning for predicted classes that do not.
    figures["balanced_accuracy"] = recall_score(labels, predicted, labels=present, average="macro", zero_division=0)
    figures["majority"] = float(np.bincount(labels).max() / len(labels))
    figures["majority_class"] = int(np.bincount(labels).argmax())
    if TEACHER in table.probabilities:
        teacher = table.predicted(TEACHER)
        figures["agreement"] = accuracy_score(teacher, predicted)
        figures["teacher_interval"] = wilson_interval(int((labels == teacher).sum()), len(labels))
        figures["difference"] = figures["accuracy"] - figures[f"{TEACHER}_accuracy"]
        figures["difference_interval"] = paired_interval(labels == predicted, labels == teacher)
    if len(table.class_names) > 5:
        top = np.argsort(-table.probabilities[PREDICTION], axis=1, kind="stable")[:, :5]
        figures["top5_accuracy"] = float((top == labels[:, None]).any(axis=1).mean())
    return figures


def mean_average_precision(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Return the mean of the average precision over the classes that some image has; None if there is no such class."""
    from sklearn.metrics import average_precision_score

    occurring = labels.any(axis=0)
    if not occurring.any():
        return None
    return float(average_precision_score(labels[:, occurring], probabilities[:, occurring], average="macro"))


def _multi_label_headline(table: ImageTable) -> dict[str, float | tuple[float, float] | None]:
    from sklearn.metrics import f1_score

    figures: dict[str, float | tuple[float, float] | None] = {}
    for name, probabilities in table.probabilities.items():
        prefix = "" if name == PREDICTION else f"{name}_"
        figures[f"{prefix}mean_average_precision"] = mean_average_precision(table.labels, probabilities)
    occurring = np.flatnonzero(table.labels.any(axis=0))
    decided = (table.probabilities[PREDICTION] > DECISION).astype(int)
    if len(occurring):
        for average in ("macro", "micro"):
            labels = occurring if average == "macro" else None
            figures[f"f1_{average}"] = float(
                f1_score(table.labels, decided, labels=labels, average=average, zero_division=0)
            )
    figures["chance"] = float(table.labels[:, occurring].mean()) if len(occurring) else None
    figures |= _bootstrapped(table)
    if TEACHER in table.probabilities and figures["mean_average_precision"] is not None:
        figures["difference"] = figures["mean_average_precision"] - figures[f"{TEACHER}_mean_average_precision"]
    return figures


def _bootstrapped(table: ImageTable) -> dict[str, tuple[float, float] | None]:
    """Return the 95 % intervals of the mean average precision over resampled images; None for very large tables.

    With a teacher also those of its mean average precision, and of the difference on the same resampled images.
    """
    names = [PREDICTION] + ([TEACHER] if TEACHER in table.probabilities else [])
    keys = ["interval", "teacher_interval", "difference_interval"][: 2 * len(names) - 1]
    if table.labels.size * _BOOTSTRAP_DRAWS > _BOOTSTRAP_CELLS or not table.labels.any():
        return dict.fromkeys(keys)
    generator = np.random.default_rng(0)
    draws = []
    for _ in range(_BOOTSTRAP_DRAWS):
        chosen = generator.integers(0, len(table), len(table))
        if table.labels[chosen].any():
            draws.append(
                [mean_average_precision(table.labels[chosen], table.probabilities[name][chosen]) for name in names]
            )
    if not draws:
        return dict.fromkeys(keys)
    values = np.asarray(draws)
    columns = [*values.T, values[:, 0] - values[:, -1]][: len(keys)]
    low, high = np.percentile(np.stack(columns, axis=1), (2.5, 97.5), axis=0)
    return {key: (float(low[place]), float(high[place])) for place, key in enumerate(keys)}


def class_rows(table: ImageTable) -> list[ClassRow]:
    """Return the figures of each class, in index order."""
    from sklearn.metrics import average_precision_score, precision_recall_fscore_support

    classes = range(len(table.class_names))
    if table.multi_label:
        truth, decided = table.labels, (table.probabilities[PREDICTION] > DECISION).astype(int)
        predicted = decided.sum(axis=0)
        labels = None
    else:
        truth, decided = table.labels, table.predicted()
        predicted = np.bincount(decided, minlength=len(classes))
        labels = list(classes)
    precision, recall, f1, images = precision_recall_fscore_support(
        truth, decided, labels=labels, average=None, zero_division=np.nan
    )
    rows = []
    for index in classes:
        average = None
        if table.multi_label and images[index]:
            average = float(average_precision_score(truth[:, index], table.probabilities[PREDICTION][:, index]))
        rows.append(
            ClassRow(
                table.class_names[index],
                _known(precision[index]),
                _known(recall[index]),
                _known(f1[index]),
                int(images[index]),
                int(predicted[index]),
                average,
            )
        )
    return rows


def confusions(table: ImageTable) -> np.ndarray:
    """Return the number of images of each class (rows) that are predicted as each class (columns), `(classes, classes)`."""
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(table.labels, table.predicted(), labels=range(len(table.class_names)))


def confused_order(matrix: np.ndarray, most: int) -> list[int]:
    """Return the classes in an order in which those that are confused with each other are as near as one order permits.

    The classes are the leaves of a tree of clusters (average linkage with optimal leaf order) whose distance falls with the share of
    images that are confused. Of more than `most` classes, those with the most confused images are kept.

    Args:
        matrix: As `confusions` returns it.
        most: Largest number of classes.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    wrong = matrix - np.diag(np.diag(matrix))
    involved = wrong.sum(axis=0) + wrong.sum(axis=1)
    kept = np.arange(len(matrix))
    if len(kept) > most:
        kept = np.sort(np.argsort(-involved, kind="stable")[:most])
    if len(kept) < 3:
        return kept.tolist()
    part = matrix[np.ix_(kept, kept)].astype(float)
    images = np.maximum(part.sum(axis=1, keepdims=True), 1)
    shares = part / images
    closeness = np.sqrt(shares + shares.T)
    distance = 1 - closeness / max(closeness[~np.eye(len(kept), dtype=bool)].max(), 1e-9)
    np.fill_diagonal(distance, 0)
    condensed = squareform(np.clip(distance, 0, None), checks=False)
    tree = optimal_leaf_ordering(linkage(condensed, "average"), condensed)
    return kept[leaves_list(tree)].tolist()


def coverage_curve(correct: np.ndarray, confidence: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what remains if a model answers only above a threshold.

    Args:
        correct: Whether each answer is right, `(images,)`.
        confidence: Probability of each answer, `(images,)`.

    Returns:
        The thresholds from high to low, each the confidence of an image; the share of images that reach it; and the share of
        right answers among these.
    """
    order = np.argsort(-confidence, kind="stable")
    sorted_confidence = confidence[order]
    last = np.append(np.flatnonzero(np.diff(sorted_confidence)), len(order) - 1)  # of each group of equal confidences
    hits = np.cumsum(correct[order])[last]
    return sorted_confidence[last], (last + 1) / len(order), hits / (last + 1)


def at_threshold(
    correct: np.ndarray, confidence: np.ndarray, threshold: float
) -> tuple[float, float | None, tuple[float, float] | None]:
    """Return the share of images whose confidence reaches a threshold, and the accuracy of these with its 95 % interval.

    Both are None if there are no such images.
    """
    kept = confidence >= threshold
    if not kept.any():
        return 0.0, None, None
    answers = correct[kept]
    return float(kept.mean()), float(answers.mean()), wilson_interval(int(answers.sum()), len(answers))


def best_thresholds(table: ImageTable) -> list[float | None]:
    """Return for each class of a multi-label model the threshold with the largest F1 on these images; None without images."""
    from sklearn.metrics import precision_recall_curve

    found: list[float | None] = []
    for index in range(len(table.class_names)):
        truth, scores = table.labels[:, index], table.probabilities[PREDICTION][:, index]
        if not truth.any():
            found.append(None)
            continue
        precision, recall, thresholds = precision_recall_curve(truth, scores)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        found.append(float(thresholds[f1[:-1].argmax()]))
    return found
