"""Sections of a report that show single photographs: mistakes, probably wrong labels, near-duplicates, and images nobody is sure of."""

import base64
import csv
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from .duplicates import Pair
from .measures import DECISION
from .mislabelled import SURE, ClassSuspect, Suspect, csv_rows, ranked
from .section_parts import Findings, Section, counted, label_of, number, opinion_lines, percent, photo, short_name
from .table import HEAD_TITLES, PREDICTION, TEACHER
from .thumbnails import Thumbnails

_MISTAKES, _SUSPECTS, _UNSURE, _PAIRS = 24, 40, 24, 24
_DOWNLOADED = 2000  # suspects in the file that can be saved from the page


# ---- mistakes ----


def mistakes(found: Findings, thumbnails: Thumbnails) -> Section:
    """Return the section on the most confident mistakes."""
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
        photo(table, index, thumbnails, [(f"label: {label_of(table, index)}", "label"), *opinion_lines(table, index)])
        for index in worst
    ]
    section.blocks.append({"kind": "photos", "title": "", "photos": photos})
    section.next = "Decide for each image who is right, the label or the model. Correct wrong labels first: they also spoil the figures above."
    return section


def multi_label_mistakes(found: Findings, thumbnails: Thumbnails) -> Section:
    """Return the section on the most confident mistakes in multi-label data."""
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
        photos.append(photo(table, index, thumbnails, lines))
    if not photos:
        section.texts = ["No decision is wrong."]
        return section
    section.blocks.append({"kind": "photos", "title": "", "photos": photos})
    section.next = "Decide for each image who is right, the label or the model, and correct wrong labels. A missing label is the usual fault of multi-label data."
    return section


# ---- wrong labels ----


def mislabelled(found: Findings, thumbnails: Thumbnails) -> Section:
    """Return the section on probably wrong labels."""
    section = Section("mislabelled", "Which labels are probably wrong?", texts=[_what_is_suspect(found)])
    if len(found.suspects) > 1 and not found.out_of_fold:
        section.texts.append(
            "The model was trained on the training images, so it may have learned their wrong labels: such faults then do not show. "
            "Predictions of models that were not trained on the image (--out_of_fold) find more."
        )
    multi_label = found.table.multi_label
    order = ranked(found.suspects)
    if not order:
        section.texts.append("No label of these images is suspect.")
        return section
    for split, ones in found.suspects.items():
        if not ones:
            continue
        shown_ones = ones[: _SUSPECTS // len(found.suspects)]
        images = counted(len(found.tables[split]))
        suspect = f"{counted(len(ones), 'label')} of {images}" if multi_label else f"{number(len(ones))} of {images}"
        title = f"{split}: {suspect}, {len(shown_ones)} shown"
        one_photo = _suspect_class if multi_label else _suspect
        photos = [one_photo(found, one, thumbnails) for one in shown_ones]
        section.blocks.append({"kind": "photos", "title": title, "photos": photos})
    name = "mislabelled.csv"
    text = io.StringIO()
    csv.writer(text).writerows(csv_rows(order[:_DOWNLOADED], found.table.class_names, multi_label))
    uri = "data:text/csv;base64," + base64.b64encode(text.getvalue().encode(errors="replace")).decode()
    section.blocks.append({"kind": "download", "name": name, "uri": uri, "text": f"Save this list as {name}"})
    section.next = (
        f"Go through {name} (also beside this file) from the top, correct what is wrong in your data, and stop when most labels turn out "
        "right. Then train again."
    )
    return section


def _what_is_suspect(found: Findings) -> str:
    who = "student and teacher together" if found.has_teacher else "the student"
    if found.table.multi_label:
        text = (
            f"Labels, each of one class of one image, whose opposite is more probable for {who}: a class that is labelled and looks absent, "
            "or one that is not labelled and looks present. Images with the least probable labels come first."
        )
        sure = "those that student and teacher both predict otherwise"
    else:
        text = f"Images whose label gets a lower probability from {who} than another class; those with the lowest probability come first."
        sure = (
            f"those for which student and teacher predict the same other class, each with at least {percent(SURE, 0)}"
        )
    if found.has_teacher:
        return f"{text} “Both sure” marks {sure}."
    return f"{text} A teacher (--teacher) would give a second opinion."


def _suspect_class(found: Findings, one: ClassSuspect, thumbnails: Thumbnails) -> dict[str, Any]:
    table = found.tables[one.split]
    name = table.class_names[one.label]
    suggested = f"probably has no {name}" if one.present else f"probably has {name}"
    opinions = [f"student {percent(one.student, 0)}"]
    opinions += [] if one.teacher is None else [f"teacher {percent(one.teacher, 0)}"]
    lines = [
        (f"labels: {label_of(table, one.index) or 'none of the classes'}", "label"),
        (suggested + (" (both sure)" if one.both_sure else ""), "good"),
        (f"probability of {name}: {', '.join(opinions)}", ""),
    ]
    return photo(table, one.index, thumbnails, lines)


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
    return photo(table, one.index, thumbnails, lines)


# ---- duplicates ----


def duplicates(found: Findings, thumbnails: Thumbnails) -> Section:
    """Return the section on near-duplicates."""
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
                "file": short_name(files[index]),
                "lines": [{"text": splits[index], "kind": "label"}],
            }
            for index in two
        ],
    }


# ---- unsure ----


def unsure(found: Findings, thumbnails: Thumbnails) -> Section:
    """Return the section on the images with the least confidence."""
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
        label = label_of(table, index)
        lines = [(f"label: {label}" if label else "no label", "label")]
        photos.append(photo(table, index, thumbnails, [*lines, *opinion_lines(table, index)]))
    section.blocks.append({"kind": "photos", "title": "", "photos": photos})
    section.next = (
        "If you can label more images, label such ones: the model learns more from them than from images that it knows."
    )
    return section
