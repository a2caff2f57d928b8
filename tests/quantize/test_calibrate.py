"""Bits, scales and biases chosen without training: against plain numpy, and what holds of the outputs afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from bitmaps.bert import Bert, BertConfig
from bitmaps.data.batches import Batch
from bitmaps.quantize.calibrate import BLOCK, DAMPING, calibrate, choose_bits
from bitmaps.quantize.convert import make_trainable
from bitmaps.quantize.layers import QuantizedLinear
from bitmaps.quantize.quantizer import Quantization, Quantizer, two_values
from bitmaps.vocabulary import Scale, ValueSet

Array = NDArray[np.float64]

ENCODER = ("attention", "ffnn")
each_values = pytest.mark.parametrize("values", ["pm1", "01"])
each_scale = pytest.mark.parametrize("scale", ["row", "rank_one"])


# One matrix


def weight_of(seed: int, rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def linear_of(weight: Tensor, values: ValueSet, scale: Scale) -> QuantizedLinear:
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        linear.weight.copy_(weight)
    return QuantizedLinear.from_float(linear, Quantizer(linear.weight, Quantization(values, scale)))


@torch.no_grad()
def choose(linear: QuantizedLinear, h: Tensor) -> None:
    choose_bits(linear, h)


def second_moment(seed: int, columns: int, causes: int, noise: float) -> Tensor:
    """E[x x^T] of inputs that come of a few common causes, of sizes that differ, and noise."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = draw(4 * columns, causes) @ draw(causes, columns) + noise * draw(4 * columns, columns)
    return x.mT @ x / len(x)


def weighted_error(weight: Tensor, quantized: Tensor, h: Tensor) -> float:
    difference = (weight - quantized).detach().double()
    return ((difference @ h) * difference).sum().item()


def errors_of(seed: int, values: ValueSet, scale: Scale, h: Tensor) -> tuple[float, float]:
    """Of rounding to the nearest, and of the bits that are chosen."""
    weight = weight_of(seed, 8, len(h))
    linear = linear_of(weight, values, scale)
    choose(linear, h)
    return weighted_error(weight, two_values(weight, values, scale), h), weighted_error(
        weight, linear.effective_weight, h
    )


@each_values
@each_scale
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_strongly_correlated_inputs_have_much_less_error_than_rounding_leaves(
    values: ValueSet, scale: Scale, seed: int
) -> None:
    nearest, chosen = errors_of(seed, values, scale, second_moment(seed, 24, causes=3, noise=0.3))
    assert chosen < 0.9 * nearest


@each_values
@each_scale
@pytest.mark.parametrize("causes", [48, 24, 6])
def test_correlated_inputs_have_no_more_error_than_rounding_leaves(
    values: ValueSet, scale: Scale, causes: int
) -> None:
    for seed in range(5):
        nearest, chosen = errors_of(seed, values, scale, second_moment(seed, 48, causes, noise=0.5))
        assert chosen <= nearest


def gptq(
    weight: Array, h: Array, values: ValueSet, row: Array, column: Array | None
) -> tuple[Array, Array, Array]:
    """Optimal brain quantization in a fixed order, one column after the other, the inverse of what is left of H computed anew
    for each: what was rounded, what it became, and the scales of the rows."""
    order = np.argsort(-np.diag(h), kind="stable")
    h = h + DAMPING * np.mean(np.diag(h)) * np.eye(len(h))
    low = 0.0 if values == "01" else -1.0
    for _ in range(2):
        magnitude = np.broadcast_to(row if column is None else row * column, weight.shape)
        left, rounded, to_round = weight.copy(), np.zeros_like(weight), np.zeros_like(weight)
        for step, j in enumerate(order):
            to_round[:, j] = left[:, j]
            ends = magnitude[:, j] * low, magnitude[:, j]
            upper = np.abs(left[:, j] - ends[1]) < np.abs(left[:, j] - ends[0])
            rounded[:, j] = np.where(upper, ends[1], ends[0])
            rest = order[step:]
            inverse = np.linalg.inv(h[np.ix_(rest, rest)])
            left[:, rest] -= np.outer((left[:, j] - rounded[:, j]) / inverse[0, 0], inverse[0])
        factor = np.einsum("ri,ij,rj->r", rounded, h, weight) / np.einsum(
            "ri,ij,rj->r", rounded, h, rounded
        )
        row = (
            (row * factor[:, None]).astype(np.float32).astype(np.float64)
        )  # a scale is kept in fp32
    return to_round - magnitude / 2 if values == "01" else to_round, rounded * factor[:, None], row


@each_values
@each_scale
@pytest.mark.parametrize("columns", [BLOCK, BLOCK + 16, 2 * BLOCK + 8])
def test_bits_are_those_of_a_loop_without_blocks(
    values: ValueSet, scale: Scale, columns: int
) -> None:
    weight, h = weight_of(0, 5, columns), second_moment(1, columns, causes=10, noise=0.3)
    linear = linear_of(weight, values, scale)
    assert isinstance(linear.quantizer, Quantizer)
    row, column = (
        None if x is None else x.detach().double().numpy() for x in linear.quantizer.scales(weight)
    )
    assert row is not None
    latent, effective, row = gptq(weight.double().numpy(), h.numpy(), values, row, column)
    choose(linear, h)
    np.testing.assert_allclose(linear.weight.detach(), latent, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(linear.effective_weight.detach(), effective, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(linear.quantizer.scales(weight)[0].detach(), row, rtol=1e-6)
    assert (linear.quantizer.column is None) is (column is None)
    nearest = two_values(weight, values, scale)
    assert (
        (linear.effective_weight > 0) != (nearest > 0)
    ).any()  # or else there is nothing to compare


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), power=st.floats(1e-3, 1e3))
@each_scale
def test_uncorrelated_inputs_leave_signs_and_scales_of_rounding(
    scale: Scale, seed: int, power: float
) -> None:
    weight = weight_of(seed, 4, 12)
    linear = linear_of(weight, "pm1", scale)
    choose(linear, power * torch.eye(12, dtype=torch.float64))
    torch.testing.assert_close(linear.effective_weight.detach(), two_values(weight, "pm1", scale))
    torch.testing.assert_close(linear.weight.detach(), weight)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), power=st.floats(1e-3, 1e3))
def test_uncorrelated_inputs_leave_the_nearer_of_zero_and_the_scale(
    seed: int, power: float
) -> None:
    weight = weight_of(seed, 4, 12)
    linear = linear_of(weight, "01", "row")
    choose(linear, power * torch.eye(12, dtype=torch.float64))
    effective = linear.effective_weight.detach().numpy()
    for found, row in zip(effective, weight.double().numpy(), strict=True):
        scale = row[row > 0].mean() if (row > 0).any() else 0.0
        for _ in range(2):  # the nearer value, then the scale of least squares, twice
            high = row > scale / 2
            scale = row[high].mean() if high.any() else 0.0
        np.testing.assert_allclose(found, np.where(high, scale, 0), rtol=1e-5)
    assert weighted_error(
        weight, linear.effective_weight, torch.eye(12, dtype=torch.float64)
    ) <= weighted_error(weight, two_values(weight, "01", "row"), torch.eye(12, dtype=torch.float64))


@each_values
@each_scale
def test_the_latent_weight_has_the_bits_that_were_chosen(values: ValueSet, scale: Scale) -> None:
    weight = weight_of(0, 6, 40)
    linear = linear_of(weight, values, scale)
    parameter = linear.weight
    choose(linear, second_moment(0, 40, causes=8, noise=0.3))
    assert linear.weight is parameter
    assert isinstance(linear.quantizer, Quantizer)
    effective = linear.effective_weight.detach()
    assert torch.equal(linear.quantizer.bits(linear.weight), effective > 0)
    assert ((linear.weight > 0) != (weight > 0)).any()
    low = effective[effective <= 0]
    assert (low == 0).all() if values == "01" else (low < 0).all()
    if scale == "row":
        for row in effective:
            values_of_row = row.unique().tolist()
            assert len(values_of_row) == 2
            assert values_of_row[0] == (0 if values == "01" else -values_of_row[1])
    else:
        row_scale, column = linear.quantizer.scales(linear.weight)
        assert column is not None
        torch.testing.assert_close(
            effective.abs()[effective != 0], (row_scale * column).detach()[effective != 0]
        )


@each_values
@each_scale
def test_dead_and_copied_inputs_are_no_trouble(values: ValueSet, scale: Scale) -> None:
    h = second_moment(0, 12, causes=3, noise=0.0)
    h[:, 4] = h[4] = 0
    h[5], h[:, 5] = h[6], h[:, 6]
    h[5, 5] = h[6, 6]
    linear = linear_of(weight_of(0, 4, 12), values, scale)
    choose(linear, h)
    assert linear.effective_weight.isfinite().all()
    assert linear.weight.isfinite().all()


def test_only_weight_and_row_scales_of_a_matrix_change() -> None:
    linear = linear_of(weight_of(0, 4, 12), "pm1", "rank_one")
    before = copy.deepcopy(linear.state_dict())
    choose(linear, second_moment(0, 12, causes=3, noise=0.3))
    changed = {
        name
        for name, tensor in linear.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert changed == {"weight", "quantizer.scale"}


# A model


def model_of(seed: int = 0, hidden: int = 16, layers: int = 2) -> Bert:
    config = BertConfig(
        vocab_size=60, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=2 * hidden,
        max_position_embeddings=16, initializer_range=0.3,
    )  # fmt: skip
    return Bert(config).randomize(torch.Generator().manual_seed(seed)).eval()


def batch_of(ids: Tensor, attended: Tensor) -> Batch:
    return {
        "sentences": torch.arange(len(ids)),
        "input_ids": ids,
        "attention_mask": attended,
        "labels": torch.full_like(ids, -100),
    }


def batches_of(seed: int = 0, count: int = 3, rows: int = 8) -> list[Batch]:
    """Batches of different lengths; half of their sentences are shorter still."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        length = 8 + number
        ids = torch.randint(5, 60, (rows, length), generator=generator)
        lengths = torch.full((rows, 1), length)
        lengths[: rows // 2] = length - 3
        attended = torch.arange(length) < lengths
        found.append(batch_of(ids.where(attended, 0), attended))
    return found


def binary_of(
    original: Bert,
    components: Sequence[str] = ENCODER,
    values: ValueSet = "pm1",
    scale: Scale = "row",
) -> Bert:
    return make_trainable(copy.deepcopy(original), components, Quantization(values, scale))


@torch.no_grad()
def outputs_of(model: Bert, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """What each linear layer puts out for the tokens that are no padding: (tokens, features) in fp64."""
    found: dict[str, list[Tensor]] = {}

    def hook_for(
        name: str, kept: Tensor
    ) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda _module, _inputs, output: found.setdefault(name, []).append(
            output[kept].double()
        )

    for batch in batches:
        kept = batch["attention_mask"]
        linears = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
        handles = [m.register_forward_hook(hook_for(name, kept)) for name, m in linears]
        model(batch["input_ids"], kept)
        for handle in handles:
            handle.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}


def moments(outputs: Tensor, original: Tensor) -> tuple[Array, Array]:
    """Mean and deviation, each token weighed by 1 / mean square of its original outputs."""
    z, y = outputs.numpy(), original.numpy()
    weight = 1 / (y**2).mean(-1)
    mean = np.average(z, axis=0, weights=weight)
    return mean, np.sqrt(np.average((z - mean) ** 2, axis=0, weights=weight))


FITTED = {
    *(
        f"encoder.layers.{layer}.{name}"
        for layer in (0, 1)
        for name in ("attention.query", "attention.key", "attention.value", "attention.output")
    ),
    *(f"encoder.layers.{layer}.ffnn.{name}" for layer in (0, 1) for name in ("expand", "contract")),
    "head.transform",
}


@each_values
@each_scale
def test_every_fitted_output_has_mean_and_deviation_of_the_original(
    values: ValueSet, scale: Scale
) -> None:
    original, batches = model_of(), batches_of()
    model = binary_of(original, (*ENCODER, "head"), values, scale)
    assert calibrate(model, original, batches) is model
    ours, theirs = outputs_of(model, batches), outputs_of(original, batches)
    assert {name for name, m in model.named_modules() if isinstance(m, QuantizedLinear)} == FITTED
    for name in FITTED:
        for found, expected in zip(
            moments(ours[name], theirs[name]), moments(theirs[name], theirs[name]), strict=True
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4, err_msg=name)
        assert not torch.allclose(ours[name], theirs[name], rtol=1e-2), (
            name
        )  # which would leave nothing to fit


@each_values
def test_before_calibration_the_moments_are_others(values: ValueSet) -> None:
    original, batches = model_of(), batches_of()
    ours, theirs = (
        outputs_of(binary_of(original, values=values), batches),
        outputs_of(original, batches),
    )
    for name in FITTED - {"head.transform"}:
        _, found = moments(ours[name], theirs[name])
        _, expected = moments(theirs[name], theirs[name])
        assert np.abs(found / expected - 1).max() > 0.05, name


def longer(batch: Batch, by: int, token: int) -> Batch:
    shape = (len(batch["input_ids"]), by)
    ids = torch.cat(
        [batch["input_ids"].masked_fill(~batch["attention_mask"], token), torch.full(shape, token)],
        1,
    )
    return batch_of(
        ids, torch.cat([batch["attention_mask"], torch.zeros(shape, dtype=torch.bool)], 1)
    )


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        np.testing.assert_allclose(tensor, other[name], rtol=1e-4, atol=1e-5, err_msg=name)


@each_values
def test_padding_does_not_matter(values: ValueSet) -> None:
    original, batches = model_of(), batches_of()
    plain = calibrate(binary_of(original, values=values), original, batches).state_dict()
    padded = [longer(batch, by=4, token=17) for batch in batches]
    assert_same(calibrate(binary_of(original, values=values), original, padded).state_dict(), plain)
    unmasked = [
        batch_of(batch["input_ids"], torch.ones_like(batch["attention_mask"])) for batch in padded
    ]
    other = calibrate(binary_of(original, values=values), original, unmasked).state_dict()
    assert any(
        (other[name] - plain[name]).abs().max() > 1e-2 for name in plain
    )  # if it were attended to, it would


def test_how_sentences_are_batched_does_not_matter() -> None:
    original, batches = model_of(), batches_of()
    whole = calibrate(binary_of(original), original, batches).state_dict()
    halves = [
        batch_of(batch["input_ids"][part], batch["attention_mask"][part])
        for batch in batches
        for part in (slice(None, 4), slice(4, None))
    ]
    assert_same(calibrate(binary_of(original), original, halves).state_dict(), whole)


@pytest.mark.parametrize(
    "components", [("ffnn",), ("attention",), ("head",), ("embeddings", "attention")]
)
def test_calibration_changes_binarized_linear_layers_alone(components: tuple[str, ...]) -> None:
    original = model_of()
    model = binary_of(original, components)
    before, of_original = copy.deepcopy(model.state_dict()), copy.deepcopy(original.state_dict())
    calibrate(model, original, batches_of())
    after = model.state_dict()
    assert after.keys() == before.keys()
    fitted = {
        name for name in FITTED if any(f".{component}." in f".{name}." for component in components)
    }
    expected = {
        f"{name}.{part}" for name in fitted for part in ("weight", "bias", "quantizer.scale")
    }
    assert {name for name in after if not torch.equal(after[name], before[name])} == expected
    assert fitted
    assert all(
        torch.equal(tensor, of_original[name]) for name, tensor in original.state_dict().items()
    )
    for each in (model, original):
        assert not any(module._forward_hooks for module in each.modules())
        assert all(
            parameter.grad is None and parameter.requires_grad for parameter in each.parameters()
        )


def test_a_model_of_which_nothing_is_binarized_stays_as_it_is() -> None:
    original = model_of()
    model = calibrate(copy.deepcopy(original), original, batches_of())
    assert all(
        torch.equal(tensor, original.state_dict()[name])
        for name, tensor in model.state_dict().items()
    )


def test_words_in_fewer_bits_are_not_fitted() -> None:
    original = model_of()
    model = make_trainable(copy.deepcopy(original), ["ffnn"], Quantization(), "int8")
    table = model.embeddings.word.weight.detach().clone()
    calibrate(model, original, batches_of())
    assert torch.equal(model.embeddings.word.weight, table)
    assert torch.equal(model.head.decoder.bias, original.head.decoder.bias)


@torch.no_grad()
def distance(model: Bert, original: Bert, batches: Sequence[Batch]) -> float:
    """Of the last hidden states, over the tokens that are no padding."""
    squares = []
    for batch in batches:
        kept = batch["attention_mask"]
        ours, theirs = (m.encode(batch["input_ids"], kept)[-1][kept] for m in (model, original))
        squares.append((ours - theirs).square().mean(-1))
    return torch.cat(squares).mean().item()


@each_values
@each_scale
def test_calibrated_states_are_nearer_to_the_original_also_on_other_sentences(
    values: ValueSet, scale: Scale
) -> None:
    original = model_of(hidden=32)
    model, others = binary_of(original, values=values, scale=scale), batches_of(seed=9)
    before = distance(model, original, others)
    calibrate(model, original, batches_of(seed=1, count=4, rows=32))
    assert distance(model, original, others) < 0.9 * before


@each_values
@each_scale
def test_dead_inputs_and_constant_outputs_leave_no_nan(values: ValueSet, scale: Scale) -> None:
    original, batches = model_of(), batches_of()
    with torch.no_grad():
        for block in original.encoder.layers:
            # a state that is always 0, and so a column of inputs to what comes next
            block.get_parameter("attention.norm.weight")[3] = 0
            block.get_parameter("attention.norm.bias")[3] = 0
            # outputs that are always the same
            block.get_parameter("ffnn.expand.weight")[5] = 0
            block.get_parameter("attention.value.weight")[7] = 0
    model = calibrate(binary_of(original, values=values, scale=scale), original, batches)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    ours, theirs = outputs_of(model, batches), outputs_of(original, batches)
    for name, feature in (("ffnn.expand", 5), ("attention.value", 7)):
        of_layer = f"encoder.layers.0.{name}"
        torch.testing.assert_close(
            ours[of_layer][:, feature], theirs[of_layer][:, feature], rtol=1e-4, atol=1e-5
        )


def test_a_scale_never_turns_negative() -> None:
    h = torch.tensor([[0.28, -0.84], [-0.84, 2.53]], dtype=torch.float64)
    linear = linear_of(torch.tensor([[0.44, 0.08]]), "pm1", "row")
    choose(linear, h)
    assert linear.quantizer.scale.item() > 0  # type: ignore[union-attr,operator]


def test_outputs_of_nothing_but_zeros_stay_that_way() -> None:
    original, batches = model_of(), batches_of()
    with torch.no_grad():
        value = original.encoder.layers[0].attention.value  # type: ignore[union-attr]
        value.weight.zero_()  # type: ignore[union-attr,operator]
        value.bias.zero_()  # type: ignore[union-attr,operator]
    fitted = calibrate(binary_of(original), original, batches)
    states = fitted.encode(batches[0]["input_ids"], batches[0]["attention_mask"])
    assert all(bool(torch.isfinite(state).all()) for state in states)


@pytest.mark.parametrize("scale", ["tensor", "none"])
def test_without_a_scale_a_row_the_means_are_still_the_originals(scale: Scale) -> None:
    original, batches = model_of(), batches_of()
    fitted = calibrate(binary_of(original, scale=scale), original, batches)
    ours, theirs = outputs_of(fitted, batches), outputs_of(original, batches)
    for name in FITTED - {"head.transform"}:
        np.testing.assert_allclose(
            moments(ours[name], theirs[name])[0], moments(theirs[name], theirs[name])[0], atol=1e-4
        )
