"""The folder that `hf-deit explain` writes: sheets of maps with `maps.jsonl`, or the figure of the layers with `layers.json`.

A folder is written completely or not at all.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..files import new_folder, staged_folder, write_json
from ..trainer.environment import require_packages
from .explain import Explanation
from .token_layers import TokenLayers

MAPS_FILE, LAYERS_FILE, LAYERS_FIGURE = "maps.jsonl", "layers.json", "layers.png"


def check_out(out: str) -> Path:
    """Check that the pictures can be drawn and their folder be written, before anything is computed.

    Raises:
        UserError: matplotlib is not installed, or `out` is neither new nor an empty folder.
    """
    require_packages("hf-deit explain", {"matplotlib": "matplotlib"})
    return new_folder(out)


@contextlib.contextmanager
def map_files(target: Path) -> Iterator[Callable[[Explanation], None]]:
    """Yield a function that adds the row of an image. The sheets and `maps.jsonl` are in `target` when the block ends.

    Args:
        target: A new or empty folder.
    """
    from .map_sheets import ROWS_PER_SHEET, draw_sheet

    with staged_folder(target) as staging, open(staging / MAPS_FILE, "w", encoding="utf-8") as lines:
        rows: list[Explanation] = []
        sheets = 0

        def flush() -> None:
            nonlocal sheets
            if rows:
                sheets += 1
                draw_sheet(rows, staging / sheet_name(sheets))
                rows.clear()

        def add(explanation: Explanation) -> None:
            rows.append(explanation)
            sheet, row = sheet_name(sheets + 1), len(rows)
            # A file name that is not valid UTF-8 is escaped by JSON.
            lines.write(json.dumps({**_as_json(explanation), "sheet": sheet, "row": row}) + "\n")
            if len(rows) == ROWS_PER_SHEET:
                flush()

        yield add
        flush()


def sheet_name(number: int) -> str:
    """Return the name of a sheet, which are numbered from 1."""
    return f"maps-{number:03d}.png"


def _as_json(explanation: Explanation) -> dict[str, Any]:
    fields = {name: getattr(explanation, name) for name in explanation.__dataclass_fields__ if name != "pixels"}
    height, width = explanation.pixels.shape[:2]
    arrays = {name: value.tolist() for name, value in fields.items() if hasattr(value, "tolist")}
    return {**fields, **arrays, "image_size": [height, width]}


def write_layers(target: Path, layers: TokenLayers) -> None:
    """Write `layers.json` and its figure.

    Args:
        target: A new or empty folder.
        layers: The numbers.
    """
    from .layer_figures import draw_layers

    with staged_folder(target) as staging:
        write_json(staging / LAYERS_FILE, layers.to_dict())
        draw_layers(layers, staging / LAYERS_FIGURE)
