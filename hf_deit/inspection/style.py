"""Colours and forms of all pictures of this package: one palette, matplotlib without its global state, SVG for a page and PNG for a card.

A figure is drawn once. In a page, its colours become CSS variables, so that they follow the light or dark theme of the reader.
"""

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours that people with any usual form of colour blindness can tell apart (Okabe and Ito), darkened for text-sized marks on white.
SERIES = ("#0072b2", "#d55e00", "#00865f", "#b8548f", "#7a6a00", "#3a97c9", "#5b5b5b", "#8a4b1f", "#5a4fcf", "#a3001e")
# The same series on a dark page.
DARK_SERIES = (
    "#56b4e9",
    "#f0884a",
    "#2cc79b",
    "#e59bc6",
    "#e0cf4a",
    "#9ad4f5",
    "#b5b5b5",
    "#d19a6a",
    "#a9a1ff",
    "#ff8a9a",
)
INK, GRID, BACKGROUND = "#1c1c1e", "#d9d9de", "#ffffff"
DARK_INK, DARK_GRID, DARK_BACKGROUND = "#ececf0", "#3c3c42", "#17171a"
# Light to dark, for the cells of a matrix.
RAMP = ("#ffffff", "#d7e6f2", "#9fc5e1", "#5e9fce", "#2378b5", "#0b4f85")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
# The settings hold for one drawing only; matplotlib's own are not changed.
_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "hf_deit",
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "text.parse_math": False,
}


def new_figure(width: float = 6.4, height: float = 4.0) -> "Figure":
    """Return an empty figure of this size in inches, which no global list of matplotlib knows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.14, h_pad=0.06)  # room for letters that are wider in the font of the reader
    return figure


def drawn(draw: Callable[..., "Figure"], *arguments: Any, **named: Any) -> "Figure":
    """Call a function that draws a figure, with the settings of this module."""
    import matplotlib

    with matplotlib.rc_context(_SETTINGS):
        return draw(*arguments, **named)


def tidy(axes: Any, grid: str = "y") -> None:
    """Remove the frame of axes, and draw thin lines for the values of one axis or of "both"."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)


def as_png(figure: "Figure", dpi: int = 110) -> bytes:
    """Return a figure as PNG on a white ground."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with matplotlib.rc_context(_SETTINGS):
        FigureCanvasAgg(figure)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=dpi, facecolor=BACKGROUND, metadata={"Software": None})
        return file.getvalue()


def as_svg_file(figure: "Figure", title: str) -> str:
    """Return a figure as the content of an SVG file on a white ground.

    Args:
        figure: The figure.
        title: Text that says what the figure shows.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    with matplotlib.rc_context(_SETTINGS):
        FigureCanvasSVG(figure)
        file = io.StringIO()
        metadata = {"Title": title, "Date": None, "Creator": None}
        figure.savefig(file, format="svg", facecolor=BACKGROUND, metadata=metadata)
    return file.getvalue()


def as_svg(figure: "Figure", name: str, title: str, points: Sequence[str] = ()) -> str:
    """Return a figure as an SVG element for a page.

    Args:
        figure: The figure. It is drawn on a transparent ground.
        name: Word that begins the ids in the element, so that several figures can be in one page.
        title: Text that says what the figure shows, for readers who do not see it.
        points: Text of each mark whose address is "point:" and its number, which is shown beside the pointer.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    with matplotlib.rc_context(_SETTINGS):
        FigureCanvasSVG(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_a_page(_with_titles(file.getvalue(), points), name, title)


def _with_titles(svg: str, points: Sequence[str]) -> str:
    """Replace the addresses of marks by their texts."""
    if not points:
        return svg

    def titled(match: re.Match) -> str:
        return f"<g><title>{_escaped(points[int(match[1])])}</title>{match[2]}</g>"

    return re.sub(r'<a xlink:href="point:(\d+)"[^>]*>(.*?)</a>', titled, svg, flags=re.S)


def _for_a_page(svg: str, name: str, title: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.S)
    view = re.search(r'viewBox="[^"]*"', svg)[0]
    svg = re.sub(
        r"<svg[^>]*>",
        lambda match: (
            f'<svg xmlns="http://www.w3.org/2000/svg" {view} role="img" aria-labelledby="{name}-title">'
            f'<title id="{name}-title">{_escaped(title)}</title>'
        ),
        svg,
        count=1,
    )
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'<style type="text/css">.*?</style>', "", svg, flags=re.S)  # it would hold for the whole page
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))

    def identity(match: re.Match) -> str:
        return f' id="{name}-{match[1]}"' if match[1] in used else ""

    svg = re.sub(rf' id="((?!{re.escape(name)}-title)[^"]+)"', identity, svg)
    svg = re.sub(r'(href="#|url\(#)([^")]+)', lambda match: f"{match[1]}{name}-{match[2]}", svg)
    svg = re.sub(r"font:\s*([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return re.sub(r"\s*\n\s*", "\n", svg).strip()


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


_VARIABLES = {INK: "ink", GRID: "grid", **{colour: f"s{number}" for number, colour in enumerate(SERIES)}}


def css_variables(dark: bool) -> str:
    """Return the CSS variables of one theme: ink, grid, ground and the series."""
    series = DARK_SERIES if dark else SERIES
    values = {"ink": DARK_INK if dark else INK, "grid": DARK_GRID if dark else GRID}
    values |= {"ground": DARK_BACKGROUND if dark else BACKGROUND}
    values |= {f"s{number}": colour for number, colour in enumerate(series)}
    return " ".join(f"--{name}: {value};" for name, value in values.items())
