"""Figure of a benchmark: accuracy against throughput, as in the paper (Touvron et al., arXiv:2012.12877, Figure 1).

One panel has the models that were read, with their accuracy on the data or, without data, their arithmetic. The other has the
architectures of the paper, with its accuracy on ImageNet.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .benchmark_models import DISTILLED, OTHER, PLAIN
from .benchmark_result import BenchmarkModel, BenchmarkResult, BenchmarkRow, threads_text
from .style import SERIES, as_png, as_svg_file, drawn, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TITLE = "Accuracy against throughput of image classifiers"
_MARKS = {
    PLAIN: {"color": SERIES[0], "marker": "o"},
    DISTILLED: {"color": SERIES[1], "marker": "s"},
    OTHER: {"color": SERIES[6], "marker": "D"},
}
_LABELS = {PLAIN: "plain (class token)", DISTILLED: "distilled (two tokens)", OTHER: "other models"}


def draw_benchmark(result: BenchmarkResult, png: Path, svg: Path) -> None:
    """Write the figure as PNG and SVG."""
    png.write_bytes(as_png(drawn(_figure, result), dpi=130))
    svg.write_text(as_svg_file(drawn(_figure, result), _TITLE), encoding="utf-8")


def _figure(result: BenchmarkResult) -> "Figure":
    panels = [models for models in (result.saved, result.published) if models]
    figure = new_figure(6.2 * len(panels), 4.4)
    rows = {row.model: row for row in result.rows if row.setting == result.shown_setting and row.problem is None}
    for axes, models in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw_panel(axes, models, rows, result)
    return figure


def _draw_panel(
    axes: Any, models: Sequence[BenchmarkModel], rows: dict[str, BenchmarkRow], result: BenchmarkResult
) -> None:
    published = models[0].path is None
    points = [
        (model, rows[model.name], height)
        for model in models
        if model.name in rows and (height := _height(model)) is not None
    ]
    for kind in (PLAIN, DISTILLED, OTHER):
        chosen = [point for point in points if point[0].kind == kind]
        if chosen:
            _draw_kind(axes, kind, chosen, joined=published)
    backend, dtype, batch = result.shown_setting
    axes.set_xlabel(f"images per second ({backend}, {dtype}, batch {batch}, {threads_text(result)})")
    if published:
        axes.set_title("Published architectures: speed measured here, accuracy the paper's")
        axes.set_ylabel("ImageNet top-1 of the paper, %")
    else:
        axes.set_title(
            "Trained models: speed and accuracy measured here" if _measured(models) else "Models: speed and arithmetic"
        )
        axes.set_ylabel(_measured(models) or "GFLOPs per image (a multiply-add is 2)")
    tidy(axes, grid="both")
    if points:
        _scale(axes, points)
        axes.legend(loc="lower left" if _measured(models) or published else "upper right", fontsize=8)
    missing = [model.name for model in models if model.name not in {point[0].name for point in points}]
    if missing:
        axes.annotate(
            f"not shown, because not run like this: {', '.join(missing)}",
            (0.02, 0.02),
            xycoords="axes fraction",
            fontsize=7,
        )


def _measured(models: Sequence[BenchmarkModel]) -> str | None:
    """Return the title of the accuracy; None if no accuracy was measured."""
    metrics = {model.accuracy.metric for model in models if model.accuracy is not None}
    return f"{' or '.join(sorted(metrics))} on the data, %" if metrics else None


def _height(model: BenchmarkModel) -> float | None:
    if model.paper is not None:
        return model.paper.top1
    return model.gflops if model.accuracy is None else model.accuracy.percent


def _draw_kind(
    axes: Any, kind: str, points: Sequence[tuple[BenchmarkModel, BenchmarkRow, float]], joined: bool
) -> None:
    points = sorted(points, key=lambda point: point[1].images_per_second)
    across, up = [row.images_per_second for _, row, _ in points], [height for *_, height in points]
    spread = [
        [row.images_per_second - min(row.images_per_second_rounds) for _, row, _ in points],
        [max(row.images_per_second_rounds) - row.images_per_second for _, row, _ in points],
    ]
    intervals = [model.accuracy.interval if model.accuracy is not None else None for model, *_ in points]
    ends = [(height, height) if ends is None else ends for ends, height in zip(intervals, up, strict=True)]
    above = [[height - low for (low, _), height in zip(ends, up, strict=True)]]
    above.append([high - height for (_, high), height in zip(ends, up, strict=True)])
    axes.errorbar(
        across,
        up,
        xerr=spread,
        yerr=above if any(intervals) else None,
        linestyle="-" if joined else "none",
        linewidth=1.4,
        elinewidth=1.0,
        markersize=7,
        label=_LABELS[kind],
        **_MARKS[kind],
    )
    for model, row, height in points:
        axes.annotate(
            model.name.removesuffix(" distilled") if joined else model.name,
            (row.images_per_second, height),
            (-7, -13) if kind == PLAIN else (7, 6),  # away from the line, which falls to the right
            textcoords="offset points",
            horizontalalignment="right" if kind == PLAIN else "left",
            color=_MARKS[kind]["color"],
            fontsize=8,
        )


def _scale(axes: Any, points: Sequence[tuple[BenchmarkModel, BenchmarkRow, float]]) -> None:
    """Choose the scale of the throughput: logarithmic over a wide range, with room for the names on both sides."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    rates = [rate for _, row, _ in points for rate in row.images_per_second_rounds]
    low, high = min(rates), max(rates)
    if high > 4 * low:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.6, high * 1.6)
        steps = [digit * 10.0**power for power in range(-3, 7) for digit in (1, 2, 5)]
        axes.xaxis.set_major_locator(FixedLocator([step for step in steps if low / 1.6 <= step <= high * 1.6]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    else:
        room = max(high - low, 0.1 * high)
        axes.set_xlim(max(0, low - 0.5 * room), high + 0.5 * room)
    axes.margins(y=0.15)
