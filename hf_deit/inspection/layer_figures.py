"""Figures of the numbers per layer: the cosine of both tokens, and the mean attention distance of each head.

token_layers.py measures the numbers.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .style import INK, SERIES, as_png, drawn, new_figure, tidy
from .token_layers import TokenLayers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MUTED = "#5b5b5b"
_LINE = {"marker": "o", "markersize": 4.5, "linewidth": 1.6}
_PAPER = {"marker": "D", "markersize": 7, "markerfacecolor": "none", "markeredgewidth": 1.6, "linestyle": "none"}
# Marks of the heads of a layer.
_HEAD = {"marker": "o", "linestyle": "none", "markersize": 4.5, "alpha": 0.75}


def draw_layers(layers: TokenLayers, path: Path) -> None:
    """Write the figure of a model as PNG: two panels for a model with two tokens, else one.

    Args:
        layers: The numbers.
        path: File of the picture.
    """
    path.write_bytes(as_png(drawn(_figure, layers), dpi=120))


def cosine_figure(layers: TokenLayers, *, wide: bool = True) -> "Figure":
    """Return the figure of the cosines of a model with two tokens. Draw it with `style.drawn`.

    Args:
        layers: The numbers.
        wide: Whether the figure has the width of a page, and not of a phone.
    """
    figure = new_figure(8.6 if wide else 4.4, 4.1)
    _draw_cosines(figure.subplots(), layers)
    return figure


def _figure(layers: TokenLayers) -> "Figure":
    panels = 1 if layers.cosine is None else 2
    figure = new_figure(5.2 * panels, 3.9)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    if layers.cosine is not None:
        _draw_cosines(axes[0], layers)
    _draw_distances(axes[-1], layers)
    return figure


def _draw_cosines(axes: Any, layers: TokenLayers) -> None:
    count = len(layers.cosine)
    gap = max(1.0, count / 7)  # room for the words below the first and the last mark
    places = [-gap, 0, *range(1, count + 1), count + gap]
    means = [layers.learned_cosine, layers.embeddings_cosine, *layers.cosine, layers.final_cosine[0]]
    spread = [0.0, 0.0, *layers.cosine_std, layers.final_cosine[1]]
    low, high = ([mean + sign * std for mean, std in zip(means, spread, strict=True)] for sign in (-1, 1))
    axes.fill_between(places, low, high, color=SERIES[0], alpha=0.18, linewidth=0)
    axes.plot(places, means, color=SERIES[0], label="this model: mean of the images, ± std", **_LINE)
    paper = layers.paper
    of_paper = ((-gap, paper.learned), (count, paper.last_layer))
    axes.plot(*zip(*of_paper, strict=True), color=SERIES[1], label="the paper on ImageNet, not measured here", **_PAPER)
    for (place, value), offset in zip(of_paper, ((8, 5), (6, -13)), strict=True):
        axes.annotate(f"{value:.2f}", (place, value), offset, textcoords="offset points", color=SERIES[1], fontsize=9)
    axes.set_xticks([-gap, 0, *_numbers(count), count + gap], ["learned", "input", *_numbers(count), "norm"])
    lowest = min(-0.1, min(low) - 0.05)
    axes.set_ylim(lowest, 1.06)
    axes.set_yticks([tick / 5 for tick in range(-5, 6) if tick / 5 > lowest])
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_ylabel("cosine of class and distillation token")
    axes.set_xlabel("after layer")
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), fontsize=9)
    tidy(axes)
    axes.tick_params(labelsize=9)


def _numbers(count: int) -> list[int]:
    step = max(1, round(count / 12))
    return list(range(step, count + 1, step))


def _draw_distances(axes: Any, layers: TokenLayers) -> None:
    heads = layers.attention_distance
    places = range(1, len(heads) + 1)
    for place, values in zip(places, heads, strict=True):
        axes.plot([place] * len(values), values, color=SERIES[2], label="a head" if place == 1 else None, **_HEAD)
    means = [sum(values) / len(values) for values in heads]
    axes.plot(places, means, color=SERIES[2], linewidth=1.6, label="mean of the heads")
    axes.axhline(layers.uniform_distance, color=_MUTED, linewidth=1.2, linestyle=":", label="all patches read alike")
    axes.set_xticks(_numbers(len(heads)))
    axes.set_xlim(0.4, len(heads) + 0.6)
    highest = max(layers.uniform_distance, *(max(values) for values in heads))
    axes.set_ylim(0, 1.3 * highest if highest > 0 else 1)
    height, width = layers.image_size
    axes.set_title(f"Mean attention distance of the patches ({width} × {height} px)")
    axes.set_ylabel("pixels")
    axes.set_xlabel("layer")
    axes.legend(loc="upper left", fontsize=8, ncols=3, columnspacing=1.0, handletextpad=0.5)
    tidy(axes)
    axes.tick_params(labelsize=8)
