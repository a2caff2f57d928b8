from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from quantize.converted import (
    FFNN,
    MATRICES,
    RECIPES,
    SELECTED,
    WORDS,
    assert_state,
    each_group,
    each_recipe,
    each_values,
    matrices_of,
    names,
    quantized,
    small,
    state_of,
)
from torch import Tensor, nn

from bitmaps.bert import Bert, BertConfig
from bitmaps.errors import InputError
from bitmaps.quantize.convert import (
    COMPONENTS,
    binarize_naive,
    center_words,
    make_trainable,
    matrices,
    round_activations,
    to_float,
)
from bitmaps.quantize.layers import QuantizedEmbedding, QuantizedLinear
from bitmaps.quantize.quantizer import Quantization, Quantizer, two_values
from bitmaps.vocabulary import GROUPS, Activations, Scale, Scaling, Scope, Storage, ValueSet


def test_groups_select_the_parameters_of_the_blog_post(tiny: Bert) -> None:
    assert {group: names(tiny, *components) for group, components in GROUPS.items()} == SELECTED


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_belongs_to_exactly_one_of_the_blog_posts_components(tied: bool) -> None:
    model = small(tied, layers=12)
    owners = Counter(name for component in GROUPS["all"] for name in names(model, component))
    assert owners == {name: 1 for name, _ in model.named_parameters()}
    assert ("head.decoder.weight" in names(model, "head")) is not tied


@each_group
def test_matrices_are_the_components_weights_without_the_token_types(
    tiny: Bert, group: str
) -> None:
    parameters = dict(tiny.named_parameters())
    found = matrices(tiny, GROUPS[group])
    assert found.keys() == matrices_of(group)
    assert all(parameter is parameters[name] for name, parameter in found.items())


def test_an_untied_decoder_is_a_matrix_of_the_head() -> None:
    assert matrices(small(tied=False), ["head"]).keys() == {
        "head.transform.weight",
        "head.decoder.weight",
    }
    assert matrices(small(tied=True), ["head"]).keys() == {"head.transform.weight"}


CONVERSIONS: dict[str, Callable[[Bert, list[str]], object]] = {
    "matrices": matrices,
    "naive": lambda model, components: binarize_naive(model, components, "pm1"),
    "naive matrices": lambda model, components: binarize_naive(
        model, components, "pm1", "row", "matrices"
    ),
    "trainable": lambda model, components: make_trainable(model, components, Quantization()),
    "trainable words": lambda model, components: make_trainable(
        model, components, Quantization(), "bit"
    ),
    "activations": lambda model, components: round_activations(model, components, Activations.int8),
}


@pytest.mark.parametrize("convert", CONVERSIONS.values(), ids=CONVERSIONS)
def test_unknown_component_is_named_with_the_valid_ones(
    tiny: Bert, ids: Tensor, convert: Callable[[Bert, list[str]], object]
) -> None:
    before, logits = state_of(tiny), tiny(ids)
    with pytest.raises(InputError, match=r"'pooler'.*embeddings, attention, ffnn, head"):
        convert(tiny, ["ffnn", "pooler"])
    assert_state(tiny, before)
    assert torch.equal(tiny(ids), logits)


@each_values
@each_group
@pytest.mark.parametrize("scale", ["none", "tensor", "row"])
@pytest.mark.parametrize("scope", ["all", "matrices"])
def test_naive_makes_the_components_two_valued_and_changes_nothing_else(
    tiny: Bert, values: ValueSet, group: str, scale: Scale, scope: Scope
) -> None:
    before = {name: p.detach().clone() for name, p in tiny.named_parameters()}
    assert binarize_naive(tiny, GROUPS[group], values, scale, scope) is tiny
    chosen = SELECTED[group] if scope == "all" else matrices_of(group)
    for name, parameter in tiny.named_parameters():
        if name not in chosen:
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


@each_values
@pytest.mark.parametrize("scope", ["all", "matrices"])
def test_naive_with_scales_of_rank_one(tiny: Bert, values: ValueSet, scope: Scope) -> None:
    before = {name: p.detach().clone() for name, p in tiny.named_parameters()}
    binarize_naive(tiny, ["ffnn"], values, "rank_one", scope)
    for name, parameter in tiny.named_parameters():
        if name not in (FFNN if scope == "all" else MATRICES["ffnn"]):
            assert torch.equal(parameter, before[name]), name
            continue
        assert torch.equal(parameter > 0, before[name] > 0), name
        assert torch.equal(
            parameter,
            two_values(before[name], values, "row" if parameter.ndim == 1 else "rank_one"),
        )
        if values == "pm1" and parameter.ndim > 1:
            u, s, v = torch.linalg.svd(before[name].abs().double())
            torch.testing.assert_close(
                parameter.abs().double(), s[0] * u[:, :1] * v[:1], rtol=1e-5, atol=1e-7
            )


def test_naive_accepts_parameters_of_zeros_and_ones() -> None:
    model = Bert(
        BertConfig(vocab_size=20, hidden_size=12, num_hidden_layers=1, intermediate_size=8)
    )
    binarize_naive(model, ["ffnn"], "pm1")
    parameters = dict(model.named_parameters())
    assert (parameters["encoder.layers.0.ffnn.expand.bias"] == 1).all()
    assert (parameters["encoder.layers.0.ffnn.norm.weight"] == 1).all()


@each_recipe
@pytest.mark.parametrize("words", [None, "fp32"])
def test_make_trainable_without_components_changes_nothing(
    tiny: Bert, ids: Tensor, quantization: Quantization, words: Storage | None
) -> None:
    before, types = state_of(tiny), [type(module) for module in tiny.modules()]
    logits = tiny(ids)
    assert make_trainable(tiny, (), quantization, words) is tiny
    assert torch.equal(tiny(ids), logits)
    assert [type(module) for module in tiny.modules()] == types
    assert_state(tiny, before)


@each_recipe
@each_group
def test_make_trainable_swaps_the_layers_of_the_components_alone(
    tiny: Bert, quantization: Quantization, group: str
) -> None:
    before, state = dict(tiny.named_parameters()), state_of(tiny)
    make_trainable(tiny, GROUPS[group], quantization)
    swapped = {f"{name}.weight" for name in quantized(tiny)}
    assert swapped - {"head.decoder.weight"} == matrices_of(group)
    assert ("head.decoder.weight" in swapped) is (group == "all")
    after = dict(tiny.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
    for layer in quantized(tiny).values():
        assert isinstance(layer.quantizer, Quantizer)
        assert layer.quantizer.quantization is quantization
    moved = {*WORDS, "embeddings.token_type.weight"} if group == "all" else set()
    kept = {name: tensor for name, tensor in tiny.state_dict().items() if ".quantizer." not in name}
    assert kept.keys() == state.keys()
    assert {name for name in kept if not torch.equal(kept[name], state[name])} == moved


def learned_names(group: str, parts: tuple[str, ...]) -> set[str]:
    return {
        f"{name.removesuffix('weight')}quantizer.{part}"
        for name in matrices_of(group)
        for part in parts
    }


@pytest.mark.parametrize("group", ["all", "layers"])
@pytest.mark.parametrize(
    ("recipe", "parts"),
    [
        ("bitmaps", ("scale",)),
        ("none", ()),
        ("bwn", ()),
        ("paretoq", ("scale",)),
        ("onebit", ("scale", "column")),
    ],
)
def test_make_trainable_adds_what_is_learned_and_no_other_parameter(
    tiny: Bert, group: str, recipe: str, parts: tuple[str, ...]
) -> None:
    before = {name for name, _ in tiny.named_parameters()}
    make_trainable(tiny, GROUPS[group], RECIPES[recipe])
    after = dict(tiny.named_parameters())
    assert after.keys() - before == learned_names(group, parts)
    assert before <= after.keys()
    assert all(p.requires_grad for p in after.values())


@each_values
@pytest.mark.parametrize("scaling", ["computed", "learned", "lsq"])
@pytest.mark.parametrize("scale", ["none", "tensor", "row", "rank_one"])
def test_naive_matrices_and_the_start_of_training_are_the_same_function(
    tiny: Bert, ids: Tensor, values: ValueSet, scale: Scale, scaling: Scaling
) -> None:
    naive = copy.deepcopy(tiny)
    center_words(naive)
    binarize_naive(naive, COMPONENTS, values, scale, "matrices")
    trainable = make_trainable(tiny, COMPONENTS, Quantization(values, scale, scaling))
    torch.testing.assert_close(trainable(ids), naive(ids), atol=1e-5, rtol=1e-5)


def test_tie_survives_make_trainable_and_to_float(tiny: Bert) -> None:
    make_trainable(tiny, ["embeddings"], Quantization())
    word, decoder = tiny.embeddings.word, tiny.head.decoder
    assert isinstance(word, QuantizedEmbedding)
    assert isinstance(decoder, QuantizedLinear)
    assert word.weight is decoder.weight
    assert word.quantizer is decoder.quantizer
    scales = [name for name, _ in tiny.named_parameters() if name.endswith("scale")]
    assert scales == [f"embeddings.{name}.quantizer.scale" for name in ("word", "position")]
    assert type(tiny.embeddings.token_type) is nn.Embedding

    plain = to_float(tiny)
    assert plain.head.decoder.weight is plain.embeddings.word.weight
    assert torch.equal(plain.embeddings.word.weight, word.effective_weight)


def test_untied_decoder_is_the_heads_and_has_its_own_quantizer() -> None:
    model = small(tied=False)
    make_trainable(model, ["head"], Quantization())
    assert type(model.embeddings.word) is nn.Embedding
    make_trainable(model, ["embeddings"], Quantization())
    assert isinstance(model.embeddings.word, QuantizedEmbedding)
    assert isinstance(model.head.decoder, QuantizedLinear)
    assert model.embeddings.word.quantizer is not model.head.decoder.quantizer
