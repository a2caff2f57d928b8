"""Colours and shapes: seen on any page, by anyone. WCAG 2.2 and Machado et al. (2009) are the
references."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bitmaps.bench import picture
from bitmaps.report import palette
from bitmaps.report.palette import DARK, DASHES, LIGHT, LINES, NEUTRAL, STYLES, Paper
from bitmaps.vocabulary import RowKind

Array = NDArray[np.float64]
CSS = (Path(palette.__file__).parent / "page.css").read_text(encoding="utf-8")
NAMES = ("page", "text", "quiet", "link", "bad", "band", "mark", "share")

# from RGB to what a dichromat sees: Machado, Oliveira, Fernandes, IEEE TVCG 15(6), table 1
SEEN = {
    "everyone": np.eye(3),
    "protanopia": np.array([
        [0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ]),
    "deuteranopia": np.array([
        [0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]),
    "tritanopia": np.array([
        [1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ]),
}  # fmt: skip


def scheme(name: str) -> dict[str, str]:
    """The colours of the light or the dark page, as ``page.css`` has them."""
    blocks = re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)
    block = blocks[("light", "dark").index(name)]
    found = {key: re.search(rf"--{key}: (#\w+)", block) for key in NAMES}
    return {key: one[1] for key, one in found.items() if one}


def linear(color: str) -> Array:
    """sRGB to linear RGB."""
    digits = color[1:] if len(color) == 7 else "".join(2 * digit for digit in color[1:])
    encoded = np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)]) / 255
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """WCAG's ratio of relative luminances."""
    low, high = sorted(float(linear(color) @ [0.2126, 0.7152, 0.0722]) for color in (one, other))
    return (high + 0.05) / (low + 0.05)


def lab(rgb: Array) -> Array:
    """Linear RGB to CIE L*a*b* under D65."""
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
         [0.0193339, 0.1191920, 0.9503041]]
    )  # fmt: skip
    xyz = to_xyz @ np.clip(rgb, 0, 1) / [0.95047, 1, 1.08883]
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_the_ratio_is_that_of_the_standard() -> None:
    assert contrast("#000", "#fff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("name", ["light", "dark"])
def test_every_mark_is_seen_on_its_page(name: str) -> None:
    """WCAG 1.4.11 asks for 3."""
    colors = scheme(name)
    assert set(colors) == set(NAMES)
    drawn = [style.on_page for style in STYLES.values()] + [*LINES, NEUTRAL]
    for color in drawn:
        shown = colors["text"] if color == "currentColor" else color
        for ground in ("page", "band"):
            assert contrast(shown, colors[ground]) >= 3, (color, ground)


@pytest.mark.parametrize("name", ["light", "dark"])
def test_every_text_is_read_on_its_page(name: str) -> None:
    """WCAG 1.4.3 asks for 4.5."""
    colors = scheme(name)
    for text in ("text", "quiet", "link", "bad"):
        for ground in ("page", "band"):
            assert contrast(colors[text], colors[ground]) >= 4.5, (text, ground)
    for ground in ("mark", "share"):
        assert contrast(colors["text"], colors[ground]) >= 4.5, ground


@pytest.mark.parametrize("paper", [LIGHT, DARK])
def test_pictures_are_seen_on_their_paper(paper: Paper) -> None:
    drawn = [style.on(paper) for style in STYLES.values()] + [NEUTRAL]
    assert all(contrast(color, paper.page) >= 3 for color in drawn)
    assert all(contrast(color, paper.page) >= 4.5 for color in (paper.ink, paper.quiet))
    assert contrast(paper.grid, paper.page) < 1.5  # nothing but data catches the eye


@pytest.mark.parametrize("eyes", SEEN)
@pytest.mark.parametrize("name", ["light", "dark"])
def test_everyone_tells_the_kinds_apart(name: str, eyes: str) -> None:
    """A distance of 2.3 is just noticeable."""
    text = scheme(name)["text"]
    colors = [text if s.on_page == "currentColor" else s.color for s in STYLES.values()]
    found = [lab(SEEN[eyes] @ linear(color)) for color in colors]
    assert min(np.linalg.norm(a - b) for a, b in combinations(found, 2)) > 15


def test_kinds_differ_in_shape_too() -> None:
    assert list(STYLES) == list(RowKind)
    for looks in ("path", "marker", "color"):
        assert len({getattr(style, looks) for style in STYLES.values()}) == len(RowKind)


def test_lines_of_one_colour_differ_in_their_dashes() -> None:
    assert len(set(LINES)) * len(set(DASHES)) == 20


def test_the_picture_of_the_benchmark_has_the_same_colours() -> None:
    assert picture.ONE_BIT is STYLES[RowKind.packed]
    assert picture.PEER is STYLES[RowKind.unbinarized]
