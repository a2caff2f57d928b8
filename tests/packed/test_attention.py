"""Attention in one call of the kernels, against its products and PyTorch's attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from math import sqrt
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from packed.matrices import (
    EPSILON,
    KERNELS,
    each_act,
    identity,
    norm_of,
    normal,
    random_matrix,
    using,
)
from torch import Tensor

from bitmaps.packed import kernels as native
from bitmaps.packed.kernels import Packed
from bitmaps.packed.operations import attends, attention, linear_norm, linears
from bitmaps.vocabulary import Act


def attention_of(hidden: int, column: bool = False) -> tuple[Packed, Packed]:
    """The matrices of queries, keys and values, and the output projection."""
    project = [
        replace(random_matrix(hidden, hidden, seed=i, column=column), low=None) for i in range(3)
    ]
    output = random_matrix(hidden, hidden, seed=3)
    return Packed([matrix.part() for matrix in project], hidden), output.packed()


def attention_in_torch(
    x: Tensor,
    project: Packed,
    output: Packed,
    mask: Tensor | None,
    heads: int,
    norm: tuple[Tensor, Tensor, float],
    act: Act,
) -> Tensor:
    split = [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in linears(x, project, act)]
    context = F.scaled_dot_product_attention(*split, attn_mask=mask).transpose(1, 2).flatten(-2)
    return linear_norm(context, output, x, *norm, act)


@pytest.fixture(
    params=[name for name in KERNELS if (found := native.chosen(name)) and found.attends]
)
def attending(request: pytest.FixtureRequest) -> Iterator[str]:
    with using(request.param):
        yield request.param


SHAPES = (  # batch, length, heads, size of a head
    (1, 1, 1, 32),
    (2, 7, 3, 64),
    (9, 33, 2, 32),
    (5, 64, 1, 96),
    (2, 200, 2, 32),
    (30, 16, 1, 32),
    (1, 385, 1, 32),
)


@each_act
@pytest.mark.parametrize("column", [False, True])
def test_attention_is_its_products_and_pytorchs_attention(
    attending: str, threads: Callable[[int], None], column: bool, act: Act
) -> None:
    # the last bit of a context may move it to the next integer, or a sign to the other
    excepted = 0.0 if act in (Act.f32, Act.a16) else 0.1
    for (batch, length, heads, size), with_mask in product(SHAPES, (False, True)):
        hidden = heads * size
        project, output = attention_of(hidden, column=column)
        x, norm = normal(batch, length, hidden), norm_of(hidden)
        mask = None
        if with_mask:
            generator = torch.Generator().manual_seed(1)
            mask = torch.rand(batch, 1, 1, length, generator=generator) < 0.7
            mask[..., 0] = True
        expected = attention_in_torch(x, project, output, mask, heads, norm, act)
        results = []
        for count in (1, 2, 3):
            threads(count)
            results.append(attention(x, project, output, mask, heads, *norm, act))
            assert torch.equal(results[0], results[-1])
        difference = (results[0] - expected).abs().amax(-1)
        assert (difference > 1e-4).float().mean() <= excepted
        assert difference.max() < 0.2


def test_attention_is_exact_to_some_millionths(attending: str) -> None:
    """With identities for matrices, against the formula in fp64."""
    length, size = 70, 32
    same = identity(size).part()
    project, output = Packed([same] * 3, size), Packed([same], size)
    x = 3 * normal(2, length, size)
    gain, shift, epsilon = torch.ones(size), torch.zeros(size), EPSILON
    mask = torch.ones(2, 1, 1, length, dtype=torch.bool)
    mask[1, ..., 40:] = False
    wide = x.double()
    scores = (wide @ wide.mT / sqrt(size)).masked_fill(~mask[:, 0], -torch.inf)
    expected = F.layer_norm(wide + scores.softmax(-1) @ wide, (size,), eps=epsilon)
    actual = attention(x, project, output, mask, 1, gain, shift, epsilon, Act.f32)
    assert (actual - expected).abs().max() < 5e-6


def test_a_token_that_may_attend_to_nothing_gets_zeros(attending: str) -> None:
    project, output = attention_of(32)
    x, norm, mask = normal(2, 5, 32), norm_of(32), torch.zeros(2, 1, 1, 5, dtype=torch.bool)
    mask[1] = True
    actual = attention(x, project, output, mask, 1, *norm, Act.f32)
    expected = linear_norm(torch.zeros(5, 32), output, x[0], *norm, Act.f32)
    torch.testing.assert_close(actual[0], expected)
    torch.testing.assert_close(
        actual[1:], attention(x[1:], project, output, None, 1, *norm, Act.f32)
    )


@each_act
def test_a_sentence_that_is_not_finite_leaves_the_others_alone(attending: str, act: Act) -> None:
    project, output = attention_of(64)
    x, norm = normal(3, 6, 64), norm_of(64)
    alone = attention(x, project, output, None, 2, *norm, act)
    x[1, 2, 3] = torch.nan
    actual = attention(x, project, output, None, 2, *norm, act)
    assert actual[1].isnan().all()
    assert torch.equal(actual[[0, 2]], alone[[0, 2]])


def test_attention_takes_any_layout_and_type(attending: str) -> None:
    project, output = attention_of(64)
    x, norm = normal(4, 6, 64), norm_of(64)
    mask = torch.ones(4, 1, 1, 12, dtype=torch.bool)[..., ::2]
    mask[:, ..., 5] = False
    expected = attention(x, project, output, mask, 2, *norm, Act.a8)
    assert torch.equal(
        attention(x.mT.contiguous().mT, project, output, mask, 2, *norm, Act.a8), expected
    )
    assert torch.equal(attention(x, project, output, mask[:1], 2, *norm, Act.a8), expected)
    half = attention(x.bfloat16(), project, output, mask, 2, *norm, Act.a8)
    assert torch.equal(
        half, attention(x.bfloat16().float(), project, output, mask, 2, *norm, Act.a8).bfloat16()
    )
    all_or_none = torch.tensor([True, False])[:, None, None, None]
    expected = attention(x[:2], project, output, all_or_none.expand(2, 1, 1, 6), 2, *norm, Act.a8)
    assert torch.equal(attention(x[:2], project, output, all_or_none, 2, *norm, Act.a8), expected)
    for shape in ((0, 6, 64), (4, 0, 64)):
        assert attention(torch.zeros(shape), project, output, None, 2, *norm, Act.a8).shape == shape


def test_scores_that_overflow_are_nothing_to_attend_to_as_in_pytorch(attending: str) -> None:
    size = 32
    same = identity(size)
    project, output = (
        Packed([same.part(), replace(same, high=-same.high).part(), same.part()], size),
        same.packed(),
    )
    x, norm = torch.full((1, 3, size), 1e30), norm_of(size)
    x[0, 1, 3] = 2e30
    expected = attention_in_torch(x, project, output, None, 1, norm, Act.f32)
    assert expected.isfinite().all()
    torch.testing.assert_close(attention(x, project, output, None, 1, *norm, Act.f32), expected)


def attention_inputs(**changes: Any) -> dict[str, Any]:
    project, output = attention_of(64)
    gain, shift, epsilon = norm_of(64)
    fitting = {
        "x": normal(2, 5, 64),
        "project": project,
        "output": output,
        "mask": None,
        "heads": 2,
    }
    return fitting | {"gain": gain, "shift": shift, "epsilon": epsilon, "act": Act.a8} | changes


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("no attention here for .* 4 heads and no mask", {"heads": 4}),
        (r"a mask of torch.bool, \(2, 5\)", {"mask": torch.ones(2, 5, dtype=torch.bool)}),
        ("a mask of torch.int64", {"mask": torch.ones(2, 1, 1, 5, dtype=torch.int64)}),
        (
            r"a mask of torch.bool, \(2, 1, 5, 5\)",
            {"mask": torch.ones(2, 1, 5, 5, dtype=torch.bool)},
        ),
        (r"matrices of \[64\]", {"project": random_matrix(64, 64).packed()}),
        (r"64 to \[32\]", {"output": random_matrix(32, 64).packed()}),
        (r"inputs of \(5, 64\)", {"x": torch.zeros(5, 64)}),
        ("inputs have shape", {"x": torch.zeros(2, 5, 32)}),
        ("act='a2'", {"act": "a2"}),
        ("float32 of", {"gain": torch.zeros(3)}),
    ],
)
def test_attention_refuses_what_does_not_fit(
    attending: str, message: str, changes: dict[str, Any]
) -> None:
    assert attention(**attention_inputs()).shape == (2, 5, 64)
    with pytest.raises(ValueError, match=message):
        attention(**attention_inputs(**changes))


def test_attention_is_refused_where_the_kernels_have_none(backend: str) -> None:
    inputs = attention_inputs()
    found = native.kernels()
    assert attends(inputs["x"], None, 2) is (found is not None and found.attends)
    if found is None or not found.attends:
        with pytest.raises(ValueError, match="the kernels have no attention"):
            attention(**inputs)


def test_other_sizes_of_heads_are_left_to_pytorch(attending: str) -> None:
    assert attends(torch.zeros(1, 1, 96), None, 3)
    assert not attends(torch.zeros(1, 1, 96), None, 2)
    assert not attends(torch.zeros(1, 1, 40), None, 1)
