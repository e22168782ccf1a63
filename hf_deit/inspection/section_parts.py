"""Parts of the sections of a report: what a section is, what the sections are made of, and texts, tables, charts and photographs.

In texts, what is between backticks is code, see page_text.py.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..hub.facts import RunSummary
from ..recipes.predict import shown
from .calibration import Calibration
from .duplicates import Pair
from .mislabelled import ClassSuspect, Suspect
from .style import as_svg, drawn
from .table import HEAD_TITLES, TEACHER, ImageTable
from .thumbnails import Thumbnails
from .token_layers import TokenLayers

_SHORT_NAME = 16  # letters of a class name that stays on one line with its probability


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
class ComparedImages:
    """The images among which near-duplicates were looked for, one entry per image.

    Args:
        items: The images, as a `Source` holds them.
        files: Their names.
        splits: Their splits.
        places: Their indices in the table of their split.
    """

    items: Sequence[Any]
    files: Sequence[str]
    splits: Sequence[str]
    places: Sequence[int]


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
        compared: The images that the indices of `pairs` mean.
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
    compared: ComparedImages
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


def points(value: float) -> str:
    """Return a difference of two shares as text in percentage points, with its sign."""
    text = f"{abs(100 * value):.1f}"
    sign = "" if text == "0.0" else "+" if value > 0 else "\u2212"
    return f"{sign}{text}\u00a0points"


def interval(low_high: tuple[float, float] | None) -> str:
    """Return an interval of a share as text; "–" if it is not known."""
    return "–" if low_high is None else f"{100 * low_high[0]:.1f} to {percent(low_high[1])}"


def point_interval(low_high: tuple[float, float]) -> str:
    """Return an interval of a difference as text."""
    low, high = (points(value).removesuffix("\u00a0points") for value in low_high)
    return f"{low} to {high}\u00a0points"


def beyond_chance(low_high: tuple[float, float]) -> bool:
    """Return whether the interval of a difference does not hold 0."""
    return low_high[0] > 0 or low_high[1] < 0


def listed(names: Sequence[str], most: int = 10) -> str:
    """Return names as text: "a, b and c", or "a, b, c and 5 more"."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {number(len(names) - most)} more"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "none"


def number(value: int) -> str:
    """Return a count with separators of thousands."""
    return f"{value:,}"


def counted(value: int, thing: str = "image", things: str | None = None) -> str:
    """Return a count with the name of what is counted."""
    return f"{number(value)} {thing if value == 1 else things or f'{thing}s'}"


def say(section: Section, text: str) -> None:
    """Add a paragraph after the blocks that a section has."""
    section.blocks.append({"kind": "text", "text": text})


def chart(
    draw: Callable[..., Any], *arguments: Any, name: str, title: str, points: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the block of a chart, drawn once for the width of a page and once for that of a phone.

    Args:
        draw: Function that draws the chart, with the keyword argument `wide`.
        arguments: Its arguments.
        name: Word that begins the ids in the chart.
        title: Text that says what the chart shows.
        points: Texts beside the pointer in the wide chart, see `as_svg`. `draw` then also has the keyword argument `titled`.
    """
    titled = {"titled": True} if points else {}
    wide = as_svg(drawn(draw, *arguments, wide=True, **titled), name, title, points)
    narrow = as_svg(drawn(draw, *arguments, wide=False), f"{name}-narrow", title)
    return {"kind": "chart", "name": name, "wide": wide, "narrow": narrow, "label": title}


def table_block(
    caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], *, text: bool = False
) -> dict[str, Any]:
    """Return the block of a table, whose cells are numbers or `text` of any length."""
    cells = [list(row) for row in rows]
    return {"kind": "table", "caption": caption, "head": list(head), "rows": cells, "text": text}


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


def answer(name: str, share: float) -> str:
    """Return a class and its probability as text that stays on one line if it is short."""
    name = name.replace(" ", "\u00a0") if len(name) <= _SHORT_NAME else name
    return f"{name}\u00a0{percent(share, 0)}"


def opinion_lines(table: ImageTable, index: int) -> list[tuple[str, str]]:
    """Return what each head and the teacher predict, as lines under a photograph.

    Those that predict the same class with the same probability, within a point, share a line.
    """
    groups: list[tuple[list[str], int, float]] = []
    for name, probabilities in table.probabilities.items():
        best = int(probabilities[index].argmax())
        share = float(probabilities[index, best])
        for names, known, first in groups:
            if known == best and abs(round(100 * first) - round(100 * share)) <= 1:
                names.append(name)
                break
        else:
            groups.append(([name], best, share))
    heads = set(table.heads)
    return [(f"{_who(names, heads)}: {answer(table.class_names[best], share)}", "") for names, best, share in groups]


def _who(names: Sequence[str], heads: set[str]) -> str:
    if len(heads) > 1 and heads <= set(names):
        names = ["both heads", *(name for name in names if name not in heads)]
    return listed([HEAD_TITLES.get(name, name) for name in names])
