"""How pictures draw each kind of row: one look for the page and the files.

The colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), which the colour-blind
tell apart. All have a contrast of 3 to a white page and to a dark one: the purple is a little
darker for that, and the light colours are left out. Shapes differ too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bitmaps.vocabulary import RowKind

INK = "#1b1b1f"  # of text on white paper
NEUTRAL = "#808088"  # of lines that are no data, on any page
POINTS = 10  # of text in pictures that documents show about 750 pixels wide


@dataclass(frozen=True)
class Paper:
    """What pictures are drawn on: colours of the page, of text, of quiet text and of the grid."""

    page: str
    ink: str
    quiet: str
    grid: str


LIGHT = Paper("#ffffff", INK, "#55555e", "#e4e4ea")
DARK = Paper("#0d1117", "#f0f0f4", "#b4b4bc", "#2a2f38")  # the page is that of GitHub in the dark


@dataclass(frozen=True)
class Style:
    """How a kind of row is drawn.

    Attributes:
        color: on white paper.
        path: its shape on a page: an SVG path within -1 and 1.
        marker: the same shape for matplotlib.
    """

    color: str
    path: str
    marker: str

    def on(self, paper: Paper) -> str:
        """The colour on this paper."""
        return paper.ink if self.color == INK else self.color

    @property
    def on_page(self) -> str:
        """The colour on a page, whose text is dark or light."""
        return "currentColor" if self.color == INK else self.color


STYLES: Mapping[RowKind, Style] = {
    RowKind.unbinarized: Style(INK, "M-.85-.85H.85V.85H-.85Z", "s"),
    RowKind.naive: Style(
        "#d55e00", "M-1-.6-.6-1 0-.4.6-1 1-.6.4 0 1 .6.6 1 0 .4-.6 1-1 .6-.4 0Z", "X"
    ),
    RowKind.calibrated: Style("#c56fa0", "M0-1.15 1.15 0 0 1.15-1.15 0Z", "D"),
    RowKind.tuned: Style("#8c46f5", "M0 1-1.15-.95H1.15Z", "v"),
    RowKind.trained: Style("#0072b2", "M1 0A1 1 0 1 1-1 0 1 1 0 1 1 1 0Z", "o"),
    RowKind.packed: Style("#009e73", "M0-1 1.15 .95H-1.15Z", "^"),
}
LINES = ("#0072b2", "#d55e00", "#009e73", "#c56fa0", "currentColor")
"""Colours of lines that are no kind of row."""
DASHES = ((1, 0), (6, 3), (2, 2), (8, 3, 2, 3))
"""What tells lines of one colour apart: lengths of strokes and gaps, in pixels."""
