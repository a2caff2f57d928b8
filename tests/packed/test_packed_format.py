"""The packed folder: what is in it, that it gives the model back, and that a damaged one is refused."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import Pack
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bitmaps.bert import Bert, BertConfig, checkpoint
from bitmaps.errors import InputError
from bitmaps.packed import format as folder_format
from bitmaps.packed import kernels as native
from bitmaps.packed.format import FILE, digest, is_packed, load, pack_model, save, to_float
from bitmaps.packed.layers import PackedLinear
from bitmaps.packed.weights import PackedWeight
from bitmaps.quantize.convert import (
    COMPONENTS,
    binarize_naive,
    make_trainable,
    restore_activations,
    round_activations,
    store_words,
)
from bitmaps.quantize.convert import to_float as effective
from bitmaps.quantize.quantizer import Quantization
from bitmaps.vocabulary import Scale, Storage, ValueSet

LAYERS = ("attention", "ffnn")
QUERY = "bert.encoder.layer.1.attention.self.query.weight"
WORDS = "bert.embeddings.word_embeddings.weight"
NORM = "bert.encoder.layer.0.output.LayerNorm.bias"


def trained(
    model: Bert, components: tuple[str, ...], quantization: Quantization, words: Storage | None
) -> Bert:
    """What a training of the model might leave: other latent weights, other scales, and what they come to."""
    make_trainable(model, components, quantization, words)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.rand(parameter.shape, generator=generator)
            if ".quantizer" in name or name.endswith(("scale", "column")):
                parameter.mul_(0.8 + 0.4 * noise)
            else:
                parameter.add_(0.2 * (noise - 0.5))
    return effective(model).eval()


def quantized(
    model: Bert, components: tuple[str, ...], quantization: Quantization, words: Storage | None
) -> Bert:
    """``trained``, with the layers that it was trained with."""
    trained(model, components, quantization, words)  # changes it in place
    return model.eval()


def layers_of(
    values: ValueSet = "pm1", scale: Scale = "row", words: Storage | None = None
) -> Callable[[Bert], Bert]:
    return lambda model: trained(model, LAYERS, Quantization(values, scale), words)


# Round trips


def test_kernels_that_are_none_are_said_before_anything_computes(
    tiny: Bert, pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pack(tiny)
    monkeypatch.setattr(
        native, "kernels", partial(native.chosen, "avx52")
    )  # BITMAPS_KERNELS, which is read once
    with pytest.raises(InputError, match=r"BITMAPS_KERNELS=avx52 .* valid are auto, "):
        load(folder, "a8")


def assert_same_model(found: Bert, model: Bert, ids: Tensor) -> None:
    torch.testing.assert_close(found(ids), model(ids), atol=1e-4, rtol=1e-4)
    assert torch.equal(found(ids).argmax(-1), model(ids).argmax(-1))
    parameters = dict(to_float(found).named_parameters())
    assert list(parameters) == [name for name, _ in model.named_parameters()]
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameters[name], parameter, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("values", ["pm1", "01"])
@pytest.mark.parametrize("scale", ["none", "tensor", "row", "rank_one"])
@pytest.mark.parametrize(
    ("components", "words"),
    [
        (LAYERS, None), (LAYERS, "int8"), (LAYERS, "int4"), (LAYERS, "fp16"), (LAYERS, "bit"), (("ffnn",), None),
        (("ffnn",), "int8"), (("attention",), "bit"), (tuple(COMPONENTS), None), ((), "int8"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("tied", [True, False])
def test_a_trained_model_comes_back(
    values: ValueSet,
    scale: Scale,
    components: tuple[str, ...],
    words: Storage | None,
    tied: bool,
    tiny: Bert,
    ids: Tensor,
    pack: Pack,
) -> None:
    model = Bert(replace(tiny.config, tie_word_embeddings=tied)).randomize(
        torch.Generator().manual_seed(0)
    )
    model = trained(model, components, Quantization(values, scale), words)
    folder = pack(model)
    found = load(folder, "f32")
    assert_same_model(found, model, ids)
    assert replace(found.config, bitmaps=None) == model.config
    kinds = {
        name: part.storage for name, part in found.named_modules() if isinstance(part, PackedWeight)
    }
    in_bits = {
        n
        for n, p in model.named_parameters()
        if any(f".{c}." in f".{n}" for c in components) and p.ndim == 2
    }
    in_bits -= {"embeddings.token_type.weight"}
    assert in_bits <= set(kinds)
    assert {kinds[name] for name in in_bits} <= {"bit"}
    assert (found.config.bitmaps or {})["embeddings"] == kinds.get("embeddings.word.weight", "fp32")
    if words is not None:
        assert kinds["embeddings.word.weight"] == words
    of_words = tied and (words is not None or "embeddings" in components)
    assert isinstance(found.head.decoder, nn.Linear) is not (of_words or "head" in components)


@pytest.mark.parametrize("values", ["pm1", "01"])
@pytest.mark.parametrize("scale", ["none", "row", "rank_one"])
@pytest.mark.parametrize("words", [None, "fp16", "int8", "int4", "bit"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_quantized_model_is_packed_from_its_quantizers(
    values: ValueSet, scale: Scale, words: Storage | None, tied: bool, tiny: Bert,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Exactly: no bits are looked for in what a quantizer made."""
    tiny = Bert(replace(tiny.config, tie_word_embeddings=tied)).randomize()
    model = quantized(tiny, LAYERS, Quantization(values, scale), words)
    expected = effective(model)
    looked_at = []
    monkeypatch.setattr(
        folder_format, "fewest_bits", lambda weight, table: looked_at.append(weight.shape)
    )
    parts = pack_model(model)
    assert list(parts) == [name for name, _ in expected.named_parameters()]
    for name, parameter in expected.named_parameters():
        part = parts[name]
        found = part.dense() if isinstance(part, PackedWeight) else part
        assert torch.equal(found, parameter), name
        in_layers = name.startswith("encoder") and parameter.ndim == 2
        assert isinstance(part, PackedWeight) is (in_layers or (words and "word" in name) or False)
    tables = [(60, 16)] * (words is None) + [(12, 16), (2, 16), (16, 16)] + [(60, 16)] * (not tied)
    assert looked_at == tables


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        (Quantization("pm1", "row"), "int8"),
        (Quantization("01", "row"), None),
        (Quantization("pm1", "none"), "fp16"),
        (Quantization("01", "tensor", "computed", "row"), "bit"),
        (Quantization("pm1", "row", "lsq", "tensor"), "int4"),
    ],
)
def test_a_quantized_model_and_its_floats_make_the_same_file(
    quantization: Quantization, words: Storage | None, tiny: Bert, pack: Pack
) -> None:
    model = quantized(tiny, LAYERS, quantization, words)
    files = [load_file(pack(each, head="int8") / FILE) for each in (model, effective(model))]
    assert files[0].keys() == files[1].keys()
    for name in files[0]:
        torch.testing.assert_close(files[0][name], files[1][name], rtol=1e-6, atol=0)


def test_one_bit_inputs_survive_packing(tiny: Bert, ids: Tensor, pack: Pack) -> None:
    make_trainable(tiny, LAYERS, Quantization("pm1", "rank_one"), one_bit=("query", "contract"))
    round_activations(tiny, LAYERS, ("query", "contract"))
    trained = {"components": "layers", "activations": "bit", "one_bit_inputs": "query+contract"}
    tiny.config = replace(tiny.config, bitmaps=trained)
    found = load(pack(tiny), "a8")
    acts = {name: m.act for name, m in found.named_modules() if isinstance(m, PackedLinear)}
    for name, act in acts.items():
        assert act == ("a1" if name.endswith(("query", "contract")) else "a8"), name
    floats = restore_activations(to_float(found))
    torch.testing.assert_close(floats(ids), tiny(ids), atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("part", ["scale", "column"])
def test_a_scale_that_is_not_finite_is_refused(
    value: float, part: str, tiny: Bert, pack: Pack
) -> None:
    make_trainable(tiny, LAYERS, Quantization("pm1", "rank_one"))
    with torch.no_grad():
        getattr(tiny.encoder.layers[1].ffnn.expand.quantizer, part)[2] = value
    with pytest.raises(
        InputError, match=r"encoder.layers.1.ffnn.expand.weight holds a number that is not finite"
    ):
        pack(tiny)


@pytest.mark.parametrize("scope", ["all", "matrices"])
@pytest.mark.parametrize("values", ["pm1", "01"])
def test_a_naively_binarized_model_comes_back(
    scope: Any, values: ValueSet, tiny: Bert, ids: Tensor, pack: Pack
) -> None:
    model = binarize_naive(tiny, COMPONENTS, values, "none", scope)
    assert_same_model(load(pack(model), "f32"), model, ids)


def test_a_model_in_floats_comes_back_to_the_bit(tiny: Bert, ids: Tensor, pack: Pack) -> None:
    assert torch.equal(load(pack(tiny), "a8")(ids), tiny(ids))


def test_scales_below_zero_come_back(tiny: Bert, ids: Tensor, pack: Pack) -> None:
    make_trainable(tiny, LAYERS, Quantization("01", "rank_one"))
    with torch.no_grad():
        for name, parameter in tiny.named_parameters():
            if name.endswith("scale"):
                parameter[::3] *= -1
    model = effective(tiny).eval()
    assert_same_model(load(pack(model), "f32"), model, ids)


@pytest.mark.parametrize("kind", ["fp16", "int8", "int4"])
def test_tables_and_head_are_rounded_where_that_is_asked_for(
    kind: Storage, tiny: Bert, pack: Pack
) -> None:
    model = layers_of()(tiny)
    found = load(pack(model, kind, "fp16" if kind == "fp16" else "int8"), "f32")
    plain = to_float(found)
    for name in ("word", "position", "token_type"):
        weight = model.get_parameter(f"embeddings.{name}.weight")
        assert getattr(found.embeddings, name).weight.storage == kind
        torch.testing.assert_close(
            plain.get_parameter(f"embeddings.{name}.weight"),
            PackedWeight.rounded(weight, kind).dense(),
        )
    assert found.head.transform.weight.storage == ("fp16" if kind == "fp16" else "int8")  # type: ignore[union-attr]
    torch.testing.assert_close(
        plain.head.transform.weight, model.head.transform.weight, atol=0.01, rtol=0
    )
    assert torch.equal(plain.head.transform.bias, model.head.transform.bias)


@pytest.mark.parametrize("words", ["bit", "int4", "int8"])
def test_what_is_in_fewer_bits_already_is_not_rounded(
    words: Storage, tiny: Bert, pack: Pack
) -> None:
    model = layers_of(words=words)(tiny)
    assert load(pack(model, "int8"), "f32").embeddings.word.weight.storage == words  # type: ignore[union-attr]


def test_packing_again_what_came_back_gives_the_same_tensors(tiny: Bert, pack: Pack) -> None:
    first = pack(layers_of("01", "row", "int8")(tiny))
    second = pack(to_float(load(first, "f32")))
    assert (
        tensors_by_numpy(first / FILE)[1] == tensors_by_numpy(second / FILE)[1]
    )  # the digest among it


@pytest.mark.parametrize("scale", ["row", "rank_one"])
def test_a_model_taken_back_to_floats_opens_in_transformers(
    scale: Scale, tiny: Bert, ids: Tensor, pack: Pack, tmp_path: Path
) -> None:
    found = load(pack(layers_of(scale=scale, words="int8")(tiny)), "f32")
    checkpoint.save(to_float(found), tmp_path / "floats")
    model, report = transformers.BertForMaskedLM.from_pretrained(
        tmp_path / "floats", output_loading_info=True
    )
    assert not any(report.values())
    torch.testing.assert_close(model.eval()(ids).logits, found(ids), atol=1e-5, rtol=0)


# The format, read without this package


def tensors_by_numpy(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    raw, dtypes = (
        path.read_bytes(),
        {"U8": np.uint8, "I8": np.int8, "F16": np.float16, "F32": np.float32},
    )
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    metadata = header.pop("__metadata__")
    return {
        name: np.frombuffer(raw[start + found["data_offsets"][0] : start + found["data_offsets"][1]], dtypes[found["dtype"]])
        .reshape(found["shape"])
        for name, found in header.items()
    }, metadata  # fmt: skip


def weight_by_numpy(
    tensors: dict[str, NDArray[Any]], name: str, shapes: dict[str, list[int]]
) -> NDArray[Any]:
    if name in tensors:
        return tensors[name].astype(np.float32)
    columns, scale = shapes[name][1], tensors.get(f"{name}.scale")
    if f"{name}.int8" in tensors:
        return scale[:, None] * tensors[f"{name}.int8"]  # type: ignore[index]
    if f"{name}.int4" in tensors:
        data = tensors[f"{name}.int4"]
        nibbles = np.stack([data & 15, data >> 4], -1).reshape(len(data), -1)[:, :columns]
        return scale[:, None] * (nibbles.astype(np.int8) - 8)  # type: ignore[index]
    bits = np.unpackbits(tensors[f"{name}.bits"], axis=1, count=columns, bitorder="little")
    high = tensors[f"{name}.high"] if scale is None else scale
    low = tensors.get(f"{name}.low", 0 * high) if scale is None else -scale
    return np.where(bits == 1, high[:, None], low[:, None]) * tensors.get(
        f"{name}.column", np.float32(1)
    )


@pytest.mark.parametrize("values", ["pm1", "01"])
@pytest.mark.parametrize("scale", ["none", "row", "rank_one"])
@pytest.mark.parametrize("words", [None, "int8", "int4", "fp16", "bit"])
def test_ten_lines_of_numpy_read_the_file(
    values: ValueSet, scale: Scale, words: Storage | None, tiny: Bert, pack: Pack
) -> None:
    folder = pack(trained(tiny, LAYERS, Quantization(values, scale), words), "int4")
    tensors, metadata = tensors_by_numpy(folder / FILE)
    shapes = json.loads(metadata["shapes"])
    for name, parameter in to_float(load(folder, "f32")).named_parameters():
        found = weight_by_numpy(tensors, checkpoint.hugging_face_name(name), shapes)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, parameter.detach().numpy(), err_msg=name)


def test_the_reader_in_the_documentation_reads_a_matrix(
    tiny: Bert, pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    pack(layers_of("01", "rank_one")(tiny)).rename(tmp_path / "packed")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    weight = to_float(load(tmp_path / "packed", "f32")).get_parameter(
        "encoder.layers.1.attention.query.weight"
    )
    np.testing.assert_array_equal(names["one_bit"](QUERY), weight.detach().numpy())


def test_the_digest_is_sha256_over_names_and_bytes(tiny: Bert, pack: Pack) -> None:
    folder = pack(layers_of(words="int8")(tiny))
    tensors, metadata = tensors_by_numpy(folder / FILE)
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode() + b"\0" + tensors[name].tobytes())
    assert metadata["digest"] == found.hexdigest() == digest(load_file(folder / FILE))


@pytest.mark.parametrize(
    ("values", "scale", "parts"),
    [
        ("pm1", "row", {"bits": torch.uint8, "scale": torch.float32}),
        ("01", "row", {"bits": torch.uint8, "high": torch.float32}),
        ("pm1", "rank_one", {"bits": torch.uint8, "scale": torch.float32, "column": torch.float32}),
        ("01", "rank_one", {"bits": torch.uint8, "high": torch.float32, "column": torch.float32}),
    ],
)
def test_a_file_has_the_names_of_hugging_face_with_what_each_part_is(
    values: ValueSet, scale: Scale, parts: dict[str, torch.dtype], tiny: Bert, pack: Pack
) -> None:
    model = trained(tiny, LAYERS, Quantization(values, scale), "int8")
    folder = pack(model, head="fp16")
    expected = {}
    for name, parameter in model.named_parameters():
        theirs = checkpoint.hugging_face_name(name)
        if name == "embeddings.word.weight":
            expected |= {f"{theirs}.int8": torch.int8, f"{theirs}.scale": torch.float32}
        elif parameter.ndim == 2 and name.startswith("encoder."):
            expected |= {f"{theirs}.{part}": dtype for part, dtype in parts.items()}
        else:
            expected[theirs] = torch.float16 if name == "head.transform.weight" else torch.float32
    tensors = load_file(folder / FILE)
    assert {name: tensor.dtype for name, tensor in tensors.items()} == expected
    assert tensors[f"{QUERY}.bits"].shape == (16, 2)
    assert all(tensors[f"{QUERY}.{part}"].shape == (16,) for part in parts if part != "bits")
    metadata = tensors_by_numpy(folder / FILE)[1]
    assert set(metadata) == {"format", "version", "shapes", "digest"}
    assert (metadata["format"], metadata["version"]) == ("bitmaps", "1")
    packed = {WORDS, "cls.predictions.transform.dense.weight"}
    packed |= {name.removesuffix(".bits") for name in tensors if name.endswith(".bits")}
    assert set(json.loads(metadata["shapes"])) == packed
    assert json.loads(metadata["shapes"])[WORDS] == [60, 16]


def test_the_nibbles_of_a_table_take_half_a_byte_each(tiny: Bert, pack: Pack) -> None:
    tensors = load_file(pack(tiny, "int4") / FILE)
    assert tensors[f"{WORDS}.int4"].dtype == torch.uint8
    assert tensors[f"{WORDS}.int4"].shape == (60, 8)


def test_any_two_values_a_row_are_written_as_high_and_low(
    tiny: Bert, ids: Tensor, pack: Pack
) -> None:
    with torch.no_grad():
        weight = tiny.get_parameter("encoder.layers.1.attention.query.weight")
        weight.copy_(torch.where(weight > 0, weight[:, :1].abs(), -0.3))
    folder = pack(tiny)
    assert {name.rpartition(".")[2] for name in load_file(folder / FILE) if name.startswith(QUERY)} == {
        "bits", "high", "low"
    }  # fmt: skip
    assert_same_model(load(folder, "f32"), tiny, ids)


def test_a_tied_table_is_written_once(tiny: Bert, pack: Pack) -> None:
    names = load_file(pack(layers_of(words="int8")(tiny)) / FILE)
    assert not any(name.startswith("cls.predictions.decoder.weight") for name in names)


def test_the_config_says_that_it_is_packed_and_what_was_binarized(tiny: Bert, pack: Pack) -> None:
    model = layers_of()(tiny)
    model.config = replace(model.config, bitmaps={"components": "layers", "embeddings": "fp32"})
    for embeddings in (None, "int8"):
        folder = pack(model, embeddings)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        assert config["model_type"] == "bitmaps"
        assert config["architectures"] == ["bitmaps.packed"]
        assert config["bitmaps"] == {"components": "layers", "embeddings": embeddings or "fp32"}
        assert config["hidden_size"] == 16
        assert load(folder, "a8").config.bitmaps == config["bitmaps"]
    assert {file.name for file in folder.iterdir()} >= {
        "config.json",
        FILE,
        "tokenizer_config.json",
    }


def test_transformers_does_not_open_a_packed_folder_with_random_weights(
    tiny: Bert, pack: Pack
) -> None:
    with pytest.raises((ValueError, KeyError), match="bitmaps"):
        transformers.AutoModelForMaskedLM.from_pretrained(pack(tiny))


def test_only_a_packed_folder_is_packed(tiny: Bert, pack: Pack, tmp_path: Path) -> None:
    checkpoint.save(tiny, tmp_path / "floats")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("[", encoding="utf-8")
    assert is_packed(pack(tiny))
    assert not any(is_packed(tmp_path / name) for name in ("floats", "broken", "nowhere", "."))


# Writing


@pytest.mark.parametrize("taken", ["folder", "file"])
def test_nothing_is_written_over(taken: str, tiny: Bert, tokenizer: Any, tmp_path: Path) -> None:
    target = tmp_path / "taken"
    if taken == "folder":
        target.mkdir()
    else:
        target.write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match=r"taken exists already"):
        save(tiny, target, tokenizer)
    assert list(tmp_path.rglob("*")) == [target]


def test_what_cannot_be_written_whole_is_not_there(tiny: Bert, tmp_path: Path) -> None:
    class Full:
        def save_pretrained(self, folder: Path) -> None:
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        save(tiny, tmp_path / "packed", Full())  # type: ignore[arg-type]
    assert not (tmp_path / "packed").exists()


def test_what_an_earlier_attempt_left_is_no_hindrance(
    tiny: Bert, tokenizer: Any, tmp_path: Path
) -> None:
    (tmp_path / ".packed.draft" / "more").mkdir(parents=True)
    save(tiny, tmp_path / "packed", tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]
    assert not (tmp_path / "packed" / "more").exists()


def test_the_model_that_is_packed_stays_what_it_was(tiny: Bert, ids: Tensor, pack: Pack) -> None:
    before = {name: parameter.clone() for name, parameter in tiny.named_parameters()}
    pack(tiny, "int8", "int8")
    assert all(torch.equal(parameter, before[name]) for name, parameter in tiny.named_parameters())
    assert all(parameter.requires_grad for parameter in tiny.parameters())


def test_the_file_stays_what_it_was_when_a_loaded_model_is_written_to(
    tiny: Bert, ids: Tensor, pack: Pack
) -> None:
    folder = pack(layers_of(words="int8")(tiny))
    model = load(folder, "f32")
    expected = model(ids)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.zero_()
    assert torch.equal(load(folder, "f32")(ids), expected)


# Reading what is damaged


@pytest.fixture
def folder(tiny: Bert, pack: Pack) -> Path:
    """Parts of every kind: bits with and without column scales, with any two values a row, int8, fp16 and fp32. Of
    ``intermediate`` 21, so that bytes are left over."""
    return whole_folder(tiny.config, pack)


def whole_folder(config: BertConfig, pack: Pack) -> Path:
    model = (
        Bert(replace(config, intermediate_size=21))
        .randomize(torch.Generator().manual_seed(0))
        .eval()
    )
    binarize_naive(model, ("attention",), "pm1", "rank_one", "matrices")
    binarize_naive(model, ("ffnn",), "01", "row", "matrices")
    with torch.no_grad():
        weight = model.get_parameter("encoder.layers.0.attention.query.weight")
        weight.copy_(torch.where(weight > 0, 0.5, -0.25))
    return pack(store_words(model, "int4"), "int8", "fp16")


def rewrite(
    folder: Path,
    change: Callable[[dict[str, Tensor], dict[str, str]], object],
    right_digest: bool = True,
) -> None:
    """Change the tensors and the metadata of a file."""
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / FILE).items()}
    metadata = tensors_by_numpy(folder / FILE)[1]
    if right_digest:
        change(tensors, metadata)
        metadata["digest"] = digest(tensors)
    else:
        change(tensors, metadata)
    (folder / FILE).unlink()
    save_file(tensors, folder / FILE, metadata=metadata)


def refused(folder: Path, named: str = "model.safetensors") -> None:
    """It is refused in a message that begins with the file and names what is wrong."""
    with pytest.raises(InputError, match=named) as error:
        load(folder, "f32")
    assert str(error.value).startswith(str(folder / FILE))


def test_a_rewritten_file_opens(folder: Path, ids: Tensor) -> None:
    expected = load(folder, "f32")(ids)
    rewrite(folder, lambda tensors, metadata: None)
    assert torch.equal(load(folder, "f32")(ids), expected)


def test_a_file_of_every_kind_has_bits_left_over(folder: Path) -> None:
    tensors = load_file(folder / FILE)
    suffixes = {name.rpartition(".")[2] for name in tensors}
    assert suffixes >= {"bits", "scale", "high", "low", "column", "int4", "int8"}
    assert tensors["bert.encoder.layer.0.output.dense.weight.bits"].shape == (16, 3)


@pytest.mark.parametrize("kept", [0, 4, 8, 100, -1])
def test_a_truncated_file_is_refused(folder: Path, kept: int) -> None:
    content = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(content[:kept])
    refused(folder, "truncated or not a safetensors file")


def test_bytes_after_the_end_are_refused(folder: Path) -> None:
    content = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(content + b"\0")
    refused(folder, "truncated or not a safetensors file")


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / FILE).unlink()
    refused(folder, "is missing")


CHANGES: dict[str, tuple[Callable[[dict[str, Tensor], dict[str, str]], object], str]] = {
    "another format": (lambda t, m: m.update(format="pt"), "its format is 'pt'; valid is 'bitmaps'"),
    "no format": (lambda t, m: m.pop("format"), "its format is None"),
    "a later version": (lambda t, m: m.update(version="2"), "version '2'; this package reads version 1"),
    "no version": (lambda t, m: m.pop("version"), "version None"),
    "no shapes": (lambda t, m: m.pop("shapes"), "no table of shapes"),
    "shapes that are no JSON": (lambda t, m: m.update(shapes="{"), "no table of shapes"),
    "shapes in a list": (lambda t, m: m.update(shapes="[[1, 2]]"), "no table of shapes"),
    "shapes of one size": (lambda t, m: m.update(shapes=json.dumps({QUERY: [16]})), "no table of shapes"),
    "shapes that are a number": (lambda t, m: m.update(shapes=json.dumps({QUERY: 16})), "no table of shapes"),
    "shapes of words": (lambda t, m: m.update(shapes=json.dumps({QUERY: "ab"})), "no table of shapes"),
    "shapes below one": (lambda t, m: m.update(shapes=json.dumps({QUERY: [16, 0]})), "no table of shapes"),
    "another shape": (
        lambda t, m: m.update(shapes=m["shapes"].replace("[60, 16]", "[60, 15]")), f"{WORDS} has another shape"
    ),
    "a shape of nothing": (
        lambda t, m: m.update(shapes=json.dumps(json.loads(m["shapes"]) | {"nothing": [1, 1]})),
        "no BERT of its config.json has: nothing",
    ),
    "no bits": (lambda t, m: t.pop(f"{QUERY}.bits"), f"{QUERY}.bits is missing"),
    "no scale": (lambda t, m: t.pop(f"{QUERY}.scale"), f"{QUERY}.high is missing"),
    "no scale of a table": (lambda t, m: t.pop(f"{WORDS}.scale"), f"{WORDS}.scale is missing"),
    "no norm": (lambda t, m: t.pop(NORM), f"{NORM} is missing"),
    "a tensor more": (lambda t, m: t.update(more=torch.zeros(3)), "no BERT of its config.json has: more"),
    "a part more": (
        lambda t, m: t.update({f"{QUERY}.int8": t[f"{QUERY}.bits"].repeat(1, 8).view(torch.int8)}),
        rf"no BERT of its config.json has: {QUERY}\.bits",
    ),
    "a low beside a scale": (
        lambda t, m: t.update({f"{QUERY}.low": torch.zeros(16)}), rf"no BERT of its config.json has: {QUERY}\.low"
    ),
    "fewer rows": (lambda t, m: t.update({f"{QUERY}.bits": t[f"{QUERY}.bits"][:15].clone()}), r"\(15, 2\)"),
    "fewer columns": (
        lambda t, m: t.update({f"{QUERY}.bits": t[f"{QUERY}.bits"][:, :1].clone()}), r"\(16, 1\).*\(16, 2\)"
    ),
    "a scale a column": (lambda t, m: t.update({f"{QUERY}.scale": torch.ones(16, 1)}), r"\(16, 1\).*\(16,\)"),
    "fewer words": (lambda t, m: t.update({f"{WORDS}.int4": t[f"{WORDS}.int4"][1:].clone()}), r"\(59, 8\).*\(60, 8\)"),
    "a longer norm": (lambda t, m: t.update({NORM: torch.zeros(17)}), r"\(17,\).*\(16,\)"),
    "signed bits": (
        lambda t, m: t.update({f"{QUERY}.bits": t[f"{QUERY}.bits"].view(torch.int8)}), "int8 .*needs torch.uint8"
    ),
    "a scale in fp16": (
        lambda t, m: t.update({f"{QUERY}.scale": t[f"{QUERY}.scale"].half()}), "float16 .*needs torch.float32"
    ),
    "a norm in fp16": (lambda t, m: t.update({NORM: t[NORM].half()}), "float16 .*needs torch.float32"),
    "a norm in fp64": (lambda t, m: t.update({NORM: t[NORM].double()}), "float64 .*needs torch.float32"),
    "nibbles of a sign": (
        lambda t, m: t.update({f"{WORDS}.int4": t[f"{WORDS}.int4"].view(torch.int8)}), "int8 .*needs torch.uint8"
    ),
    "an empty tensor more": (lambda t, m: t.update(more=torch.zeros(0)), "has: more"),
    "a number more": (lambda t, m: t.update(more=torch.tensor(1.0)), "has: more"),
    "truths more": (lambda t, m: t.update(more=torch.ones(3, dtype=torch.bool)), "has: more"),
    "bfloat16 more": (lambda t, m: t.update(more=torch.ones(3, dtype=torch.bfloat16)), "has: more"),
    "fp8 more": (lambda t, m: t.update(more=torch.ones(3).to(torch.float8_e4m3fn)), "has: more"),
    "complex numbers more": (lambda t, m: t.update(more=torch.ones(3, dtype=torch.complex64)), "has: more"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_does_not_fit_is_refused_even_with_the_right_digest(
    folder: Path, change: str
) -> None:
    function, named = CHANGES[change]
    rewrite(folder, function)
    refused(folder, named)


@pytest.mark.parametrize(
    "name", [f"{QUERY}.scale", f"{QUERY}.column", f"{WORDS}.scale", NORM, "fp16", "high", "low"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_refused(folder: Path, name: str, value: float) -> None:
    first = "bert.encoder.layer.0.attention.self.query.weight"
    name = {"fp16": "cls.predictions.transform.dense.weight"}.get(name, name)
    name = f"{first}.{name}" if name in ("high", "low") else name
    rewrite(folder, lambda tensors, _: tensors[name].view(-1)[3:4].fill_(value))
    refused(folder, f"{name} holds a number that is not finite")


@pytest.mark.parametrize("bit", [5, 7])
def test_bits_beyond_the_last_column_are_refused(folder: Path, bit: int) -> None:
    name = "bert.encoder.layer.0.output.dense.weight.bits"  # of 21 columns
    rewrite(folder, lambda tensors, _: tensors[name][7, 2].bitwise_or_(1 << bit))
    refused(folder, f"{name} has bits beyond its 21 columns")


def test_a_changed_tensor_does_not_have_its_digest(folder: Path) -> None:
    rewrite(folder, lambda tensors, _: tensors[NORM].add_(1e-3), right_digest=False)
    refused(
        folder,
        "is damaged: its content has digest [0-9a-f]{64}, but it was written with [0-9a-f]{64}",
    )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_size": 18}, "has another shape|needs"),
        ({"vocab_size": 61}, "has another shape|needs"),
        ({"intermediate_size": 22}, "has another shape|needs"),
        ({"max_position_embeddings": 13}, "has another shape|needs"),
        ({"num_hidden_layers": 3}, r"bert\.encoder\.layer\.2\..* is missing"),
        ({"num_hidden_layers": 1}, r"no BERT of its config.json has: bert\.encoder\.layer\.1\."),
        ({"tie_word_embeddings": False}, r"cls\.predictions\.decoder\.weight.* is missing"),
    ],
)
def test_a_file_that_does_not_fit_its_config_is_refused(
    folder: Path, changes: dict[str, Any], named: str
) -> None:
    path = folder / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8"
    )
    refused(folder, named)


@pytest.mark.parametrize("content", ["{", "[]", '{"hidden_size": 0}', '{"model_type": "gpt2"}'])
def test_a_damaged_config_is_named(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"config\.json"):
        load(folder, "f32")


def test_a_checkpoint_in_floats_is_no_packed_file(tiny: Bert, tmp_path: Path) -> None:
    checkpoint.save(tiny, tmp_path / "floats")
    refused(tmp_path / "floats", "its format is 'pt'")


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A folder whose file is damaged over and over."""
    target = tmp_path_factory.mktemp("victim") / "packed"
    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=8,
        initializer_range=0.3,
    )  # fmt: skip

    def write(model: Bert, embeddings: Storage, head: Storage) -> Path:
        save(model, target, tokenizer, embeddings, head)
        return target

    whole_folder(config, write)
    shutil.copy(target / FILE, target / "whole")
    return target


def damage(victim: Path, position: int, flip: int) -> None:
    """Flip bits of one byte. The file is a new one, because the last may still be mapped."""
    content = bytearray((victim / "whole").read_bytes())
    content[position] ^= flip
    (victim / FILE).unlink()
    (victim / FILE).write_bytes(content)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), flip=st.integers(1, 255))
@pytest.mark.parametrize("where", ["length", "header", "data"])
def test_any_byte_that_is_another_is_noticed(
    victim: Path, where: str, data: st.DataObject, flip: int
) -> None:
    content = (victim / "whole").read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    text = len(
        content[:start].rstrip()
    )  # the header is filled up with spaces, and any other blank would do
    first, end = {"length": (0, 8), "header": (8, text), "data": (start, len(content))}[where]
    damage(victim, data.draw(st.integers(first, end - 1)), flip)
    refused(victim)


# At the size of BERT-base


@pytest.fixture(scope="module")
def base() -> Bert:
    """Of the shape of ``bert-base-uncased``, with its layers in one bit."""
    model = Bert(BertConfig()).randomize(torch.Generator().manual_seed(0))
    return binarize_naive(model, LAYERS, "pm1", "row", "matrices").eval()


def part_of_fp32(model: Bert, pack: Pack, **options: Any) -> float:
    whole = 4 * sum(parameter.numel() for parameter in model.parameters())
    return whole / (pack(model, **options) / FILE).stat().st_size


@pytest.mark.slow
def test_the_size_of_a_file_of_bert_base(base: Bert, pack: Pack) -> None:
    assert part_of_fp32(base, pack, embeddings="int8") >= 11.5
    assert part_of_fp32(base, pack, embeddings="int8", head="int8") >= 12
    words_too = binarize_naive(copy.deepcopy(base), ("embeddings",), "pm1", "row", "matrices")
    assert part_of_fp32(words_too, pack) >= 25
    assert part_of_fp32(words_too, pack, head="int8") >= 28


MEMORY = """
import json, re, resource, sys
from pathlib import Path
import bitmaps
import bitmaps.loading

def status():
    found = dict(re.findall(r"(\\w+):\\s+(\\d+) kB", Path("/proc/self/status").read_text()))
    return {name: 1024 * int(found[name]) for name in ("VmRSS", "RssAnon", "VmHWM")}

first = bitmaps.load(sys.argv[1])  # what is imported and made but once
before = status()
Path("/proc/self/clear_refs").write_text("5")  # the peak is what it is now
model = bitmaps.load(sys.argv[2])
print(json.dumps([before, status()]))
"""


def memory(*arguments: object) -> tuple[dict[str, int], dict[str, int]]:
    """What a process of its own holds, after it has opened one model and then another."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    before, after = json.loads(done.stdout)
    return before, after


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").is_file(), reason="there is no /proc to read it from"
)
@pytest.mark.parametrize("tables", [None, "fp16", "int8"])
def test_a_model_that_is_opened_takes_what_its_file_does(
    base: Bert, pack: Pack, tables: Any
) -> None:
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    tiny = Bert(BertConfig(**sizes)).randomize(torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    folder, first = (
        pack(base, tables, tables),
        pack(binarize_naive(tiny, LAYERS, "pm1", "row", "matrices").eval()),
    )
    size, slack = (folder / FILE).stat().st_size, 16 * 2**20
    before, after = memory(first, folder)
    assert after["VmRSS"] - before["VmRSS"] <= 1.3 * size + slack
    assert after["VmHWM"] - before["VmRSS"] <= 1.3 * size + slack
    # the weights stay in the file's pages, which every process that opens it has in common
    assert after["RssAnon"] - before["RssAnon"] <= 0.25 * size
