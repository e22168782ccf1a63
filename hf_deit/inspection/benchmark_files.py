"""The folder that `hf-deit benchmark` writes: a page in Markdown, the numbers as JSON, and the figure. Also the cells of its tables.

A folder is written completely or not at all. benchmark_figure.py draws the figure.
"""

from collections.abc import Sequence
from pathlib import Path

from ..files import new_folder, staged_folder, write_json
from ..trainer.environment import require_packages
from .benchmark_models import significant
from .benchmark_result import BenchmarkModel, BenchmarkResult, BenchmarkRow, TokenCost, threads_text
from .benchmark_timing import CALLS_OF_P95

PAGE, NUMBERS, PNG, SVG = "benchmark.md", "benchmark.json", "benchmark.png", "benchmark.svg"
_MISSING = "–"
SAVED_TITLE = "Trained models"
PUBLISHED_TITLE = "Published architectures"


def check_out(out: str) -> Path:
    """Check that the figure can be drawn and the folder be written, before anything is measured.

    Raises:
        UserError: matplotlib is not installed, or `out` is neither new nor an empty folder.
    """
    require_packages("The figure", {"matplotlib": "matplotlib"})
    return new_folder(out)


def write_benchmark(target: Path, result: BenchmarkResult) -> None:
    """Write the page, the numbers and the figure.

    Args:
        target: A new or empty folder.
        result: The result.
    """
    from .benchmark_figure import draw_benchmark

    with staged_folder(target) as staging:
        (staging / PAGE).write_text(markdown(result), encoding="utf-8")
        write_json(staging / NUMBERS, result.to_dict())
        draw_benchmark(result, staging / PNG, staging / SVG)


# ---- cells ----

ROW_HEAD = ("model", "run", "dtype", "batch", "images/s", "range", "p50 ms", "p95 ms", "peak MB")


def row_cells(row: BenchmarkRow) -> list[str]:
    """Return the cells of a configuration under `ROW_HEAD`. If it could not be run, the numbers are missing."""
    cells = [row.model, row.backend, row.dtype, str(row.batch_size)]
    if row.problem is not None:
        return [*cells, "not run", *[_MISSING] * 4]
    rates = row.images_per_second_rounds
    p95, peak = row.latency_ms_p95, row.peak_memory_bytes
    return [
        *cells,
        significant(row.images_per_second),
        f"{significant(min(rates))} to {significant(max(rates))}",
        significant(row.latency_ms_p50),
        _MISSING if p95 is None else significant(p95),
        _MISSING if peak is None else significant(peak / 1e6),
    ]


MODEL_HEAD = ("model", "kind", "pixels", "parameters", "GFLOPs")


def model_cells(model: BenchmarkModel) -> list[str]:
    """Return the cells of a model under `MODEL_HEAD` and `accuracy_head`."""
    height, width = model.image_size
    pixels = str(width) if width == height else f"{width} × {height}"
    return [model.name, model.kind, pixels, f"{model.parameters:,}", significant(model.gflops), accuracy_cell(model)]


def accuracy_head(models: Sequence[BenchmarkModel]) -> str:
    """Return the title of the column of accuracies of saved models or of architectures of the paper."""
    if any(model.paper for model in models):
        return "ImageNet top-1 of the paper, not measured here"
    metrics = {model.accuracy.metric for model in models if model.accuracy is not None}
    return metrics.pop() if len(metrics) == 1 else "accuracy"


def accuracy_cell(model: BenchmarkModel) -> str:
    """Return the accuracy of a model, with its 95 % interval if it was measured."""
    if model.paper is not None:
        return f"{model.paper.top1:.1f} %"
    if model.accuracy is None:
        return "not measured"
    interval = model.accuracy.interval
    ends = "" if interval is None else f" ({interval[0]:.1f} to {interval[1]:.1f})"
    return f"{model.accuracy.percent:.1f} %{ends}"


COST_HEAD = ("plain", "distilled", "run", "dtype", "batch", "parameters", "GFLOPs", "images/s", "range", "accuracy")


def cost_cells(cost: TokenCost) -> list[str]:
    """Return the cells of a comparison under `COST_HEAD`."""
    low, high = cost.throughput_range
    return [
        cost.plain,
        cost.distilled,
        cost.backend,
        cost.dtype,
        str(cost.batch_size),
        f"{cost.parameters:+,}",
        _change(cost.gflops_ratio),
        _change(cost.throughput_ratio),
        f"{_change(low)} to {_change(high)}",
        _MISSING if cost.percent is None else f"{cost.percent:+.1f} points",
    ]


def _change(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"


def problem_lines(result: BenchmarkResult) -> list[str]:
    """Return a line for each reason why configurations could not be run, or their memory not be measured."""
    lines: dict[str, list[str]] = {}
    for row in result.rows:
        if row.problem is not None:
            lines.setdefault(f"Not run: {row.problem}", []).append(row.title)
        if row.memory_problem is not None:
            lines.setdefault(f"Peak memory not measured: {row.memory_problem}", []).append(row.title)
    return [f"{reason} — {'; '.join(titles)}" for reason, titles in lines.items()]


# ---- the page ----


def markdown(result: BenchmarkResult) -> str:
    """Return the page."""
    parts = ["# Benchmark", _machine(result), f"![Accuracy against throughput]({PNG})", _CAPTION]
    for title, models in ((SAVED_TITLE, result.saved), (PUBLISHED_TITLE, result.published)):
        if models:
            names = {model.name for model in models}
            parts += [
                f"## {title}",
                *([] if models[0].path is not None else [_ABOUT_PUBLISHED]),
                _table((*MODEL_HEAD, accuracy_head(models)), [model_cells(model) for model in models], left=2),
                *_heads(models),
                _table(ROW_HEAD, [row_cells(row) for row in result.rows if row.model in names], left=3),
            ]
    if result.token_costs:
        parts += [
            "## What the distillation token costs",
            "Distilled models beside plain ones that differ only in tokens and heads; the change from plain to distilled. "
            "The two are compared round by round.",
            _table(COST_HEAD, [cost_cells(cost) for cost in result.token_costs], left=4),
        ]
    problems = problem_lines(result)
    if problems:
        parts += ["## What could not be measured", "\n".join(f"- {line}" for line in problems)]
    parts += ["## How it was measured", "\n".join(f"- {line}" for line in notes(result))]
    return "\n\n".join(parts) + "\n"


_CAPTION = (
    "Horizontal bars in the figure are the range of the rounds. Vertical bars are 95 % intervals of a measured accuracy: of the images, "
    "not of other trainings."
)
_ABOUT_PUBLISHED = (
    "These networks have random weights: their speed is measured here, and their accuracy is what the paper reports for "
    "ImageNet (Touvron et al., arXiv:2012.12877, Table 3, 300 epochs)."
)


def _machine(result: BenchmarkResult) -> str:
    facts = result.environment
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    return f"Measured on {facts['processor']} ({facts['device']}, {threads_text(result)}); {versions}."


def _heads(models: Sequence[BenchmarkModel]) -> list[str]:
    """Return a sentence for each model with two heads on the accuracy of each head."""
    return [
        f"{model.name}: "
        + ", ".join(
            f"{head.replace('cls', 'class')} head {percent:.1f} %" for head, percent in model.accuracy.heads.items()
        )
        + "."
        for model in models
        if model.accuracy is not None and model.accuracy.heads
    ]


def notes(result: BenchmarkResult) -> list[str]:
    """Return sentences that state how the numbers were measured."""
    facts = result.environment
    load = facts["load_average_at_start"]
    found = [
        f"{facts['rounds']} rounds. In each round every configuration takes its turn, in another order. images/s is the median of the "
        "rounds, and the range is that of the rounds.",
        "Only the model is timed: reading, resizing and normalising the images are not. The pixels are random.",
        f"p50 and p95 are percentiles of the time of a batch in milliseconds. p95 needs {CALLS_OF_P95} batches.",
        "A multiply-add counts as 2 floating-point operations; papers often count it as 1. The patches of the last layer of a plain or distilled "
        "student are not computed and not counted, so half of these GFLOPs is a little below the figures of papers. "
        "Matrix products, convolutions and attention are counted.",
    ]
    if facts["memory"] is not None:
        found.append(f"Peak memory is the {facts['memory']}.")
    if load is not None:
        found.append(
            f"The load average of the machine was {load:.1f} at the start. Times on a busy machine are longer."
        )
    for split, images in sorted(
        {(a.split, a.images) for model in result.saved if (a := model.accuracy) is not None}, key=str
    ):
        count = "" if images is None else f" ({images:,} images)"
        found.append(f"Accuracy is measured in float32 on the split {split!r} of {facts['data']}{count}.")
    return found


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """Return a Markdown table, whose first `left` columns are left-aligned and the others right-aligned."""
    line = ["---" if number < left else "---:" for number in range(len(head))]
    return "\n".join(f"| {' | '.join(_escaped(cell) for cell in cells)} |" for cells in (head, line, *rows))


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")
