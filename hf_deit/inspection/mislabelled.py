"""Probably mislabelled images: the label gets a low probability, from the student and from the teacher.

A model that was trained on a wrong label may have learned it. The teacher sees the image with other eyes, and a table of predictions of
models that were not trained on the image (out-of-fold) is better still. The score is the self-confidence of confident learning
(Northcutt, Jiang and Chuang, arXiv:1911.00068): the probability of the given label. On planted faults it ranks wrong labels higher than
its difference to the most probable class does (benchmarks/planted_faults.py).

In multi-label data each class of an image is a label of its own, present or absent. Its self-confidence is the probability of what the
label states, and the score of an image is the exponential moving average of those of its classes, from the highest to the lowest
(Thyagarajan et al., arXiv:2211.13895, with their α of 0.8), so that one wrong class is enough.
"""

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import DataError
from .table import PREDICTION, TEACHER, ImageTable

# Both models are sure of the same other class: their probabilities of it are at least this.
SURE = 0.5
# Weight of the next lower self-confidence in the score of a multi-label image.
EMA_WEIGHT = 0.8
CLASS_CSV_COLUMNS = (
    "rank",
    "file",
    "split",
    "class",
    "label",
    "suggested",
    "score",
    "image_score",
    "both_sure",
    "student_p",
    "teacher_p",
)
CSV_COLUMNS = (
    "rank",
    "file",
    "split",
    "label",
    "suggested",
    "score",
    "both_sure",
    "student_p_label",
    "student_prediction",
    "teacher_p_label",
    "teacher_prediction",
)


@dataclass(frozen=True)
class Suspect:
    """An image whose label may be wrong.

    Args:
        index: Index of the image in its table.
        file: Name of the image.
        split: Split of the image.
        label: Index of its label.
        suggested: Index of the class that is most probable for the models together; never the label.
        score: Probability of the label in [0, 1], mean of the models; the lower, the more suspect.
        both_sure: Whether student and teacher predict the same class with a probability of at least 0.5 and the label is another.
        student: Probability of the label and predicted class of the student (or of the models of the folds).
        teacher: The same of the teacher, or None.
        student_p_suggested: Probability of the suggested class from the student (or from the models of the folds).
        teacher_p_suggested: The same of the teacher, or None.
    """

    index: int
    file: str
    split: str
    label: int
    suggested: int
    score: float
    both_sure: bool
    student: tuple[float, int]
    teacher: tuple[float, int] | None
    student_p_suggested: float
    teacher_p_suggested: float | None


@dataclass(frozen=True)
class ClassSuspect:
    """A class of a multi-label image that is labelled as present or absent, which may be wrong.

    Args:
        index: Index of the image in its table.
        file: Name of the image.
        split: Split of the image.
        label: Index of the class.
        present: Whether the label states that the image has the class.
        score: Probability of what the label states in [0, 1], mean of the models; below 0.5.
        image_score: Score of the image over all its classes, see `image_scores`.
        both_sure: Whether student and teacher both give what the label states less than 0.5.
        student: Probability of the class from the student (or from the models of the folds).
        teacher: The same of the teacher, or None.
    """

    index: int
    file: str
    split: str
    label: int
    present: bool
    score: float
    image_score: float
    both_sure: bool
    student: float
    teacher: float | None


def suspects(table: ImageTable, out_of_fold: dict[str, np.ndarray] | None = None) -> list[Suspect]:
    """Return the labelled images of a single-label table, the most suspect first; those whose label is the best guess are left out.

    Args:
        table: Predictions of student and, if there is one, teacher.
        out_of_fold: Probabilities `(classes,)` by file, of models that were not trained on the image. They replace those of the
            student.
    """
    chosen, student = np.flatnonzero(table.labelled), _student(table, out_of_fold)
    teacher = table.probabilities.get(TEACHER)
    together = student if teacher is None else (student + teacher) / 2
    found = []
    for index in chosen:
        label, row = int(table.labels[index]), together[index]
        others = row.copy()
        others[label] = -1
        suggested = int(others.argmax())
        if row[label] >= row[suggested]:
            continue
        own = (float(student[index, label]), int(student[index].argmax()))
        other = None if teacher is None else (float(teacher[index, label]), int(teacher[index].argmax()))
        both_sure = (
            other is not None
            and own[1] == other[1] != label
            and min(student[index, own[1]], teacher[index, own[1]]) >= SURE
        )
        found.append(
            Suspect(
                index=int(index),
                file=table.files[index],
                split=table.split,
                label=label,
                suggested=suggested,
                score=float(row[label]),
                both_sure=bool(both_sure),
                student=own,
                teacher=other,
                student_p_suggested=float(student[index, suggested]),
                teacher_p_suggested=None if teacher is None else float(teacher[index, suggested]),
            )
        )
    return sorted(found, key=lambda one: (one.score, one.index))


def _student(table: ImageTable, out_of_fold: dict[str, np.ndarray] | None) -> np.ndarray:
    """Return the probabilities of the student `(images, classes)`, or those of the models of the folds where they are known."""
    student = table.probabilities[PREDICTION].copy()
    for index in np.flatnonzero(table.labelled) if out_of_fold else ():
        known = out_of_fold.get(file_key(table.files[index]))
        if known is not None:
            student[index] = known
    return student


def image_scores(confidences: np.ndarray) -> np.ndarray:
    """Return the score of each multi-label image `(images,)`: low if one of its labels is improbable.

    Args:
        confidences: Probability of what the label states, `(images, classes)`.
    """
    ordered = -np.sort(-confidences, axis=1)
    scores = ordered[:, 0].copy()
    for column in ordered.T[1:]:
        scores = EMA_WEIGHT * column + (1 - EMA_WEIGHT) * scores
    return scores


def class_suspects(table: ImageTable, out_of_fold: dict[str, np.ndarray] | None = None) -> list[ClassSuspect]:
    """Return the improbable labels of a multi-label table, by image, the most suspect image first, and in it the most suspect class.

    Args:
        table: Predictions of student and, if there is one, teacher.
        out_of_fold: As for `suspects`.
    """
    chosen = np.flatnonzero(table.labelled)
    student, teacher = _student(table, out_of_fold)[chosen], table.probabilities.get(TEACHER)
    teacher = None if teacher is None else teacher[chosen]
    present = table.labels[chosen] == 1

    def stated(probabilities: np.ndarray) -> np.ndarray:
        return np.where(present, probabilities, 1 - probabilities)

    together = stated(student if teacher is None else (student + teacher) / 2)
    scores = image_scores(together)
    # Both give the label less than a half, so that both predict the opposite with more than that.
    both = np.zeros_like(present) if teacher is None else np.maximum(stated(student), stated(teacher)) < 1 - SURE
    found = [
        ClassSuspect(
            index=int(chosen[row]),
            file=table.files[chosen[row]],
            split=table.split,
            label=int(label),
            present=bool(present[row, label]),
            score=float(together[row, label]),
            image_score=float(scores[row]),
            both_sure=bool(both[row, label]),
            student=float(student[row, label]),
            teacher=None if teacher is None else float(teacher[row, label]),
        )
        for row, label in np.argwhere(together < 0.5)
    ]
    return sorted(found, key=lambda one: (one.image_score, one.index, one.score, one.label))


def file_key(file: str) -> str:
    """Return the name by which the same image is found in two tables: the absolute path of a file that exists."""
    return os.path.abspath(file) if os.path.exists(file) else file


def read_out_of_fold(path: str, columns: Sequence[str]) -> dict[str, np.ndarray]:
    """Read a table that `hf-deit predict` wrote, as CSV or parquet, or several such tables in one file.

    Args:
        path: The file.
        columns: Columns of the probabilities, in index order.

    Returns:
        Probabilities `(classes,)` in index order, by `file_key`.

    Raises:
        DataError: The file does not exist, or has no column of a class.
    """
    if not Path(path).is_file():
        raise DataError(f"out_of_fold={path!r}: there is no such file. Give a table that hf-deit predict wrote.")
    rows = _rows(path, ["file", *columns])
    try:
        return {file_key(row["file"]): np.asarray([float(row[column]) for column in columns]) for row in rows}
    except (ValueError, TypeError) as error:
        raise DataError(f"out_of_fold={path!r} has a probability that is no number: {error}.") from error


def _rows(path: str, columns: Sequence[str]) -> list[dict[str, str]]:
    try:
        if Path(path).suffix.lower() == ".parquet":
            from pyarrow.parquet import read_table

            table = read_table(path)
            names, rows = table.column_names, table.to_pylist()
        else:
            with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
                reader = csv.DictReader(file)
                names, rows = list(reader.fieldnames or ()), list(reader)
    except (ValueError, OSError) as error:
        raise DataError(f"out_of_fold={path!r} cannot be read: {error}.") from error
    missing = [column for column in columns if column not in names]
    if missing:
        raise DataError(
            f"out_of_fold={path!r} has no column {', '.join(map(repr, missing[:3]))}. It must be a table that hf-deit predict wrote "
            "with a model of the same classes."
        )
    return rows


def ranked(found: Mapping[str, Sequence[Suspect | ClassSuspect]]) -> list[Suspect | ClassSuspect]:
    """Return the suspects of several splits, the most suspect first.

    Args:
        found: Suspects of each split, as `suspects` or `class_suspects` returns them.
    """
    together = [one for ones in found.values() for one in ones]
    return sorted(together, key=lambda one: one.image_score if isinstance(one, ClassSuspect) else one.score)


def csv_rows(found: Sequence[Suspect | ClassSuspect], class_names: Sequence[str], multi_label: bool) -> list[list[str]]:
    """Return the header and the rows of the CSV file of suspects, the most suspect first.

    Args:
        found: As `ranked` returns them.
        class_names: Names of the classes.
        multi_label: Whether they are of multi-label data: the file then has one row for each suspect class of an image.
    """
    return _class_csv_rows(found, class_names) if multi_label else _image_csv_rows(found, class_names)


def _image_csv_rows(found: Sequence[Suspect], class_names: Sequence[str]) -> list[list[str]]:
    rows = [list(CSV_COLUMNS)]
    for rank, one in enumerate(found, start=1):
        teacher = ["", ""] if one.teacher is None else [repr(one.teacher[0]), class_names[one.teacher[1]]]
        rows.append(
            [
                str(rank),
                one.file,
                one.split,
                class_names[one.label],
                class_names[one.suggested],
                repr(one.score),
                str(one.both_sure).lower(),
                repr(one.student[0]),
                class_names[one.student[1]],
                *teacher,
            ]
        )
    return rows


def _class_csv_rows(found: Sequence[ClassSuspect], class_names: Sequence[str]) -> list[list[str]]:
    words = ("absent", "present")
    return [
        list(CLASS_CSV_COLUMNS),
        *(
            [
                str(rank),
                one.file,
                one.split,
                class_names[one.label],
                words[one.present],
                words[not one.present],
                repr(one.score),
                repr(one.image_score),
                str(one.both_sure).lower(),
                repr(one.student),
                "" if one.teacher is None else repr(one.teacher),
            ]
            for rank, one in enumerate(found, start=1)
        ),
    ]
