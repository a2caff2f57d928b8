from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitmaps import measure
from bitmaps.bert import Bert, BertConfig
from bitmaps.binary.components import binarize_naive
from bitmaps.binary.quantize import Values
from bitmaps.config import GROUPS
from bitmaps.measure import Timed, inference_time, memory_mib, numbers_per_row, pseudo_bits, resident_mib

BLOG_POST = {"none": 417, "layers": 103, "layers_except_attention": 208, "layers_except_ffnn": 312, "all": 13}


@pytest.fixture(scope="module")
def base() -> Bert:
    """A model of the shape of ``bert-base-uncased``."""
    return Bert(BertConfig()).randomize()


@pytest.mark.parametrize("values", ["01", "pm1"])
def test_memory_of_bert_base_is_the_blog_posts(base: Bert, values: Values) -> None:
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
        ([[-2.0, 2.0, 2.0], [3.0, 0.0, -3.0]], None),
    ],
)
def test_row_rule(rows: list[list[float]], numbers: int | None) -> None:
    weight = torch.tensor(rows)
    assert numbers_per_row(weight) == numbers
    assert pseudo_bits(weight) == (6 * 32 if numbers is None else 6 + 2 * 32 * numbers)


@pytest.mark.parametrize(
    ("weight", "bits"),
    [
        (torch.tensor([[0.25, 0.75], [0.75, 0.25]]), 4),
        (torch.full((3, 5), 7.0), 15),
        (torch.tensor([0.0, 1.0, 1.0]), 3),
        (torch.tensor([0.0, 1.0, 2.0]), 3 * 32),
        (torch.tensor([0.0, 1.0, 2.0]).half(), 3 * 16),
        (torch.tensor([[0.0, 1.0, 2.0]]).double(), 3 * 64),
    ],
)
def test_two_values_in_a_whole_tensor_cost_a_bit_each_and_three_their_width(weight: Tensor, bits: int) -> None:
    assert pseudo_bits(weight) == bits


def test_memory_counts_a_tied_parameter_once(tiny: Bert) -> None:
    numbers = {id(p): p.numel() for p in tiny.parameters()}
    assert memory_mib(tiny) * 2**20 == 4 * sum(numbers.values())
    tiny.head.decoder.weight = nn.Parameter(tiny.head.decoder.weight.detach().clone())
    assert memory_mib(tiny) * 2**20 == 4 * (sum(numbers.values()) + 60 * 16)


def test_resident_memory_is_that_of_parameters_and_buffers_with_shared_storage_once() -> None:
    model = nn.Sequential(nn.Linear(10, 7), nn.Linear(10, 7, bias=False))
    assert resident_mib(model) * 2**20 == 4 * (70 + 7 + 70)
    model[1].weight = nn.Parameter(model[0].weight.detach())
    assert resident_mib(model) * 2**20 == 4 * (70 + 7)
    model.register_buffer("extra", torch.zeros(3, dtype=torch.int8))
    assert resident_mib(model) * 2**20 == 4 * (70 + 7) + 3
    model.half()
    model[1].weight = model[0].weight
    assert resident_mib(model) * 2**20 == 2 * (70 + 7) + 3


@pytest.fixture
def calls(tiny: Bert, monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """What ``tiny`` and its head were called with, on a clock that only a forward pass moves: by 9 s, 4 s, 1 s, 1 s ..."""
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
    timing = inference_time(tiny, Timed(batch_size=8, length=5, repeats=3, budget_s=60))
    assert timing.repeats == 3
    assert timing.inference_ms == 1000 / 8
    assert [call.ids.shape for call in calls] == [(8, 5)] * 4
    assert all(call.logits.shape == (8, 5, 60) for call in calls)


@pytest.mark.parametrize(("budget", "repeats"), [(0, 1), (9, 1), (12.5, 1), (13.5, 2), (15.5, 4)])
def test_no_batch_starts_after_the_budget_and_one_always_does(
    tiny: Bert, calls: list[SimpleNamespace], budget: float, repeats: int
) -> None:
    timing = inference_time(tiny, Timed(batch_size=2, length=5, repeats=10, budget_s=budget))
    assert timing.repeats == repeats == len(calls) - 1


def test_masked_only_takes_logits_at_about_15_percent_of_the_positions(
    tiny: Bert, calls: list[SimpleNamespace]
) -> None:
    inference_time(tiny, Timed(batch_size=200, length=12, repeats=1), masked_only=True)
    for call in calls:
        assert call.logits.shape[1:] == (60,)
        assert 0.12 < len(call.logits) / 2400 < 0.18


@pytest.mark.parametrize("training", [False, True])
def test_timing_is_in_evaluation_mode_without_gradients_and_restores_the_mode(
    tiny: Bert, calls: list[SimpleNamespace], training: bool
) -> None:
    inference_time(tiny.train(training), Timed(batch_size=2, length=5, repeats=2))
    assert not any(call.training or call.logits.requires_grad for call in calls)
    assert {module.training for module in tiny.modules()} == {training}


def test_time_of_a_real_clock_is_positive(tiny: Bert) -> None:
    assert inference_time(tiny, Timed(batch_size=2, length=5, repeats=1)).inference_ms > 0
