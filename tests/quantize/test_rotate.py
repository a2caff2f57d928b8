"""Heads that are rotated: the model computes the same, with weights closer to two values, as a
plain loop over heads has it."""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from bitmaps.bert import Bert, BertConfig
from bitmaps.bert.attention import Attention
from bitmaps.quantize.quantizer import two_values
from bitmaps.quantize.rotate import ROUNDS, rotate_heads
from bitmaps.vocabulary import Scale

Array = NDArray[np.float64]

each_scale = pytest.mark.parametrize("scale", ["none", "tensor", "row", "rank_one"])


def model_of(seed: int = 0, heads: int = 2, hidden: int = 16) -> Bert:
    config = BertConfig(
        vocab_size=40,
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=heads,
        intermediate_size=24,
        max_position_embeddings=12,
        initializer_range=0.3,
    )
    generator = torch.Generator().manual_seed(seed)
    model = Bert(config).randomize(generator).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases too, which start at 0
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def attentions(model: Bert) -> list[Attention]:
    return [module for module in model.modules() if isinstance(module, Attention)]


def relative_error(weight: Tensor, scale: Scale) -> float:
    return (
        (weight - two_values(weight, "pm1", scale)).square().sum() / weight.square().sum()
    ).item()


def errors(model: Bert, scale: Scale) -> list[float]:
    """Of each pair that is rotated together, summed."""
    pairs = [pair for a in attentions(model) for pair in ((a.query, a.key), (a.value, a.output))]
    return [sum(relative_error(linear.weight.double(), scale) for linear in pair) for pair in pairs]


@each_scale
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 99), heads=st.sampled_from([1, 2, 4, 16]))
def test_the_model_computes_the_same(scale: Scale, seed: int, heads: int) -> None:
    model = model_of(seed, heads)
    rotated = copy.deepcopy(model)
    assert rotate_heads(rotated, scale) is rotated
    ids = torch.randint(40, (3, 7), generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(7) < torch.tensor([[7], [5], [2]])
    for ours, theirs in zip(rotated.encode(ids, mask), model.encode(ids, mask), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("scale", ["tensor", "row", "rank_one"])
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 99), heads=st.sampled_from([1, 2, 4]))
def test_weights_are_closer_to_two_values(scale: Scale, seed: int, heads: int) -> None:
    model = model_of(seed, heads)
    before = errors(model, scale)
    after = errors(rotate_heads(model, scale), scale)
    assert all(a < 0.97 * b for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("scale", ["tensor", "row", "rank_one"])
def test_no_round_makes_it_worse(scale: Scale, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for rounds in (0, 1, 2, 5, 10, ROUNDS):
        monkeypatch.setattr("bitmaps.quantize.rotate.ROUNDS", rounds)
        found.append(errors(rotate_heads(model_of(), scale), scale))
    for earlier, later in pairwise(found):
        assert all(b <= a + 1e-6 for a, b in zip(earlier, later, strict=True))
    assert all(last < first for last, first in zip(found[-1], found[1], strict=True))


def nearest(weight: Array, axis: int) -> Array:
    magnitude = np.abs(weight).mean(axis, keepdims=True)
    return np.where(weight >= 0, magnitude, -magnitude)


def rotation_of(first: Array, second: Array, axis: int, heads: int) -> Array:
    """The rotations of all heads as one matrix, for two matrices with a row for each of their numbers; what shares a scale in the
    second lies along ``axis``."""
    whole = np.eye(len(first))
    for _ in range(ROUNDS):
        along = nearest(whole @ first, 1) @ first.T / (first**2).sum()
        along += nearest(whole @ second, axis) @ second.T / (second**2).sum()
        for head in np.split(np.arange(len(first)), heads):
            own = np.ix_(head, head)
            u, _, vh = np.linalg.svd(along[own])
            whole[own] = u @ vh
    return whole


@pytest.mark.parametrize("heads", [1, 4])
def test_rotations_are_those_of_a_loop_over_heads(heads: int) -> None:
    model = model_of(heads=heads)
    rotated = rotate_heads(copy.deepcopy(model), "row")
    for original, found in zip(attentions(model), attentions(rotated), strict=True):
        w = {name: p.detach().double().numpy() for name, p in original.named_parameters()}
        r = rotation_of(w["query.weight"], w["key.weight"], 1, heads)
        s = rotation_of(w["value.weight"], w["output.weight"].T, 0, heads)
        expected = {"output.weight": w["output.weight"] @ s.T}
        for name, turn in (("query", r), ("key", r), ("value", s)):
            expected |= {
                f"{name}.{part}": turn @ w[f"{name}.{part}"] for part in ("weight", "bias")
            }
        for name, array in expected.items():
            np.testing.assert_allclose(found.get_parameter(name).detach().numpy(), array, atol=1e-5)


def test_attention_changes_alone_and_not_the_bias_of_its_output() -> None:
    model = model_of()
    before = copy.deepcopy(model.state_dict())
    after = rotate_heads(model, "row").state_dict()
    parts = (
        "query.weight",
        "query.bias",
        "key.weight",
        "key.bias",
        "value.weight",
        "value.bias",
        "output.weight",
    )
    expected = {f"encoder.layers.{layer}.attention.{part}" for layer in (0, 1) for part in parts}
    assert {name for name in after if not torch.equal(after[name], before[name])} == expected
    assert all(
        parameter.requires_grad and parameter.grad is None for parameter in model.parameters()
    )


@each_scale
def test_weights_of_two_values_stay(scale: Scale) -> None:
    model = model_of()
    with torch.no_grad():
        for attention in attentions(model):
            for linear in (attention.query, attention.key, attention.value, attention.output):
                linear.weight.copy_(two_values(linear.weight, "pm1", scale))
    before = copy.deepcopy(model.state_dict())
    after = rotate_heads(model, scale).state_dict()
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-5)


@each_scale
def test_weights_of_zeros_leave_no_nan(scale: Scale) -> None:
    model = model_of()
    with torch.no_grad():
        attentions(model)[0].query.weight.zero_()
        attentions(model)[0].key.weight.zero_()
        attentions(model)[1].output.weight.zero_()
    assert all(
        tensor.isfinite().all() for tensor in rotate_heads(model, scale).state_dict().values()
    )
