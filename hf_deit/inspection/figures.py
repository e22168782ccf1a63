"""The figures of a report and of a model card, drawn by matplotlib from the numbers of measures.py and calibration.py."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .calibration import Calibration, Reliability
from .measures import coverage_curve
from .style import GRID, INK, MARKERS, RAMP, SERIES, new_figure, tidy
from .table import HEAD_TITLES, PREDICTION, ImageTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_POINTS = 400  # of a curve
MOST_MAPPED = 1000  # images of the embedding map
_PERCENT = "{x:.0%}"
# Inches: narrow, so that the letters can be read on a phone.
WIDTH = 4.9
# What a log entry of training holds beside loss terms.
_NO_TERMS = (
    "grad_norm",
    "learning_rate",
    "epoch",
    "step",
    "total_flos",
    "train_runtime",
    "train_loss",
    "teacher_agreement",
)


def _percent_axis(axis: Any) -> None:
    from matplotlib.ticker import StrMethodFormatter

    axis.set_major_formatter(StrMethodFormatter(_PERCENT))


# ---- training ----


def training_curves(log: Sequence[Mapping[str, Any]], score: str) -> "Figure | None":
    """Draw every loss term of the training, and the losses and the score of its evaluations; None if the log has none.

    Args:
        log: The log of the trainer, a list of entries.
        score: Name of the score, such as "accuracy".
    """
    terms = _series(log, lambda name: not name.startswith(("eval_", "train_")) and name.endswith("loss"))
    losses = _series(log, lambda name: name.startswith("eval_") and name.endswith("loss"))
    wanted = [f"eval_{head}{score}" for head in ("", "cls_", "distillation_", "teacher_")]
    scores = _series(log, lambda name: name in wanted)
    if not terms and not losses:
        return None
    figure = new_figure(WIDTH, 6.4 if scores else 3.4)
    axes = figure.subplots(2 if scores else 1, 1, sharex=True, squeeze=False)[:, 0]
    for number, (name, (steps, values)) in enumerate(terms.items()):
        axes[0].plot(steps, values, color=SERIES[number % len(SERIES)], linewidth=1.6, label=_title(name, "training"))
    for number, (name, (steps, values)) in enumerate(losses.items()):
        _marked(axes[0], steps, values, len(terms) + number, _title(name.removeprefix("eval_"), "validation"))
    axes[0].set_ylabel("loss")
    for number, (name, (steps, values)) in enumerate(scores.items()):
        _marked(axes[1], steps, values, number, _title(name.removeprefix("eval_"), ""))
    if scores:
        axes[1].set_ylabel("validation images")
        _percent_axis(axes[1].yaxis)
    axes[-1].set_xlabel("optimizer step")
    for part in axes:
        tidy(part)
        part.legend(fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(0.0, 1.0))
    return figure


def _marked(axes: Any, steps: Sequence[float], values: Sequence[float], number: int, label: str) -> None:
    axes.plot(
        steps,
        values,
        color=SERIES[number % len(SERIES)],
        marker=MARKERS[number % len(MARKERS)],
        markersize=4,
        linewidth=1,
        linestyle="--",
        label=label,
    )


def _title(name: str, where: str) -> str:
    return " ".join([name.replace("_", " "), *([f"({where})"] if where else [])])


def _series(log: Sequence[Mapping[str, Any]], chosen: Any) -> dict[str, tuple[list[float], list[float]]]:
    names = {name for entry in log for name in entry if name not in _NO_TERMS and chosen(name)}
    found = {}
    for name in sorted(names, key=lambda name: (len(name), name)):
        points = [(entry.get("step", 0), entry[name]) for entry in log if isinstance(entry.get(name), int | float)]
        points = [(step, value) for step, value in points if np.isfinite(value)]
        if len(points) > _MOST_POINTS:
            points = points[:: -(-len(points) // _MOST_POINTS)]
        if points:
            found[name] = ([step for step, _ in points], [value for _, value in points])
    return found


# ---- calibration ----


def reliability_diagrams(found: Mapping[str, Calibration]) -> "Figure":
    """Draw accuracy against confidence for each head, before and after temperature scaling."""
    figure = new_figure(2.5 * len(found) + 0.6, 3.5)
    axes = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for part, (name, one) in zip(axes, found.items(), strict=True):
        part.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":")
        _reliability(part, one.before, 1, f"before, ECE {100 * one.before.error:.1f} %")
        if one.after is not None:
            _reliability(part, one.after, 0, f"after, ECE {100 * one.after.error:.1f} %")
        part.set_title(HEAD_TITLES[name])
        part.set_xlim(-0.02, 1.04)
        part.set_ylim(-0.02, 1.04)
        part.set_aspect("equal")
        _percent_axis(part.xaxis)
        _percent_axis(part.yaxis)
        part.set_xticks([0, 0.5, 1])
        part.set_xlabel("confidence")
        tidy(part, "both")
        part.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0.0, -0.2), handlelength=1.2, borderpad=0.2)
    axes[0].set_ylabel("answers that are right")
    return figure


def _reliability(axes: Any, one: Reliability, number: int, label: str) -> None:
    sizes = 12 + 90 * np.sqrt(one.images / one.images.max())
    axes.plot(one.confidence, one.accuracy, color=SERIES[number], linewidth=1)
    axes.scatter(
        one.confidence,
        one.accuracy,
        s=sizes,
        color=SERIES[number],
        alpha=0.75,
        label=label,
        marker=MARKERS[number],
        linewidth=0,
    )


def coverage(correct: np.ndarray, confidences: Mapping[str, np.ndarray]) -> "Figure":
    """Draw the accuracy of the answers above a threshold against the share of images that are answered.

    Args:
        correct: Whether each answer is right.
        confidences: Confidence of each answer, by the title of the curve.
    """
    figure = new_figure(WIDTH, 3.4)
    axes = figure.subplots()
    for number, (title, confidence) in enumerate(confidences.items()):
        _, share, accuracy = coverage_curve(correct, confidence)
        step = -(-len(share) // _MOST_POINTS)
        kept = np.unique(np.append(np.arange(0, len(share), step), len(share) - 1))
        axes.plot(
            share[kept], accuracy[kept], color=SERIES[number], linestyle=("-", "--", ":")[number % 3], label=title
        )
        for threshold in (0.5, 0.7, 0.9):
            reached = float((confidence >= threshold).mean())
            if 0 < reached < 1 and number == 0:
                value = float(correct[confidence >= threshold].mean())
                axes.plot(reached, value, "o", color=SERIES[number], markersize=5)
                axes.annotate(
                    f"≥ {threshold:.0%}", (reached, value), textcoords="offset points", xytext=(5, 6), fontsize=8
                )
    axes.set_xlabel("images that are answered (the others are “unknown”)")
    axes.set_ylabel("answers that are right")
    _percent_axis(axes.xaxis)
    _percent_axis(axes.yaxis)
    axes.set_xlim(0, 1.03)
    tidy(axes, "both")
    if len(confidences) > 1:
        axes.legend(fontsize=8)
    return figure


# ---- classes ----


def confusion_picture(matrix: np.ndarray, names: Sequence[str]) -> "Figure":
    """Draw the confusion matrix for a card: rows are labels, columns predictions, colours shares of a row.

    Args:
        matrix: Numbers of images, in the order in which they are shown.
        names: Class names in the same order.
    """
    from matplotlib.colors import LinearSegmentedColormap

    count = len(names)
    side = min(max(3.4, 1.8 + 0.42 * count), 11)
    figure = new_figure(side + 0.6, side)
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap=LinearSegmentedColormap.from_list("hf_deit", RAMP), vmin=0, vmax=1)
    shown = [name if len(name) <= 18 else f"{name[:17]}…" for name in names]
    size = 9 if count <= 20 else 6
    axes.set_xticks(range(count), shown, rotation=90, fontsize=size)
    axes.set_yticks(range(count), shown, fontsize=size)
    if count <= 20:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            colour = "#ffffff" if shares[row, column] > 0.55 else INK
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", fontsize=8, color=colour)
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_color(GRID)
    return figure


def precision_recall(table: ImageTable, chosen: Sequence[int]) -> "Figure":
    """Draw precision against recall for some classes of a multi-label table."""
    from sklearn.metrics import precision_recall_curve

    figure = new_figure(WIDTH, 4.6)
    axes = figure.subplots()
    for number, index in enumerate(chosen):
        precision, recall, _ = precision_recall_curve(table.labels[:, index], table.probabilities[PREDICTION][:, index])
        step = -(-len(recall) // _MOST_POINTS)
        axes.plot(
            recall[::step],
            precision[::step],
            color=SERIES[number % len(SERIES)],
            linestyle=("-", "--", ":")[number // len(SERIES) % 3],
            label=_short(table.class_names[index]),
        )
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    tidy(axes, "both")
    axes.legend(fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(0.0, 1.0))
    return figure


def _short(name: str) -> str:
    name = name.lstrip("_") or name  # matplotlib leaves names with a leading underscore out of a legend
    return name if len(name) <= 24 else f"{name[:23]}…"


# ---- embeddings ----


def embedding_places(embeddings: np.ndarray) -> np.ndarray:
    """Return places of images in a plane in which images with similar embeddings are close, `(images, 2)`.

    t-SNE of the first 50 principal components with a fixed seed; for fewer than 12 images the first two principal components.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    values = np.nan_to_num(embeddings.astype(np.float32))
    count = len(values)
    parts = PCA(n_components=min(50, *values.shape), random_state=0).fit_transform(values)
    if count < 12:
        return np.pad(parts, ((0, 0), (0, max(0, 2 - parts.shape[1]))))[:, :2]
    perplexity = min(30.0, (count - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=0, max_iter=500).fit_transform(parts)


def embedding_map(places: np.ndarray, groups: np.ndarray, names: Sequence[str], wrong: np.ndarray) -> "Figure":
    """Draw images as points.

    Args:
        places: `(images, 2)`.
        groups: Number of the group of each image, such as its class; -1 for images outside all groups.
        names: Names of the groups.
        wrong: Whether the prediction of each image is wrong; these images are ringed.
    """
    figure = new_figure(WIDTH, 4.9)
    axes = figure.subplots()
    for number, name in [(-1, "other"), *enumerate(names)]:
        members = groups == number
        if not members.any():
            continue
        axes.scatter(
            places[members, 0],
            places[members, 1],
            s=16,
            color=GRID if number < 0 else SERIES[number % len(SERIES)],
            marker=MARKERS[number % len(MARKERS)],
            linewidth=0,
            alpha=0.85,
            label=_short(name),
        )
    if wrong.any():
        axes.scatter(
            places[wrong, 0],
            places[wrong, 1],
            s=46,
            facecolors="none",
            edgecolors=INK,
            linewidth=0.9,
            label="wrong answer",
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(GRID)
    axes.legend(fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0.0, 1.0))
    return figure
