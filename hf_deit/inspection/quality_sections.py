"""Sections of a report on how far the answers can be trusted: calibration, confusions, classes, and when to answer "unknown"."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import figures
from .calibration import BINS, FEWEST_IMAGES, FOLDS, change_of_error
from .measures import DECISION, ClassRow, at_threshold, best_thresholds, class_rows, confused_order, confusions
from .section_parts import (
    Findings,
    Section,
    beyond_chance,
    chart,
    counted,
    interval,
    label_of,
    listed,
    number,
    opinion_lines,
    percent,
    photo,
    point_interval,
    table_block,
)
from .style import as_svg, drawn
from .table import HEAD_TITLES, PREDICTION, ImageTable
from .thumbnails import Thumbnails

MOST_CLASSES = 50  # of the confusion matrix
_CELLS, _PHOTOS_PER_CELL = 14, 6
_CURVES = 10  # of multi-label classes
_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
_GOALS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)  # shares of right answers, for an example
_FEW = 20  # images of a class whose figures change much by chance
_NEARLY_ONE = 0.03  # a temperature this close to 1 changes next to nothing


# ---- calibration ----


def reliability(found: Findings) -> Section:
    """Return the section on calibration."""
    section = Section("calibration", "Can its confidence be trusted?")
    thing = "decisions" if found.table.multi_label else "answers"
    decisions = " (a decision is one class of one image)" if found.table.multi_label else ""
    section.texts.append(
        f"A model is calibrated if, of all {thing} given with 80 % confidence, 80 % are right{decisions}. To see this, the {thing} are "
        f"sorted by confidence into {BINS} bins of equal width. Each point is a bin: below the dotted line, the model is more confident than "
        "right (overconfident), above it less (underconfident). The bars below count the answers in each bin, on a logarithmic scale: "
        "where they are few, a point may lie anywhere by chance. ECE, the expected calibration error, is the mean distance of the points "
        "from the line, each bin weighted by its number of answers."
    )
    has_after = any(one.after is not None for one in found.calibration.values())
    if has_after:
        section.texts.append(
            f"“After” divides the logits by one number, the temperature. It is fitted in {FOLDS} parts: each image is judged by a "
            "temperature that was fitted on the other parts, never on itself. The predicted classes stay the same, only their confidence "
            "changes."
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
            _confidence_word(one.temperature),
        ]
        for name, one in found.calibration.items()
    ]
    head = ["head", "before", "after", "temperature", "the model is"]
    section.blocks.append(table_block("Expected calibration error", head, rows))
    if has_after:
        section.next = _advice_on_calibration(found)
    return section


def _confidence_word(temperature: float | None) -> str:
    if temperature is None:
        return "–"
    if abs(temperature - 1) <= _NEARLY_ONE:
        return "hardly off"
    return "overconfident" if temperature > 1 else "underconfident"


def _advice_on_calibration(found: Findings) -> str:
    """Return whether to use the temperature, from the row of the prediction."""
    one, table = found.calibration[PREDICTION], found.labelled
    before, after = one.before.error, one.after.error
    low_high = change_of_error(table.labels, table.probabilities[PREDICTION], one.scaled)
    row = "The row that counts for `hf-deit predict` is “prediction”. " if len(found.calibration) > 1 else ""
    change = f"its error goes from {percent(before)} to {percent(after)}"
    effect = (
        f"The temperature, {one.temperature:.2f}, is {'above 1: it lowers' if one.temperature > 1 else 'below 1: it raises'} the confidence. "
        "It is in calibration.json."
    )
    if not beyond_chance(low_high):
        return (
            f"{row}With the temperature, {change}. With {counted(len(table))}, a change of this size may be chance (95 % interval by "
            f"bootstrap: {point_interval(low_high)}), so `hf-deit predict --calibrated` is not shown to help or to harm. {effect}"
        )
    if after < before:
        return f"{row}Use `hf-deit predict --calibrated`: {change}, more than chance explains (95 % interval by bootstrap: {point_interval(low_high)}). {effect}"
    return f"{row}Do not use `hf-deit predict --calibrated`: {change} (95 % interval of the change by bootstrap: {point_interval(low_high)})."


# ---- confusions ----


def confusion(found: Findings, thumbnails: Thumbnails) -> Section:
    """Return the section on confusions."""
    table = found.labelled
    matrix = confusions(table)
    order = confused_order(matrix, MOST_CLASSES)
    section = Section("confusion", "What does it confuse?")
    section.texts.append(
        "Each row is a label, each column a prediction, each cell a number of images. Right answers are on the diagonal. The classes "
        "are sorted so that those that are confused with each other are as near as one order permits."
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
            "caption": f"Colours are shares of a row. {_what_links(matrix, order, places)}",
            "names": names,
            "rows": [_matrix_row(matrix, row, order, table.class_names[row], places) for row in order],
        }
    )
    if places:
        section.blocks.append(
            {
                "kind": "cells",
                "title": "Photographs of the confusions that are links",
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


def _what_links(matrix: np.ndarray, order: Sequence[int], places: Sequence[tuple[int, int]]) -> str:
    part = matrix[np.ix_(order, order)]
    mistaken = int((part > 0).sum() - (np.diag(part) > 0).sum())
    if not mistaken:
        return "No image is off the diagonal."
    if len(places) == mistaken:
        return "Each number off the diagonal is a link to its photographs below."
    return f"Of the {number(mistaken)} numbers off the diagonal, the {len(places)} largest are links to their photographs below."


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
            photo(
                table,
                index,
                thumbnails,
                [(f"label: {label_of(table, index)}", "label"), *opinion_lines(table, index)],
            )
            for index in members[:_PHOTOS_PER_CELL]
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
    few = [row for row in rows if 0 < row.images < _FEW]
    texts = []
    if missing:
        texts.append(f"Add validation images of {listed(missing, 5)}: nothing is known about a class without images.")
    if few:
        texts.append(
            f"Fewer than {_FEW} images: {listed([f'{row.name} ({row.images})' for row in few])}. "
            f"{'Its figures' if len(few) == 1 else 'Their figures'} can change by chance with a few more images."
        )
    recalls = {row.name: row.recall for row in rows if row.recall is not None}
    precisions = {row.name: row.precision for row in rows if row.precision is not None and row.images}
    if recalls:
        names, value = _lowest(recalls)
        texts.append(
            f"Lowest recall: {listed(names)} ({percent(value)}); a row of the confusion matrix shows where missed images go."
        )
    if precisions:
        names, value = _lowest(precisions)
        texts.append(f"Lowest precision: {listed(names)} ({percent(value)}); a column shows what is taken for a class.")
    return " ".join(texts)


def _lowest(values: Mapping[str, float]) -> tuple[list[str], float]:
    """Return the names with the lowest value, and the value."""
    low = min(values.values())
    return [name for name, value in values.items() if value == low], low


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
        section.blocks.append(chart(figures.precision_recall, table, chosen, name="precision-recall", title=title))
    section.blocks.append(table_block("Figures of each class, the lowest average precision first", head, cells))
    section.next = (
        "Choose a higher threshold for a class whose false alarms are costly, a lower one if missing it is costly: the curve shows what "
        "each costs. `hf-deit predict --threshold` sets one threshold for all classes."
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
    section = Section("unknown", "How sure must it be to answer?")
    section.texts.append(
        "A model can answer “unknown” where its confidence is below a threshold. Fewer images are then answered (coverage), and usually more "
        "of the answers are right. Every point of the curve is one threshold."
    )
    section.texts.append(
        "This holds for images of the classes only. Images that show none of the classes were not measured: they too can get a high confidence."
    )
    if one.scaled is not None:
        section.texts.append(
            "“Calibrated” is with the temperatures of the section on confidence, each fitted without the image."
        )
    title = "Accuracy of the answers against the share of images that are answered"
    section.blocks.append(chart(figures.coverage, correct, confidences, name="coverage", title=title))
    several = len(confidences) > 1
    head = ["threshold"]
    for name in confidences:
        head += [
            f"{column}{f', {name}' if several else ''}" for column in ("answered", "right", "95 % interval of right")
        ]
    rows = []
    for threshold in _THRESHOLDS:
        cells = [percent(threshold, 0)]
        for confidence in confidences.values():
            answered, accuracy, low_high = at_threshold(correct, confidence, threshold)
            cells += [percent(answered), percent(accuracy), interval(low_high)]
        rows.append(cells)
    section.blocks.append(table_block("What a threshold costs and gains", head, rows))
    section.next = _advice_on_thresholds(correct, table.confidence(), several)
    return section


def _advice_on_thresholds(correct: np.ndarray, confidence: np.ndarray, calibrated: bool) -> str:
    """Return how to choose a threshold, with an example from these images."""
    texts = [
        "Which threshold is right depends on what a wrong answer costs you and what an unanswered image costs: this report recommends none."
    ]
    example = _example(correct, confidence)
    if example is not None:
        goal, threshold, answered, accuracy = example
        texts.append(
            f"An example: for at least {percent(goal, 0)} right answers, {percent(threshold, 0)} is the lowest threshold of the table; "
            f"{percent(answered)} of these images are then answered, and {percent(accuracy)} of the answers are right. The command is "
            f"`hf-deit predict MODEL IMAGES --threshold {threshold:g}`."
        )
    else:
        texts.append("Give it to `hf-deit predict MODEL IMAGES --threshold`.")
    if calibrated:
        texts.append("With `--calibrated`, use the columns “calibrated”.")
    texts.append("The figures were measured on the images on which you choose: expect small differences on new ones.")
    return " ".join(texts)


def _example(correct: np.ndarray, confidence: np.ndarray) -> tuple[float, float, float, float] | None:
    """Return a goal above the accuracy without a threshold, the lowest threshold that reaches it, and its coverage and accuracy."""
    goals = [goal for goal in _GOALS if goal > correct.mean()]
    for goal in goals[:1]:
        for threshold in _THRESHOLDS:
            answered, accuracy, _ = at_threshold(correct, confidence, threshold)
            if accuracy is not None and accuracy >= goal:
                return goal, threshold, answered, accuracy
    return None
