from __future__ import annotations

import copy
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Pack
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from bitmaps.bert import Bert, BertConfig
from bitmaps.command.schema import Measure
from bitmaps.packed.discover import one_bit, scales_per_row
from bitmaps.packed.format import FILE, load, pack_model
from bitmaps.packed.model import assemble
from bitmaps.quantize.convert import (
    COMPONENTS,
    binarize_naive,
    matrices,
    round_activations,
    store_words,
)
from bitmaps.quantize.rounding import rounded
from bitmaps.scoring import measure
from bitmaps.scoring.measure import inference_time, memory_mib, pseudo_bits, resident_mib
from bitmaps.vocabulary import GROUPS, Activations, Scale, Storage, ValueSet

BLOG_POST = {
    "none": 417,
    "layers": 103,
    "layers_except_attention": 208,
    "layers_except_ffnn": 312,
    "all": 13,
}


@pytest.fixture(scope="module")
def base() -> Bert:
    """A model of the shape of ``bert-base-uncased``."""
    return Bert(BertConfig()).randomize()


@pytest.mark.parametrize("values", [pytest.param("01", marks=pytest.mark.slow), "pm1"])
def test_memory_of_bert_base_is_the_blog_posts(base: Bert, values: ValueSet) -> None:
    sizes = {}
    for group, components in GROUPS.items():
        model = binarize_naive(copy.deepcopy(base), components, values)
        sizes[group] = math.floor(memory_mib(model))
    assert sizes == BLOG_POST


@pytest.mark.parametrize(
    ("rows", "numbers"),
    [
        ([[-2.0, 2.0, 2.0], [3.0, -3.0, -3.0]], 1),
        ([[0.0, 2.0, 2.0], [3.0, 0.0, 3.0]], 1),
        ([[0.0, -2.0, -2.0], [4.0, 4.0, 4.0]], 1),
        ([[-2.0, 2.0, 2.0], [3.0, 1.0, 3.0]], 2),
        ([[-2.0, 2.5, 2.5], [-2.0, 2.0, 2.0]], 2),
        ([[0.0, 0.0, 0.0], [3.0, 1.0, 3.0]], 2),
        ([[-2.0, 2.0, 2.0], [3.1, 0.2, -3.0]], None),
    ],
)
def test_row_rule(rows: list[list[float]], numbers: int | None) -> None:
    weight = torch.tensor(rows)
    packed = one_bit(weight)
    assert (packed and scales_per_row(packed)) == numbers
    assert pseudo_bits(weight) == (6 * 32 if numbers is None else 6 + 2 * 32 * numbers)


@pytest.mark.parametrize(
    ("weight", "bits"),
    [
        (torch.tensor([[0.25, 0.75], [0.75, 0.25]]), 4),
        (torch.full((3, 5), 7.0), 15),
        (torch.tensor([0.0, 1.0, 1.0]), 3),
        (torch.tensor([0.0, 1.0, 2.0]), 3 * 32),
        (torch.tensor([0.0, 1.0, 2.0]).half(), 3 * 16),
        (torch.tensor([0.0, 1.0, 2.0]).double(), 3 * 64),
        (torch.tensor([[0.1, 1.2, 2.3], [7.4, 0.5, 9.6], [0.7, 8.8, 0.9]]).double(), 9 * 64),
    ],
)
def test_two_values_in_a_whole_tensor_cost_a_bit_each_and_three_their_width(
    weight: Tensor, bits: int
) -> None:
    assert pseudo_bits(weight) == bits


def normal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, columns, generator=generator)


def signs(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.where(normal(rows, columns, generator) < 0, -1.0, 1.0)


def rank_one_of(bits: Tensor, generator: torch.Generator) -> Tensor:
    rows, columns = bits.shape
    row, column = (0.1 + torch.rand(count, generator=generator) for count in (rows, columns))
    return row[:, None] * column * bits


def integers(rows: int, columns: int, generator: torch.Generator, largest: int) -> Tensor:
    """Whole numbers up to ``largest``, which every row has, times a number a row."""
    whole = torch.randint(-largest, largest + 1, (rows, columns), generator=generator).float()
    whole[:, 0] = largest * signs(rows, 1, generator)[:, 0]
    return whole * normal(rows, 1, generator)


# A matrix that can be stored in few bits -> what it costs, with r rows and c columns
KINDS: dict[
    str, tuple[Callable[[int, int, torch.Generator], Tensor], Callable[[int, int], int]]
] = {
    "two values": (lambda r, c, g: 0.3 * signs(r, c, g) + 0.1, lambda r, c: r * c),
    "two values a row": (
        lambda r, c, g: normal(r, 1, g) * signs(r, c, g),
        lambda r, c: r * c + 32 * r,
    ),
    "any two values a row": (
        lambda r, c, g: normal(r, 1, g) * signs(r, c, g) + 3,
        lambda r, c: r * c + 2 * 32 * r,
    ),
    "signs of rank one": (
        lambda r, c, g: rank_one_of(signs(r, c, g), g),
        lambda r, c: r * c + 32 * (r + c),
    ),
    "int4 a row": (lambda r, c, g: integers(r, c, g, 7), lambda r, c: 4 * r * c + 32 * r),
    "int8 a row": (lambda r, c, g: integers(r, c, g, 127), lambda r, c: 8 * r * c + 32 * r),
    "fp16": (lambda r, c, g: normal(r, c, g).half().float(), lambda r, c: 16 * r * c),
    "fp32": (normal, lambda r, c: 32 * r * c),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
many_rows, columns = st.integers(4, 24), st.integers(6, 30)
seeds = st.integers(0, 2**32)


@every_kind
@settings(max_examples=40, deadline=None)
@given(rows=many_rows, columns=columns, seed=seeds)
def test_a_matrix_costs_what_gives_it_back(kind: str, rows: int, columns: int, seed: int) -> None:
    make, bits = KINDS[kind]
    assert pseudo_bits(make(rows, columns, torch.Generator().manual_seed(seed))) == bits(
        rows, columns
    )


@every_kind
@settings(max_examples=40, deadline=None)
@given(
    rows=many_rows,
    columns=columns,
    seed=seeds,
    where=st.tuples(st.integers(0, 23), st.integers(0, 29)),
)
def test_two_numbers_that_do_not_fit_cost_the_whole_width(
    kind: str, rows: int, columns: int, seed: int, where: tuple[int, int]
) -> None:
    weight = KINDS[kind][0](rows, columns, torch.Generator().manual_seed(seed))
    row, column = where[0] % rows, where[1] % columns
    weight[row, column - 1], weight[row, column] = (
        0.7310585786 * weight.abs().max(),
        0.6224593312 * weight.abs().min(),
    )
    assert pseudo_bits(weight) == 32 * rows * columns


@settings(max_examples=40, deadline=None)
@given(rows=many_rows, columns=columns, seed=seeds, factor=st.sampled_from([-1.0, 1e-3, 3.0, 1e3]))
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "fp16"])
def test_the_size_of_a_matrix_does_not_depend_on_its_magnitude(
    kind: str, rows: int, columns: int, seed: int, factor: float
) -> None:
    weight = KINDS[kind][0](rows, columns, torch.Generator().manual_seed(seed))
    assert pseudo_bits(factor * weight) == pseudo_bits(weight)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    seed=seeds,
    kind=st.sampled_from(list(KINDS)),
    dtype=st.sampled_from([torch.float16, torch.float32, torch.float64]),
)
def test_no_tensor_costs_more_than_its_own_width(
    rows: int, columns: int, seed: int, kind: str, dtype: torch.dtype
) -> None:
    weight = KINDS[kind][0](rows, columns, torch.Generator().manual_seed(seed)).to(dtype)
    assert pseudo_bits(weight) <= 8 * weight.element_size() * rows * columns


@settings(max_examples=40, deadline=None)
@given(
    rows=many_rows, columns=columns, seed=seeds, stored=st.sampled_from(["fp16", "int8", "int4"])
)
def test_what_was_rounded_is_seen_to_be(
    rows: int, columns: int, seed: int, stored: Storage
) -> None:
    weight = rounded(normal(rows, columns, torch.Generator().manual_seed(seed)), stored)
    n = rows * columns
    assert (
        pseudo_bits(weight)
        == {"fp16": 16 * n, "int8": 8 * n + 32 * rows, "int4": 4 * n + 32 * rows}[stored]
    )


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(8, 100), columns=st.integers(64, 100), seed=seeds)
def test_zeros_and_ones_of_rank_one_cost_as_much_as_signs(
    rows: int, columns: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = rank_one_of((signs(rows, columns, generator) + 1) / 2, generator)
    assert pseudo_bits(weight) == rows * columns + 32 * (rows + columns)


TABLE = {  # bits of a word table of 60 words and 16 numbers each
    "fp32": 32 * 960,
    "fp16": 16 * 960,
    "int8": 8 * 960 + 32 * 60,
    "int4": 4 * 960 + 32 * 60,
    "bit": 960 + 32 * 60,
}


@pytest.mark.parametrize(("stored", "bits"), TABLE.items())
def test_memory_of_a_stored_word_table(tiny: Bert, stored: Storage, bits: int) -> None:
    rest = sum(p.numel() for p in tiny.parameters()) - 960
    assert memory_mib(store_words(tiny, stored)) * 2**20 * 8 == 32 * rest + bits


SCALES: dict[Scale, Callable[[int, int], int]] = {
    "none": lambda rows, columns: 0,
    "tensor": lambda rows, columns: 0,
    "row": lambda rows, columns: 32 * rows,
    "rank_one": lambda rows, columns: 32 * (rows + columns),
}


@pytest.mark.parametrize(("scale", "numbers"), SCALES.items())
def test_memory_of_binarized_matrices(
    tiny: Bert, scale: Scale, numbers: Callable[[int, int], int]
) -> None:
    chosen = list(matrices(tiny, ["attention", "ffnn"]).values())
    rest = sum(p.numel() for p in tiny.parameters()) - sum(p.numel() for p in chosen)
    bits = 32 * rest + sum(p.numel() + numbers(*p.shape) for p in chosen)
    binarize_naive(tiny, ["attention", "ffnn"], "pm1", scale, "matrices")
    assert memory_mib(tiny) * 2**20 * 8 == bits
    round_activations(tiny, ["attention", "ffnn"], Activations.int6)
    assert memory_mib(tiny) * 2**20 * 8 == bits  # column scales are part of the matrices


def test_memory_counts_a_tied_parameter_once(tiny: Bert) -> None:
    numbers = {id(p): p.numel() for p in tiny.parameters()}
    assert memory_mib(tiny) * 2**20 == 4 * sum(numbers.values())
    tiny.head.decoder.weight = nn.Parameter(
        tiny.get_parameter("embeddings.word.weight").detach().clone()
    )
    assert memory_mib(tiny) * 2**20 == 4 * (sum(numbers.values()) + 60 * 16)


def test_resident_memory_is_that_of_parameters_and_buffers_with_shared_storage_once() -> None:
    one, other = nn.Linear(10, 7), nn.Linear(10, 7, bias=False)
    model = nn.Sequential(one, other)
    assert resident_mib(model) * 2**20 == 4 * (70 + 7 + 70)
    other.weight = nn.Parameter(one.weight.detach())
    assert resident_mib(model) * 2**20 == 4 * (70 + 7)
    model.register_buffer("extra", torch.zeros(3, dtype=torch.int8))
    assert resident_mib(model) * 2**20 == 4 * (70 + 7) + 3
    model.half()
    other.weight = one.weight
    assert resident_mib(model) * 2**20 == 2 * (70 + 7) + 3


@pytest.fixture
def calls(tiny: Bert, monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """What ``tiny`` and its head were called with, on a clock that only a forward pass moves: by 9
    s, 4 s, 1 s, 1 s ..."""
    seen: list[SimpleNamespace] = []
    now = [100.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], perf_counter=lambda: now[0])
    monkeypatch.setattr(measure, "time", clock)

    def forward(model: nn.Module, args: Any, kwargs: Any, logits: Tensor) -> None:
        now[0] += {0: 9.0, 1: 4.0}.get(len(seen), 1.0)
        seen.append(SimpleNamespace(ids=args[0], logits=logits, training=model.training))

    tiny.register_forward_hook(forward, with_kwargs=True)
    return seen


def test_repeats_are_timed_after_a_warm_up_and_the_median_is_per_sequence(
    tiny: Bert, calls: list[SimpleNamespace]
) -> None:
    timing = inference_time(tiny, Measure(batch_size=8, length=5, repeats=3, budget_s=60))
    assert timing.repeats == 3
    assert timing.inference_ms == 1000 / 8
    assert [call.ids.shape for call in calls] == [(8, 5)] * 4
    assert all(call.logits.shape == (8, 5, 60) for call in calls)


@pytest.mark.parametrize(("budget", "repeats"), [(0, 1), (9, 1), (12.5, 1), (13.5, 2), (15.5, 4)])
def test_no_batch_starts_after_the_budget_and_one_always_does(
    tiny: Bert, calls: list[SimpleNamespace], budget: float, repeats: int
) -> None:
    timing = inference_time(tiny, Measure(batch_size=2, length=5, repeats=10, budget_s=budget))
    assert timing.repeats == repeats == len(calls) - 1


def test_masked_only_takes_logits_at_about_15_percent_of_the_positions(
    tiny: Bert, calls: list[SimpleNamespace]
) -> None:
    inference_time(tiny, Measure(batch_size=200, length=12, repeats=1), masked_only=True)
    for call in calls:
        assert call.logits.shape[1:] == (60,)
        assert 0.12 < len(call.logits) / 2400 < 0.18


@pytest.mark.parametrize("training", [False, True])
def test_timing_is_in_evaluation_mode_without_gradients_and_restores_the_mode(
    tiny: Bert, calls: list[SimpleNamespace], training: bool
) -> None:
    inference_time(tiny.train(training), Measure(batch_size=2, length=5, repeats=2))
    assert not any(call.training or call.logits.requires_grad for call in calls)
    assert {module.training for module in tiny.modules()} == {training}


def test_time_of_a_real_clock_is_positive(tiny: Bert) -> None:
    assert inference_time(tiny, Measure(batch_size=2, length=5, repeats=1)).inference_ms > 0


@pytest.mark.parametrize("scale", ["row", "rank_one"])
def test_memory_of_a_packed_model_is_what_its_bits_take(tiny: Bert, scale: Scale) -> None:
    store_words(binarize_naive(tiny, ["attention", "ffnn"], "pm1", scale, "matrices"), "int8")
    packed = assemble(tiny.config, pack_model(tiny, head="fp16"), "a8")
    held = {id(t): t.nbytes for t in (*packed.parameters(), *packed.buffers())}
    assert memory_mib(packed) * 2**20 == sum(held.values())
    in_floats = tiny.get_parameter("head.transform.weight").numel() * 4
    assert memory_mib(packed) * 2**20 == memory_mib(tiny) * 2**20 - in_floats / 2


@pytest.mark.parametrize("values", ["pm1", "01"])
def test_a_packed_model_occupies_what_is_in_its_file(
    tiny: Bert, pack: Pack, values: ValueSet
) -> None:
    folder = pack(binarize_naive(tiny, COMPONENTS, values, "row", "matrices"))
    size = (folder / FILE).stat().st_size
    lows = (
        4 * sum(len(p) for p in matrices(tiny, COMPONENTS).values()) if values == "01" else 0
    )  # not in the file: all 0
    tensors = sum(t.nbytes for t in load_file(folder / FILE).values())
    model = load(folder, "a8")
    assert memory_mib(model) * 2**20 == tensors + lows
    assert tensors <= resident_mib(model) * 2**20 <= size + lows


def test_a_packed_model_is_timed(tiny: Bert) -> None:
    binarize_naive(tiny, COMPONENTS, "pm1", "row", "matrices")
    packed = assemble(tiny.config, pack_model(tiny), "a8")
    for masked_only in (False, True):
        assert (
            inference_time(
                packed, Measure(batch_size=2, length=5, repeats=1), masked_only
            ).inference_ms
            > 0
        )
