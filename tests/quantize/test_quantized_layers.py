from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitmaps.quantize.layers import QuantizedEmbedding, QuantizedLinear
from bitmaps.quantize.quantizer import Quantization, Quantizer
from bitmaps.quantize.rounding import Rounding, rounded
from bitmaps.vocabulary import Center, Gradient, Scale, Scaling, Storage, ValueSet

SCALED_VALUES: list[tuple[ValueSet, Scale]] = [
    ("01", "none"), ("01", "tensor"), ("01", "row"), ("01", "rank_one"),
    ("pm1", "none"), ("pm1", "tensor"), ("pm1", "row"), ("pm1", "rank_one"),
]  # fmt: skip
LEARNED = {"none": 0, "tensor": 1, "row": 1, "rank_one": 2}

each_values = pytest.mark.parametrize("values", ["01", "pm1"])
each_scaled_values = pytest.mark.parametrize(("values", "scale"), SCALED_VALUES)
each_scaling = pytest.mark.parametrize("scaling", ["computed", "learned", "lsq"])
each_center = pytest.mark.parametrize("center", ["none", "tensor", "row"])
each_gradient = pytest.mark.parametrize(
    "gradient", ["identity", "scaled", "clipped", "clamp", "product"]
)
each_stored = pytest.mark.parametrize("stored", ["fp16", "int8", "int4"])


def quantizer_of(
    weight: Tensor,
    values: ValueSet,
    scale: Scale,
    scaling: Scaling = "learned",
    center: Center = "none",
    gradient: Gradient = "scaled",
) -> Quantizer:
    """A quantizer whose scales, if they are learned, have moved away from where they start."""
    quantizer = Quantizer(weight, Quantization(values, scale, scaling, center, gradient))
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter.mul_(torch.rand_like(parameter) + 0.5)
    return quantizer


def embedding_of(
    values: ValueSet,
    scale: Scale,
    scaling: Scaling = "learned",
    center: Center = "none",
    gradient: Gradient = "scaled",
    padding: int | None = None,
    rows: int = 6,
) -> QuantizedEmbedding:
    torch.manual_seed(0)
    embedding = nn.Embedding(rows, 5, padding_idx=padding)
    nn.init.normal_(embedding.weight, 0.1)
    quantizer = quantizer_of(embedding.weight, values, scale, scaling, center, gradient)
    return QuantizedEmbedding.from_float(embedding, quantizer)


def gradients(layer: nn.Module, output: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Those of all parameters, each of which must have one."""
    layer.zero_grad()
    output.backward(g)
    grads = {name: parameter.grad for name, parameter in layer.named_parameters()}
    present = {name: grad.clone() for name, grad in grads.items() if grad is not None}
    assert present.keys() == grads.keys()
    return present


@each_scaled_values
@each_scaling
@each_center
@pytest.mark.parametrize("bias", [False, True])
def test_linear_is_f_linear_with_the_effective_weight(
    values: ValueSet, scale: Scale, scaling: Scaling, center: Center, bias: bool
) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(7, 4, bias=bias)
    quantizer = quantizer_of(linear.weight, values, scale, scaling, center)
    layer = QuantizedLinear.from_float(linear, quantizer)
    x, g = torch.randn(2, 3, 7), torch.randn(2, 3, 4)
    output, expected = layer(x), F.linear(x, layer.effective_weight, linear.bias)
    assert torch.equal(output, expected)
    assert torch.equal(layer.effective_weight, quantizer(linear.weight))
    assert layer.effective_weight.shape == linear.weight.shape
    assert scale == "rank_one" or all(row.unique().numel() == 2 for row in layer.effective_weight)
    actual, reference = gradients(layer, output, g), gradients(layer, expected, g)
    assert len(actual) == 1 + bias + (0 if scaling == "computed" else LEARNED[scale])
    assert all(torch.equal(actual[name], reference[name]) for name in reference)


@each_scaled_values
@each_scaling
@each_center
@pytest.mark.parametrize("rows", [1, 6])
def test_lookup_reads_rows_of_the_effective_weight(
    values: ValueSet, scale: Scale, scaling: Scaling, center: Center, rows: int
) -> None:
    layer = embedding_of(values, scale, scaling, center, rows=rows)
    ids = torch.tensor([[0, 3, 3], [5, 0, 2]]) % rows
    assert torch.equal(layer(ids), layer.effective_weight[ids])
    assert torch.equal(layer.effective_weight, layer.quantizer(layer.weight))


@each_scaled_values
@each_center
@each_gradient
@pytest.mark.parametrize("padding", [None, 0, 3])
def test_lookup_gradients_are_those_of_indexing_the_effective_weight(
    values: ValueSet, scale: Scale, gradient: Gradient, center: Center, padding: int | None
) -> None:
    layer = embedding_of(values, scale, "learned", center, gradient, padding)
    ids = torch.tensor([[0, 3, 3, 1], [5, 0, 2, 3]])
    g = torch.randn(2, 4, 5)
    counted = g if padding is None else g * (ids != padding)[..., None]
    reference = gradients(layer, layer.effective_weight[ids], counted)
    actual = gradients(layer, layer(ids), g)
    torch.testing.assert_close(actual, reference, atol=1e-6, rtol=1e-5)


@each_gradient
def test_lookup_trains_the_rows_that_are_read_alone(gradient: Gradient) -> None:
    layer = embedding_of("pm1", "row", "learned", "row", gradient)
    trained = gradients(layer, layer(torch.tensor([1, 4])), torch.randn(2, 5))
    for grad in trained.values():
        assert torch.equal(grad.any(1), torch.tensor([False, True, False, False, True, False]))


@pytest.mark.parametrize("scale", ["none", "tensor", "row", "rank_one"])
@each_center
@each_gradient
def test_lookup_of_padding_trains_nothing(scale: Scale, center: Center, gradient: Gradient) -> None:
    layer = embedding_of("pm1", scale, "learned", center, gradient, padding=3)
    trained = gradients(layer, layer(torch.tensor([3, 3])), torch.ones(2, 5))
    assert not any(grad.any() for grad in trained.values())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("stored", [None, "int8"])
def test_quantized_layers_keep_the_parameters_and_the_mode(
    training: bool, stored: Storage | None
) -> None:
    linear, embedding = (
        nn.Linear(3, 2).train(training),
        nn.Embedding(4, 3, padding_idx=1).train(training),
    )
    quantizer = Rounding(stored) if stored else Quantizer(linear.weight, Quantization())
    quantized = QuantizedLinear.from_float(linear, quantizer)
    assert quantized.weight is linear.weight
    assert quantized.bias is linear.bias
    assert quantized.quantizer is quantizer
    assert (quantized.in_features, quantized.out_features, quantized.training) == (3, 2, training)

    quantizer = Rounding(stored) if stored else Quantizer(embedding.weight, Quantization())
    looked_up = QuantizedEmbedding.from_float(embedding, quantizer)
    assert looked_up.weight is embedding.weight
    assert looked_up.quantizer is quantizer
    assert (looked_up.num_embeddings, looked_up.embedding_dim, looked_up.padding_idx) == (4, 3, 1)
    assert looked_up.training is training


@pytest.mark.parametrize("bias", [False, True])
def test_the_bias_is_the_linear_layers_or_none(bias: bool) -> None:
    linear = nn.Linear(3, 2, bias=bias)
    layer = QuantizedLinear.from_float(linear, Quantizer(linear.weight, Quantization()))
    assert {name for name, _ in layer.named_parameters()} == {"weight", "quantizer.scale"} | (
        {"bias"} if bias else set()
    )


@each_stored
def test_linear_with_a_rounded_weight(stored: Storage) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(7, 4)
    layer = QuantizedLinear.from_float(linear, Rounding(stored))
    x, g = torch.randn(5, 7), torch.randn(5, 4)
    expected = rounded(linear.weight.detach(), stored)
    assert not torch.equal(expected, linear.weight)
    assert torch.equal(layer.effective_weight, expected)
    output = layer(x)
    assert torch.equal(output, F.linear(x, expected, linear.bias))
    trained = gradients(layer, output, g)
    assert trained.keys() == {"weight", "bias"}
    torch.testing.assert_close(trained["weight"], g.T @ x)


@each_stored
def test_lookup_of_rounded_rows(stored: Storage) -> None:
    torch.manual_seed(0)
    embedding = nn.Embedding(6, 5, padding_idx=3)
    layer = QuantizedEmbedding.from_float(embedding, Rounding(stored))
    ids, g = torch.tensor([0, 3, 0, 5]), torch.randn(4, 5)
    output = layer(ids)
    assert torch.equal(output, rounded(embedding.weight.detach(), stored)[ids])
    expected = torch.zeros(6, 5)
    expected[0], expected[5] = g[0] + g[2], g[3]
    torch.testing.assert_close(gradients(layer, output, g), {"weight": expected})


@each_values
def test_linear_under_autocast_multiplies_in_bf16_and_trains_in_fp32(values: ValueSet) -> None:
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


@each_scaled_values
@each_scaling
def test_lookup_under_autocast_stays_fp32(values: ValueSet, scale: Scale, scaling: Scaling) -> None:
    layer = embedding_of(values, scale, scaling, "row", "identity", padding=0)
    ids = torch.tensor([0, 1, 5])
    expected = layer(ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        looked_up = layer(ids)
    assert looked_up.dtype == torch.float32
    assert torch.equal(looked_up, expected)
