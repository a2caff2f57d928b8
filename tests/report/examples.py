"""Rows, analyses and run folders for the tests of the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitmaps.runs.analysis import (
    Analysis,
    Confidence,
    FrequencyBin,
    FrequentToken,
    Guess,
    MaskedToken,
    Sentence,
    Subset,
)
from bitmaps.runs.folder import RunFolder, ScoredRow
from bitmaps.runs.records import Facts, Row, parse, parse_row
from bitmaps.vocabulary import RowKind

FACTS: Mapping[str, Any] = {
    "command": "python evaluate.py", "versions": {"torch": "2.13.0"}, "commit": "c0ffee",
    "model": "minilm", "weights": "pretrained", "data": "wiki", "split": "validation",
    "mask_seed": 481, "mask_sets": 1, "components": "layers", "values": "pm1", "scale": "none",
    "scope": "all", "embeddings": "fp32", "activations": "float", "steps": 0, "calibrated_on": 0,
    "seed": 0, "settings": {},
}  # fmt: skip
MEASURED: Mapping[str, Any] = {
    "cross_entropy": 12.5, "accuracy": 0.0321987, "mrr": 0.0543, "masked_tokens": 20,
    "inference_ms": 1.2345, "memory_mib": 12.34, "resident_mib": 90.0, "device": "cpu",
    "threads": 2, "known": {"accuracy": 0.5},
}  # fmt: skip
NOTHING = {"values": None, "scale": None, "scope": None}


def row(components: str = "layers", kind: str = "naive", **changes: Any) -> Row:
    """A row that differs from the usual one in these fields of its flat object."""
    flat = {**FACTS, **MEASURED, "components": components, "row": kind}
    if components == "none":
        flat |= NOTHING
    return parse_row(flat | changes)


def facts(components: str = "layers", **changes: Any) -> Facts:
    """What is known of a run without a row."""
    return parse(Facts, {**FACTS, "components": components, **changes})


def analysis(
    token: str = ".", true: str = "cat", accuracy: float | None = 0.25, verdict: str = ""
) -> Analysis:
    """The analysis of a model that predicts one token. It was shown two sentences."""
    guesses = [Guess(token, 0.5), Guess(true, 0.25), Guess("##ing", 0.125)]
    masked = [MaskedToken(1, true, guesses)]
    bins = [FrequencyBin(5, accuracy, low) for low in (1, 10, 100, 1000)]
    return Analysis(
        verdict=verdict or f"predicts {token!r}: collapsed",
        predicted=[FrequentToken(token, 1.0, 0.1, 0.019, 0.01)],
        distinct=1,
        confidence=Confidence(0.019, 0.01, [20] + [0] * 19),
        by_input={kind: Subset(5, 0.2) for kind in ("mask", "random", "unchanged")},
        by_frequency=bins,
        sentences=[
            Sentence("a [MASK]s sat", ["a", "[MASK]", "##s", "sat"], masked),
            Sentence(f"the [MASK] {token}", ["the", "[MASK]", token], masked),
        ],
        masked_tokens=20,
        entropy=0.0,
        mean_entropy=2.0,
    )


def finished(
    path: Path,
    *rows: Row,
    analyses: Mapping[RowKind, Analysis] | None = None,
    sums: NDArray[Any] | None = None,
) -> Path:
    """A run that ended well."""
    folder = RunFolder(path)
    folder.claim("", Facts())
    of_none = np.ones((1, 4)) if sums is None else sums
    folder.finish(
        [ScoredRow(one, of_none, (analyses or {}).get(one.kind, analysis())) for one in rows]
    )
    return path


def unfinished(path: Path, known: Facts, error: BaseException | None = None) -> Path:
    """A run that failed, or is still running."""
    folder = RunFolder(path)
    folder.claim("", known)
    if error is not None:
        folder.fail(error, known)
    return path


def log(folder: Path, version: int, points: Mapping[int, Mapping[str, float]]) -> None:
    """Curves as Lightning's CSV logger writes them: a line a step and measure."""
    path = folder / "logs" / f"version_{version}" / "metrics.csv"
    path.parent.mkdir(parents=True)
    names = sorted({name for measures in points.values() for name in measures})
    lines = [",".join([*names, "step"])]
    for step, measures in points.items():
        for name in measures:
            cells = ["" if other != name else str(measures[name]) for other in names]
            lines.append(",".join([*cells, str(step)]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
