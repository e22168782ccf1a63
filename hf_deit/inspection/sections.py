"""The sections of a report: their text, tables, figures and photographs, from the numbers of the other files of this folder.

Each section says in plain sentences what is shown, what to do next and what is not known. report.html.jinja has the layout.
"""

import base64
import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import yaml

from ..hub.facts import RunSummary, public_recipe
from ..recipes.predict import shown
from . import figures
from .calibration import BINS, FEWEST_IMAGES, FOLDS, Calibration
from .duplicates import Pair
from .measures import (
    DECISION,
    ClassRow,
    at_threshold,
    best_thresholds,
    class_rows,
    confused_order,
    confusions,
    headline,
)
from .mislabelled import SURE, Suspect, csv_rows
from .style import as_svg, drawn
from .table import HEAD_TITLES, PREDICTION, TEACHER, ImageTable
from .thumbnails import Thumbnails

MOST_CLASSES = 50  # of the confusion matrix
_CELLS, _PHOTOS_PER_CELL = 14, 6
_MISTAKES, _SUSPECTS, _UNSURE, _PAIRS = 24, 40, 24, 24
_CURVES = 10  # of multi-label classes
_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
_DOWNLOADED = 2000  # suspects in the file that can be saved from the page


@dataclass
class Section:
    """A section of a report.

    Args:
        id: Word by which the page links to the section.
        title: Heading.
        texts: Paragraphs before the blocks.
        blocks: Figures, tables and photographs, each a dict with `kind`; see report.html.jinja.
        next: What the reader can do next.
    """

    id: str
    title: str
    texts: list[str] = field(default_factory=list)
    blocks: list[dict[str, Any]] = field(default_factory=list)
    next: str = ""


@dataclass(frozen=True)
class Findings:
    """Everything that was found out about a model, from which the sections are made.

    Args:
        table: All predicted images of the split, also those without a label.
        labelled: Those with a label.
        calibration: Calibration of each head; empty without labels.
        suspects: Probably mislabelled images by their split.
        tables: The table of each split.
        pairs: Near-duplicates; None if they were not looked for.
        compared: The items, the files and the splits of the images that the indices of `pairs` mean.
        facts: Files of the model's run.
        log: Log of its training, or None.
        notes: What is not known or was left out, as sentences.
        out_of_fold: Whether predictions of models that were not trained on the image took the place of those of the student.
    """

    table: ImageTable
    labelled: ImageTable
    calibration: Mapping[str, Calibration]
    suspects: Mapping[str, Sequence[Suspect]]
    tables: Mapping[str, ImageTable]
    pairs: Sequence[Pair] | None
    compared: tuple[Sequence[Any], Sequence[str], Sequence[str]]
    facts: RunSummary
    log: Sequence[Mapping[str, Any]] | None
    notes: Sequence[str]
    out_of_fold: bool = False

    @property
    def has_teacher(self) -> bool:
        return TEACHER in self.table.probabilities


def percent(value: float | None, digits: int = 1) -> str:
    """Return a share as text in percent; "–" if it is not defined."""
    return "–" if value is None else f"{100 * value:.{digits}f}\u00a0%"


def number(value: int) -> str:
    """Return a count with separators of thousands."""
    return f"{value:,}"


def counted(value: int, thing: str = "image", things: str | None = None) -> str:
    """Return a count with the name of what is counted."""
    return f"{number(value)} {thing if value == 1 else things or f'{thing}s'}"


def build_sections(found: Findings, thumbnails: Thumbnails) -> Iterator[Section]:
    """Yield the sections of a report, in order. Sections that need labels are left out if no image has one."""
    has_labels = len(found.labelled) > 0
    yield _headline(found)
    yield _curves(found)
    if has_labels:
        yield _reliability(found)
        if found.table.multi_label:
            yield _multi_label_classes(found)
            yield _multi_label_mistakes(found, thumbnails)
        else:
            yield _confusion(found, thumbnails)
            yield _classes(found)
            yield _mistakes(found, thumbnails)
            yield _mislabelled(found, thumbnails)
    yield _duplicates(found, thumbnails)
    if has_labels and not found.table.multi_label:
        yield _coverage(found)
    yield _unsure(found, thumbnails)
    yield _map(found)
    yield _about(found)


# ---- photographs ----


def _photo(table: ImageTable, index: int, thumbnails: Thumbnails, lines: Sequence[tuple[str, str]]) -> dict[str, Any]:
    label = _label(table, index)
    return {
        "uri": thumbnails(table.items[index]),
        "alt": f"Photograph labelled {label}" if label else "Photograph without a label",
        "file": _short_name(table.files[index]),
        "lines": [{"text": text, "kind": kind} for text, kind in lines if text],
    }


def _short_name(file: str) -> str:
    """Return the last three parts of a path: split, class and file."""
    return "/".join(shown(file).split(os.sep)[-3:])


def _label(table: ImageTable, index: int) -> str:
    if table.multi_label:
        return "; ".join(name for name, flag in zip(table.class_names, table.labels[index], strict=True) if flag == 1)
    return table.class_names[table.labels[index]] if table.labels[index] >= 0 else ""


def _opinions(table: ImageTable, index: int) -> list[tuple[str, str]]:
    """Return what each head and the teacher predict, as lines under a photograph."""
    lines = []
    for name, probabilities in table.probabilities.items():
        best = int(probabilities[index].argmax())
        lines.append((f"{HEAD_TITLES[name]}: {table.class_names[best]} {percent(probabilities[index, best], 0)}", ""))
    return lines


# ---- headline ----


def _headline(found: Findings) -> Section:
    table, labelled = found.table, found.labelled
    section = Section("headline", "How good is it?")
    seen = f"{counted(len(table))} of the split “{table.split}”"
    if len(table) + len(table.failures) < table.all_images:
        seen += f", out of {number(table.all_images)}: a random sample, because the time for this report is limited"
    section.texts.append(f"The model was run on {seen}.")
    if len(labelled) < len(table):
        section.texts.append(
            f"{number(len(table) - len(labelled))} of them have no label and count in no figure that needs one."
        )
    if table.failures:
        section.texts.append(f"{counted(len(table.failures))} could not be read and are left out.")
    if not len(labelled):
        section.texts.append("No image has a label, so it is not known how often the model is right.")
        section.next = "Label a random sample of a few hundred images, and make the report on them."
        return section
    values = headline(labelled)
    blocks = _multi_label_figures(found, values) if table.multi_label else _single_label_figures(found, values)
    section.blocks.append({"kind": "figures", "figures": blocks})
    low_high = values["interval"]
    if not table.multi_label:
        _say(
            section,
            f"Top-1 accuracy is the share of images whose most probable class is the label. With {counted(len(labelled))}, the true "
            f"accuracy on such images lies between {percent(low_high[0])} and {percent(low_high[1])} in 95 of 100 such cases: "
            "a difference between two models that is smaller than this interval may be chance.",
        )
        section.next = (
            "Compare the figure with that of the most frequent class, which a model reaches without looking at the image"
            + (", and with the teacher, which shows what is possible on these images." if found.has_teacher else ".")
        )
    else:
        _say(
            section,
            "Each class of each image is a decision of its own. Average precision tells how well the scores of a class rank the "
            "images that have it above the others: 100 % is perfect. Chance is the share of images that have the class.",
        )
        section.next = "Look for the classes with a low average precision in the table of classes below."
    return section


def _say(section: Section, text: str) -> None:
    """Add a paragraph after the blocks that a section has."""
    section.blocks.append({"kind": "text", "text": text})


def _single_label_figures(found: Findings, values: Mapping[str, Any]) -> list[dict[str, str]]:
    low, high = values["interval"]
    rows = [_figure("top-1 accuracy", values["accuracy"], f"95 % interval {percent(low)} to {percent(high)}")]
    if found.has_teacher:
        agreement = f"student and teacher agree on {percent(values['agreement'])}"
        rows.append(_figure("teacher", values["teacher_accuracy"], agreement))
    frequent = found.table.class_names[values["majority_class"]]
    rows.append(_figure("most frequent class", values["majority"], f"always answering “{frequent}”"))
    rows.append(_figure("balanced accuracy", values["balanced_accuracy"], "mean over the classes that occur"))
    rows += [
        _figure(HEAD_TITLES[name], values[f"{name}_accuracy"], "top-1 accuracy of this head alone")
        for name in found.table.heads
        if name != PREDICTION
    ]
    if "top5_accuracy" in values:
        rows.append(_figure("top-5 accuracy", values["top5_accuracy"], "label among the 5 most probable classes"))
    return rows


def _multi_label_figures(found: Findings, values: Mapping[str, Any]) -> list[dict[str, str]]:
    interval = values["interval"]
    note = "" if interval is None else f"95 % interval {percent(interval[0])} to {percent(interval[1])}"
    rows = [_figure("mean average precision", values["mean_average_precision"], note)]
    for name in found.table.probabilities:
        if name != PREDICTION:
            rows.append(_figure(HEAD_TITLES[name], values[f"{name}_mean_average_precision"], "mean average precision"))
    rows.append(_figure("chance", values["chance"], "mean average precision of random scores"))
    for average in ("macro", "micro"):
        rows.append(_figure(f"F1, {average}", values.get(f"f1_{average}"), "classes above 50 % count as predicted"))
    return rows


def _figure(title: str, value: float | None, note: str) -> dict[str, str]:
    return {"title": title, "value": percent(value), "note": note}


# ---- training curves ----


def _curves(found: Findings) -> Section:
    section = Section("training", "How did it learn?")
    score = "mean_average_precision" if found.table.multi_label else "accuracy"
    figure = None if not found.log else drawn(figures.training_curves, found.log, score)
    if figure is None:
        section.texts.append("No training log is beside the model, so its training curves are not known.")
        return section
    section.texts.append(
        "Loss is what the training makes small. Each term is drawn by itself: what the class head learns from the labels, and what "
        "is learned from the teacher. Training images are augmented and may be mixed, so their loss can be above that of the "
        "validation images."
    )
    section.blocks.append(
        {"kind": "svg", "svg": as_svg(figure, "curves", "Training curves"), "label": "Training curves"}
    )
    section.next = (
        "If the validation curves still improve at the end, train for more epochs. If they turn back while the training loss falls, "
        "the model learns its training images by heart: use more images, stronger augmentation, or fewer epochs."
    )
    return section


# ---- calibration ----


def _reliability(found: Findings) -> Section:
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
    section.blocks.append(_table("Expected calibration error", ["head", "before", "after", "temperature"], rows))
    if has_after:
        section.next = (
            "Use hf-deit predict --calibrated, if “after” is smaller. The temperature is in calibration.json; above 1 it lowers the "
            "confidence, below 1 it raises it."
        )
    return section


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, Any]:
    return {"kind": "table", "caption": caption, "head": list(head), "rows": [list(row) for row in rows]}


# ---- confusion ----


def _confusion(found: Findings, thumbnails: Thumbnails) -> Section:
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
        "photos": [_photo(table, index, thumbnails, _opinions(table, index)) for index in members[:_PHOTOS_PER_CELL]],
    }


# ---- classes ----


def _classes(found: Findings) -> Section:
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
    section.blocks.append(_table("Precision, recall and F1 of each class", head, cells))
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


def _multi_label_classes(found: Findings) -> Section:
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
    section.blocks.append(_table("Figures of each class, the lowest average precision first", head, cells))
    section.next = (
        "Choose a higher threshold for a class whose false alarms are costly, a lower one if missing it is costly: the curve shows what "
        "each costs. hf-deit predict --threshold sets one threshold for all classes."
    )
    return section


# ---- mistakes ----


def _mistakes(found: Findings, thumbnails: Thumbnails) -> Section:
    table = found.labelled
    wrong = np.flatnonzero(table.predicted() != table.labels)
    worst = wrong[np.argsort(-table.confidence()[wrong], kind="stable")][:_MISTAKES]
    section = Section("mistakes", "Where is it sure and wrong?")
    section.texts.append(
        f"{counted(len(wrong))} of {number(len(table))} are answered wrongly. These are the most confident of them: what the model gets "
        "wrong without a doubt is often a wrong label, an image of two things, or a kind of image that was missing in training."
    )
    if not len(worst):
        section.texts = ["No image is answered wrongly."]
        return section
    photos = [
        _photo(table, index, thumbnails, [(f"label: {_label(table, index)}", "label"), *_opinions(table, index)])
        for index in worst
    ]
    section.blocks.append({"kind": "photos", "title": "", "photos": photos})
    section.next = "Decide for each image who is right, the label or the model. Correct wrong labels first: they also spoil the figures above."
    return section


def _multi_label_mistakes(found: Findings, thumbnails: Thumbnails) -> Section:
    table = found.labelled
    probabilities = table.probabilities[PREDICTION]
    off = np.where(table.labels == 1, 1 - probabilities, probabilities)
    order = np.argsort(-off, axis=None, kind="stable")[:_MISTAKES]
    section = Section("mistakes", "Where is it sure and wrong?")
    section.texts.append(
        "The decisions that are furthest from the label: a class with a low probability that the label has, or the other way round."
    )
    photos = []
    for index, label in zip(*np.unravel_index(order, off.shape), strict=True):
        if off[index, label] <= DECISION:
            continue
        name, has = table.class_names[label], table.labels[index, label] == 1
        lines = [(f"{'has' if has else 'does not have'} the label {name}", "label")]
        lines += [
            (f"{HEAD_TITLES[key]}: {percent(values[index, label], 0)}", "")
            for key, values in table.probabilities.items()
        ]
        photos.append(_photo(table, index, thumbnails, lines))
    if not photos:
        section.texts = ["No decision is wrong."]
        return section
    section.blocks.append({"kind": "photos", "title": "", "photos": photos})
    section.next = "Decide for each image who is right, the label or the model, and correct wrong labels. A missing label is the usual fault of multi-label data."
    return section


# ---- mislabelled ----


def _mislabelled(found: Findings, thumbnails: Thumbnails) -> Section:
    section = Section("mislabelled", "Which labels are probably wrong?")
    who = "student and teacher together" if found.has_teacher else "the student"
    section.texts.append(
        f"Images whose label gets a lower probability from {who} than another class; those with the lowest probability come first."
        + (
            f" “Both sure” marks those for which student and teacher predict the same other class, each with at least {percent(SURE, 0)}."
            if found.has_teacher
            else " A teacher (--teacher) would give a second opinion."
        )
    )
    if len(found.suspects) > 1 and not found.out_of_fold:
        section.texts.append(
            "The model was trained on the training images, so it may have learned their wrong labels: such faults then do not show. "
            "Predictions of models that were not trained on the image (--out_of_fold) find more."
        )
    ranked = sorted((one for ones in found.suspects.values() for one in ones), key=lambda one: one.score)
    if not ranked:
        section.texts.append("No label of these images is suspect.")
        return section
    for split, ones in found.suspects.items():
        if not ones:
            continue
        shown_ones = ones[: _SUSPECTS // len(found.suspects)]
        title = f"{split}: {number(len(ones))} of {counted(len(found.tables[split]))}, {len(shown_ones)} shown"
        photos = [_suspect(found, one, thumbnails) for one in shown_ones]
        section.blocks.append({"kind": "photos", "title": title, "photos": photos})
    name = "mislabelled.csv"
    text = io.StringIO()
    csv.writer(text).writerows(csv_rows(ranked[:_DOWNLOADED], found.table.class_names))
    uri = "data:text/csv;base64," + base64.b64encode(text.getvalue().encode(errors="replace")).decode()
    section.blocks.append({"kind": "download", "name": name, "uri": uri, "text": f"Save this list as {name}"})
    section.next = (
        f"Go through {name} (also beside this file) from the top, correct what is wrong in your data, and stop when most labels turn out "
        "right. Then train again."
    )
    return section


def _suspect(found: Findings, one: Suspect, thumbnails: Thumbnails) -> dict[str, Any]:
    table = found.tables[one.split]
    names = table.class_names
    lines = [
        (f"label: {names[one.label]}", "label"),
        (f"suggested: {names[one.suggested]}" + (" (both sure)" if one.both_sure else ""), "good"),
        (f"student: {names[one.student[1]]}; the label gets {percent(one.student[0], 0)}", ""),
    ]
    if one.teacher is not None:
        lines.append((f"teacher: {names[one.teacher[1]]}; the label gets {percent(one.teacher[0], 0)}", ""))
    return _photo(table, one.index, thumbnails, lines)


# ---- duplicates ----


def _duplicates(found: Findings, thumbnails: Thumbnails) -> Section:
    section = Section("duplicates", "Which photographs are there twice?")
    if found.pairs is None:
        section.texts.append("Near-duplicates were not looked for; the last section says why.")
        return section
    items, files, splits = found.compared
    across = [pair for pair in found.pairs if splits[pair.first] != splits[pair.second]]
    section.texts.append(
        f"{counted(len(items))} were compared: {counted(len(found.pairs), 'pair')} {'shows' if len(found.pairs) == 1 else 'show'} the same photograph, also compressed again, "
        f"resized or slightly cropped, and {number(len(across))} of them {'is' if len(across) == 1 else 'are'} in two splits."
    )
    if across:
        section.texts.append(
            "A photograph that is in the training and in the validation images makes the accuracy look better than it is."
        )
    ordered = [*across, *(pair for pair in found.pairs if pair not in across)][:_PAIRS]
    if ordered:
        section.blocks.append(
            {"kind": "pairs", "pairs": [_pair(pair, items, files, splits, thumbnails) for pair in ordered]}
        )
        section.next = "Keep one image of each pair, or put both into the same split. All pairs are in duplicates.csv beside this file."
    return section


def _pair(
    pair: Pair, items: Sequence[Any], files: Sequence[str], splits: Sequence[str], thumbnails: Thumbnails
) -> dict[str, Any]:
    two = (pair.first, pair.second)
    where = " and ".join(dict.fromkeys(splits[index] for index in two))
    return {
        "title": f"{where}, similarity {percent(pair.similarity, 0)}",
        "photos": [
            {
                "uri": thumbnails(items[index]),
                "alt": f"Photograph of the split {splits[index]}",
                "file": _short_name(files[index]),
                "lines": [{"text": splits[index], "kind": "label"}],
            }
            for index in two
        ],
    }


# ---- unknown ----


def _coverage(found: Findings) -> Section:
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
    section.blocks.append(_table("What a threshold costs and gains", head, rows))
    section.next = (
        "Choose the row that you can live with, and give its threshold: hf-deit predict MODEL IMAGES --threshold 0.8 (with --calibrated, use "
        "the calibrated columns). The threshold was chosen on these images: expect small differences on new ones. Images of "
        "things that are none of the classes can still get a high confidence; that was not measured."
    )
    return section


def _unsure(found: Findings, thumbnails: Thumbnails) -> Section:
    table = found.table
    values = table.probabilities[PREDICTION]
    opinions = [values] if TEACHER not in table.probabilities else [values, table.probabilities[TEACHER]]
    if table.multi_label:
        sureness = np.mean([np.abs(one - DECISION).mean(axis=1) for one in opinions], axis=0)
    else:
        sureness = np.mean([one.max(axis=1) for one in opinions], axis=0)
    order = np.argsort(sureness, kind="stable")[:_UNSURE]
    section = Section("unsure", "Which images is nobody sure of?")
    who = "student and teacher are" if len(opinions) > 1 else "the student is"
    section.texts.append(
        f"The images of which {who} least sure, right or wrong. Images without a label are among them."
    )
    photos = []
    for index in order:
        label = _label(table, index)
        lines = [(f"label: {label}" if label else "no label", "label")]
        photos.append(_photo(table, index, thumbnails, [*lines, *_opinions(table, index)]))
    section.blocks.append({"kind": "photos", "title": "", "photos": photos})
    section.next = (
        "If you can label more images, label such ones: the model learns more from them than from images that it knows."
    )
    return section


# ---- map ----


def _map(found: Findings) -> Section:
    table = found.table
    section = Section("map", "How does it see the images?")
    if table.embeddings is None or len(table) < 5:
        section.texts.append(
            "There is no map: the model has no embeddings that are known here, or there are fewer than 5 images."
        )
        return section
    chosen = np.linspace(0, len(table) - 1, min(len(table), figures.MOST_MAPPED)).astype(int)
    part = table.rows(np.unique(chosen))
    groups, names = _groups(part)
    wrong = np.zeros(len(part), bool) if part.multi_label else part.labelled & (part.predicted() != part.labels)
    places = figures.embedding_places(part.embeddings)
    figure = drawn(figures.embedding_map, places, groups, names, wrong)
    title = "Map of the images by their embeddings"
    section.texts.append(
        f"Each point is one of {counted(len(part))}; points are close if the model sees the images alike (its class token, brought to two "
        "dimensions by t-SNE). Only neighbourhoods mean something: directions, distances between groups and their sizes do not."
    )
    section.blocks.append({"kind": "svg", "svg": as_svg(figure, "map", title), "label": title})
    section.next = (
        "A point inside the group of another class is worth a look: it is often in the list of probably wrong labels."
    )
    return section


def _groups(table: ImageTable) -> tuple[np.ndarray, list[str]]:
    """Return the group of each image and the names of the groups: its label or, without a label, its prediction."""
    kinds = np.where(table.labelled, table.predicted() if table.multi_label else table.labels, table.predicted())
    counts = np.bincount(kinds, minlength=len(table.class_names))
    largest = sorted(np.argsort(-counts, kind="stable")[:10].tolist())
    groups = np.full(len(table), -1)
    for group, index in enumerate(largest):
        groups[kinds == index] = group
    return groups, [table.class_names[index] for index in largest]


# ---- about ----


def _about(found: Findings) -> Section:
    section = Section("about", "What is this model, and what is not known?")
    facts = found.facts
    run = facts.run
    rows = [["architecture", str((facts.config.get("architectures") or ["unknown"])[0])]]
    rows += [["classes", number(len(found.table.class_names))]]
    size = facts.config.get("image_size")
    rows += [["image size", "unknown" if size is None else f"{size} pixels"]]
    for name, title in (("parameters", "parameters"), ("train_images", "training images"), ("device", "trained on")):
        if run.get(name) is not None:
            rows.append([title, number(run[name]) if isinstance(run[name], int) else str(run[name])])
    if facts.results.get("steps") is not None:
        rows.append(["optimizer steps", number(facts.results["steps"])])
    rows += [[package, str(version)] for package, version in sorted((run.get("versions") or {}).items())]
    section.blocks.append(_table("The model and its run", ["property", "value"], rows))
    if facts.recipe:
        text = yaml.safe_dump(public_recipe(facts.recipe), sort_keys=True, allow_unicode=True)
        section.blocks.append({"kind": "details", "summary": "All fields of the recipe", "text": text})
    else:
        section.blocks.append({"kind": "text", "text": "The recipe of the model is not known."})
    section.blocks.append({"kind": "list", "title": "What is not known", "texts": list(found.notes)})
    return section
