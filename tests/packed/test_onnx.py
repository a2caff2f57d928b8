"""Packed models as ONNX files, computed by ONNX Runtime."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Pack
from hypothesis import given, settings
from hypothesis import strategies as st
from packed.golden_models import GOLDEN
from packed.matrices import Array, normal
from packed.test_packed_tasks import LABELS, binarized, of_task
from torch import Tensor, nn

import bitmaps
from bitmaps.bert import Bert, BertConfig
from bitmaps.bert.families import FAMILIES
from bitmaps.bert.pooling import MODES, Pooling
from bitmaps.errors import InputError
from bitmaps.packed import onnx as exporting
from bitmaps.packed.format import VERSION, assemble, load, pack_model
from bitmaps.packed.layers import PackedEmbedding, PackedLinear
from bitmaps.packed.onnx import INPUTS, PACKAGES, export_onnx, quiet
from bitmaps.packed.weights import PackedWeight
from bitmaps.quantize.convert import binarize_naive
from bitmaps.vocabulary import Act, Component, Storage, Task

MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"the extra `onnx` lacks {MISSING}")
KINDS = ("rows", "columns", "01", "two", "two columns", "int8", "int4", "fp16")


def session_of(file: Path | bytes) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


def some(config: BertConfig, batch: int, length: int, seed: int = 1) -> tuple[Tensor, ...]:
    """Random inputs by their names; the last sentence has one token, the others all."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(config.vocab_size, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, 1:] = 0
    types = torch.randint(2, (batch, length), generator=generator)
    return (ids, mask, types) if config.type_vocab_size > 1 else (ids, mask)


def assert_computes(file: Path | bytes, model: Bert) -> None:
    """ONNX Runtime computes what the packed model does, for batches of any size."""
    session = session_of(file)
    for shape in ((1, 1), (1, 8), (5, 2), (2, 7)):
        inputs = some(model.config, *shape)
        names = [value.name for value in session.get_inputs()]
        assert names == list(INPUTS[: len(inputs)])
        (found,) = session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})
        np.testing.assert_allclose(found, model(*inputs).numpy(), rtol=0, atol=1e-4)


# -- matrices --


def matrix(kind: str, rows: int, columns: int, seed: int) -> PackedWeight:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    if kind in list(Storage):
        return PackedWeight.rounded(weight, Storage(kind))
    high, low = torch.randn(2, rows, generator=generator)
    lows = {"01": torch.zeros(rows), "two": low, "two columns": low}
    column = torch.randn(columns, generator=generator) if "columns" in kind else None
    return PackedWeight.of_bits(weight > 0, high, lows.get(kind), column)


def by_numpy(weight: PackedWeight) -> Array:
    """The matrix in fp64, as docs/format.md says."""
    data = weight.in_rows.numpy()
    if weight.storage == Storage.fp16:
        return data.astype(np.float64)
    assert weight.high is not None
    high = weight.high.numpy().astype(np.float64)[:, None]
    if weight.storage == Storage.int8:
        return high * data
    if weight.storage == Storage.int4:
        nibbles = np.stack([data & 15, data >> 4], -1).reshape(len(data), -1)
        return high * (nibbles[:, : weight.columns].astype(np.float64) - 8)
    low = -high if weight.low is None else weight.low.numpy()[:, None]
    bits = np.unpackbits(data, axis=1, count=weight.columns, bitorder="little")
    column = 1.0 if weight.column is None else weight.column.numpy()
    return np.where(bits, high, low) * column


class Matrices(nn.Module):
    """Products, and looked up rows, of all weights: one export for several."""

    def __init__(self, weights: list[PackedWeight]) -> None:
        super().__init__()
        biases = [normal(weight.shape[0], seed=i) for i, weight in enumerate(weights)]
        biases[0] = None  # type: ignore[call-overload]
        self.layers = nn.ModuleList(map(PackedLinear, weights, biases, [Act.f32] * len(weights)))
        self.tables = nn.ModuleList(map(PackedEmbedding, weights))

    def forward(self, xs: list[Tensor], ids: Tensor) -> list[Tensor]:
        products = [layer(x) for layer, x in zip(self.layers, xs, strict=True)]
        return products + [table(ids) for table in self.tables]


def exported(module: nn.Module, *inputs: Any, shapes: Any) -> Any:
    with quiet():
        program = torch.onnx.export(
            module, inputs, dynamo=True, dynamic_shapes=shapes, optimize=False, verbose=False
        )
    return session_of(program.model_proto.SerializeToString())


def check_matrices(shapes: list[tuple[int, int]], seed: int) -> None:
    """One export of a matrix of each kind, beside products in fp64."""
    weights = [matrix(kind, *shape, seed) for kind, shape in zip(KINDS, shapes, strict=True)]
    module = Matrices(weights)
    dynamic = ([{0: "tokens"}] * len(weights), {0: "words"})
    xs = [normal(2, weight.columns) for weight in weights]
    session = exported(module, xs, torch.zeros(2, dtype=torch.long), shapes=dynamic)
    xs = [normal(5, weight.columns, seed=seed) for weight in weights]
    ids = torch.arange(7) % min(rows for rows, _ in shapes)
    names = [value.name for value in session.get_inputs()]
    found = session.run(None, {n: x.numpy() for n, x in zip(names, [*xs, ids], strict=True)})
    for i, (weight, x) in enumerate(zip(weights, xs, strict=True)):
        dense, bias = by_numpy(weight), module.layers[i].bias
        product = x.numpy().astype(np.float64) @ dense.T
        product = product if bias is None else product + bias.numpy()
        np.testing.assert_allclose(found[i], product, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found[len(weights) + i], dense[ids], rtol=1e-6)


some_shapes = st.lists(
    st.tuples(st.integers(1, 40), st.integers(1, 70)), min_size=len(KINDS), max_size=len(KINDS)
)


@given(some_shapes, st.integers(0, 2**31))
@settings(max_examples=2, deadline=None)
def test_matrices_of_every_kind_are_multiplied_and_looked_up(
    shapes: list[tuple[int, int]], seed: int
) -> None:
    check_matrices(shapes, seed)


@pytest.mark.slow
@given(some_shapes, st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_many_matrices_of_every_kind_are_multiplied_and_looked_up(
    shapes: list[tuple[int, int]], seed: int
) -> None:
    check_matrices(shapes, seed)


# -- models --


Export = Callable[[Bert], Path]


@pytest.fixture
def export(tmp_path: Path) -> Export:
    def write(model: Bert) -> Path:
        file = tmp_path / "model.onnx"
        assert 0 < export_onnx(model, file) < 1e-5
        assert [path.name for path in tmp_path.iterdir() if "model.onnx" in path.name] == [
            "model.onnx"
        ]
        return file

    return write


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bert, bytes]:
    """A model with every kind of one-bit matrix and words in int8, and the content of its file."""
    model = load(GOLDEN / VERSION / "scales", Act.f32)
    file = tmp_path_factory.mktemp("onnx") / "scales.onnx"
    bitmaps.export_onnx(model, str(file))
    return model, file.read_bytes()


def test_masked_words(golden: tuple[Bert, bytes]) -> None:
    model, content = golden
    assert_computes(content, model)
    session = session_of(content)
    assert [value.name for value in session.get_outputs()] == ["logits"]
    assert session.get_modelmeta().custom_metadata_map == {"task": "masked_lm", "max_length": "8"}


def test_the_file_has_standard_operators_and_nothing_of_this_machine(
    golden: tuple[Bert, bytes],
) -> None:
    import onnx

    proto = onnx.load_model_from_string(golden[1])
    onnx.checker.check_model(proto, full_check=True)
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", 18)]
    assert {node.domain for node in proto.graph.node} == {""}
    assert not proto.functions
    assert (proto.producer_name, proto.producer_version) == ("bitmaps", bitmaps.__version__)
    here = str(Path(bitmaps.__file__).parent).encode()
    assert here not in golden[1]


def test_openvino_computes_the_same(golden: tuple[Bert, bytes]) -> None:
    openvino = pytest.importorskip("openvino", reason="openvino is in the extra `bench`")
    model, content = golden
    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(content), "CPU", options)
    for shape in ((1, 1), (3, 7)):
        inputs = some(model.config, *shape)
        found = compiled({name: x.numpy() for name, x in zip(INPUTS, inputs, strict=True)})[0]
        np.testing.assert_allclose(found, model(*inputs).numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("mode", "normalize"),
    [
        ("mean", True),
        *(pytest.param(mode, False, marks=pytest.mark.slow) for mode in MODES),
    ],
)
def test_sentence_vectors(
    mode: str, normalize: bool, tiny: Bert, pack: Pack, export: Export
) -> None:
    pooling = Pooling(mode, normalize, 9)
    model = binarized(
        of_task(tiny, task=Task.sentence_embedding, pooling=pooling, num_hidden_layers=1)
    )
    model = load(pack(model), Act.f32)
    file = export(model)
    assert_computes(file, model)
    session = session_of(file)
    assert [value.name for value in session.get_outputs()] == ["sentence_embedding"]
    assert session.get_modelmeta().custom_metadata_map == {
        "task": "sentence_embedding",
        "pooling": mode,
        "normalize": json.dumps(normalize),
        "max_length": "9",
    }


@pytest.mark.parametrize("labels", [LABELS, pytest.param((), marks=pytest.mark.slow)])
def test_classes(labels: tuple[str, ...], tiny: Bert, pack: Pack, export: Export) -> None:
    model = binarized(of_task(tiny, task=Task.classification, labels=labels, num_hidden_layers=1))
    model = load(pack(model), Act.f32)
    file = export(model)
    assert_computes(file, model)
    found = session_of(file).get_modelmeta().custom_metadata_map
    named = labels or ("LABEL_0",)
    assert json.loads(found.pop("id2label")) == {str(i): name for i, name in enumerate(named)}
    assert found == {"task": "classification", "max_length": "12"}


@pytest.mark.slow
@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, task: Task, tiny: Bert, pack: Pack, export: Export) -> None:
    types = 2 if FAMILIES[family].token_types else 1
    labels = LABELS if task is Task.classification else ()
    changes = {"model_type": family, "type_vocab_size": types, "task": task, "labels": labels}
    model = of_task(tiny, num_hidden_layers=1, pad_token_id=1, **changes)
    binarize_naive(model, (Component.attention, Component.ffnn), "pm1", "rank_one", "matrices")
    model = load(pack(model, embeddings=Storage.int4), Act.f32)
    assert model.config.model_type == family
    assert_computes(export(model), model)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["untied", "gelu_new"])
def test_a_decoder_of_its_own_and_another_activation(
    name: str, tiny: Bert, pack: Pack, export: Export
) -> None:
    if name == "untied":
        model = load(GOLDEN / VERSION / name, Act.f32)
    else:
        model = load(pack(binarized(of_task(tiny, num_hidden_layers=1, hidden_act=name))), Act.f32)
    assert_computes(export(model), model)


@pytest.mark.slow
def test_a_file_takes_what_the_packed_one_does(pack: Pack, export: Export) -> None:
    """Also for matrices that the exporter would unpack, and a table that has two uses."""
    config = BertConfig(
        vocab_size=4001, hidden_size=256, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=1000, max_position_embeddings=64,
    )  # fmt: skip
    model = Bert(config).randomize(torch.Generator().manual_seed(0)).eval()
    binarize_naive(model, (Component.attention, Component.ffnn), "pm1", "row", "matrices")
    folder = pack(model, embeddings=Storage.int8, head=Storage.int8)
    weights = sum(parameter.numel() for parameter in model.parameters())
    packed = (folder / "model.safetensors").stat().st_size
    file = export(load(folder, Act.f32)).stat().st_size
    assert file < packed + 60_000
    assert file < weights


def test_pytorchs_own_call_exports_a_packed_model(tiny: Bert, tmp_path: Path) -> None:
    model = one_layer(tiny, Act.f32)
    file = tmp_path / "model.onnx"
    shapes = ({0: "batch", 1: "length"},) * 3
    with quiet():
        torch.onnx.export(
            model, some(model.config, 2, 3), file, dynamo=True, dynamic_shapes=shapes,
            input_names=INPUTS, verbose=False,
        )  # fmt: skip
    assert_computes(file, model)


def one_layer(tiny: Bert, act: Act) -> Bert:
    model = Bert(replace(tiny.config, num_hidden_layers=1)).randomize(
        torch.Generator().manual_seed(2)
    )
    binarize_naive(model, (Component.attention, Component.ffnn), "pm1", "row", "matrices")
    return assemble(model.config, pack_model(model), act)


# -- refusals --


@pytest.mark.parametrize("act", [act for act in Act if act is not Act.f32])
def test_rounded_activations_are_refused(act: Act, tiny: Bert, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f'activations to {act}; valid is act="f32"'):
        export_onnx(one_layer(tiny, act), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_one_bit_inputs_are_refused(tmp_path: Path) -> None:
    model = load(GOLDEN / VERSION / "inputs", Act.f32)
    with pytest.raises(InputError, match=r"to a1; .* trained with one-bit inputs do not have"):
        export_onnx(model, tmp_path / "model.onnx")


@pytest.mark.parametrize(
    "part", ["attention", "ffnn", pytest.param("both", marks=pytest.mark.slow)]
)
def test_pytorchs_own_call_says_that_activations_are_rounded(part: str, tiny: Bert) -> None:
    layer = one_layer(tiny, Act.a8).encoder.layers[0]
    module: Any = layer if part == "both" else layer.get_submodule(part)
    inputs = (normal(2, 3, 16),) if part == "ffnn" else (normal(2, 3, 16), None)
    with quiet(), pytest.raises(torch.onnx.errors.OnnxExporterError, match='valid is act="f32"'):
        torch.onnx.export(module, inputs, dynamo=True, verbose=False)


def test_a_model_that_is_not_packed_is_refused(tiny: Bert, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the model is not packed"):
        export_onnx(tiny, tmp_path / "model.onnx")


def test_a_file_that_is_there_stays_as_it_is(tiny: Bert, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match=r"model\.onnx exists already"):
        export_onnx(one_layer(tiny, Act.f32), file)
    assert file.read_text(encoding="utf-8") == "mine"
    link = tmp_path / "link.onnx"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"link\.onnx exists already"):
        export_onnx(one_layer(tiny, Act.f32), link)


def test_a_file_that_appears_meanwhile_stays_as_it_is(
    golden: tuple[Bert, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.onnx"

    def slowly(model: Bert) -> bytes:
        file.write_text("mine", encoding="utf-8")
        return golden[1]

    monkeypatch.setattr(exporting, "serialized", slowly)
    with pytest.raises(InputError, match="exists already"):
        export_onnx(golden[0], file)
    assert file.read_text(encoding="utf-8") == "mine"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_is_not_there_is_named(tiny: Bert, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no folder .*nowhere"):
        export_onnx(one_layer(tiny, Act.f32), tmp_path / "nowhere" / "model.onnx")


def test_a_missing_package_is_named(
    tiny: Bert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name)
    )
    with pytest.raises(InputError, match=r"\(onnxscript\): pip install .* -e '\.\[onnx\]'"):
        export_onnx(one_layer(tiny, Act.f32), tmp_path / "model.onnx")


def test_more_than_a_file_holds_is_refused(
    tiny: Bert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "LARGEST", 5000)
    with pytest.raises(InputError, match=r"0\.00 GiB, .* at most 2: .* --embeddings int8"):
        export_onnx(one_layer(tiny, Act.f32), tmp_path / "model.onnx")


@pytest.mark.parametrize("wrong", ["weight", "nan"])
def test_a_file_that_computes_something_else_is_not_written(
    wrong: str, golden: tuple[Bert, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "serialized", lambda model: golden[1])
    model = load(GOLDEN / VERSION / "scales", Act.f32)
    bias: Any = model.encoder.layers[1].ffnn.contract.bias  # type: ignore[union-attr]
    bias[3] += 1e-2 if wrong == "weight" else torch.nan
    with pytest.raises(InputError, match=r"is not written: .* differ from the model's by"):
        export_onnx(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_leaves_nothing(
    golden: tuple[Bert, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> int:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "serialized", lambda model: golden[1])
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match=r"cannot be written: .* No space left"):
        export_onnx(golden[0], tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
