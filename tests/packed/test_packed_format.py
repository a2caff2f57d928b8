"""The packed folder: what is in it, that it gives the model back, and that a damaged one is
refused."""

from __future__ import annotations

import hashlib
import json
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
from numpy.typing import NDArray
from packed.building import ROOT, call
from packed.packed_files import LAYERS, QUERY, WORDS, tensors_by_numpy
from safetensors.torch import load_file
from torch import Tensor, nn

from bitmaps.bert import Bert, checkpoint
from bitmaps.errors import InputError
from bitmaps.packed import format as folder_format
from bitmaps.packed import kernels as native
from bitmaps.packed.format import FILE, is_packed, load, pack_model, save
from bitmaps.packed.integrity import digest
from bitmaps.packed.layers import PackedLinear
from bitmaps.packed.model import to_float
from bitmaps.packed.weights import PackedWeight
from bitmaps.quantize.convert import (
    COMPONENTS,
    binarize_naive,
    make_trainable,
    restore_activations,
    round_activations,
)
from bitmaps.quantize.convert import to_float as effective
from bitmaps.quantize.quantizer import Quantization
from bitmaps.vocabulary import Activations, Scale, Storage, ValueSet


def trained(
    model: Bert, components: tuple[str, ...], quantization: Quantization, words: Storage | None
) -> Bert:
    """What a training of the model might leave: other latent weights, other scales, and what they
    come to."""
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
    round_activations(tiny, LAYERS, Activations.bit, ("query", "contract"))
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
    first = metadata["config"].encode() + b"\0"
    found = hashlib.sha256(first)
    for name in sorted(tensors):
        found.update(name.encode() + b"\0" + tensors[name].tobytes())
    assert metadata["digest"] == found.hexdigest() == digest(load_file(folder / FILE), first)


def test_the_same_model_gives_the_same_bytes(tiny: Bert, pack: Pack) -> None:
    tiny.config = replace(tiny.config, bitmaps={"one_bit_inputs": "query+contract"})
    first, *others = (pack(tiny, "int8", "fp16") for _ in range(3))
    for file in first.iterdir():
        assert all((other / file.name).read_bytes() == file.read_bytes() for other in others)
    keys = tensors_by_numpy(first / FILE)[1]["config"]
    assert keys == (
        '{"hidden_act":"gelu","hidden_size":16,"intermediate_size":24,"layer_norm_eps":1e-12,'
        '"max_position_embeddings":12,"num_attention_heads":2,"num_hidden_layers":2,'
        '"one_bit_inputs":"contract+query","tie_word_embeddings":true,"type_vocab_size":2,'
        '"vocab_size":60}'
    )


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    """Whatever order their sets and dictionaries have."""
    code = "import sys; from packed import golden_models as g; g.write(g.Path(sys.argv[1]))"
    for seed in ("1", "2"):
        variables = {"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[1])}
        done = call(sys.executable, "-c", code, tmp_path / seed, cwd=ROOT, **variables)
        assert done.returncode == 0, done.stderr
    one, two = (tmp_path / "1", tmp_path / "2")
    files = [path.relative_to(one) for path in one.rglob("*") if path.is_file()]
    assert len(files) > 9
    assert all((one / file).read_bytes() == (two / file).read_bytes() for file in files)


def test_every_number_of_a_file_is_aligned(tiny: Bert, pack: Pack) -> None:
    raw = (pack(tiny, "int8", "fp16") / FILE).read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    sizes = {"F32": 4, "F16": 2, "U8": 1, "I8": 1}
    header = json.loads(raw[8:start])
    del header["__metadata__"]
    assert {entry["dtype"] for entry in header.values()} == {"F32", "F16", "I8"}
    for entry in header.values():
        assert (start + entry["data_offsets"][0]) % sizes[entry["dtype"]] == 0


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
    assert list(metadata) == ["config", "digest", "format", "shapes", "version"]
    assert (metadata["format"], metadata["version"]) == ("bitmaps", "2")
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
        assert config["architectures"] == ["BitmapsForMaskedLM"]
        assert config["bitmaps"] == {
            "components": "layers", "embeddings": embeddings or "fp32", "task": "masked_lm"
        }  # fmt: skip
        assert config["hidden_size"] == 16
        assert load(folder, "a8").config.bitmaps == config["bitmaps"]
    assert {file.name for file in folder.iterdir()} >= {
        "config.json",
        FILE,
        "tokenizer_config.json",
    }


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
