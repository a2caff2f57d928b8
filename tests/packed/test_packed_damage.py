"""Packed folders that are damaged, or do not fit what they say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Pack
from hypothesis import given, settings
from hypothesis import strategies as st
from packed.packed_files import NORM, QUERY, WORDS, tensors_by_numpy
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitmaps.bert import Bert, BertConfig, checkpoint
from bitmaps.errors import InputError
from bitmaps.packed.belonging import canonical
from bitmaps.packed.format import FILE, load, save
from bitmaps.packed.integrity import digest
from bitmaps.quantize.convert import (
    binarize_naive,
    store_words,
)
from bitmaps.vocabulary import Storage


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
    change(tensors, metadata)
    if right_digest:
        keys = metadata.get("config")
        metadata["digest"] = digest(tensors, b"" if keys is None else keys.encode() + b"\0")
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
    "another format": (
        lambda t, m: m.update(format="pt"),
        "its format is 'pt'; valid is 'bitmaps'",
    ),
    "no format": (lambda t, m: m.pop("format"), "its format is None"),
    "a later version": (
        lambda t, m: m.update(version="3"),
        "version '3'; this package reads versions 1 and 2",
    ),
    "no version": (lambda t, m: m.pop("version"), "version None"),
    "no shapes": (lambda t, m: m.pop("shapes"), "no table of shapes"),
    "shapes that are no JSON": (lambda t, m: m.update(shapes="{"), "no table of shapes"),
    "shapes in many lists": (lambda t, m: m.update(shapes="[" * 10**5), "no table of shapes"),
    "no config": (lambda t, m: m.pop("config"), "no table of config"),
    "a config that is no object": (lambda t, m: m.update(config="[]"), "no table of config"),
    "an empty config": (lambda t, m: m.update(config="{}"), "does not belong to these weights"),
    "shapes in a list": (lambda t, m: m.update(shapes="[[1, 2]]"), "no table of shapes"),
    "shapes of one size": (
        lambda t, m: m.update(shapes=json.dumps({QUERY: [16]})),
        "no table of shapes",
    ),
    "shapes that are a number": (
        lambda t, m: m.update(shapes=json.dumps({QUERY: 16})),
        "no table of shapes",
    ),
    "shapes of words": (
        lambda t, m: m.update(shapes=json.dumps({QUERY: "ab"})),
        "no table of shapes",
    ),
    "shapes below one": (
        lambda t, m: m.update(shapes=json.dumps({QUERY: [16, 0]})),
        "no table of shapes",
    ),
    "another shape": (
        lambda t, m: m.update(shapes=m["shapes"].replace("[60,16]", "[60,15]")),
        f"{WORDS} has another shape",
    ),
    "a shape of nothing": (
        lambda t, m: m.update(shapes=json.dumps(json.loads(m["shapes"]) | {"nothing": [1, 1]})),
        "no BERT of its config.json has: nothing",
    ),
    "no bits": (lambda t, m: t.pop(f"{QUERY}.bits"), f"{QUERY}.bits is missing"),
    "no scale": (lambda t, m: t.pop(f"{QUERY}.scale"), f"{QUERY}.high is missing"),
    "no scale of a table": (lambda t, m: t.pop(f"{WORDS}.scale"), f"{WORDS}.scale is missing"),
    "no norm": (lambda t, m: t.pop(NORM), f"{NORM} is missing"),
    "a tensor more": (
        lambda t, m: t.update(more=torch.zeros(3)),
        "no BERT of its config.json has: more",
    ),
    "a part more": (
        lambda t, m: t.update({f"{QUERY}.int8": t[f"{QUERY}.bits"].repeat(1, 8).view(torch.int8)}),
        rf"no BERT of its config.json has: {QUERY}\.bits",
    ),
    "a low beside a scale": (
        lambda t, m: t.update({f"{QUERY}.low": torch.zeros(16)}),
        rf"no BERT of its config.json has: {QUERY}\.low",
    ),
    "fewer rows": (
        lambda t, m: t.update({f"{QUERY}.bits": t[f"{QUERY}.bits"][:15].clone()}),
        r"\(15, 2\)",
    ),
    "fewer columns": (
        lambda t, m: t.update({f"{QUERY}.bits": t[f"{QUERY}.bits"][:, :1].clone()}),
        r"\(16, 1\).*\(16, 2\)",
    ),
    "a scale a column": (
        lambda t, m: t.update({f"{QUERY}.scale": torch.ones(16, 1)}),
        r"\(16, 1\).*\(16,\)",
    ),
    "fewer words": (
        lambda t, m: t.update({f"{WORDS}.int4": t[f"{WORDS}.int4"][1:].clone()}),
        r"\(59, 8\).*\(60, 8\)",
    ),
    "a longer norm": (lambda t, m: t.update({NORM: torch.zeros(17)}), r"\(17,\).*\(16,\)"),
    "signed bits": (
        lambda t, m: t.update({f"{QUERY}.bits": t[f"{QUERY}.bits"].view(torch.int8)}),
        "int8 .*needs torch.uint8",
    ),
    "a scale in fp16": (
        lambda t, m: t.update({f"{QUERY}.scale": t[f"{QUERY}.scale"].half()}),
        "float16 .*needs torch.float32",
    ),
    "a norm in fp16": (
        lambda t, m: t.update({NORM: t[NORM].half()}),
        "float16 .*needs torch.float32",
    ),
    "a norm in fp64": (
        lambda t, m: t.update({NORM: t[NORM].double()}),
        "float64 .*needs torch.float32",
    ),
    "nibbles of a sign": (
        lambda t, m: t.update({f"{WORDS}.int4": t[f"{WORDS}.int4"].view(torch.int8)}),
        "int8 .*needs torch.uint8",
    ),
    "an empty tensor more": (lambda t, m: t.update(more=torch.zeros(0)), "has: more"),
    "a number more": (lambda t, m: t.update(more=torch.tensor(1.0)), "has: more"),
    "truths more": (lambda t, m: t.update(more=torch.ones(3, dtype=torch.bool)), "has: more"),
    "bfloat16 more": (lambda t, m: t.update(more=torch.ones(3, dtype=torch.bfloat16)), "has: more"),
    "fp8 more": (lambda t, m: t.update(more=torch.ones(3).to(torch.float8_e4m3fn)), "has: more"),
    "complex numbers more": (
        lambda t, m: t.update(more=torch.ones(3, dtype=torch.complex64)),
        "has: more",
    ),
}


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


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(values), encoding="utf-8")


def as_version_1(folder: Path) -> None:
    """Version 1 keeps no keys, and its digest covers the tensors alone."""
    rewrite(
        folder, lambda tensors, metadata: metadata.pop("config") and metadata.update(version="1")
    )


ENORMOUS = 10**9
OTHER_SIZES = {
    "hidden_size": 18,
    "vocab_size": 61,
    "intermediate_size": 22,
    "max_position_embeddings": 13,
    "type_vocab_size": 3,
    "num_hidden_layers": 3,
}
OTHER_KEYS = {
    "num_attention_heads": 4,
    "layer_norm_eps": 1e-5,
    "hidden_act": "relu",
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize("key", [*OTHER_SIZES, *OTHER_KEYS])
def test_a_config_of_other_weights_is_refused_by_the_key(folder: Path, key: str) -> None:
    value = (OTHER_SIZES | OTHER_KEYS)[key]
    change_config(folder, **{key: value})
    refused(folder, f"config.json does not belong to these weights: {key} is {value!r}, and they ")


def test_one_bit_inputs_belong_to_the_weights(folder: Path) -> None:
    change_config(folder, bitmaps={"one_bit_inputs": "query"})
    refused(folder, "one_bit_inputs is 'query', and they were written for ''")


def test_keys_that_shape_nothing_may_change(folder: Path, ids: Tensor) -> None:
    expected = load(folder, "f32")(ids)
    change_config(
        folder,
        _name_or_path="mine",
        transformers_version="9",
        architectures=["Mine"],
        hidden_dropout_prob=0.5,
        initializer_range=1.0,
        pad_token_id=3,
        bitmaps={"components": "layers"},
    )
    assert torch.equal(load(folder, "f32")(ids), expected)


@pytest.mark.parametrize("key", OTHER_SIZES)
def test_the_tensors_bound_every_size_before_a_model_is_built(folder: Path, key: str) -> None:
    """In version 1, and where the weights say the same as config.json."""
    for size in (OTHER_SIZES[key], ENORMOUS):
        changes = {key: size}
        change_config(folder, **changes)
        rewrite(
            folder, lambda _, m, c=changes: m.update(config=canonical(json.loads(m["config"]) | c))
        )
        refused(folder, f"{key} is {size} in config.json, but .* here")
    as_version_1(folder)
    refused(folder, f"{key} is {ENORMOUS} in config.json, but .* here")


def test_an_untied_decoder_is_missing(folder: Path) -> None:
    as_version_1(folder)
    change_config(folder, tie_word_embeddings=False)
    refused(folder, r"cls\.predictions\.decoder\.weight.* is missing")


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"hidden_size": 0}',
        '{"num_attention_heads": true}',
        f'{{"layer_norm_eps": {10**400}}}',
        '{"model_type": "gpt2"}',
    ],
    ids=lambda content: content[:30],
)
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
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        initializer_range=0.3,
    )

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


@settings(max_examples=100, deadline=None)
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
