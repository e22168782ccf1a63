"""Probably mislabelled images: the label gets a low probability, from the student and from the teacher.

A model that was trained on a wrong label may have learned it. The teacher sees the image with other eyes, and a table of predictions of
models that were not trained on the image (out-of-fold) is better still. The score is the self-confidence of confident learning
(Northcutt, Jiang and Chuang, arXiv:1911.00068): the probability of the given label. On planted faults it ranks wrong labels higher than
its difference to the most probable class does (benchmarks/planted_faults.py).
"""

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import DataError
from .table import PREDICTION, TEACHER, ImageTable

# Both models are sure of the same other class: their probabilities of it are at least this.
SURE = 0.5
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


def suspects(table: ImageTable, out_of_fold: dict[str, np.ndarray] | None = None) -> list[Suspect]:
    """Return the labelled images of a single-label table, the most suspect first; those whose label is the best guess are left out.

    Args:
        table: Predictions of student and, if there is one, teacher.
        out_of_fold: Probabilities `(classes,)` by file, of models that were not trained on the image. They replace those of the
            student.
    """
    chosen = np.flatnonzero(table.labelled)
    student = table.probabilities[PREDICTION].copy()
    for index in chosen if out_of_fold else ():
        known = out_of_fold.get(file_key(table.files[index]))
        if known is not None:
            student[index] = known
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
                int(index), table.files[index], table.split, label, suggested, float(row[label]), both_sure, own, other
            )
        )
    return sorted(found, key=lambda one: (one.score, one.index))


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


def csv_rows(found: Sequence[Suspect], class_names: Sequence[str]) -> list[list[str]]:
    """Return the header and the rows of the CSV file of suspects, the most suspect first."""
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
