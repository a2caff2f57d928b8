from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitmaps.bert import Bert, BertConfig
from bitmaps.binary.components import COMPONENTS, binarize_naive, make_trainable, selected, to_float
from bitmaps.binary.layers import QuantizedEmbedding, QuantizedLinear
from bitmaps.binary.quantize import Gradient, Scale, Values
from bitmaps.config import GROUPS
from bitmaps.errors import InputError

EMBEDDINGS = {
    "embeddings.word.weight",
    "embeddings.position.weight",
    "embeddings.token_type.weight",
    "embeddings.norm.weight",
    "embeddings.norm.bias",
}
ATTENTION = {
    f"encoder.layers.{layer}.attention.{module}.{tensor}"
    for layer in (0, 1)
    for module in ("query", "key", "value", "output", "norm")
    for tensor in ("weight", "bias")
}
FFNN = {
    f"encoder.layers.{layer}.ffnn.{module}.{tensor}"
    for layer in (0, 1)
    for module in ("expand", "contract", "norm")
    for tensor in ("weight", "bias")
}
HEAD = {
    "head.transform.weight",
    "head.transform.bias",
    "head.norm.weight",
    "head.norm.bias",
    "head.decoder.bias",
}
SELECTED = {
    "none": set(),
    "all": EMBEDDINGS | ATTENTION | FFNN | HEAD,
    "layers": ATTENTION | FFNN,
    "layers_except_attention": FFNN,
    "layers_except_ffnn": ATTENTION,
}

each_values = pytest.mark.parametrize("values", ["01", "pm1"])
each_group = pytest.mark.parametrize("group", SELECTED)


def names(model: Bert, *components: str) -> set[str]:
    return {name for name, _ in selected(model, components)}


def test_groups_select_the_parameters_of_the_blog_post(tiny: Bert) -> None:
    assert {group: names(tiny, *components) for group, components in GROUPS.items()} == SELECTED


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_belongs_to_exactly_one_component(tied: bool) -> None:
    sizes = {"vocab_size": 20, "hidden_size": 12, "num_hidden_layers": 12, "intermediate_size": 8}
    model = Bert(BertConfig(**sizes, tie_word_embeddings=tied))
    owners = Counter(name for component in COMPONENTS for name in names(model, component))
    assert owners == {name: 1 for name, _ in model.named_parameters()}
    assert ("head.decoder.weight" in names(model, "head")) is not tied


@pytest.mark.parametrize("convert", [binarize_naive, make_trainable])
def test_unknown_component_is_named_with_the_valid_ones(tiny: Bert, convert: Callable[..., Bert]) -> None:
    before = copy.deepcopy(tiny.state_dict())
    with pytest.raises(InputError, match=r"'pooler'.*embeddings, attention, ffnn, head"):
        convert(tiny, ["ffnn", "pooler"], "pm1")
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.state_dict().items())


@each_values
@each_group
@pytest.mark.parametrize("scale", ["none", "tensor", "row"])
@pytest.mark.parametrize("scope", ["all", "matrices"])
def test_naive_makes_the_components_two_valued_and_changes_nothing_else(
    tiny: Bert, values: Values, group: str, scale: Scale, scope: str
) -> None:
    before = {name: p.detach().clone() for name, p in tiny.named_parameters()}
    assert binarize_naive(tiny, GROUPS[group], values, scale, scope) is tiny
    for name, parameter in tiny.named_parameters():
        if name not in SELECTED[group] or (scope == "matrices" and parameter.ndim == 1):
            assert torch.equal(parameter, before[name]), name
            continue
        rows = parameter if scale == "row" and parameter.ndim > 1 else parameter.reshape(1, -1)
        for row in rows:
            low, high = row.min().item(), row.max().item()
            assert row.unique().numel() <= 2, name
            assert low in (0.0, high) if values == "01" else low in (-high, high), name
            assert scale != "none" or high == 1.0 or low == high, name
        assert torch.equal(parameter > 0, before[name] > 0), name
    assert tiny.head.decoder.weight is tiny.embeddings.word.weight


def test_naive_accepts_parameters_of_zeros_and_ones() -> None:
    model = Bert(BertConfig(vocab_size=20, hidden_size=12, num_hidden_layers=1, intermediate_size=8))
    binarize_naive(model, ["ffnn"], "pm1")
    ffnn = model.encoder.layers[0].ffnn
    assert (ffnn.expand.bias == 1).all()
    assert (ffnn.norm.weight == 1).all()


@each_values
def test_make_trainable_without_components_changes_nothing(tiny: Bert, ids: Tensor, values: Values) -> None:
    logits, types = tiny(ids), [type(module) for module in tiny.modules()]
    assert make_trainable(tiny, (), values) is tiny
    assert torch.equal(tiny(ids), logits)
    assert [type(module) for module in tiny.modules()] == types


@each_values
@each_group
def test_make_trainable_swaps_the_layers_of_the_components_alone(tiny: Bert, values: Values, group: str) -> None:
    matrices = {name for name, p in tiny.named_parameters() if p.ndim > 1}
    before = dict(tiny.named_parameters())
    make_trainable(tiny, GROUPS[group], values)
    binary = {
        f"{name}.weight" for name, m in tiny.named_modules() if isinstance(m, QuantizedLinear | QuantizedEmbedding)
    }
    assert binary - {"head.decoder.weight"} == matrices & SELECTED[group]
    assert ("head.decoder.weight" in binary) is (group == "all")
    after = dict(tiny.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())


def test_naive_matrices_and_the_start_of_training_are_the_same_function(tiny: Bert, ids: Tensor) -> None:
    naive = binarize_naive(copy.deepcopy(tiny), COMPONENTS, "pm1", "row", "matrices")
    torch.testing.assert_close(make_trainable(tiny, COMPONENTS, "pm1", "row")(ids), naive(ids), atol=1e-5, rtol=0)


def test_tie_survives_make_trainable_and_to_float(tiny: Bert) -> None:
    make_trainable(tiny, ["embeddings"], "pm1")
    word, decoder = tiny.embeddings.word, tiny.head.decoder
    assert isinstance(word, QuantizedEmbedding)
    assert isinstance(decoder, QuantizedLinear)
    assert word.weight is decoder.weight
    assert word.quantizer is decoder.quantizer
    scales = [name for name, _ in tiny.named_parameters() if name.endswith("scale")]
    assert scales == [f"embeddings.{name}.quantizer.scale" for name in ("word", "position", "token_type")]

    plain = to_float(tiny)
    assert plain.head.decoder.weight is plain.embeddings.word.weight
    assert torch.equal(plain.embeddings.word.weight, word.effective_weight)


def test_untied_decoder_is_the_heads_and_has_its_own_quantizer() -> None:
    sizes = {"vocab_size": 20, "hidden_size": 12, "num_hidden_layers": 1, "intermediate_size": 8}
    model = Bert(BertConfig(**sizes, tie_word_embeddings=False))
    make_trainable(model, ["head"], "pm1")
    assert type(model.embeddings.word) is nn.Embedding
    make_trainable(model, ["embeddings"], "pm1")
    assert isinstance(model.head.decoder, QuantizedLinear)
    assert model.embeddings.word.quantizer is not model.head.decoder.quantizer


@each_values
@each_group
@pytest.mark.parametrize("center", [False, True])
def test_to_float_is_the_same_function_in_a_copy(
    tiny: Bert, ids: Tensor, values: Values, group: str, center: bool
) -> None:
    make_trainable(tiny, GROUPS[group], values, "row", center=center)
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    types = [type(module) for module in tiny.modules()]
    logits = tiny(ids)
    plain = to_float(tiny)
    torch.testing.assert_close(plain(ids), logits, atol=1e-6, rtol=0)
    assert not any(isinstance(module, QuantizedLinear | QuantizedEmbedding) for module in plain.modules())
    assert plain.state_dict().keys() == Bert(tiny.config).state_dict().keys()
    assert {p.data_ptr() for p in plain.parameters()}.isdisjoint(p.data_ptr() for p in tiny.parameters())

    plain.randomize()
    assert [type(module) for module in tiny.modules()] == types
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.state_dict().items())
    assert torch.equal(tiny(ids), logits)


@pytest.mark.parametrize("training", [False, True])
def test_conversions_keep_the_mode(tiny: Bert, training: bool) -> None:
    make_trainable(tiny.train(training), COMPONENTS, "pm1")
    assert {module.training for module in (tiny.embeddings.word, tiny.head.decoder, tiny.head.transform)} == {training}
    assert {module.training for module in to_float(tiny).modules()} == {training}


@each_values
@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("gradient", ["identity", "scaled", "clipped"])
def test_training_reaches_every_latent_weight_and_scale_and_flips_bits(
    tiny: Bert, ids: Tensor, values: Values, component: str, gradient: Gradient
) -> None:
    make_trainable(tiny, [component], values, "row", gradient)
    binary = [module for module in tiny.modules() if isinstance(module, QuantizedLinear | QuantizedEmbedding)]
    before = [module.effective_weight > 0 for module in binary]
    optimizer = torch.optim.SGD(tiny.parameters(), lr=0.1)
    for _ in range(5):
        loss = F.cross_entropy(tiny(ids, token_type_ids=ids % 2).flatten(0, 1), ids.flatten())
        optimizer.zero_grad()
        loss.backward()
        assert all(module.weight.grad.any() and module.quantizer.scale.grad.any() for module in binary)
        optimizer.step()
    after = [module.effective_weight > 0 for module in binary]
    assert any((a != b).any() for a, b in zip(after, before, strict=True))
    assert all(row.unique().numel() <= 2 for module in binary for row in module.effective_weight)
