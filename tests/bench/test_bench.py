"""What is timed is not tested, only how the times become rows."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from bitmaps.bench import __main__ as bench
from bitmaps.bench.__main__ import Ratio, compare, machine, read_rows, summary

ROW = Ratio(
    "linear", "768 to 768, 64 tokens", 1, "torch fp32", "one bit, a8", 3.0, 4.0, 5.0, 8.0, 2.0, 9
)


def test_a_ratio_is_the_peers_time_over_the_contenders() -> None:
    rows = list(
        compare(
            "linear",
            "sleep",
            "slow",
            {"slow": lambda: time.sleep(0.02), "fast": lambda: time.sleep(0.005)},
            3,
        )
    )
    assert [row.contender for row in rows] == ["A/A", "fast"]
    same, fast = rows
    assert same.lower <= same.median <= same.upper
    assert fast.median > 1.5
    assert fast.peer_ms > fast.contender_ms > 5
    assert (fast.peer, fast.rounds, fast.threads) == ("slow", 3, torch.get_num_threads())


def test_what_is_fast_is_called_often_enough_to_be_timed() -> None:
    calls = {"peer": 0}
    list(
        compare(
            "linear", "nothing", "peer", {"peer": lambda: calls.update(peer=calls["peer"] + 1)}, 2
        )
    )
    assert calls["peer"] > 100


def test_the_summary_is_the_geometric_mean_over_shapes() -> None:
    rows = [
        ROW,
        replace(ROW, what="3072 to 768, 64 tokens", median=9.0),
        replace(ROW, part="model", median=100.0),
    ]
    assert summary(rows) == [("64 tokens", "1", "one bit, a8", "6.00")]


def test_rows_of_this_machine_are_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    assert read_rows(None) == read_rows(path) == []
    path.write_text(json.dumps({"machine": machine(), "rows": [asdict(ROW)]}), encoding="utf-8")
    assert read_rows(path) == [ROW]


@pytest.mark.parametrize(
    ("content", "named"),
    [("{", "no result"), ("{}", "no result"), ('{"machine": "abacus", "rows": []}', "abacus")],
)
def test_other_files_are_not_written_over(tmp_path: Path, content: str, named: str) -> None:
    path = tmp_path / "bench.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(SystemExit, match=named):
        read_rows(path)


@pytest.mark.parametrize(
    "arguments",
    [["abacus"], ["--rounds", "0"], ["--threads", "0"], ["--isa", "mmx"]],
    ids=lambda found: found[0],
)
def test_bad_arguments_are_refused(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bench", *arguments])
    with pytest.raises(SystemExit):
        bench.main()
    said = capsys.readouterr().err
    assert "valid" in said or "choose from" in said
