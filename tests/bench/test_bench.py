"""How times become rows, and that a contender computes what its peer does. No time is tested."""

from __future__ import annotations

import importlib.util
import json
import re
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from bitmaps.bench import __main__ as command
from bitmaps.bench import linear
from bitmaps.bench.peers import TORCH, onnx_matrix, torch_matrix
from bitmaps.bench.results import Mean, Results, machine, means, read
from bitmaps.bench.timing import Ratio, Run, compare
from bitmaps.errors import InputError
from bitmaps.vocabulary import Act

ROW = Ratio(
    part="linear", what="768 to 768, 64 tokens", threads=1, peer="torch fp32",
    contender="one bit, a8", lower=3.0, median=4.0, upper=5.0, peer_ms=8.0, contender_ms=2.0,
    rounds=9,
)  # fmt: skip


def test_a_ratio_is_the_time_of_the_peer_over_that_of_the_contender() -> None:
    runs = {"slow": lambda: time.sleep(0.02), "fast": lambda: time.sleep(0.005)}
    same, fast = compare("linear", "sleep", "slow", runs, 3)
    assert [same.contender, fast.contender] == ["A/A", "fast"]
    assert same.lower <= same.median <= same.upper
    assert fast.median > 1.5
    assert fast.peer_ms > fast.contender_ms > 5
    assert (fast.peer, fast.rounds, fast.threads) == ("slow", 3, torch.get_num_threads())


def test_the_same_times_give_the_ratios_to_further_peers() -> None:
    calls = {"a": 0, "b": 0, "c": 0}

    def run(name: str, seconds: float) -> Run:
        def sleep() -> None:
            calls[name] += 1
            time.sleep(seconds)

        return sleep

    runs = {"a": run("a", 0.02), "b": run("b", 0.005), "c": run("c", 0.01)}
    rows = list(compare("linear", "sleep", "a", runs, 2, ["b"]))
    found = [(row.peer, row.contender) for row in rows]
    assert found == [("a", "A/A"), ("a", "b"), ("a", "c"), ("b", "a"), ("b", "c")]
    assert calls["a"] == 2 * calls["b"] == 2 * calls["c"]  # A/A counts, and further peers do not
    _, b, c, a, slower = rows
    assert (b.contender_ms, c.contender_ms) == (a.peer_ms, slower.contender_ms)
    assert a.median < slower.median < 1 < c.median < b.median


def test_a_short_run_is_repeated_until_it_can_be_timed() -> None:
    calls = {"peer": 0}
    runs = {"peer": lambda: calls.update(peer=calls["peer"] + 1)}
    list(compare("linear", "nothing", "peer", runs, 2))
    assert calls["peer"] > 100


def test_a_mean_is_geometric_and_over_the_shapes_of_matrices_alone() -> None:
    rows = [
        ROW,
        replace(ROW, what="3072 to 768, 64 tokens", median=9.0),
        replace(ROW, part="model", median=100.0),
    ]
    (mean,) = means(rows)
    assert mean == Mean("64 tokens", 1, "one bit, a8", pytest.approx(6.0))


def test_results_of_this_machine_are_continued(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    assert read(None) == read(path) == Results(machine(), [])
    path.write_text(json.dumps({"machine": machine(), "rows": [asdict(ROW)]}), encoding="utf-8")
    assert read(path) == Results(machine(), [ROW])


def test_the_machine_is_named_with_the_versions_of_its_peers() -> None:
    assert f"torch {torch.__version__}" in machine()
    if importlib.util.find_spec("openvino"):
        assert re.search(r"openvino [\d.]+, .*OpenVINO in (f32|bf16|f16)", machine())
    else:
        assert "openvino" not in machine().lower()


def test_the_keys_of_the_file_are_fixed() -> None:
    written = json.loads(json.dumps(asdict(Results(machine(), [ROW]))))
    assert list(written) == ["machine", "rows", "footprints", "qualities"]
    assert list(written["rows"][0]) == [
        "part", "what", "threads", "peer", "contender",
        "lower", "median", "upper", "peer_ms", "contender_ms", "rounds",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "no result"),
        ("[]", "no result"),
        ("{}", "no result"),
        ('{"machine": "abacus", "rows": []}', "abacus"),
    ],
)
def test_other_files_are_not_overwritten(
    tmp_path: Path,
    content: str,
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "bench.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=named):
        read(path)
    monkeypatch.setattr("sys.argv", ["bench", "--output", str(path)])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    assert re.search(f"^error: --output .*{named}", capsys.readouterr().err)
    assert path.read_text(encoding="utf-8") == content


@pytest.mark.parametrize(
    "arguments",
    [
        ["abacus"], ["--rounds", "0"], ["--threads", "0"], ["--isa", "mmx"],
        ["linear", "--ptb", "."], ["quality", "--ptb", ".", "--checkpoint", "tests"],
        ["quality", "--ptb", "."], ["quality", "--checkpoint", "."],
        ["picture", "bench.json", "bench.jpg"], ["picture", "absent.json", "bench.svg"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_bad_arguments_are_refused(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bench", *arguments])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    *usage, said = capsys.readouterr().err.splitlines()
    assert all(line.startswith(("usage", " ")) for line in usage)
    assert re.search("error: .*(valid|choose from|no effect|needs|no result)", said)


@torch.inference_mode()
def test_every_run_of_a_matrix_computes_the_same_product() -> None:
    generator = torch.Generator().manual_seed(0)
    layer, x = linear.two_valued(64, 96, generator), torch.randn(5, 96, generator=generator)
    runs = torch_matrix(layer, x) | onnx_matrix(layer, x) | linear.packed(layer, x)
    assert set(runs) >= {TORCH, "torch int8 dynamic", *(f"one bit, {act}" for act in Act)}
    wanted = layer(x).flatten()
    for name, run in runs.items():
        found = torch.as_tensor(run()[0] if name.startswith("ONNX") else run()).flatten()
        likeness = torch.corrcoef(torch.stack([wanted, found]))[0, 1]
        # one-bit inputs keep only signs; a normal number and its sign have a correlation of 0.8
        assert likeness > (0.6 if name == "one bit, a1" else 0.999), name


def test_a_peer_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert onnx_matrix(torch.nn.Linear(2, 2), torch.zeros(1, 2)) == {}
