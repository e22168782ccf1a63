"""The chart of an ablation: every seed is a dot, and no text is cut off."""

import statistics

import pytest
from matplotlib import pyplot

from hf_deit.experiments.charts import draw_accuracies

LONG = "soft distillation on the class token with all photographs, at a price of $5, and with a title of many words"
ROWS = {
    "plain": {"no teacher": [46.3, 45.1, 47.8], "soft": [49.0]},
    "long titles": {LONG: [63.5, 67.6], "x" * 200: [100.0, 99.0], "two\nlines": [0.0, 0.0]},
    "one row": {"alone": [50.0]},
    "many rows": {f"row {number}": [number / 2, number] for number in range(40)},
}


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Function that draws rows and returns the figure, which stays open."""

    def draw(rows):
        figures = []
        monkeypatch.setattr(pyplot, "close", figures.append)
        draw_accuracies(rows, tmp_path / "chart.png")
        assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
        return figures[0]

    yield draw
    monkeypatch.undo()
    pyplot.close("all")


@pytest.mark.parametrize("kind", ROWS)
def test_no_text_is_cut_off(drawn, kind):
    figure = drawn(ROWS[kind])
    (axes,) = figure.axes
    left, right = axes.get_xlim()
    ticks = [text for text in axes.get_xticklabels() if left <= text.get_position()[0] <= right]  # others are not drawn
    texts = [*axes.get_yticklabels(), *ticks, figure._supxlabel]
    assert sum(bool(text.get_text()) for text in texts) > len(ROWS[kind])
    width, height = figure.canvas.get_width_height()
    for text in texts:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height, text.get_text()
    boxes = [text.get_window_extent() for text in axes.get_yticklabels()]
    assert all(above.y0 >= below.y1 for above, below in zip(boxes, boxes[1:], strict=False))  # no title covers another


@pytest.mark.parametrize("kind", ROWS)
def test_every_seed_is_a_dot_beside_the_mean_and_the_error_bar_is_the_standard_deviation(drawn, kind):
    (axes,) = drawn(ROWS[kind]).axes
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    *seeds, means = dots
    assert [list(line.get_xdata()) for line in seeds] == list(ROWS[kind].values())
    expected = [sum(values) / len(values) for values in ROWS[kind].values()]
    assert list(means.get_xdata()) == pytest.approx(expected)
    segments = [segment for bars in axes.collections for segment in bars.get_segments()]
    spreads = [statistics.stdev(values) for values in ROWS[kind].values() if len(values) > 1]
    assert [(end[0] - start[0]) / 2 for start, end in segments] == pytest.approx(spreads)
    assert axes.get_xlim()[0] < min(map(min, ROWS[kind].values()))  # no dot lies on the edge
    assert [
        text.get_text().replace("\n", "").replace(r"\$", "$").replace(" ", "") for text in axes.get_yticklabels()
    ] == ["".join(title.split()) for title in ROWS[kind]]
