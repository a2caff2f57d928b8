from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitmaps.binary.layers import QuantizedEmbedding, QuantizedLinear
from bitmaps.binary.quantize import Gradient, Quantizer, Scale, Values

each_values = pytest.mark.parametrize("values", ["01", "pm1"])
each_scale = pytest.mark.parametrize("scale", ["none", "tensor", "row"])
each_center = pytest.mark.parametrize("center", [False, True])


def quantizer_of(
    weight: Tensor, values: Values, scale: Scale, gradient: Gradient = "scaled", center: bool = False
) -> Quantizer:
    """A quantizer whose scale has moved away from where it starts."""
    quantizer = Quantizer(weight, values, scale, gradient, center)
    if scale != "none":
        with torch.no_grad():
            quantizer.scale.mul_(torch.rand_like(quantizer.scale) + 0.5)
    return quantizer


def embedding_of(
    values: Values, scale: Scale, gradient: Gradient, center: bool, padding: int | None, rows: int = 6
) -> QuantizedEmbedding:
    torch.manual_seed(0)
    embedding = nn.Embedding(rows, 5, padding_idx=padding)
    nn.init.normal_(embedding.weight, 0.1)
    return QuantizedEmbedding.from_float(embedding, quantizer_of(embedding.weight, values, scale, gradient, center))


def gradients(layer: nn.Module, output: Tensor, g: Tensor) -> dict[str, Tensor]:
    layer.zero_grad()
    output.backward(g)
    return {name: parameter.grad.clone() for name, parameter in layer.named_parameters()}


@each_values
@each_scale
@each_center
@pytest.mark.parametrize("bias", [False, True])
def test_linear_is_f_linear_with_the_effective_weight(values: Values, scale: Scale, center: bool, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(7, 4, bias=bias)
    quantizer = quantizer_of(linear.weight, values, scale, center=center)
    layer = QuantizedLinear.from_float(linear, quantizer)
    x, g = torch.randn(2, 3, 7), torch.randn(2, 3, 4)
    output, expected = layer(x), F.linear(x, layer.effective_weight, linear.bias)
    assert torch.equal(output, expected)
    assert torch.equal(layer.effective_weight, quantizer(linear.weight))
    assert all(row.unique().numel() == 2 for row in layer.effective_weight)
    actual, reference = gradients(layer, output, g), gradients(layer, expected, g)
    assert len(actual) == 1 + bias + (scale != "none")
    assert all(torch.equal(actual[name], reference[name]) for name in reference)


@each_values
@each_scale
@each_center
@pytest.mark.parametrize("rows", [1, 6])
def test_lookup_reads_rows_of_the_effective_weight(values: Values, scale: Scale, center: bool, rows: int) -> None:
    layer = embedding_of(values, scale, "identity", center, None, rows)
    ids = torch.tensor([[0, 3, 3], [5, 0, 2]]) % rows
    assert torch.equal(layer(ids), F.embedding(ids, layer.effective_weight))
    assert torch.equal(layer.effective_weight, layer.quantizer(layer.weight))


@each_values
@each_scale
@each_center
@pytest.mark.parametrize("gradient", ["identity", "scaled", "clipped"])
@pytest.mark.parametrize("padding", [None, 0, 3])
def test_lookup_gradients_are_those_of_indexing_the_effective_weight(
    values: Values, scale: Scale, gradient: Gradient, center: bool, padding: int | None
) -> None:
    layer = embedding_of(values, scale, gradient, center, padding)
    ids = torch.tensor([[0, 3, 3, 1], [5, 0, 2, 3]])
    g = torch.randn(2, 4, 5)
    reference = gradients(layer, F.embedding(ids, layer.effective_weight, padding), g)
    actual = gradients(layer, layer(ids), g)
    assert actual.keys() == reference.keys()
    for name in reference:
        torch.testing.assert_close(
            actual[name], reference[name], atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@each_scale
def test_lookup_of_padding_trains_nothing(scale: Scale) -> None:
    layer = embedding_of("pm1", scale, "identity", False, 3)
    trained = gradients(layer, layer(torch.tensor([3, 3])), torch.ones(2, 5))
    assert not any(gradient.any() for gradient in trained.values())


@pytest.mark.parametrize("training", [False, True])
def test_binary_layers_keep_the_parameters_and_the_mode(training: bool) -> None:
    linear, embedding = nn.Linear(3, 2).train(training), nn.Embedding(4, 3, padding_idx=1).train(training)
    quantizer = Quantizer(linear.weight, "pm1", "row", "identity", center=False)
    binary = QuantizedLinear.from_float(linear, quantizer)
    assert binary.weight is linear.weight
    assert binary.bias is linear.bias
    assert binary.quantizer is quantizer
    assert (binary.in_features, binary.out_features, binary.training) == (3, 2, training)

    quantizer = Quantizer(embedding.weight, "pm1", "row", "identity", center=False)
    looked_up = QuantizedEmbedding.from_float(embedding, quantizer)
    assert looked_up.weight is embedding.weight
    assert looked_up.quantizer is quantizer
    assert (looked_up.num_embeddings, looked_up.embedding_dim, looked_up.padding_idx) == (4, 3, 1)
    assert looked_up.training is training


@each_values
def test_linear_under_autocast_multiplies_in_bf16_and_trains_in_fp32(values: Values) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(16, 8)
    layer = QuantizedLinear.from_float(linear, quantizer_of(linear.weight, values, "row"))
    x = torch.randn(5, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(x)
        expected = F.linear(x, layer.effective_weight, layer.bias)
        assert layer.effective_weight.dtype == torch.float32
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, expected)
    torch.testing.assert_close(output.float(), layer(x), atol=0.05, rtol=0.02)
    trained = gradients(layer, output.float(), torch.ones(5, 8))
    assert {gradient.dtype for gradient in trained.values()} == {torch.float32}


@each_values
def test_lookup_under_autocast_stays_fp32(values: Values) -> None:
    layer = embedding_of(values, "row", "identity", True, 0)
    ids = torch.tensor([0, 1, 5])
    expected = layer(ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(ids), expected)
