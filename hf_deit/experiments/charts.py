"""Chart of an ablation: a dot plot of accuracies, with the mean, its spread and every seed of each row.

Dots, unlike bars, need no axis from zero, so that small differences can be seen without being exaggerated by the length of a bar.
ablation.py computes the figures. matplotlib is optional.
"""

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

_TITLE_WIDTH = 38  # characters of a line of a title
_LINE_HEIGHT, _ROW_HEIGHT = 0.17, 0.3  # inches


def _wrapped(title: str) -> str:
    # matplotlib would read a dollar sign as the start of a formula.
    return textwrap.fill(" ".join(title.split()), _TITLE_WIDTH).replace("$", r"\$")


def draw_accuracies(rows: Mapping[str, Sequence[float]], path: Path) -> None:
    """Draw a row of dots for each title: one for the mean, with its standard deviation, and a small one for each seed.

    A dotted line marks the mean of the first row.

    Args:
        rows: Accuracies of the seeds in percent, at least one for each title.
        path: File of the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    titles = [_wrapped(title) for title in rows]
    lines = sum(max(1, title.count("\n") + 1) for title in titles)
    height = _ROW_HEIGHT * len(titles) + _LINE_HEIGHT * lines + 0.9
    figure, axes = pyplot.subplots(figsize=(7.5, height), dpi=110, layout="constrained")
    places = range(len(titles))
    means = [statistics.fmean(values) for values in rows.values()]
    spreads = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in rows.values()]
    axes.axvline(means[0], color="#999999", linestyle=":", linewidth=1, zorder=0)
    for place, values in zip(places, rows.values(), strict=True):
        axes.plot(values, [place + 0.22] * len(values), "o", color="#5577aa", alpha=0.6, markersize=4)
    several = [place for place, values in zip(places, rows.values(), strict=True) if len(values) > 1]
    axes.errorbar(
        [means[place] for place in several],
        several,
        xerr=[spreads[place] for place in several],
        fmt="none",
        ecolor="#223355",
        capsize=3,
    )
    axes.plot(means, places, "o", color="#223355", markersize=7)
    axes.set_yticks(places, titles)
    axes.set_ylim(len(titles) - 0.5, -0.5)
    axes.margins(x=0.06)
    axes.grid(axis="y", color="#eeeeee")
    axes.set_axisbelow(True)
    # Centred in the figure: beside long titles, the axes are narrower than this text.
    text = "top-1 on the validation images, %\n(dark: mean ± standard deviation; light: seeds; dotted: first row)"
    figure.supxlabel(text, fontsize="medium")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.savefig(path)
    pyplot.close(figure)
