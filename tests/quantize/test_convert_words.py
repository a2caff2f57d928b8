"""The word table, rounded activations, and training after a conversion."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from quantize.converted import (
    WORDS,
    assert_state,
    each_group,
    each_recipe,
    each_stored,
    each_values,
    matrices_of,
    quantized,
    small,
    state_of,
)
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from bitmaps.bert import Bert
from bitmaps.quantize.convert import (
    COMPONENTS,
    center_words,
    make_trainable,
    restore_activations,
    round_activations,
    store_words,
    to_float,
)
from bitmaps.quantize.layers import QuantizedEmbedding, QuantizedLinear
from bitmaps.quantize.quantizer import Quantization, Quantizer, two_values
from bitmaps.quantize.rounding import (
    InputQuantizer,
    Rounding,
    input_quantizers,
    rounded,
    rounded_inputs,
)
from bitmaps.vocabulary import (
    GROUPS,
    Act,
    Activations,
    Gradient,
    Scale,
    Scaling,
    Storage,
    ValueSet,
)


@each_stored
@pytest.mark.parametrize("group", ["none", "layers"])
def test_words_in_fewer_bits_are_rounded_for_lookup_and_decoder_alike(
    tiny: Bert, ids: Tensor, stored: Storage, group: str
) -> None:
    before, table = state_of(tiny), tiny.embeddings.word.weight
    make_trainable(tiny, GROUPS[group], Quantization(), stored)
    word, decoder = tiny.embeddings.word, tiny.head.decoder
    assert isinstance(word, QuantizedEmbedding)
    assert isinstance(decoder, QuantizedLinear)
    assert word.weight is decoder.weight is table
    assert word.quantizer is decoder.quantizer
    assert isinstance(word.quantizer, Rounding)
    assert word.quantizer.storage == stored
    assert torch.equal(
        word.weight, before["embeddings.word.weight"]
    )  # as it was: the latent weight
    assert torch.equal(word.effective_weight, rounded(before["embeddings.word.weight"], stored))
    assert not torch.equal(word.effective_weight, word.weight)
    assert {f"{name}.weight" for name in quantized(tiny)} - set(WORDS) == matrices_of(group)
    plain = to_float(tiny)
    assert plain.head.decoder.weight is plain.embeddings.word.weight
    assert torch.equal(plain.embeddings.word.weight, word.effective_weight)
    torch.testing.assert_close(plain(ids), tiny(ids), atol=1e-6, rtol=0)


@each_stored
def test_words_in_fewer_bits_win_over_the_components(tiny: Bert, stored: Storage) -> None:
    make_trainable(tiny, ["embeddings"], Quantization(), stored)
    kinds = {name: type(layer.quantizer) for name, layer in quantized(tiny).items()}
    assert kinds == {
        "embeddings.word": Rounding,
        "head.decoder": Rounding,
        "embeddings.position": Quantizer,
    }


def test_words_in_fp32_beside_binary_layers_stay_as_they_are(tiny: Bert) -> None:
    before = state_of(tiny)
    make_trainable(tiny, ["ffnn"], Quantization(), "fp32")
    assert type(tiny.embeddings.word) is nn.Embedding
    assert type(tiny.head.decoder) is nn.Linear
    assert torch.equal(tiny.embeddings.word.weight, before["embeddings.word.weight"])


@each_recipe
@pytest.mark.parametrize("group", ["none", "layers"])
def test_words_in_one_bit_are_centered_first(
    tiny: Bert, quantization: Quantization, group: str
) -> None:
    before = state_of(tiny)
    make_trainable(tiny, GROUPS[group], quantization, "bit")
    assert {f"{name}.weight" for name in quantized(tiny)} == {*WORDS, *matrices_of(group)}
    word, mean = tiny.embeddings.word, before["embeddings.word.weight"].mean(0)
    assert isinstance(word, QuantizedEmbedding)
    torch.testing.assert_close(word.weight.detach(), before["embeddings.word.weight"] - mean)
    token_type = tiny.embeddings.token_type.weight.detach()
    torch.testing.assert_close(token_type, before["embeddings.token_type.weight"] + mean)
    assert torch.equal(word.effective_weight, Quantizer(word.weight, quantization)(word.weight))


@pytest.mark.parametrize("words", [None, "bit"])
def test_words_are_centered_once(tiny: Bert, words: Storage | None) -> None:
    before = state_of(tiny)
    make_trainable(tiny, ["embeddings"], Quantization(), words)
    mean = before["embeddings.word.weight"].mean(0)
    token_type = tiny.embeddings.token_type.weight.detach()
    torch.testing.assert_close(token_type, before["embeddings.token_type.weight"] + mean)


@pytest.mark.parametrize("tied", [True, False])
def test_centering_the_words_changes_neither_hidden_states_nor_predictions(tied: bool) -> None:
    model = small(tied).randomize(torch.Generator().manual_seed(0)).eval()
    ids = torch.arange(18).view(3, 6)
    with torch.no_grad():
        model.embeddings.word.weight += 0.5
    types, before = ids % 2, state_of(model)
    states, logits = model.encode(ids, token_type_ids=types), model(ids, token_type_ids=types)
    center_words(model)
    torch.testing.assert_close(
        model.embeddings.word.weight.mean(0), torch.zeros(12), atol=1e-6, rtol=0
    )
    moved = ("embeddings.word.weight", "embeddings.token_type.weight")
    assert_state(model, before, *moved, *(["head.decoder.weight"] if tied else []))
    torch.testing.assert_close(
        model.encode(ids, token_type_ids=types), states, atol=1e-5, rtol=1e-5
    )
    after = model(ids, token_type_ids=types)
    torch.testing.assert_close(after.log_softmax(-1), logits.log_softmax(-1), atol=1e-5, rtol=1e-5)
    assert torch.allclose(after, logits, atol=1e-4) is not tied


@each_stored
def test_stored_words_are_rounded(tiny: Bert, stored: Storage) -> None:
    before = state_of(tiny)
    assert store_words(tiny, stored) is tiny
    assert_state(tiny, before, *WORDS)
    assert torch.equal(
        tiny.embeddings.word.weight, rounded(before["embeddings.word.weight"], stored)
    )
    assert tiny.head.decoder.weight is tiny.embeddings.word.weight


@each_values
def test_stored_words_of_one_bit_are_centered_first(tiny: Bert, values: ValueSet) -> None:
    before = state_of(tiny)
    assert store_words(tiny, "bit", values) is tiny
    assert_state(tiny, before, *WORDS, "embeddings.token_type.weight")
    table, mean = before["embeddings.word.weight"], before["embeddings.word.weight"].mean(0)
    torch.testing.assert_close(
        tiny.embeddings.word.weight.detach(), two_values(table - mean, values, "row")
    )
    token_type = tiny.embeddings.token_type.weight.detach()
    torch.testing.assert_close(token_type, before["embeddings.token_type.weight"] + mean)
    assert tiny.head.decoder.weight is tiny.embeddings.word.weight


def test_words_stored_in_fp32_are_as_they_were(tiny: Bert) -> None:
    before = state_of(tiny)
    assert store_words(tiny, "fp32") is tiny
    assert_state(tiny, before)


@each_stored
def test_words_of_an_untied_model_are_stored_without_the_decoder(stored: Storage) -> None:
    for convert in (
        lambda model: store_words(model, stored),
        lambda model: to_float(make_trainable(model, (), Quantization(), stored)),
    ):
        model = small(tied=False)
        before = state_of(model)
        assert_state(convert(model), before, "embeddings.word.weight")


@pytest.mark.parametrize("stored", ["fp16", "int8", "int4", "bit"])
def test_stored_and_trained_words_start_alike(tiny: Bert, ids: Tensor, stored: Storage) -> None:
    trainable = make_trainable(copy.deepcopy(tiny), (), Quantization(), stored)
    torch.testing.assert_close(trainable(ids), store_words(tiny, stored)(ids), atol=1e-5, rtol=1e-5)


def products_of_linears(model: Bert, ids: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """What enters each linear layer of a model, and what leaves it."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def hook_for(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = inputs[0].detach().clone(), output.detach().clone()

        return hook

    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    handles = [m.register_forward_hook(hook_for(name)) for name, m in linears.items()]
    model(ids)
    for handle in handles:
        handle.remove()
    return seen


def assert_inputs_are(
    model: Bert, ids: Tensor, rounding: Callable[[str], Callable[[Tensor], Tensor]]
) -> None:
    """Each linear layer multiplies its effective weight with ``rounding(name)`` of its inputs."""
    for name, (x, output) in products_of_linears(model, ids).items():
        layer: Any = model.get_submodule(name)
        weight = getattr(layer, "effective_weight", layer.weight)
        assert torch.equal(output, F.linear(rounding(name)(x), weight, layer.bias)), name
        assert torch.equal(output, F.linear(x, weight, layer.bias)) is (rounding(name)(x) is x)


def same(x: Tensor) -> Tensor:
    return x


def in_int8(x: Tensor) -> Tensor:
    return rounded_inputs(x, Act.a8)


def signs(x: Tensor) -> Tensor:
    return rounded_inputs(x, Act.a1)


@pytest.mark.parametrize("trainable", [False, True])
@each_group
def test_rounded_activations_enter_the_components_linear_layers_alone(
    tiny: Bert, ids: Tensor, group: str, trainable: bool
) -> None:
    if trainable:
        make_trainable(tiny, GROUPS[group], Quantization())
    assert round_activations(tiny, GROUPS[group], Activations.int8) is tiny
    chosen = {name.removesuffix(".weight") for name in matrices_of(group)}
    chosen |= {"head.decoder"} if group == "all" else set()
    assert_inputs_are(tiny, ids, lambda name: in_int8 if name in chosen else same)


def sign_layers(name: str) -> Callable[[Tensor], Tensor]:
    """Signs for the queries and the contractions, int8 for the other layers of the encoder."""
    if not name.startswith("encoder"):
        return same
    return signs if name.endswith(("query", "contract")) else in_int8


def test_signs_enter_the_layers_of_these_names_and_int8_the_others(tiny: Bert, ids: Tensor) -> None:
    round_activations(tiny, ("attention", "ffnn"), Activations.bit, ("query", "contract"))
    assert_inputs_are(tiny, ids, sign_layers)


def one_bit_quantizers(model: Bert) -> list[InputQuantizer]:
    return [one for one in input_quantizers(model) if one.act is Act.a1]


@pytest.mark.parametrize("order", ["weights first", "inputs first"])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_conversions_and_copies_keep_the_input_quantizers(
    tiny: Bert, ids: Tensor, order: str, share: float
) -> None:
    layers, one_bit = ("attention", "ffnn"), ("query", "contract")
    steps = [
        lambda: make_trainable(tiny, layers, Quantization(), one_bit=one_bit),
        lambda: round_activations(tiny, layers, Activations.bit, one_bit),
    ]
    for step in steps if order == "weights first" else reversed(steps):
        step()
    for quantizer in one_bit_quantizers(tiny):
        quantizer.share = torch.tensor(share)
    expected = tiny(ids)
    if share == 1:
        assert_inputs_are(tiny, ids, sign_layers)
    plain = to_float(tiny)
    assert {type(layer.quantizer) for layer in quantized(plain).values()} == {type(None)}
    assert plain.state_dict().keys() == Bert(tiny.config).state_dict().keys()
    for model in (plain, copy.deepcopy(tiny), to_float(plain)):
        torch.testing.assert_close(model(ids), expected, atol=1e-6, rtol=0)
        assert len(one_bit_quantizers(model)) == 4
        assert set(one_bit_quantizers(model)).isdisjoint(one_bit_quantizers(tiny))


def test_rounding_inputs_adds_nothing_to_a_checkpoint(tiny: Bert) -> None:
    make_trainable(tiny, ("attention", "ffnn"), Quantization("pm1", "rank_one"))
    names, memory = list(tiny.state_dict()), len(list(tiny.buffers()))
    round_activations(tiny, ("attention", "ffnn"), Activations.bit, ("query",))
    assert list(tiny.state_dict()) == names
    assert len(list(tiny.buffers())) == memory


def test_activations_are_restored_without_which_a_model_computes_something_else(
    tiny: Bert, ids: Tensor
) -> None:
    trained = {"components": "layers", "activations": "int8", "one_bit_inputs": None}
    tiny.config = replace(tiny.config, bitmaps=trained)
    assert not quantized(restore_activations(tiny))
    trained |= {"activations": "bit", "one_bit_inputs": "query+contract"}
    tiny.config = replace(tiny.config, bitmaps=trained)
    assert restore_activations(tiny) is tiny
    assert_inputs_are(tiny, ids, sign_layers)
    trained |= {"components": "ffnn", "activations": "int6", "one_bit_inputs": None}
    plain = to_float(tiny)
    plain.config = replace(tiny.config, bitmaps=trained)
    acts = {one.act for one in input_quantizers(restore_activations(plain).encoder.layers[0].ffnn)}
    assert acts == {Act.a6}


def test_one_bit_inputs_of_contract_have_the_signs_that_gelu_reads(tiny: Bert) -> None:
    """``torch``'s GELU is -0 below -5.5, which counts as positive."""
    x = torch.linspace(-60, 60, 1001)
    assert ((nn.GELU()(x) >= 0) != (x >= 0)).sum() > 400
    round_activations(tiny, ("ffnn",), Activations.bit, ("contract",))
    activation = tiny.encoder.layers[0].ffnn.activation
    assert torch.equal(activation(x) >= 0, x >= 0)
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(activation(x.to(dtype)) >= 0, x >= 0)
    torch.testing.assert_close(activation(x), nn.GELU()(x), rtol=0, atol=1e-30)


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated")
@pytest.mark.parametrize("act", [Act.a6, Act.a1])
def test_a_trained_layer_compiles_with_both_quantizers(act: Act) -> None:
    """In one graph, whose share of rounded inputs changes without another compilation."""
    linear = nn.Linear(16, 8)
    quantizer = Quantizer(linear.weight, Quantization("pm1", "rank_one", "lsq", "row", "clipped"))
    layer = QuantizedLinear.from_float(linear, quantizer, InputQuantizer(act))
    graphs = CompileCounter()
    compiled = torch.compile(layer, backend=graphs, fullgraph=True, dynamic=True)
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    for share in (0.0, 0.5, 1.0):
        assert layer.input_quantizer is not None
        layer.input_quantizer.share = torch.full_like(layer.input_quantizer.share, share)
        torch.testing.assert_close(compiled(x), layer(x))
    assert graphs.frame_count == 1


def test_where_signs_enter_there_is_no_scale_a_column(tiny: Bert) -> None:
    make_trainable(
        tiny, GROUPS["layers"], Quantization("pm1", "rank_one", "learned"), one_bit=("query", "key")
    )
    for name, module in tiny.named_modules():
        if isinstance(module, QuantizedLinear):
            assert isinstance(module.quantizer, Quantizer)
            assert (module.quantizer.column is None) is name.endswith(("query", "key")), name


def test_rounded_activations_hardly_change_the_predictions_and_pass_the_gradient(
    tiny: Bert, ids: Tensor
) -> None:
    logits = tiny(ids)
    before = state_of(tiny)
    rounding = round_activations(tiny, COMPONENTS, Activations.int8)
    assert_state(rounding, before)
    assert not torch.equal(rounding(ids), logits)
    assert (rounding(ids) - logits).norm() < 0.05 * logits.norm()
    rounding(ids).logsumexp(-1).sum().backward()
    for name, parameter in rounding.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or name.endswith("key.bias"), name


@each_recipe
@each_group
@pytest.mark.parametrize("words", [None, "bit", "int4"])
def test_to_float_is_the_same_function_in_a_copy(
    tiny: Bert, ids: Tensor, quantization: Quantization, group: str, words: Storage | None
) -> None:
    make_trainable(tiny, GROUPS[group], quantization, words)
    before = state_of(tiny)
    types = [type(module) for module in tiny.modules()]
    logits = tiny(ids)
    plain = to_float(tiny)
    torch.testing.assert_close(plain(ids), logits, atol=1e-6, rtol=0)
    assert not quantized(plain)
    assert plain.state_dict().keys() == Bert(tiny.config).state_dict().keys()
    assert {p.data_ptr() for p in plain.parameters()}.isdisjoint(
        p.data_ptr() for p in tiny.parameters()
    )

    plain.randomize()
    assert [type(module) for module in tiny.modules()] == types
    assert_state(tiny, before)
    assert torch.equal(tiny(ids), logits)


@pytest.mark.parametrize("training", [False, True])
def test_conversions_keep_the_mode(tiny: Bert, training: bool) -> None:
    make_trainable(tiny.train(training), COMPONENTS, Quantization())
    assert {
        module.training for module in (tiny.embeddings.word, tiny.head.decoder, tiny.head.transform)
    } == {training}
    assert {module.training for module in to_float(tiny).modules()} == {training}


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("gradient", ["identity", "scaled", "clipped", "clamp", "product"])
@pytest.mark.parametrize(
    ("values", "scale", "scaling"),
    [
        ("01", "row", "learned"),
        ("pm1", "row", "learned"),
        ("pm1", "tensor", "computed"),
        ("pm1", "row", "lsq"),
        ("pm1", "rank_one", "learned"),
        ("01", "rank_one", "learned"),
    ],
)
def test_training_reaches_every_latent_weight_and_scale_and_flips_bits(
    tiny: Bert,
    ids: Tensor,
    values: ValueSet,
    scale: Scale,
    scaling: Scaling,
    component: str,
    gradient: Gradient,
) -> None:
    make_trainable(tiny, [component], Quantization(values, scale, scaling, "none", gradient))
    layers = quantized(tiny).values()
    before = [layer.effective_weight > 0 for layer in layers]
    optimizer = torch.optim.Adam(
        tiny.parameters(), lr=0.05
    )  # under `product` SGD's steps shrink with the weight
    for _ in range(5):
        loss = F.cross_entropy(tiny(ids, token_type_ids=ids % 2).flatten(0, 1), ids.flatten())
        optimizer.zero_grad()
        loss.backward()
        trained = [p for layer in layers for p in (layer.weight, *layer.quantizer.parameters())]
        assert all(p.grad is not None and p.grad.any() for p in trained)
        optimizer.step()
    after = [layer.effective_weight > 0 for layer in layers]
    assert any((a != b).any() for a, b in zip(after, before, strict=True))
    if scale != "rank_one":
        assert all(row.unique().numel() <= 2 for layer in layers for row in layer.effective_weight)


@each_stored
def test_training_reaches_words_in_fewer_bits(tiny: Bert, ids: Tensor, stored: Storage) -> None:
    make_trainable(tiny, (), Quantization(), stored)
    before = tiny.embeddings.word.weight.detach().clone()
    loss = F.cross_entropy(tiny(ids).flatten(0, 1), ids.flatten())
    loss.backward()
    torch.optim.SGD(tiny.parameters(), lr=0.5).step()
    assert (tiny.embeddings.word.weight != before).any(1).all()
    assert F.cross_entropy(tiny(ids).flatten(0, 1), ids.flatten()) < loss
