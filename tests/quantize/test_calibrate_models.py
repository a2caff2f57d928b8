"""Calibration of whole models."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from quantize.calibration_by_hand import (
    ENCODER,
    choose,
    each_scale,
    each_values,
    linear_of,
)
from torch import Tensor, nn

from bitmaps.bert import Bert, BertConfig
from bitmaps.data.batches import Batch
from bitmaps.quantize.calibrate import calibrate
from bitmaps.quantize.convert import make_trainable
from bitmaps.quantize.layers import QuantizedLinear
from bitmaps.quantize.quantizer import Quantization
from bitmaps.vocabulary import Scale, ValueSet

Array = NDArray[np.float64]


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
    """What each linear layer puts out for the tokens that are no padding: (tokens, features) in
    fp64."""
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
