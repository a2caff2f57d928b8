"""A picture of the results of one machine."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest

from bitmaps.bench import picture
from bitmaps.bench.deployments import FUSED
from bitmaps.bench.picture import WHAT, Dot
from bitmaps.bench.quality import Quality
from bitmaps.bench.results import Results
from bitmaps.bench.timing import Ratio
from bitmaps.errors import InputError
from bitmaps.report.palette import DARK, LIGHT

ROW = Ratio(
    part="model", what=WHAT, threads=1, peer=FUSED, contender="one bit, a8", lower=3.0, median=4.0,
    upper=5.0, peer_ms=8.0, contender_ms=2.0, rounds=9,
)  # fmt: skip
SCORE = Quality("text", "model", "one bit, a8", 4 * 2**20, 100, 3.0, 0.5, 0.6)


@pytest.fixture
def results() -> Results:
    rows = [
        replace(ROW, threads=2, median=9.0), ROW, replace(ROW, what="other", median=7.0),
        replace(ROW, peer="OpenVINO int8", median=6.0), replace(ROW, contender="A/A", median=1.01),
    ]  # fmt: skip
    scores = [
        SCORE,
        replace(SCORE, deployment=FUSED, file_bytes=2**25),
        replace(SCORE, deployment="slow"),
    ]
    return Results("abacus", rows, [], scores)


def test_a_dot_has_a_speed_and_a_score(results: Results) -> None:
    assert picture.dots(results) == [Dot("one bit, a8", 4.0, 0.5, 4.0), Dot(FUSED, 1.0, 0.5, 32.0)]
    for empty in (replace(results, rows=[]), replace(results, qualities=[])):
        with pytest.raises(InputError, match=r"needs the parts model .* and quality"):
            picture.dots(empty)


def test_names_are_not_written_over_each_other() -> None:
    speeds = (1.0, 1.01, 4.0, 1.02, 2.0)
    heights = picture.heights_of_names([Dot(str(speed), speed, 0.5, 4.0) for speed in speeds])
    written = sorted(heights.values())
    assert all(above / below > 1.05 for below, above in pairwise(written))
    assert (heights["1.0"], heights["2.0"], heights["4.0"]) == (1.0, 2.0, 4.0)
    assert heights["1.0"] < heights["1.01"] < heights["1.02"] < 1.2


def test_the_picture_names_its_dots(results: Results, tmp_path: Path) -> None:
    file, svg, png = (tmp_path / f"bench.{ending}" for ending in ("json", "svg", "png"))
    file.write_text(json.dumps(asdict(results)), encoding="utf-8")
    picture.draw(file, svg)
    text = svg.read_text(encoding="utf-8")
    assert "one bit, a8, 4 MiB" in text
    assert f"{FUSED}, 32 MiB" in text
    dark = (tmp_path / "bench-dark.svg").read_text(encoding="utf-8")
    assert LIGHT.page in text
    assert DARK.page in dark
    assert LIGHT.ink not in dark
    picture.draw(file, png)
    assert png.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match=r"valid endings are .svg, .png"):
        picture.draw(file, tmp_path / "bench.jpg")
    with pytest.raises(InputError, match="there is no folder"):
        picture.draw(file, tmp_path / "absent" / "bench.svg")
