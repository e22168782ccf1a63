"""Sheets of maps: one row per image, with its photograph and the maps of each token side by side.

explain.py computes the maps; models/attention_maps.py lays a map over the pixels. A sheet is a PNG with a few rows, so that any number
of images can be drawn with little memory.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..models.attention_maps import (
    LAST_LAYER,
    LEAST_DIFFERENCE,
    METHODS,
    RELEVANCE,
    ROLLOUT,
    draw_maps,
    enlarged,
    largest_difference,
)
from .explain import Explanation
from .style import INK, as_png, drawn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS_PER_SHEET = 8
TITLES = {LAST_LAYER: "attention of the last layer", ROLLOUT: "attention rollout", RELEVANCE: "relevance for"}
# In inches.
_PANEL, _GAP, _GROUP_GAP, _MARGIN = 1.7, 0.06, 0.26, 0.15
_ROW_TITLE, _HEADER, _FOOTER = 0.6, 0.3, 0.4
_MUTED = "#5b5b5b"
_DPI = 120

Group = tuple[str, np.ndarray]


def groups_of(explanation: Explanation) -> list[Group]:
    """Return the title and the maps `(tokens, rows, columns)` of each method and, for the relevance, of each class."""
    groups: list[Group] = []
    for method in METHODS:
        maps = getattr(explanation, method)
        if maps is None:
            continue
        if method != RELEVANCE:
            groups.append((TITLES[method], maps))
            continue
        for name, scores, token_maps in zip(explanation.classes, explanation.token_scores.T, maps, strict=True):
            shown = " / ".join(f"{100 * score:.0f} %" for score in scores)
            groups.append((f"{TITLES[method]} “{_short(name, 20)}” ({shown})", token_maps))
    return groups


def draw_sheet(explanations: Sequence[Explanation], path: Path) -> None:
    """Write a sheet as PNG.

    Args:
        explanations: The images, all by one model with the same methods and the same number of classes; at least one.
        path: File of the picture.
    """
    path.write_bytes(as_png(drawn(_sheet, explanations), dpi=_DPI))


def _sheet(explanations: Sequence[Explanation]) -> "Figure":
    from matplotlib.figure import Figure

    tokens = explanations[0].tokens
    panels = 3 if len(tokens) == 2 else 1
    count = len(groups_of(explanations[0]))
    heights = [_panel_height(explanation) for explanation in explanations]
    width = 2 * _MARGIN + _PANEL + count * (_GROUP_GAP + panels * _PANEL + (panels - 1) * _GAP)
    footer = textwrap.fill(_legend(len(tokens)), int(width * 15))
    foot = _FOOTER + 0.15 * footer.count("\n")
    height = _HEADER + sum(heights) + _ROW_TITLE * len(heights) + foot
    figure = Figure(figsize=(width, height), dpi=_DPI)
    canvas = _Canvas(figure, width, height)
    names = [name.split()[0] for name in tokens] + (["difference"] if panels == 3 else [])
    canvas.text(_MARGIN, 0.2, "seen by the model", color=_MUTED)
    for group in range(count):
        for number, name in enumerate(names):
            left = _left(group, number, panels)
            canvas.text(left, 0.2, f"{name} token" if number < len(tokens) else name, color=_MUTED)
    top = _HEADER
    for explanation, high in zip(explanations, heights, strict=True):
        _row(canvas, explanation, top, high, panels)
        top += high + _ROW_TITLE
    canvas.text(_MARGIN, top + 0.12, footer, color=_MUTED, va="top")
    return figure


class _Canvas:
    """Figure on which pictures and texts are placed in inches from the upper left corner."""

    def __init__(self, figure: "Figure", width: float, height: float):
        self.figure, self.width, self.height = figure, width, height

    def text(self, left: float, top: float, text: str, **style: Any) -> None:
        style = {"fontsize": 7.5, "color": INK, "va": "baseline"} | style
        self.figure.text(left / self.width, 1 - top / self.height, text, **style)

    def picture(self, left: float, top: float, image: Image.Image) -> None:
        # Placed pixel by pixel: nothing is resampled.
        offsets = round(left * _DPI), round((self.height - top) * _DPI) - image.height
        self.figure.figimage(np.asarray(image), *offsets)


def _panel_height(explanation: Explanation) -> float:
    rows, columns = explanation.pixels.shape[:2]
    return _PANEL * min(rows / columns, 2.0)


def _left(group: int, number: int, panels: int) -> float:
    of_group = panels * _PANEL + (panels - 1) * _GAP
    return _MARGIN + _PANEL + _GROUP_GAP + group * (of_group + _GROUP_GAP) + number * (_PANEL + _GAP)


def _row(canvas: _Canvas, explanation: Explanation, top: float, high: float, panels: int) -> None:
    rows, columns = explanation.pixels.shape[:2]
    side = round(max(high, high * columns / rows) * _DPI)
    seen = Image.fromarray(explanation.pixels)
    canvas.text(_MARGIN, top + 0.16, _short(Path(explanation.image).name, 24), weight="bold")
    canvas.text(_MARGIN, top + 0.3, f"{_short(explanation.prediction, 20)} {100 * explanation.score:.0f} %")
    if explanation.label is not None:
        canvas.text(_MARGIN, top + 0.42, f"label: {_short(explanation.label, 20)}", color=_MUTED)
    start = top + 0.5
    canvas.picture(_MARGIN, start, enlarged(seen, side))
    for group, (title, maps) in enumerate(groups_of(explanation)):
        canvas.text(_left(group, 0, panels), top + 0.42, title)
        if len(maps) == 2:
            text = f"{_percent(largest_difference(maps))} of the peak"
            canvas.text(_left(group, 2, panels), top + 0.42, text, color=_MUTED)
        for number, picture in enumerate(draw_maps(seen, maps, side)):
            canvas.picture(_left(group, number, panels), start, picture)


def _percent(share: float) -> str:
    return f"up to {100 * share:.0f} %" if share >= 0.01 else "below 1 %"


def _legend(tokens: int) -> str:
    scale = "Each map sums to 1 over the patches. Dark is the lowest value and pale yellow the highest"
    if tokens == 1:
        return f"{scale}. The percentage behind a class is its probability."
    return (
        f"{scale} of the two maps of a group, which share one scale. Difference: orange where the distillation token reads more, blue "
        "where the class token reads more; the strongest colour is the largest difference, given as a share of the highest value of both "
        f"maps, and at least {100 * LEAST_DIFFERENCE:.0f} %. The percentages behind a class are its probabilities: class head / "
        "distillation head."
    )


def _short(text: str, length: int) -> str:
    text = "".join(character if character.isprintable() else "\ufffd" for character in text)
    return text if len(text) <= length else text[: length - 1] + "…"
