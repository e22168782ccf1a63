"""The figures of a report and of a model card, drawn by matplotlib from the numbers of measures.py and calibration.py."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .calibration import BINS, Calibration, Reliability, bins_of
from .measures import coverage_curve
from .style import GRID, INK, MARKERS, RAMP, SERIES, new_figure, tidy
from .table import HEAD_TITLES, PREDICTION, ImageTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_POINTS = 400  # of a curve
MOST_MAPPED = 1000  # images of the embedding map
_PERCENT = "{x:.0%}"
# Inches: a narrow figure, whose letters can be read on a phone, and one for the width of a page.
_NARROW, _WIDE, _HALF = 4.2, 8.6, 4.6
_MOST_EPOCHS = 8  # marks of the axis
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
_SCORE_TITLES = {"": "prediction (mean of both heads)", "cls_": "class head", "distillation_": "distillation head"}
_TERM_TITLES = {"loss": "all terms", "cls_loss": "class head", "distillation_loss": "distillation head"}
# Lines that coincide are all seen: each is thinner than the one below it, with other dashes and a smaller mark.
_LINES = ((4.5, "-", 9), (2.6, (0, (5, 3)), 6), (1.6, (0, (1.5, 2)), 4), (1.2, "-.", 3))


def _percent_axis(axis: Any) -> None:
    from matplotlib.ticker import StrMethodFormatter

    axis.set_major_formatter(StrMethodFormatter(_PERCENT))


def _legend_above(axes: Any, columns: int = 2, **options: Any) -> None:
    axes.legend(fontsize=9, ncols=columns, loc="lower left", bbox_to_anchor=(0.0, 1.0), **options)


# ---- training ----


def loss_curves(log: Sequence[Mapping[str, Any]]) -> "Figure | None":
    """Draw every loss term of the training, and the losses of its evaluations; None if the log has none.

    Args:
        log: The log of the trainer, a list of entries.
    """
    terms = _series(log, lambda name: not name.startswith(("eval_", "train_")) and name.endswith("loss"))
    losses = _series(log, lambda name: name.startswith("eval_") and name.endswith("loss"))
    if not terms and not losses:
        return None
    figure = new_figure(_HALF, 4.0)
    axes = figure.subplots()
    for place, (name, (steps, values)) in enumerate(terms.items()):
        colour, dashes = SERIES[place % len(SERIES)], ("-", "--", ":", "-.")[place % 4]
        title = f"{_term_title(name)}, training"
        axes.plot(steps, values, color=colour, linewidth=1.8, linestyle=dashes, marker=_dot(values), label=title)
    for place, (name, (steps, values)) in enumerate(losses.items(), start=len(terms)):
        title = f"{_term_title(name.removeprefix('eval_'))}, validation"
        colour, mark = SERIES[place % len(SERIES)], MARKERS[1 + place % (len(MARKERS) - 1)]
        axes.plot(steps, values, color=colour, marker=mark, markersize=6, linewidth=1.2, linestyle="--", label=title)
    axes.set_ylabel("loss")
    _finish_curves(axes, log)
    return figure


def score_curves(log: Sequence[Mapping[str, Any]], score: str) -> "Figure | None":
    """Draw the score of each head over the evaluations of a training; None if the log has none.

    Args:
        log: The log of the trainer, a list of entries.
        score: Name of the score, such as "accuracy".
    """
    wanted = [f"eval_{head}{score}" for head in ("", "cls_", "distillation_", "teacher_")]
    found = _series(log, lambda name: name in wanted)
    scores = {name: found[name] for name in wanted if name in found}
    if not scores:
        return None
    figure = new_figure(_HALF, 4.0)
    axes = figure.subplots()
    several = any(name.startswith(("eval_cls_", "eval_distillation_")) for name in scores)
    for place, (name, (steps, values)) in enumerate(scores.items()):
        head = name.removeprefix("eval_").removesuffix(score)
        title = _SCORE_TITLES.get(head, head.rstrip("_")) if head or several else "prediction"
        width, dashes, size = _LINES[place]
        axes.plot(
            steps,
            values,
            color=SERIES[place],
            marker=MARKERS[place],
            markersize=size,
            linewidth=width,
            linestyle=dashes,
            label=title,
        )
    axes.set_ylabel(f"{score.replace('_', ' ')} on the validation images")
    _percent_axis(axes.yaxis)
    _finish_curves(axes, log)
    return figure


def _term_title(name: str) -> str:
    return _TERM_TITLES.get(name, name.removesuffix("_loss").replace("_", " "))


def _dot(values: Sequence[float]) -> str:
    return "o" if len(values) == 1 else ""


def _finish_curves(axes: Any, log: Sequence[Mapping[str, Any]]) -> None:
    """Mark the epochs below the steps, and draw the legend."""
    last = max(log, key=lambda entry: entry.get("step", 0))
    step, epoch = last.get("step", 0), last.get("epoch")
    if isinstance(epoch, int | float) and epoch >= 1 and step:
        apart = max(1, round(epoch / _MOST_EPOCHS))
        marks = range(apart, int(epoch + 0.01) + 1, apart)
        places = [mark * step / epoch for mark in marks]
        axes.set_xticks(places, [f"{mark}\n({place:,.0f})" for mark, place in zip(marks, places, strict=True)])
        axes.set_xlabel("epoch (optimizer step)")
        tidy(axes, "both")
    else:
        axes.set_xlabel("optimizer step")
        tidy(axes)
    _legend_above(axes, 1, handlelength=3.2)


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
    """Draw accuracy against confidence for each head, before and after temperature scaling, and the answers in each bin below."""
    figure = new_figure(2.5 * len(found) + 0.7, 4.7)
    panels = figure.subplots(
        2, len(found), sharex=True, sharey="row", squeeze=False, gridspec_kw={"height_ratios": (3.4, 1)}
    )
    for (part, bars), (name, one) in zip(panels.T, found.items(), strict=True):
        part.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":")
        _reliability(part, bars, one.before, 1, f"before, ECE {100 * one.before.error:.1f} %")
        if one.after is not None:
            _reliability(part, bars, one.after, 0, f"after, ECE {100 * one.after.error:.1f} %")
        part.set_title(HEAD_TITLES[name], pad=34)
        part.set_xlim(-0.02, 1.04)
        part.set_ylim(-0.02, 1.04)
        _percent_axis(part.xaxis)
        _percent_axis(part.yaxis)
        part.set_xticks([0, 0.5, 1])
        bars.set_yscale("log")
        bars.set_ylim(bottom=0.6)
        bars.yaxis.set_major_formatter("{x:,.0f}")
        bars.minorticks_off()
        bars.set_xlabel("confidence")
        for axes in (part, bars):
            tidy(axes, "both")
        bars.grid(axis="x", visible=False)
        _legend_above(part, 1, handlelength=1.4, borderpad=0.2)
    panels[0, 0].set_ylabel("answers that are right")
    panels[1, 0].set_ylabel("answers")
    return figure


def _reliability(axes: Any, bars: Any, one: Reliability, number: int, label: str) -> None:
    """Draw one curve: large hollow squares before, small filled circles after, so that both are seen where they meet."""
    size, face = ((8, "none"), (4, SERIES[0]))[number == 0]
    axes.plot(
        one.confidence,
        one.accuracy,
        color=SERIES[number],
        linewidth=1,
        marker=MARKERS[number],
        markersize=size,
        markerfacecolor=face,
        markeredgewidth=1.3,
        label=label,
    )
    left = (bins_of(one.confidence) + (0.08 if number else 0.5)) / BINS
    bars.bar(left, one.images, width=0.42 / BINS, align="edge", color=SERIES[number])


def coverage(correct: np.ndarray, confidences: Mapping[str, np.ndarray], *, wide: bool = False) -> "Figure":
    """Draw the accuracy of the answers above a threshold against the share of images that are answered.

    Args:
        correct: Whether each answer is right.
        confidences: Confidence of each answer, by the title of the curve.
        wide: Whether the figure has the width of a page, and not of a phone.
    """
    figure = new_figure(_WIDE if wide else _NARROW, 3.8)
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
                    f"≥ {threshold:.0%}", (reached, value), textcoords="offset points", xytext=(5, 6), fontsize=9
                )
    axes.set_xlabel("images that are answered (the others are “unknown”)")
    axes.set_ylabel("answers that are right")
    _percent_axis(axes.xaxis)
    _percent_axis(axes.yaxis)
    axes.set_xlim(0, 1.03)
    tidy(axes, "both")
    if len(confidences) > 1:
        axes.legend(fontsize=9)
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


def precision_recall(table: ImageTable, chosen: Sequence[int], *, wide: bool = False) -> "Figure":
    """Draw precision against recall for some classes of a multi-label table."""
    from sklearn.metrics import precision_recall_curve

    figure = new_figure(_WIDE if wide else _NARROW, 4.6)
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
    _legend_above(axes, 5 if wide else 2)
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


def embedding_map(
    places: np.ndarray,
    groups: np.ndarray,
    names: Sequence[str],
    wrong: np.ndarray,
    *,
    titled: bool = False,
    wide: bool = False,
) -> "Figure":
    """Draw images as points, with the name of each group at its centre.

    Args:
        places: `(images, 2)`.
        groups: Number of the group of each image, such as its class; -1 for images outside all groups.
        names: Names of the groups.
        wrong: Whether the prediction of each image is wrong; these images are ringed.
        titled: Whether each point gets the address "point:" and its number, which `style.as_svg` replaces by a text.
        wide: Whether the figure has the width of a page, and not of a phone.
    """
    figure = new_figure(_WIDE if wide else _NARROW, 6.4 if wide else 5.2)
    axes = figure.subplots()
    size = 52 if wide else 22
    for number, name in [(-1, "other classes"), *enumerate(names)]:
        members = np.flatnonzero(groups == number)
        if not len(members):
            continue
        axes.scatter(
            places[members, 0],
            places[members, 1],
            s=np.full(len(members), size) if titled else size,  # an array, so that each point has an element of its own
            color=GRID if number < 0 else SERIES[number % len(SERIES)],
            marker=MARKERS[number % len(MARKERS)],
            linewidth=0,
            alpha=0.8,
            label=_short(name),
            urls=[f"point:{member}" for member in members] if titled else None,
        )
    if wrong.any():
        axes.scatter(
            places[wrong, 0],
            places[wrong, 1],
            s=3 * size,
            facecolors="none",
            edgecolors=INK,
            linewidth=1.1,
            label="wrong prediction",
        )
    for number, name in enumerate(names):
        members = groups == number
        if members.sum() > 1:
            centre = np.median(places[members], axis=0)
            style = {"ha": "center", "va": "center", "fontsize": 11 if wide else 9, "fontweight": "bold"}
            axes.text(*centre, _short(name), **style)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(GRID)
    _legend_above(axes, 6 if wide else 3, columnspacing=1.0, handletextpad=0.3)
    return figure
