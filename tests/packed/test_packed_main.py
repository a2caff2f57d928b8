"""``python -m bitmaps.packed``."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from report.examples import row
from torch import Tensor

import bitmaps
from bitmaps.bert import Bert, checkpoint
from bitmaps.packed import __main__ as command
from bitmaps.packed import kernels as native
from bitmaps.packed.format import FILE, is_packed
from bitmaps.packed.onnx import PACKAGES
from bitmaps.packed.weights import PackedWeight
from bitmaps.quantize.convert import binarize_naive

Run = Callable[..., tuple[Any, str, str]]


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command; gives its exit code and what it printed."""

    def run(*arguments: object) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["python -m bitmaps.packed", *map(str, arguments)])
        code: Any = 0
        try:
            command.main()
        except SystemExit as exit:
            code = exit.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def run_folder(tiny: Bert, tokenizer: Any, tmp_path: Path) -> Path:
    """What a training leaves of which the layers were binarized."""
    folder = tmp_path / "run"
    checkpoint.save(
        binarize_naive(tiny, ("attention", "ffnn"), "pm1", "row", "matrices"), folder / "model"
    )
    tokenizer.save_pretrained(folder / "model")
    return folder


def refused(found: tuple[Any, str, str], named: str) -> None:
    """It ends in one line."""
    code, out, err = found
    assert code == 2
    assert not out
    assert named in err
    assert "Traceback" not in err
    assert [line for line in err.splitlines() if "error: " in line] == err.splitlines()[-1:]


def test_a_run_is_packed_beside_its_model(packed: Run, run_folder: Path, ids: Tensor) -> None:
    code, out, err = packed(run_folder, "--embeddings", "fp32")
    assert (code, err) == (0, "")
    assert is_packed(run_folder / "packed")
    sizes = [(run_folder / name / FILE).stat().st_size for name in ("model", "packed")]
    assert out == (
        f"{run_folder / 'packed'}: {sizes[1] / 2**20:.2f} MiB, 1/{sizes[0] / sizes[1]:.1f} of {run_folder / 'model'}\n"
    )
    found, model = bitmaps.load(run_folder / "packed", act="f32"), bitmaps.load(run_folder)
    torch.testing.assert_close(found(ids), model(ids), atol=1e-5, rtol=0)
    assert transformers.AutoTokenizer.from_pretrained(run_folder / "packed").tokenize(
        "the cat"
    ) == ["the", "cat"]


def test_a_models_folder_is_packed_to_where_it_is_said(
    packed: Run, run_folder: Path, tmp_path: Path
) -> None:
    assert packed(run_folder / "model", tmp_path / "new" / "elsewhere")[0] == 0
    assert is_packed(tmp_path / "new" / "elsewhere")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["elsewhere"]
    assert not (run_folder / "packed").exists()


@pytest.mark.parametrize("embeddings", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("head", [None, "fp16", "int8"])
def test_what_stays_in_floats_may_be_rounded(
    packed: Run, run_folder: Path, tmp_path: Path, embeddings: str, head: str | None
) -> None:
    options = ["--embeddings", embeddings, *(["--head", head] if head else [])]
    assert packed(run_folder, "--embeddings", "fp32")[0] == 0
    assert packed(run_folder, tmp_path / "rounded", *options)[0] == 0
    found = bitmaps.load(tmp_path / "rounded")
    tables = [getattr(found.embeddings, name).weight for name in ("word", "position", "token_type")]
    assert {table.storage for table in tables} == {embeddings}
    transform = found.head.transform.weight
    assert (transform.storage if isinstance(transform, PackedWeight) else None) == head
    sizes = [
        (folder / FILE).stat().st_size for folder in (tmp_path / "rounded", run_folder / "packed")
    ]
    assert sizes[0] < sizes[1]


def test_tables_are_in_int8_unless_it_is_said(packed: Run, run_folder: Path) -> None:
    assert packed(run_folder)[0] == 0
    assert bitmaps.load(run_folder / "packed").embeddings.word.weight.storage == "int8"


def test_back_to_floats_is_a_checkpoint_that_transformers_opens(
    packed: Run, run_folder: Path, tmp_path: Path, ids: Tensor
) -> None:
    assert packed(run_folder, "--embeddings", "int8")[0] == 0
    code, out, err = packed("to_float", run_folder / "packed", tmp_path / "floats")
    assert (code, err) == (0, "")
    assert f"{tmp_path / 'floats'}: an ordinary checkpoint, " in out
    model, report = transformers.BertForMaskedLM.from_pretrained(
        tmp_path / "floats", output_loading_info=True
    )
    assert not any(report.values())
    expected = bitmaps.load(run_folder / "packed", act="f32")(ids)
    torch.testing.assert_close(model.eval()(ids).logits, expected, atol=1e-5, rtol=0)
    assert torch.equal(bitmaps.load(tmp_path / "floats")(ids).argmax(-1), expected.argmax(-1))
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "floats").tokenize("the cat") == [
        "the",
        "cat",
    ]


def test_what_runs_here_is_told(packed: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for way in ("auto", "reference"):
        monkeypatch.setenv(native.VARIABLE, way)
        native.kernels.cache_clear()
        code, out, err = packed("info")
        assert (code, err) == (0, "")
        found = native.kernels()
        assert f"in use        {found.name if found else 'reference'}\n" in out
        assert all(
            name in out for name in (*native.instruction_sets(), "reference", native.VARIABLE)
        )
        assert f"threads       {torch.get_num_threads()}\n" in out
    monkeypatch.setenv(native.VARIABLE, "mmx")
    native.kernels.cache_clear()
    code, _, err = packed("info")
    assert code == 2
    assert err.startswith("error: BITMAPS_KERNELS=mmx does not run here; valid are auto, ")
    native.kernels.cache_clear()


def test_without_a_compiler_the_reference_is_in_use(
    packed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "library_file", lambda: None)
    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.setattr(native, "left_out", lambda: {"library": "no C compiler: cc"})
    native.kernels.cache_clear()
    monkeypatch.setenv(native.VARIABLE, "auto")
    code, out, _ = packed("info")
    native.kernels.cache_clear()
    assert code == 0
    assert "library       none: no C compiler: cc\n" in out
    assert "in use        reference\n" in out


def test_a_folder_that_is_there_is_refused(packed: Run, run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    refused(packed(run_folder, tmp_path / "taken"), f"error: {tmp_path / 'taken'} exists already")
    assert packed(run_folder)[0] == 0
    before = (run_folder / "packed" / FILE).read_bytes()
    refused(packed(run_folder), f"error: {run_folder / 'packed'} exists already")
    refused(packed("to_float", run_folder / "packed", tmp_path / "taken"), "taken exists already")
    assert (run_folder / "packed" / FILE).read_bytes() == before
    assert not list((tmp_path / "taken").iterdir())


def test_what_is_packed_is_not_packed_again_and_what_is_not_cannot_be_taken_back(
    packed: Run, run_folder: Path, tmp_path: Path
) -> None:
    assert packed(run_folder)[0] == 0
    refused(
        packed(run_folder / "packed", tmp_path / "new"),
        f"error: {run_folder / 'packed'} is packed already",
    )
    refused(
        packed("to_float", run_folder / "model", tmp_path / "new"), "model is not a packed folder"
    )
    refused(
        packed("to_float", tmp_path / "nowhere", tmp_path / "new"), "nowhere is not a packed folder"
    )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        (
            "config.yaml",
            "model:\n  name: minilm\nrecipe:\n  loss:\n    hidden: 1\n",
            "config.yaml is damaged or of another version",
        ),
        ("rows.json", "[]", "rows.json is no list of rows"),
    ],
)
def test_a_run_that_cannot_be_told_of_leaves_no_folder(
    packed: Run, run_folder: Path, file: str, content: str, named: str
) -> None:
    rows = json.dumps([row(kind="trained").flat()])
    for name, good in (("config.yaml", ""), ("rows.json", rows)):
        (run_folder / name).write_text(content if name == file else good, encoding="utf-8")
    refused(packed(run_folder), named)
    assert not (run_folder / "packed").exists()


def test_a_damaged_packed_folder_is_refused(packed: Run, run_folder: Path, tmp_path: Path) -> None:
    assert packed(run_folder)[0] == 0
    path = run_folder / "packed" / FILE
    path.write_bytes(path.read_bytes()[:-1])
    refused(
        packed("to_float", run_folder / "packed", tmp_path / "new"), f"error: {path} is truncated"
    )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["/no/such/run"], "/no/such/run holds no model"),
        (["info", "more"], "info takes no folder, not 1"),
        (["to_float"], "to_float takes two folders, not 0"),
        (["to_float", "one"], "to_float takes two folders, not 1"),
        (["run", "one", "two"], "run takes at most one more folder, not 2"),
        ([], "required: what"),
        (["info", "--embeddings", "int8"], "info takes neither --embeddings nor --head"),
        (["to_float", "one", "two", "--head", "fp16"], "to_float takes neither"),
        (["run", "--embeddings", "int7"], "invalid choice: 'int7'"),
        (["run", "--head", "int4"], "invalid choice: 'int4'"),
        (["run", "--more"], "unrecognized arguments: --more"),
        (["info", "--onnx", "file"], "info takes neither --embeddings nor --head nor --onnx"),
        (["to_float", "one", "two", "--onnx", "file"], "to_float takes neither"),
        (["run", "one", "--onnx", "file"], "run takes no folder beside --onnx, not 1"),
        (["/no/such/run", "--onnx", "/no/such/folder/file"], "there is no folder /no/such/folder"),
    ],
)
def test_bad_arguments_end_in_one_clear_error(
    packed: Run, arguments: list[str], named: str
) -> None:
    refused(packed(*arguments), named)


def test_a_checkpoint_in_several_files_is_packed(
    packed: Run, run_folder: Path, tmp_path: Path, tokenizer: Any
) -> None:
    whole = transformers.BertForMaskedLM.from_pretrained(run_folder / "model")
    whole.save_pretrained(tmp_path / "sharded", max_shard_size="5KB")
    tokenizer.save_pretrained(tmp_path / "sharded")
    assert packed(tmp_path / "sharded")[0] == 0


def test_a_target_inside_a_file_is_refused(packed: Run, run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    refused(packed(run_folder, tmp_path / "file" / "packed"), "error: ")


needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in PACKAGES),
    reason="the extra `onnx` is not installed",
)


@needs_onnx
@pytest.mark.parametrize("source", ["run", pytest.param("packed", marks=pytest.mark.slow)])
def test_a_run_and_a_packed_folder_become_an_onnx_file(
    packed: Run, run_folder: Path, tmp_path: Path, ids: Tensor, source: str
) -> None:
    import onnxruntime

    folder, file = run_folder, tmp_path / "model.onnx"
    stored = ["--embeddings", "int8"]
    if source == "packed":
        assert packed(run_folder, *stored)[0] == 0
        folder, stored = run_folder / "packed", []
    code, out, err = packed(folder, *stored, "--onnx", file)
    assert (code, err) == (0, "")
    assert out.startswith(f"{file}: {file.stat().st_size / 2**20:.2f} MiB; ONNX Runtime's outputs")
    assert (run_folder / "packed").exists() == (source == "packed")
    if source == "run":
        assert packed(run_folder, "--embeddings", "int8")[0] == 0
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": 0 * ids}
    session = onnxruntime.InferenceSession(file)
    (found,) = session.run(None, {name: x.numpy() for name, x in inputs.items()})
    expected = bitmaps.load(run_folder / "packed", act="f32")(ids)
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-4, rtol=0)
    refused(packed(folder, "--onnx", file), "model.onnx exists already")


@needs_onnx
def test_a_packed_folder_is_not_rounded_for_onnx(
    packed: Run, run_folder: Path, tmp_path: Path
) -> None:
    assert packed(run_folder)[0] == 0
    refused(
        packed(run_folder / "packed", "--head", "int8", "--onnx", tmp_path / "model.onnx"),
        "is packed already, so it takes neither --embeddings nor --head",
    )
    assert not (tmp_path / "model.onnx").exists()


def test_what_onnx_needs_is_named(
    packed: Run, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused(
        packed(run_folder, "--onnx", tmp_path / "model.onnx"),
        "needs packages that are not installed (onnx, onnxscript, onnxruntime): pip install",
    )
