from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from bitmaps.packed.discover import fewest_bits, one_bit
from bitmaps.packed.weights import PackedWeight
from bitmaps.quantize.rounding import rounded
from bitmaps.vocabulary import Storage

many = settings(max_examples=60, deadline=None)
sizes = st.tuples(st.integers(1, 12), st.integers(1, 21))
seeds = st.integers(0, 2**32)
numbers = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
kinds: tuple[Storage, ...] = ("bit", "int8", "int4", "fp16")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def signs(rows: int, columns: int, seed: int) -> Tensor:
    return 2.0 * torch.randint(2, (rows, columns), generator=generator(seed)) - 1


def magnitudes(count: int, seed: int) -> Tensor:
    """From about 0.02 to about 50."""
    return torch.randn(count, generator=generator(seed)).exp()


def some_weight(kind: Storage, rows: int, columns: int, seed: int = 0) -> PackedWeight:
    """With column scales and two values a row where there is a bit a weight."""
    weight = torch.randn(rows, columns, generator=generator(seed))
    if kind != "bit":
        return PackedWeight.rounded(weight, kind)
    packed = one_bit(torch.where(weight > 0, 3.0, weight[:, :1].abs() - 1))
    assert packed is not None
    return PackedWeight(
        "bit", columns, packed.data, packed.high, packed.low, magnitudes(columns, seed)
    )


@st.composite
def two_valued(draw: st.DrawFn, rows: str = "any two") -> Tensor:
    """A matrix whose rows have at most two values: {-a, a}, {0, a}, or any two."""
    shape = draw(sizes)
    bits = draw(arrays(np.bool_, shape))
    low, high = (draw(arrays(np.float32, (shape[0], 1), elements=numbers)) for _ in range(2))
    low = {"{-a, a}": -high, "{0, a}": 0 * high}.get(rows, low)
    return torch.from_numpy(np.where(bits, high, low).astype(np.float32))


def bytes_of_bits(weight: Tensor, scales: int) -> int:
    rows, columns = weight.shape
    return rows * -(-columns // 8) + 4 * scales


def is_given_back_to_the_bit(packed: PackedWeight | None, weight: Tensor) -> PackedWeight:
    assert packed is not None
    assert packed.storage == "bit"
    assert packed.shape == weight.shape
    assert packed.dense().dtype == torch.float32
    assert torch.equal(packed.dense(), weight)
    return packed


@many
@given(two_valued("{-a, a}"))
def test_rows_of_a_number_and_its_opposite_take_a_bit_a_weight_and_a_number_a_row(
    weight: Tensor,
) -> None:
    packed = is_given_back_to_the_bit(one_bit(weight), weight)
    assert packed.nbytes == bytes_of_bits(weight, len(weight))
    assert packed.low is packed.column is None


@many
@given(two_valued("{0, a}"))
def test_rows_of_0_and_a_number_are_given_back(weight: Tensor) -> None:
    packed = is_given_back_to_the_bit(one_bit(weight), weight)
    assert packed.column is None
    assert packed.low is None or not packed.low.any()  # so that the file does without it


@many
@given(two_valued())
def test_rows_of_any_two_numbers_take_a_bit_a_weight_and_at_most_two_numbers_a_row(
    weight: Tensor,
) -> None:
    packed = is_given_back_to_the_bit(one_bit(weight), weight)
    a_row = 1 if torch.equal(weight.abs().amin(1), weight.abs().amax(1)) else 2
    assert packed.nbytes == bytes_of_bits(weight, a_row * len(weight))
    assert packed.column is None


@many
@given(
    st.data(),
    st.lists(st.sampled_from(["{-a, a}", "{0, a}", "any two", "constant", "zero"]), min_size=1),
)
def test_rows_of_different_kinds_may_be_mixed(data: st.DataObject, rows: list[str]) -> None:
    bits = data.draw(arrays(np.bool_, (len(rows), data.draw(st.integers(1, 21)))))
    pairs = []
    for kind in rows:
        a, b = data.draw(numbers), data.draw(numbers)
        pairs.append(
            {"{-a, a}": (-a, a), "{0, a}": (0, a), "any two": (a, b), "constant": (a, a)}.get(
                kind, (0, 0)
            )
        )
    low, high = (np.array(column, dtype=np.float32)[:, None] for column in zip(*pairs, strict=True))
    weight = torch.from_numpy(np.where(bits, high, low))
    is_given_back_to_the_bit(one_bit(weight), weight)


@pytest.mark.parametrize("value", [0.0, 2.0, -2.0])
def test_a_constant_matrix_takes_a_number_a_row(value: float) -> None:
    weight = torch.full((3, 9), value)
    packed = is_given_back_to_the_bit(one_bit(weight), weight)
    assert packed.nbytes == 3 * 2 + 3 * 4


@many
@given(st.integers(1, 12), st.integers(3, 21), seeds)
def test_signs_times_a_number_a_row_and_one_a_column_are_given_back_up_to_rounding(
    rows: int, columns: int, seed: int
) -> None:
    weight = (
        magnitudes(rows, seed + 1)[:, None]
        * magnitudes(columns, seed + 2)
        * signs(rows, columns, seed)
    )
    packed = one_bit(weight)
    assert packed is not None
    torch.testing.assert_close(packed.dense(), weight, rtol=1e-6, atol=0)
    assert packed.nbytes == bytes_of_bits(weight, rows + columns)


@settings(max_examples=30, deadline=None)
@given(st.integers(8, 80), st.integers(64, 100), seeds)
def test_zeros_and_magnitudes_of_rank_one_are_given_back_up_to_rounding(
    rows: int, columns: int, seed: int
) -> None:
    row, column = (0.1 + torch.rand(n, generator=generator(seed + n)) for n in (rows, columns))
    weight = row[:, None] * column * (signs(rows, columns, seed) > 0)
    packed = one_bit(weight)
    assert packed is not None
    assert packed.column is not None
    assert torch.equal(packed.dense() == 0, weight == 0)
    torch.testing.assert_close(packed.dense(), weight, rtol=2e-6, atol=0)
    assert packed.nbytes == bytes_of_bits(weight, 2 * rows + columns)


@many
@given(st.integers(2, 12), st.integers(3, 21), seeds)
def test_a_matrix_of_other_numbers_does_not_go_into_a_bit_each(
    rows: int, columns: int, seed: int
) -> None:
    weight = torch.randn(rows, columns, generator=generator(seed))
    assert one_bit(weight) is None


@many
@given(st.integers(2, 12), st.integers(3, 21), seeds, st.data())
def test_one_number_that_is_another_keeps_a_matrix_from_a_bit_each(
    rows: int, columns: int, seed: int, data: st.DataObject
) -> None:
    weight = magnitudes(rows, seed)[:, None] * signs(rows, columns, seed)
    weight[:, :2] = torch.tensor([-1.0, 1.0]) * weight[:, :1].abs()  # two values are there already
    weight[data.draw(st.integers(0, rows - 1)), data.draw(st.integers(2, columns - 1))] *= 1.001
    assert one_bit(weight) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_among_other_numbers_is_no_bit(value: float) -> None:
    weight = torch.randn(6, 9, generator=generator(0))
    weight[2, 3] = value
    assert fewest_bits(weight, table=True) is None


def test_the_lowest_bit_and_the_lower_nibble_come_first() -> None:
    weight = torch.tensor(
        [[3.0, -3, -3, -3, -3, -3, -3, 3, 3], [-1, 1, -1, -1, -1, -1, -1, -1, -1]]
    )
    packed = one_bit(weight)
    assert packed is not None
    assert packed.data.tolist() == [[0b10000001, 1], [0b10, 0]]
    assert packed.high is not None
    assert packed.high.tolist() == [3, 1]
    packed = PackedWeight.rounded(torch.tensor([[7.0, -7, 1], [0, 14, 2]]), "int4")
    assert packed.data.tolist() == [[15 | 1 << 4, 9], [8 | 15 << 4, 9]]
    assert packed.high is not None
    assert packed.high.tolist() == [1, 2]


@pytest.mark.parametrize("stored", ["int8", "int4", "fp16"])
@many
@given(size=sizes, seed=seeds, exponent=st.integers(-4, 4))
def test_what_is_rounded_is_what_a_table_is_trained_with(
    stored: Storage, size: tuple[int, int], seed: int, exponent: int
) -> None:
    (rows, columns), weight = size, torch.randn(size, generator=generator(seed)) * 10**exponent
    weight[0] = 0
    packed = PackedWeight.rounded(weight, stored)
    assert packed.storage == stored
    assert packed.shape == size
    assert packed.dense().dtype == torch.float32
    torch.testing.assert_close(packed.dense(), rounded(weight, stored), rtol=2e-7, atol=0)
    per_row = {"int8": columns + 4, "int4": (columns + 1) // 2 + 4, "fp16": 2 * columns}[stored]
    assert packed.nbytes == rows * per_row


@pytest.mark.parametrize("stored", ["int8", "int4", "fp16"])
@many
@given(size=sizes, seed=seeds)
def test_rounding_twice_is_rounding_once(stored: Storage, size: tuple[int, int], seed: int) -> None:
    once = PackedWeight.rounded(torch.randn(size, generator=generator(seed)), stored)
    again = PackedWeight.rounded(once.dense(), stored)
    assert torch.equal(again.data, once.data)
    torch.testing.assert_close(again.dense(), once.dense(), rtol=2e-7, atol=0)


@pytest.mark.parametrize("kind", kinds)
@many
@given(size=sizes, seed=seeds, shape=st.lists(st.integers(0, 4), max_size=3))
def test_rows_are_those_of_the_whole_matrix_whatever_the_shape_of_their_numbers(
    kind: Storage, size: tuple[int, int], seed: int, shape: list[int]
) -> None:
    packed = some_weight(kind, *size, seed)
    ids = torch.randint(size[0], shape, generator=generator(seed))
    assert packed.dense(ids).shape == (*shape, size[1])
    assert torch.equal(packed.dense(ids), packed.dense()[ids])
    for part in (slice(1, None), slice(0, 0), slice(None, None, 2)):
        assert torch.equal(packed.dense(part), packed.dense()[part])


def row_of(whole: Tensor, largest: int, seed: int) -> Tensor:
    """Rows that reach ``largest``, times a number each."""
    whole[:, 0] = largest
    return whole * magnitudes(len(whole), seed)[:, None]


EXACT: dict[Storage | None, Callable[[int, int, int], Tensor]] = {
    "bit": lambda r, c, seed: magnitudes(r, seed)[:, None] * signs(r, c, seed),
    "int4": lambda r, c, seed: row_of(
        torch.randint(-7, 8, (r, c), generator=generator(seed)).float(), 7, seed
    ),
    "int8": lambda r, c, seed: row_of(
        torch.randint(-127, 128, (r, c), generator=generator(seed)).float(), 127, seed
    ),
    "fp16": lambda r, c, seed: torch.randn(r, c, generator=generator(seed)).half().float(),
    None: lambda r, c, seed: torch.randn(r, c, generator=generator(seed)),
}


@pytest.mark.parametrize("kind", EXACT)
@many
@given(rows=st.integers(3, 12), columns=st.integers(16, 40), seed=seeds)
def test_the_fewest_bits_that_give_a_table_back_are_found(
    kind: Storage | None, rows: int, columns: int, seed: int
) -> None:
    weight = EXACT[kind](rows, columns, seed)
    packed = fewest_bits(weight, table=True)
    possible = [
        one_bit(weight),
        *(PackedWeight.rounded(weight, stored) for stored in kinds[1:]),
    ]
    exact = [
        other
        for other in possible
        if other and torch.allclose(other.dense(), weight, rtol=2e-6, atol=0)
    ]
    if packed is None:
        assert kind is None
        assert not exact
    else:
        assert packed.storage == kind
        assert packed.nbytes == min(other.nbytes for other in exact)
        torch.testing.assert_close(packed.dense(), weight, rtol=2e-6, atol=0)


@pytest.mark.parametrize("kind", EXACT)
def test_a_matrix_that_is_no_table_is_in_one_bit_or_in_none(kind: Storage | None) -> None:
    packed = fewest_bits(EXACT[kind](10, 30, 0), table=False)
    assert (packed and packed.storage) == ("bit" if kind == "bit" else None)


def test_a_table_whose_end_is_different_is_seen_whole() -> None:
    for kind in kinds:
        weight = EXACT[kind](100, 30, 0)
        weight[-1] = torch.randn(30, generator=generator(1))
        assert fewest_bits(weight, table=True) is None


@pytest.mark.parametrize("kind", kinds)
def test_it_is_a_module_of_buffers(kind: Storage) -> None:
    packed, other = some_weight(kind, 6, 11), some_weight(kind, 6, 11, seed=1)
    assert not list(packed.parameters())
    assert packed.nbytes == sum(tensor.nbytes for tensor in packed.state_dict().values())
    packed.load_state_dict(other.state_dict())
    assert torch.equal(packed.dense(), other.dense())
    assert kind in repr(packed)
    assert "(6, 11)" in repr(packed)


@pytest.mark.parametrize("negative", [0, 1, 30, 70])
def test_scales_that_became_negative_are_still_those_of_one_bit(negative: int) -> None:
    """{0,1} with a scale a row and a column: learned scales may cross 0."""
    generator = torch.Generator().manual_seed(0)
    row, column = torch.randn(40, 1, generator=generator), 0.1 + torch.rand(70, generator=generator)
    column[torch.randperm(70, generator=generator)[:negative]] *= -1
    weight = row * column * (torch.rand(40, 70, generator=generator) < 0.5)
    packed = one_bit(weight)
    assert packed is not None
    torch.testing.assert_close(packed.dense(), weight, rtol=1e-5, atol=0)


def test_three_values_a_row_are_no_bit() -> None:
    """{-1,0,1} times a scale a row and one a column: the magnitudes alone would do for {0,1}."""
    generator = torch.Generator().manual_seed(0)
    row, column = torch.randn(40, 1, generator=generator), 0.1 + torch.rand(70, generator=generator)
    assert one_bit(row * column * torch.randint(-1, 2, (40, 70), generator=generator)) is None
