"""``results.png``, and the picture of ``--sizes``."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from bitmaps.report.palette import STYLES
from bitmaps.report.picture import draw, figure_of
from bitmaps.report.quality import Dot, Quality, chart
from bitmaps.vocabulary import RowKind

SHOWN = 750  # pixels: about as wide as a page of documents shows it
GUESSING = math.log(30522)


def dot(label: str, mib: float, score: float, kind: str = "trained", **changes: Any) -> Dot:
    return Dot(label, label, RowKind(kind), mib, score, **changes)


RUN = [
    dot("unbinarized", 86.8, 3.33, "unbinarized", ms=9.1, guessing=GUESSING),
    dot("layers {-1,1} naive", 47.4, 12.2, "naive", ms=9.0, guessing=GUESSING),
    dot("layers {-1,1} trained", 47.7, 3.58, ms=9.4, guessing=GUESSING, spread=0.1),
    dot("layers {-1,1} packed", 48.1, 3.581, "packed", ms=2.0, guessing=GUESSING),
]


def drawn(quality: Quality) -> tuple[Figure, Axes]:
    figure = figure_of(quality)
    FigureCanvasAgg(figure).draw()
    return figure, figure.axes[0]


def notes(axis: Axes) -> list[Annotation]:
    return [text for text in axis.texts if isinstance(text, Annotation)]


def marks(axis: Axes) -> dict[float, Any]:
    """The dots by their sizes in MiB."""
    found = [one for one in axis.collections if isinstance(one, PathCollection)]
    return {float(np.asarray(one.get_offsets())[0, 0]): one for one in found}


def test_a_run_is_drawn_with_its_kinds_times_and_guessing() -> None:
    figure, axis = drawn(chart("cross_entropy", RUN))
    assert {text.get_text() for text in notes(axis)} == {*(one.short for one in RUN), "guessing"}
    colors = {to_hex(one.get_facecolor()[0]) for one in marks(axis).values()}
    assert colors == {STYLES[one.kind].color for one in RUN}
    levels = [line.get_ydata() for line in axis.lines if set(line.get_ydata()) == {GUESSING}]
    assert len(levels) == 1
    (front,) = (line for line in axis.lines if line.get_gid() == "front")
    assert list(front.get_xdata()) == [47.7, 86.8]  # without the naive one, which is smaller
    (legend,) = figure.legends
    said = [text.get_text() for text in legend.get_texts()]
    kinds = ["unbinarized", "naive", "trained", "packed"]
    assert said == [*kinds, "best for their size", "2 ms a sequence", "8 ms a sequence"]


def test_the_area_of_a_dot_grows_with_its_time() -> None:
    dots = [dot(str(ms), 10.0 * (n + 1), 3.0, ms=ms) for n, ms in enumerate((1.0, 5.0, 9.0))]
    _, axis = drawn(chart("cross_entropy", [*dots, dot("untimed", 50, 3.2)]))
    found = marks(axis)
    areas = [found[mib].get_sizes()[0] for mib in (10.0, 20.0, 30.0)]
    assert areas[1] - areas[0] == pytest.approx(areas[2] - areas[1])
    assert areas[0] < areas[2] / 3
    assert to_hex(found[50.0].get_facecolor()[0]) == "#ffffff"  # hollow


def test_nothing_is_said_of_times_that_were_not_measured() -> None:
    figure, axis = drawn(chart("cross_entropy", [dot("a", 10, 3), dot("b", 20, 2)]))
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said == ["trained", "best for their size"]
    assert "guessing" not in {text.get_text() for text in notes(axis)}


@pytest.mark.parametrize(("count", "step"), [(4, 0.7), (30, 0.01)])
def test_labels_cover_neither_each_other_nor_a_dot(count: int, step: float) -> None:
    """What finds no room is left out: first the models that are not the best."""
    dots = [
        dot(f"a long name of model {n}", 47.0 + n % 4, 3.4 + step * n, ms=9.0, guessing=GUESSING)
        for n in range(count)
    ]
    quality = chart("cross_entropy", [*dots, dot("best", 3.0, 3.3, "packed", ms=1.0)])
    _, axis = drawn(quality)
    boxes = [text.get_window_extent() for text in notes(axis)]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    frame = axis.get_window_extent()
    assert all(frame.contains(*corner) for box in boxes for corner in (box.min, box.max))
    centers = axis.transData.transform([(one.mib, one.score) for one in quality.dots])
    assert not any(box.contains(x, y) for box in boxes for x, y in centers)
    said = {text.get_text() for text in notes(axis)}
    assert {one.short for one in quality.front} <= said
    if count == 4:
        assert said == {*(one.short for one in quality.dots), "guessing"}
    else:
        assert 3 < len(said) < count


def test_texts_are_large_enough_to_be_read() -> None:
    figure, axis = drawn(chart("cross_entropy", RUN))
    factor = SHOWN / figure.get_figwidth() / 72  # from points to pixels
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text()]
    assert len(texts) > 12
    assert min(text.get_fontsize() for text in texts) * factor >= 12
    ticks = [text.get_text() for text in axis.get_xticklabels()]
    assert ticks == ["50", "60", "70", "80", "90"]


def test_the_file_is_a_picture_that_takes_names_for_text(tmp_path: Path) -> None:
    draw(chart("accuracy", [dot("$\\frac{$\x1b", 3, 0.4), dot("é", 2, 0.5)]), tmp_path / "a.png")
    picture = matplotlib.image.imread(tmp_path / "a.png")
    assert picture.shape[1] == 2 * SHOWN
    assert picture[..., :3].std() > 0.05
