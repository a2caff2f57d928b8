"""Naive binarization by transformers, beside our own."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from bert.architectures import own_model
from conftest import Pack
from hf.folders import batch_of
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.quantizers import AutoHfQuantizer

import bitmaps
from bitmaps.bert import checkpoint
from bitmaps.bert.families import FAMILIES
from bitmaps.errors import InputError
from bitmaps.hf import BinarizeConfig
from bitmaps.hf.quantizer import ACTS
from bitmaps.packed.format import load, pack_model
from bitmaps.packed.layers import PackedEmbedding, PackedLinear
from bitmaps.quantize.convert import binarize_naive
from bitmaps.vocabulary import Act, Scale, Scope, Task, ValueSet, components_of

OPENERS = {
    Task.masked_lm: AutoModelForMaskedLM,
    Task.sentence_embedding: AutoModel,
    Task.classification: AutoModelForSequenceClassification,
}
VALUES, SCALES, SCOPES = list(ValueSet), list(Scale), list(Scope)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    own_model("bert", Task.masked_lm, hidden_size=32).save_pretrained(tmp_path / "floats")
    return tmp_path / "floats"


def opened(folder: Path, task: Task = Task.masked_lm, **options: Any) -> PreTrainedModel:
    """By transformers, with a quantization."""
    config = BinarizeConfig(**{"act": "f32"} | options)
    return OPENERS[task].from_pretrained(folder, quantization_config=config, dtype=torch.float32)


def ours(folder: Path, task: Task, pack: Pack, **options: str) -> bitmaps.bert.Bert:
    """By ``bitmaps.load``, ``binarize_naive`` and packing."""
    chosen = BinarizeConfig(**{"act": "f32"} | options)
    model = binarize_naive(
        checkpoint.load(folder, task=task), components_of(chosen.components),
        ValueSet(chosen.values), Scale(chosen.scale), Scope(chosen.scope),
    )  # fmt: skip
    return load(pack(model), Act(chosen.act))


def result(model: Any, task: Task, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits, or the states of a body, where there are tokens."""
    with torch.no_grad():
        if isinstance(model, PreTrainedModel):
            found = model(**batch)[0]
        elif task is Task.sentence_embedding:
            found = model.encode(**batch)[-1]
        else:
            found = model(**batch)
    return found if found.ndim == 2 else found[batch["attention_mask"].bool()]


def packed_names(model: torch.nn.Module) -> set[str]:
    kinds = PackedLinear | PackedEmbedding
    return {name for name, module in model.named_modules() if isinstance(module, kinds)}


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_architecture_is_that_of_our_own(
    name: str, task: Task, pack: Pack, tmp_path: Path
) -> None:
    own_model(name, task, hidden_size=32).save_pretrained(tmp_path / "floats")
    batch = batch_of(checkpoint.config_of(tmp_path / "floats"))
    if name in ("roberta", "xlm-roberta"):  # whose token of padding is 1
        batch["input_ids"] = batch["input_ids"].masked_fill(batch["input_ids"] == 1, 2)
        batch["input_ids"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 1)
    before = result(floats_of(tmp_path / "floats", task), task, batch)
    whole = "all" if task is not Task.sentence_embedding else "embeddings+attention+ffnn"
    for components, scope in ((whole, "all"), ("embeddings", "matrices"), ("ffnn", "all")):
        options = {"components": components, "scope": scope, "scale": "row"}
        found = opened(tmp_path / "floats", task, **options)
        expected = result(ours(tmp_path / "floats", task, pack, **options), task, batch)
        assert not torch.allclose(expected, before, atol=1e-3), components
        torch.testing.assert_close(result(found, task, batch), expected, atol=1e-4, rtol=1e-4)
        assert packed_names(found)


def floats_of(folder: Path, task: Task) -> PreTrainedModel:
    return OPENERS[task].from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize(("values", "scale", "scope"), [*itertools.product(VALUES, SCALES, SCOPES)])
def test_every_choice_is_that_of_our_own(
    values: str, scale: str, scope: str, folder: Path, pack: Pack
) -> None:
    options = {"values": values, "scale": scale, "scope": scope}
    found = opened(folder, **options)
    expected = ours(folder, Task.masked_lm, pack, **options)
    batch = batch_of(expected.config)
    one, other = (result(model, Task.masked_lm, batch) for model in (found, expected))
    torch.testing.assert_close(one, other, atol=1e-3 if scale == "none" else 1e-4, rtol=1e-4)
    assert len(packed_names(found)) == 12
    parts = pack_model(to_float_of(folder, **options))
    packed = found.bert.encoder.layer[1].output.dense.weight
    assert torch.equal(packed.in_rows, parts["encoder.layers.1.ffnn.contract.weight"].in_rows)
    assert torch.equal(packed.high, parts["encoder.layers.1.ffnn.contract.weight"].high)


def to_float_of(folder: Path, values: str, scale: str, scope: str) -> bitmaps.bert.Bert:
    model, layers = checkpoint.load(folder), components_of("layers")
    return binarize_naive(model, layers, ValueSet(values), Scale(scale), Scope(scope))


@pytest.mark.parametrize("act", ACTS)
def test_activations_are_rounded_as_asked(act: str, folder: Path, pack: Pack) -> None:
    found = opened(folder, act=act)
    expected = ours(folder, Task.masked_lm, pack, act=act)
    assert {module.act for module in found.modules() if isinstance(module, PackedLinear)} == {act}
    batch = batch_of(expected.config)
    one, other = (result(model, Task.masked_lm, batch) for model in (found, expected))
    # a number that lies between two of the rounding may go to the other side
    torch.testing.assert_close(one, other, atol=1e-4 if act == "f32" else 0.2, rtol=1e-3)
    exact = result(opened(folder), Task.masked_lm, batch)
    assert torch.equal(one, exact) == (act == "f32")


def test_only_what_is_chosen_changes(folder: Path) -> None:
    floats, found = floats_of(folder, Task.masked_lm), opened(folder, components="ffnn")
    assert packed_names(found) == {
        f"bert.encoder.layer.{number}.{name}.dense"
        for number in (0, 1) for name in ("intermediate", "output")
    }  # fmt: skip
    before = floats.state_dict()
    for name, tensor in found.state_dict().items():
        if not any(name.startswith(prefix) for prefix in packed_names(found)):
            assert torch.equal(tensor, before[name]), name


def test_another_head_stays_in_floats(folder: Path, pack: Pack) -> None:
    config = BinarizeConfig("layers", act="f32")
    found = transformers.BertForTokenClassification.from_pretrained(
        folder, quantization_config=config
    )
    body = ours(folder, Task.sentence_embedding, pack)
    batch = batch_of(body.config)
    states = body.encode(**batch)[-1]
    torch.testing.assert_close(
        found(**batch).logits[:2], found.classifier(states)[:2], atol=1e-4, rtol=1e-4
    )
    for kind, components, named in (
        (transformers.BertForTokenClassification, "all", "head of a BertForTokenClassification"),
        (transformers.BertForPreTraining, "embeddings", "embeddings of a BertForPreTraining"),
        (transformers.BertModel, "head", "head of a BertModel .*; valid are embeddings, attention"),
    ):
        with pytest.raises(InputError, match=named):
            kind.from_pretrained(folder, quantization_config=BinarizeConfig(components))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_rest_of_the_model_may_be_in_half(dtype: torch.dtype, folder: Path) -> None:
    """Packed layers compute in fp32 and give their inputs' type; their scales stay fp32."""
    exact = opened(folder, components="all")
    batch = batch_of(checkpoint.config_of(folder))
    expected = result(exact, Task.masked_lm, batch)
    found = AutoModelForMaskedLM.from_pretrained(
        folder, dtype=dtype, quantization_config=BinarizeConfig("all", act="f32")
    )
    moved = copy.deepcopy(exact).to(dtype)
    for model in (found, moved):
        logits = result(model, Task.masked_lm, batch)
        assert logits.dtype is dtype
        torch.testing.assert_close(logits.float(), expected, atol=0.3, rtol=0.1)
        for module in model.modules():
            if isinstance(module, PackedLinear):
                assert module.weight.high is not None
                assert module.weight.high.dtype is torch.float32
                assert module.bias is not None
                assert module.bias.dtype is torch.float32
    again = moved.to(torch.float32)
    torch.testing.assert_close(result(again, Task.masked_lm, batch), expected, atol=0.3, rtol=0.1)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"components": "layer"}, "unknown components 'layer'; valid are none, all, layers"),
        ({"components": None}, "unknown components None"),
        ({"components": "ffnn+feet"}, "unknown components 'ffnn.feet'"),
        ({"values": "pm2"}, "unknown values 'pm2'; valid are 01, pm1"),
        ({"scale": "column"}, "unknown scale 'column'; valid are none, tensor, row, rank_one"),
        ({"scope": "biases"}, "unknown scope 'biases'; valid are all, matrices"),
        ({"act": "a1"}, "unknown act 'a1'; valid are f32, a16, a11, a8, a6"),
        ({"quant_method": "awq"}, "unknown quant_method 'awq'; valid are bitmaps"),
    ],
)
def test_an_unknown_name_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        BinarizeConfig(**options)


def test_what_is_not_supported_is_refused(folder: Path, tmp_path: Path) -> None:
    quantizer = AutoHfQuantizer.from_config(BinarizeConfig(), pre_quantized=False)
    with pytest.raises(InputError, match="device_map='cpu' is not supported by a BinarizeConfig"):
        quantizer.validate_environment(device_map="cpu", weights_only=True)
    model = opened(folder)
    for call, named in (
        (lambda: model.save_pretrained(tmp_path / "stored"), "bitmaps and is not serializable"),
        (model.half, "not supported for quantized model"),
        (model.float, "not supported for quantized model"),
    ):
        with pytest.raises(ValueError, match=named):
            call()
    assert not (tmp_path / "stored").exists()
    assert not model.hf_quantizer.is_trainable
    ids = torch.tensor([[2, 3, 4]])
    with pytest.raises(RuntimeError, match="does not require grad"):
        model.train()(ids, labels=ids).loss.backward()
    gpt = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=30, n_positions=8)
    )
    gpt.save_pretrained(tmp_path / "gpt")
    with pytest.raises(InputError, match="model_type 'gpt2' is another architecture; valid are"):
        transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "gpt", quantization_config=BinarizeConfig()
        )


def test_a_config_that_claims_to_be_quantized_is_refused(folder: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(folder)
    config.quantization_config = BinarizeConfig().to_dict()
    with pytest.raises(InputError, match="quantization_config of bitmaps is not supported"):
        AutoModelForMaskedLM.from_pretrained(folder, config=config)


def test_a_configuration_is_read_from_what_it_writes() -> None:
    config = BinarizeConfig("ffnn+head", values="01", scale="row", scope="all", act="a16")
    again = BinarizeConfig.from_dict(config.to_dict())
    assert again == config
    assert isinstance(config.to_json_string(), str)
    quantizer = AutoHfQuantizer.from_config(config.to_dict(), pre_quantized=False)
    assert quantizer.quantization_config == config
