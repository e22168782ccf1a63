"""Sections of a report that show single photographs: mistakes, probably wrong labels, near-duplicates, and images nobody is sure of."""

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .duplicates import BYTE_EQUAL, RESIZED, SAVED_AGAIN, Pair, kind_of_copy
from .measures import DECISION
from .mislabelled import SURE, ClassSuspect, Suspect, csv_rows, ranked
from .section_parts import (
    ComparedImages,
    Findings,
    Section,
    counted,
    label_of,
    number,
    opinion_lines,
    percent,
    photo,
    short_name,
)
from .table import HEAD_TITLES, PREDICTION, TEACHER
from .thumbnails import Thumbnails

_MISTAKES, _SUSPECTS, _UNSURE, _PAIRS = 24, 40, 24, 24
_DOWNLOADED = 2000  # suspects in the file that can be saved from the page


# ---- mistakes ----


def mistakes(found: Findings, thumbnails: Thumbnails) -> Section:
    """Return the section on the most confident mistakes."""
    table = found.labelled
    wrong = np.flatnonzero(table.predicted() != table.labels)
    confidence = table.confidence()
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:_MISTAKES]
    section = Section("mistakes", "What are its most confident mistakes?")
    if not len(worst):
        section.texts = ["No image is answered wrongly."]
        return section
    count = "all of them" if len(worst) == len(wrong) else f"the {len(worst)} most confident of them"
    section.texts.append(
        f"{counted(len(wrong))} of {number(len(table))} are answered wrongly; here are {count}, with a confidence from "
        f"{percent(confidence[worst[0]], 0)} down to {percent(confidence[worst[-1]], 0)}. What a model gets wrong with high confidence is "
        "often a wrong label, an image of two things, or a kind of image that was missing in training."
    )
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
    section = Section("mistakes", "What are its most confident mistakes?")
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
            "If the model was trained on these training images, it may have learned their wrong labels: such faults then do not show. "
            "Models that were not trained on the image can show them. That needs several trainings: divide the images into folds, train a model "
            "on all folds but one, and predict the fold that was left out with `hf-deit predict MODEL FOLD --csv fold1.csv`, for each "
            "fold in turn. Put the rows of all tables into one file, and give it to this report: "
            "`hf-deit report MODEL --data DATA --out_of_fold folds.csv --out FOLDER`."
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
    several = sum(bool(ones) for ones in found.suspects.values()) > 1
    where = f"{name} (also beside this file){', which holds the splits together with a column for the split,' if several else ''}"
    section.next = (
        f"Go through {where} from the top, and correct what is wrong in your data. Stop{' in each split' if several else ''} when most labels "
        "turn out right. Then train again."
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
        return f"{text} “Both sure” marks {sure}; suggestions in grey are weaker: one of the two disagrees, or is less sure."
    return f"{text} A teacher (`--teacher`) would give a second opinion."


def _suspect_class(found: Findings, one: ClassSuspect, thumbnails: Thumbnails) -> dict[str, Any]:
    table = found.tables[one.split]
    name = table.class_names[one.label]
    suggested = f"probably has no {name}" if one.present else f"probably has {name}"
    opinions = [f"{_student_word(found)}\u00a0{percent(one.student, 0)}"]
    opinions += [] if one.teacher is None else [f"teacher\u00a0{percent(one.teacher, 0)}"]
    lines = [
        (f"label: {label_of(table, one.index) or 'none of the classes'}", "label"),
        (("both sure: " if one.both_sure else "") + suggested, _strength(found, one)),
        (f"probability of {name}: {', '.join(opinions)}", ""),
    ]
    return photo(table, one.index, thumbnails, lines)


def _suspect(found: Findings, one: Suspect, thumbnails: Thumbnails) -> dict[str, Any]:
    table = found.tables[one.split]
    names = table.class_names
    student, suggested = _student_word(found), names[one.suggested]
    shares = {student: (one.student_p_suggested, one.student[0])}
    if one.teacher is not None and one.teacher_p_suggested is not None:
        shares["teacher"] = (one.teacher_p_suggested, one.teacher[0])
    lines = [
        (f"label: {names[one.label]}", "label"),
        (f"{_who_suggests(one, student)}: {suggested}", _strength(found, one)),
        *opinion_lines(table, one.index),
    ]
    seen = all(opinion is None or opinion[1] == one.suggested for opinion in (one.student, one.teacher))
    if found.out_of_fold or not seen:  # the lines above do not have all probabilities of the suggestion
        lines.append((f"probability of {suggested}: {_shares(shares, 0)}", ""))
    lines.append((f"probability of the label: {_shares(shares, 1)}", ""))
    return photo(table, one.index, thumbnails, lines)


def _shares(shares: Mapping[str, tuple[float, float]], place: int) -> str:
    return ", ".join(f"{who}\u00a0{percent(values[place], 0)}" for who, values in shares.items())


def _student_word(found: Findings) -> str:
    return "folds" if found.out_of_fold else "student"


def _strength(found: Findings, one: Suspect | ClassSuspect) -> str:
    """Return the kind of the line of a suggestion: a weak one is one that a teacher does not share."""
    return "good" if one.both_sure or not found.has_teacher or one.teacher is None else "weak"


def _who_suggests(one: Suspect, student: str) -> str:
    if one.both_sure:
        return "both sure"
    if one.teacher is None:
        return "suggested"
    who = [name for name, opinion in ((student, one.student), ("teacher", one.teacher)) if opinion[1] == one.suggested]
    return "both, but not sure" if len(who) == 2 else f"only the {who[0]}" if who else "on average"


# ---- duplicates ----


def duplicates(found: Findings, thumbnails: Thumbnails) -> Section:
    """Return the section on near-duplicates."""
    section = Section("duplicates", "Which photographs are there twice?")
    if found.pairs is None:
        section.texts.append("Near-duplicates were not looked for; the last section says why.")
        return section
    compared = found.compared
    count = len(found.pairs)
    section.texts.append(
        f"{counted(len(compared.items))} were compared, and {counted(count, 'pair') if count else 'no pair'} of them "
        f"{'shows' if count < 2 else 'show'} the same photograph. Copies that are byte-equal, saved again, resized or slightly cropped are found; "
        "mirrored or rotated ones are not."
    )
    if not count:
        return section
    facts = [_PairFacts.of(found, pair) for pair in found.pairs]
    order = sorted(facts, key=lambda one: (not one.contradictory, not one.across))[:_PAIRS]
    section.texts += _what_pairs_are(facts, order)
    if len(order) < count:
        section.texts.append(f"{len(order)} of the {number(count)} pairs are shown.")
    section.blocks.append({"kind": "pairs", "pairs": [_pair(one, compared, thumbnails) for one in order]})
    section.next = _advice_on_pairs(facts)
    return section


@dataclass(frozen=True)
class _PairFacts:
    """A pair of near-duplicates: its labels as text, how the copies differ, and whether they are in two splits."""

    pair: Pair
    labels: tuple[str, str]
    items: tuple[Any, Any]
    across: bool

    @cached_property
    def kind(self) -> str:
        """How the copies differ. Both are read for it, so it is for the pairs that are shown."""
        return kind_of_copy(*self.items)

    @classmethod
    def of(cls, found: Findings, pair: Pair) -> "_PairFacts":
        compared, two = found.compared, (pair.first, pair.second)
        first, second = (compared.splits[index] for index in two)
        labels = [label_of(found.tables[compared.splits[index]], compared.places[index]) for index in two]
        items = (compared.items[pair.first], compared.items[pair.second])
        return cls(pair, (labels[0], labels[1]), items, first != second)

    @property
    def contradictory(self) -> bool:
        """Whether both copies have labels, which differ."""
        return all(self.labels) and self.labels[0] != self.labels[1]


def _what_pairs_are(facts: Sequence[_PairFacts], shown: Sequence[_PairFacts]) -> list[str]:
    """Return what the pairs have in common and where they differ, as sentences; how the copies differ, of the pairs that are shown."""
    texts = []
    contradictory = sum(one.contradictory for one in facts)
    if contradictory:
        texts.append(
            f"Contradictory labels: in {counted(contradictory, 'pair')}, the two copies have different labels, so at least one of "
            "them is wrong or incomplete."
        )
    counts = {kind: sum(one.kind == kind for one in shown) for kind in (BYTE_EQUAL, SAVED_AGAIN, RESIZED)}
    words = {
        BYTE_EQUAL: "have the same bytes",
        SAVED_AGAIN: "have the same size in pixels but other bytes, as if saved again",
        RESIZED: "differ in size, as if resized or cropped",
    }
    known = [(kind, value) for kind, value in counts.items() if value]
    which = " that are shown" if len(shown) < len(facts) else ""
    if len(known) == 1:
        whose = "Its copies" if len(facts) == 1 else f"The copies of all pairs{which}"
        texts.append(f"{whose} {words[known[0][0]]}.")
    else:
        texts.append(
            f"Of the pairs{which}, the copies of "
            + "; of ".join(f"{counted(value, 'pair')} {words[kind]}" for kind, value in known)
            + "."
        )
    across = sum(one.across for one in facts)
    if across:
        texts.append(
            f"{counted(across, 'pair')} {'is' if across == 1 else 'are'} in two splits: if the model is trained on one copy, the other one "
            "makes its accuracy look better than it is."
        )
    elif len(facts) == 1:
        texts.append("Both copies are in the same split.")
    else:
        texts.append("The copies of each pair are in the same split.")
    return texts


def _advice_on_pairs(facts: Sequence[_PairFacts]) -> str:
    texts = []
    if any(one.contradictory for one in facts):
        texts.append("Decide first which label is right where the copies contradict each other.")
    if any(one.across for one in facts):
        texts.append("Of a pair in two splits, use one copy only, or put both into the same split.")
    if any(not one.across for one in facts):
        texts.append(
            "Of a pair in one split, one copy is enough: the second one only makes the photograph count twice."
        )
    return " ".join([*texts, "All pairs are in duplicates.csv beside this file."])


def _pair(one: _PairFacts, compared: ComparedImages, thumbnails: Thumbnails) -> dict[str, Any]:
    splits = [compared.splits[index] for index in (one.pair.first, one.pair.second)]
    where = f"in {splits[0]} and {splits[1]}" if one.across else f"both in {splits[0]}"
    title = f"{one.kind}, {where}, similarity {percent(one.pair.similarity, 0)}"
    photos = []
    for index, label in zip((one.pair.first, one.pair.second), one.labels, strict=True):
        lines = [(f"label: {label}" if label else "no label", "label"), (f"split: {compared.splits[index]}", "")]
        photos.append(
            {
                "uri": thumbnails(compared.items[index]),
                "alt": f"Photograph of the split {compared.splits[index]}",
                "file": short_name(compared.files[index]),
                "lines": [{"text": text, "kind": kind} for text, kind in lines],
            }
        )
    return {"title": ("contradictory labels: " if one.contradictory else "") + title, "photos": photos}


# ---- unsure ----


def unsure(found: Findings, thumbnails: Thumbnails) -> Section:
    """Return the section on the images of which the model, and with a teacher also the teacher, is least sure."""
    table = found.table
    names = [PREDICTION] + ([TEACHER] if TEACHER in table.probabilities else [])
    opinions = [table.probabilities[name] for name in names]
    if table.multi_label:
        sureness = np.max([np.abs(one - DECISION).mean(axis=1) for one in opinions], axis=0)
    else:
        sureness = np.max([one.max(axis=1) for one in opinions], axis=0)
    order = np.argsort(sureness, kind="stable")[:_UNSURE]
    both = len(opinions) > 1
    title = "Of which images are student and teacher least sure?" if both else "Of which images is it least sure?"
    section = Section("unsure", title)
    who = "even the surer one of student and teacher" if both else "the model"
    if table.multi_label:
        section.texts.append(
            f"The {counted(len(order))} for which the probabilities of {who} are nearest to 50 % on average over the classes, right or wrong."
        )
    else:
        section.texts.append(
            f"The {counted(len(order))} for which {who} has the lowest confidence, right or wrong: at most {percent(sureness[order].max(), 0)}."
        )
    photos = []
    for index in order:
        label = label_of(table, index)
        lines = [(f"label: {label}" if label else "no label", "label")]
        photos.append(photo(table, index, thumbnails, [*lines, *opinion_lines(table, index)]))
    section.blocks.append({"kind": "photos", "title": "", "photos": photos})
    section.next = _advice_on_unsure(table.labelled, order)
    return section


def _advice_on_unsure(labelled: np.ndarray, order: np.ndarray) -> str:
    texts = []
    with_label = int(labelled[order].sum())
    if with_label:
        texts.append(
            "Check the labels of these images. Where a label is right, collect more images like it for the training: the model learns more from them "
            "than from images that it knows."
        )
    unlabelled = int((~labelled).sum())
    if unlabelled:
        texts.append(
            f"{counted(unlabelled)} of this split {'has' if unlabelled == 1 else 'have'} no label, {number(len(order) - with_label)} of those shown: "
            "if you can label some, begin with those of which the model is least sure."
        )
    return " ".join(texts)
