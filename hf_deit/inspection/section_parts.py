"""Parts of the sections of a report: what a section is, what the sections are made of, and texts, tables and photographs."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..hub.facts import RunSummary
from ..recipes.predict import shown
from .calibration import Calibration
from .duplicates import Pair
from .mislabelled import ClassSuspect, Suspect
from .table import HEAD_TITLES, TEACHER, ImageTable
from .thumbnails import Thumbnails
from .token_layers import TokenLayers


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
        suspects: Probably mislabelled images, or for multi-label data classes of images, by their split.
        tables: The table of each split.
        pairs: Near-duplicates; None if they were not looked for.
        compared: The items, the files and the splits of the images that the indices of `pairs` mean.
        facts: Files of the model's run.
        log: Log of its training, or None.
        notes: What is not known or was left out, as sentences.
        out_of_fold: Whether predictions of models that were not trained on the image took the place of those of the student.
        tokens: Cosine of both tokens, layer by layer; None if it was not measured.
        teacher: What the opinions of a cached teacher are, as sentences; empty for a teacher that was run, and for none.
    """

    table: ImageTable
    labelled: ImageTable
    calibration: Mapping[str, Calibration]
    suspects: Mapping[str, Sequence[Suspect | ClassSuspect]]
    tables: Mapping[str, ImageTable]
    pairs: Sequence[Pair] | None
    compared: tuple[Sequence[Any], Sequence[str], Sequence[str]]
    facts: RunSummary
    log: Sequence[Mapping[str, Any]] | None
    notes: Sequence[str]
    out_of_fold: bool = False
    tokens: TokenLayers | None = None
    teacher: str = ""

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


def say(section: Section, text: str) -> None:
    """Add a paragraph after the blocks that a section has."""
    section.blocks.append({"kind": "text", "text": text})


def table_block(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return the block of a table."""
    return {"kind": "table", "caption": caption, "head": list(head), "rows": [list(row) for row in rows]}


def photo(table: ImageTable, index: int, thumbnails: Thumbnails, lines: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return a photograph with its lines of text, each with a kind that decides its colour."""
    label = label_of(table, index)
    return {
        "uri": thumbnails(table.items[index]),
        "alt": f"Photograph labelled {label}" if label else "Photograph without a label",
        "file": short_name(table.files[index]),
        "lines": [{"text": text, "kind": kind} for text, kind in lines if text],
    }


def short_name(file: str) -> str:
    """Return the last three parts of a path: split, class and file."""
    return "/".join(shown(file).split(os.sep)[-3:])


def label_of(table: ImageTable, index: int) -> str:
    """Return the label of an image as text; empty if it has none."""
    if table.multi_label:
        return "; ".join(name for name, flag in zip(table.class_names, table.labels[index], strict=True) if flag == 1)
    return table.class_names[table.labels[index]] if table.labels[index] >= 0 else ""


def opinion_lines(table: ImageTable, index: int) -> list[tuple[str, str]]:
    """Return what each head and the teacher predict, as lines under a photograph."""
    lines = []
    for name, probabilities in table.probabilities.items():
        best = int(probabilities[index].argmax())
        lines.append((f"{HEAD_TITLES[name]}: {table.class_names[best]} {percent(probabilities[index, best], 0)}", ""))
    return lines
