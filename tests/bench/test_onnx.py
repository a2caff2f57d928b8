"""``python -m bitmaps.bench.onnx``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bitmaps.bench.footprint import STATUS

pytestmark = pytest.mark.skipif(not STATUS.is_file(), reason="only Linux has /proc")


def run(*files: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bitmaps.bench.onnx", *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_runtime_opens_the_file_in_a_process_of_its_own(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is in the extra `onnx`")
    pytest.importorskip("onnxruntime", reason="onnxruntime is in the extra `onnx`")
    helper, int64 = onnx.helper, onnx.TensorProto.INT64
    ids = helper.make_tensor_value_info("input_ids", int64, ["batch", "length"])
    mask = helper.make_tensor_value_info("attention_mask", int64, ["batch", "length"])
    out = helper.make_tensor_value_info("logits", int64, ["batch", "length"])
    node = helper.make_node("Mul", ["input_ids", "attention_mask"], ["logits"])
    graph = helper.make_graph([node], "product", [ids, mask], [out])
    opset = helper.make_opsetid("", 18)
    file = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), file)
    done = run(file)
    assert done.returncode == 0, done.stderr
    _, _, *rows = done.stdout.splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[2] for row in cells][:2] == [
        "ONNX Runtime",
        "ONNX Runtime, unpacking in every call",
    ]
    for name, size, _, *numbers, resident in cells:
        assert (name, size) == ("model.onnx", "0.0")
        assert all(float(number) >= 0 for number in numbers)
        assert 10 < int(resident) < 400  # no torch in it


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path / "nowhere.onnx")
    assert done.returncode == 2
    assert (
        done.stderr
        == f"error: {tmp_path / 'nowhere.onnx'} is no file; valid is one that --onnx has written\n"
    )
