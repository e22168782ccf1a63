"""Sections of a report on how far the answers can be trusted: calibration, confusions, classes, and when to answer "unknown"."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import figures
from .calibration import BINS, FEWEST_IMAGES, FOLDS
from .measures import DECISION, ClassRow, at_threshold, best_thresholds, class_rows, confused_order, confusions
from .section_parts import Findings, Section, counted, number, opinion_lines, percent, photo, table_block
from .style import as_svg, drawn
from .table import HEAD_TITLES, PREDICTION, ImageTable
from .thumbnails import Thumbnails

MOST_CLASSES = 50  # of the confusion matrix
_CELLS, _PHOTOS_PER_CELL = 14, 6
_CURVES = 10  # of multi-label classes
_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


# ---- calibration ----


def reliability(found: Findings) -> Section:
    """Return the section on calibration."""
    section = Section("calibration", "Can its confidence be trusted?")
    decisions = " (a decision is one class of one image)" if found.table.multi_label else ""
    section.texts.append(
        f"A model is calibrated if, of all answers given with 80 % confidence, 80 % are right{decisions}. Points below the dotted line "
        "are overconfident answers, points above it are answers that are right more often than the model says. Larger points hold "
        f"more answers; small ones hold few, and may lie anywhere by chance. ECE, the expected calibration error, is the mean distance from the line ({BINS} bins of equal width)."
    )
    has_after = any(one.after is not None for one in found.calibration.values())
    if has_after:
        section.texts.append(
            f"“After” divides the logits by one number, the temperature. It is fitted in {FOLDS} parts: each image is judged by a "
            "temperature that was fitted on the other parts, never on itself. The answers stay the same, only their confidence changes."
        )
    else:
        section.texts.append(
            f"No temperature was fitted: that needs at least {FEWEST_IMAGES} labelled images, and there are {len(found.labelled)}."
        )
    charts = []
    for name, one in found.calibration.items():
        title = f"Reliability diagram of the {HEAD_TITLES[name]}: share of right answers against confidence"
        figure = drawn(figures.reliability_diagrams, {name: one})
        charts.append({"svg": as_svg(figure, f"reliability-{name}", title), "label": title})
    section.blocks.append({"kind": "svgs", "charts": charts})
    rows = [
        [
            HEAD_TITLES[name],
            percent(one.before.error),
            "–" if one.after is None else percent(one.after.error),
            "–" if one.temperature is None else f"{one.temperature:.2f}",
        ]
        for name, one in found.calibration.items()
    ]
    section.blocks.append(table_block("Expected calibration error", ["head", "before", "after", "temperature"], rows))
    if has_after:
        section.next = (
            "Use hf-deit predict --calibrated, if “after” is smaller. The temperature is in calibration.json; above 1 it lowers the "
            "confidence, below 1 it raises it."
        )
    return section


# ---- confusions ----


def confusion(found: Findings, thumbnails: Thumbnails) -> Section:
    """Return the section on confusions."""
    table = found.labelled
    matrix = confusions(table)
    order = confused_order(matrix, MOST_CLASSES)
    section = Section("confusion", "What does it confuse?")
    section.texts.append(
        "Each row is a label, each column a prediction, each cell a number of images. Right answers are on the diagonal. The classes "
        "are sorted so that those that are confused with each other are neighbours."
    )
    if len(order) < len(matrix):
        section.texts.append(
            f"Of {number(len(matrix))} classes, the {len(order)} with the most confused images are shown. A row then need not "
            "add up to all images of its class."
        )
    places = _largest_cells(matrix, order)
    names = [table.class_names[index] for index in order]
    section.blocks.append(
        {
            "kind": "matrix",
            "caption": "Colours are shares of a row. A number with a link shows its photographs below.",
            "names": names,
            "rows": [_matrix_row(matrix, row, order, table.class_names[row], places) for row in order],
        }
    )
    if places:
        section.blocks.append(
            {
                "kind": "cells",
                "title": "Photographs of the largest confusions",
                "cells": [_cell(table, row, column, thumbnails) for row, column in places],
            }
        )
        row, column = places[0]
        section.next = (
            f"Look at the images of {table.class_names[row]} that are predicted as {table.class_names[column]}. If you cannot tell "
            "them apart either, merge the classes or define the border between them; if you can, add such images to the training."
        )
    return section


def _largest_cells(matrix: np.ndarray, order: Sequence[int]) -> list[tuple[int, int]]:
    cells = [(row, column) for row in order for column in order if row != column and matrix[row, column]]
    return sorted(cells, key=lambda cell: -matrix[cell])[:_CELLS]


def _matrix_row(
    matrix: np.ndarray, row: int, order: Sequence[int], name: str, places: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    images = max(int(matrix[row].sum()), 1)
    cells = []
    for column in order:
        count = int(matrix[row, column])
        cells.append(
            {
                "count": count or "",
                # Never darker than half, so that the number can be read on it.
                "share": round(50 * count / images, 1),
                "right": row == column,
                "link": f"cell-{row}-{column}" if (row, column) in places else "",
            }
        )
    return {"name": name, "cells": cells}


def _cell(table: ImageTable, row: int, column: int, thumbnails: Thumbnails) -> dict[str, Any]:
    members = np.flatnonzero((table.labels == row) & (table.predicted() == column))
    members = members[np.argsort(-table.confidence()[members], kind="stable")]
    more = f", the {_PHOTOS_PER_CELL} most confident are shown" if len(members) > _PHOTOS_PER_CELL else ""
    return {
        "id": f"cell-{row}-{column}",
        "summary": f"{table.class_names[row]} predicted as {table.class_names[column]}: {counted(len(members))}{more}",
        "photos": [
            photo(table, index, thumbnails, opinion_lines(table, index)) for index in members[:_PHOTOS_PER_CELL]
        ],
    }


# ---- classes ----


def classes(found: Findings) -> Section:
    """Return the section on precision, recall and F1 of each class."""
    rows = class_rows(found.labelled)
    section = Section("classes", "How good is each class?")
    section.texts.append(
        "Precision: of the images that are predicted as the class, how many have it. Recall: of the images of the class, how many "
        "are found. F1 is high only if both are. The classes with the lowest F1 come first; “–” means that there is no image to tell."
    )
    head = ["class", "precision", "recall", "F1", "images", "predicted"]
    cells = [
        [
            row.name,
            percent(row.precision),
            percent(row.recall),
            percent(row.f1),
            number(row.images),
            number(row.predicted),
        ]
        for row in _worst_first(rows)
    ]
    section.blocks.append(table_block("Precision, recall and F1 of each class", head, cells))
    section.next = _advice_on_classes(rows)
    return section


def _worst_first(rows: Sequence[ClassRow]) -> list[ClassRow]:
    return sorted(rows, key=lambda row: (row.images == 0, row.f1 is None, row.f1 or 0, row.name))


def _advice_on_classes(rows: Sequence[ClassRow]) -> str:
    missing = [row.name for row in rows if not row.images]
    few = [row for row in rows if 0 < row.images < 20]
    texts = []
    if missing:
        shown_names = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        texts.append(f"Add validation images of {shown_names}: nothing is known about a class without images.")
    if few:
        texts.append(
            f"{counted(len(few), 'class', 'classes')} have fewer than 20 images; their figures can change "
            "by chance with a few more images."
        )
    known = [row for row in rows if row.images >= 20 and row.recall is not None]
    if known:
        worst = min(known, key=lambda row: row.recall)
        texts.append(
            f"{worst.name} is found least often ({percent(worst.recall)}): look at its images in the confusion matrix."
        )
    return " ".join(texts)


def multi_label_classes(found: Findings) -> Section:
    """Return the section on the classes of multi-label data."""
    table, rows = found.labelled, class_rows(found.labelled)
    thresholds = best_thresholds(table)
    section = Section("classes", "How good is each class?")
    section.texts.append(
        f"A class counts as predicted above {percent(DECISION, 0)}. Precision, recall and F1 hold for this threshold. “Best threshold” is "
        "the one with the largest F1 on these same images, so expect a little less on new ones."
    )
    head = ["class", "average precision", "precision", "recall", "F1", "best threshold", "images", "predicted"]
    order = sorted(range(len(rows)), key=lambda index: (rows[index].images == 0, rows[index].average_precision or 0))
    cells = [
        [
            rows[index].name,
            percent(rows[index].average_precision),
            percent(rows[index].precision),
            percent(rows[index].recall),
            percent(rows[index].f1),
            "–" if thresholds[index] is None else percent(thresholds[index]),
            number(rows[index].images),
            number(rows[index].predicted),
        ]
        for index in order
    ]
    chosen = [index for index in order if rows[index].images][:_CURVES]
    if chosen:
        title = "Precision against recall of the classes with the lowest average precision"
        figure = drawn(figures.precision_recall, table, chosen)
        section.blocks.append({"kind": "svg", "svg": as_svg(figure, "precision-recall", title), "label": title})
    section.blocks.append(table_block("Figures of each class, the lowest average precision first", head, cells))
    section.next = (
        "Choose a higher threshold for a class whose false alarms are costly, a lower one if missing it is costly: the curve shows what "
        "each costs. hf-deit predict --threshold sets one threshold for all classes."
    )
    return section


# ---- unknown ----


def coverage(found: Findings) -> Section:
    """Return the section on accuracy against coverage."""
    table = found.labelled
    correct = table.predicted() == table.labels
    confidences = {"as it is": table.confidence()}
    one = found.calibration[PREDICTION]
    if one.scaled is not None:
        confidences["calibrated"] = one.scaled.max(axis=1)
    section = Section("unknown", "When should it answer “unknown”?")
    section.texts.append(
        "If the model answers only where its confidence reaches a threshold, fewer images are answered (coverage), and more of the "
        "answers are right. Every point of the curve is one threshold."
    )
    title = "Accuracy of the answers against the share of images that are answered"
    figure = drawn(figures.coverage, correct, confidences)
    section.blocks.append({"kind": "svg", "svg": as_svg(figure, "coverage", title), "label": title})
    head = ["threshold", *(f"{column}, {name}" for name in confidences for column in ("answered", "right"))]
    rows = []
    for threshold in _THRESHOLDS:
        cells = [percent(threshold, 0)]
        for confidence in confidences.values():
            answered, accuracy = at_threshold(correct, confidence, threshold)
            cells += [percent(answered), percent(accuracy)]
        rows.append(cells)
    section.blocks.append(table_block("What a threshold costs and gains", head, rows))
    section.next = (
        "Choose the row that you can live with, and give its threshold: hf-deit predict MODEL IMAGES --threshold 0.8 (with --calibrated, use "
        "the calibrated columns). The threshold was chosen on these images: expect small differences on new ones. Images of "
        "things that are none of the classes can still get a high confidence; that was not measured."
    )
    return section
