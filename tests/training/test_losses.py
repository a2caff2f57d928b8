"""The parts of the loss."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring.examples import HEADS, batch, tiny
from torch import Tensor
from training.by_hand import (
    attention_by_hand,
    directions_by_hand,
    hidden_by_hand,
    kl,
    projected,
    relations_by_hand,
)

from bitmaps.bert import Bert
from bitmaps.training.losses import (
    LossWeights,
    attention_error,
    direction_error,
    distances,
    distillation,
    hidden_error,
    projections,
    relation_error,
    run,
)

PARTS = ("cross_entropy", "logits", "hidden", "directions", "attention", "relations")
"""The parts of a masked-language model."""


def test_distillation_is_the_kl_divergence_from_the_teacher() -> None:
    student, teacher = torch.randn(2, 7, 11, generator=torch.Generator().manual_seed(0)) * 3
    assert distillation(student, teacher).item() == pytest.approx(kl(teacher, student), rel=1e-5)
    assert distillation(teacher, student).item() != pytest.approx(kl(teacher, student), rel=1e-2)
    assert distillation(teacher + 5, teacher).item() == pytest.approx(0, abs=1e-6)


Part = Callable[[list[Tensor], list[Tensor], Tensor], Tensor]
BY_HAND: dict[Part, Callable[[list[Tensor], list[Tensor], Tensor], float]] = {
    hidden_error: hidden_by_hand,
    direction_error: directions_by_hand,
    attention_error: attention_by_hand,
    relation_error: relations_by_hand,
}
OF_STATES: tuple[Part, ...] = (hidden_error, direction_error)
seeds = st.integers(0, 2**32)
every_part = pytest.mark.parametrize("part", BY_HAND, ids=lambda part: part.__name__)


def tensors(part: Part, seed: int, layers: int = 2) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """What a part compares, and which tokens are none of padding: two at least of each sentence,
    and not all."""
    generator = torch.Generator().manual_seed(seed)
    sentences, length, d = torch.randint(1, 4, (3,), generator=generator).tolist()
    length += 2
    shape = (
        (layers + 1, sentences, length, 4 * d)
        if part in OF_STATES
        else (3 * layers, sentences, 3, length, d + 1)
    )
    student, teacher = (list(torch.randn(shape, generator=generator)) for _ in range(2))
    lengths = torch.randint(2, length + 1, (sentences, 1), generator=generator)
    lengths[0] = 2
    return student, teacher, torch.arange(length) < lengths


@every_part
@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_a_part_is_what_numpy_computes_token_by_token(part: Part, seed: int) -> None:
    student, teacher, kept = tensors(part, seed)
    found = part(student, teacher, kept)
    assert found.shape == ()
    assert found.item() == pytest.approx(BY_HAND[part](student, teacher, kept), rel=1e-4, abs=1e-6)


@every_part
@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_a_student_that_is_its_teacher_has_no_error(part: Part, seed: int) -> None:
    student, teacher, kept = tensors(part, seed)
    assert part(student, student, kept).item() == pytest.approx(0, abs=1e-6)
    assert part(student, teacher, kept).item() > 1e-4
    assert part(student, teacher, kept).item() == pytest.approx(
        part(teacher, student, kept).item(), rel=1e-4
    )


@every_part
@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_padding_does_not_matter_to_a_part(part: Part, seed: int) -> None:
    student, teacher, kept = tensors(part, seed)
    expected = part(student, teacher, kept).item()
    shape = (*kept.shape, 1) if part in OF_STATES else (len(kept), 1, kept.shape[1], 1)
    other = [torch.where(kept.view(shape), x, 1e3 * torch.randn(x.shape)) for x in student]
    assert part(other, teacher, kept).item() == pytest.approx(expected, rel=1e-5)
    longer = (
        [torch.cat([x, torch.randn_like(x)], -2) for x in student],
        [torch.cat([x, x], -2) for x in teacher],
    )
    assert part(*longer, torch.cat([kept, torch.zeros_like(kept)], 1)).item() == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("part", [hidden_error, direction_error, attention_error])
def test_not_even_nan_at_padding_matters(part: Part) -> None:
    student, teacher, kept = tensors(part, 3)
    expected = part(student, teacher, kept).item()
    shape = (*kept.shape, 1) if part in OF_STATES else (len(kept), 1, kept.shape[1], 1)
    student = [x.masked_fill(~kept.view(shape), torch.nan) for x in student]
    assert part(student, teacher, kept).item() == pytest.approx(expected, rel=1e-6)


@every_part
def test_a_part_is_computed_in_fp32_under_autocast(part: Part) -> None:
    student, teacher, kept = tensors(part, 3)
    student = [
        t + 0.01 * s for s, t in zip(student, teacher, strict=True)
    ]  # bf16 would have a few percent of this distance
    expected = part(student, teacher, kept).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert part(student, teacher, kept).item() == pytest.approx(expected, rel=1e-3)


@every_part
def test_gradients_of_a_part_reach_the_tokens_of_what_it_compares_and_no_padding(
    part: Part,
) -> None:
    student, teacher, kept = tensors(part, 3)
    for x in student:
        x.requires_grad_()
    part(student, teacher, kept).backward()
    for number, x in enumerate(student):
        if part is attention_error and number % 3 == 2:  # values take no part in attention scores
            assert x.grad is None
            continue
        assert x.grad is not None
        of_tokens = x.grad.abs().sum(-1) if part in OF_STATES else x.grad.abs().sum((1, 3))
        assert torch.isfinite(of_tokens).all()
        assert ((of_tokens > 0) == kept).all()


@settings(max_examples=25, deadline=None)
@given(seed=seeds, factor=st.floats(0.01, 100))
def test_directions_have_no_length(seed: int, factor: float) -> None:
    student, teacher, kept = tensors(direction_error, seed)
    error = direction_error(student, teacher, kept).item()
    assert direction_error([factor * x for x in student], teacher, kept).item() == pytest.approx(
        error, rel=1e-3
    )
    assert 0 <= error <= 4
    assert direction_error(student, [-x for x in student], kept).item() == pytest.approx(
        4, rel=1e-5
    )


@settings(max_examples=25, deadline=None)
@given(seed=seeds, factor=st.floats(0.01, 100))
def test_relations_know_neither_length_nor_rotation(seed: int, factor: float) -> None:
    student, teacher, kept = tensors(relation_error, seed)
    error = relation_error(student, teacher, kept).item()
    d = student[0].shape[-1]
    rotation = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed))).Q
    turned = [factor * x @ rotation for x in student]
    assert relation_error(turned, teacher, kept).item() == pytest.approx(error, rel=1e-3, abs=1e-6)
    assert 0 <= error <= 2  # the products of relations are never negative


def test_nothing_is_distilled_where_nothing_is_masked() -> None:
    student = torch.zeros(0, 11, requires_grad=True)
    assert distillation(student, torch.zeros(0, 11)).item() == 0


@pytest.mark.parametrize("project", [False, True])
def test_a_run_is_what_the_model_computes(project: bool) -> None:
    model, data = tiny(1), batch(0)
    ids, attended, masked = data["input_ids"], data["attention_mask"], data["labels"] != -100
    with torch.no_grad():
        found = run(model, ids, attended, masked, project)
        torch.testing.assert_close(found.logits, model(ids, attended, positions=masked))
        for state, expected in zip(found.states, model.encode(ids, attended), strict=True):
            torch.testing.assert_close(state, expected)
    assert len(found.states) == 3
    assert len(found.projections) == (6 if project else 0)


@pytest.mark.parametrize("name", PARTS[1:])
def test_only_the_parts_that_weigh_something_are_computed(name: str) -> None:
    data, weights = batch(0), LossWeights(**{name: 2.0})
    inputs = data["input_ids"], data["attention_mask"], data["labels"] != -100
    with torch.no_grad():
        student, teacher = (run(tiny(seed), *inputs, weights.of_projections) for seed in (1, 2))
    found = distances(student, teacher, data["attention_mask"], weights)
    assert set(found) == {name, "hidden"}
    states, kept = (student.states, teacher.states), data["attention_mask"]
    scores = (student.projections, teacher.projections)
    expected = {
        "logits": lambda: distillation(student.logits, teacher.logits),
        "hidden": lambda: hidden_error(*states, kept),
        "directions": lambda: direction_error(*states, kept),
        "attention": lambda: attention_error(*scores, kept),
        "relations": lambda: relation_error(*scores, kept),
    }
    assert found[name].item() == expected[name]().item()  # the weight is not in it


def test_projections_are_queries_keys_and_values_of_each_layer() -> None:
    model, data = tiny(1), batch(0)
    with torch.no_grad(), projections(model, wanted=True) as caught:
        states = model.encode(data["input_ids"], data["attention_mask"])
    expected = projected(model, states)
    assert [x.shape for x in caught] == [(8, HEADS, 10, 16 // HEADS)] * 6
    for found, wanted in zip(caught, expected, strict=True):
        torch.testing.assert_close(found, wanted)


def interrupted(model: Bert) -> None:
    with projections(model, wanted=True):
        assert any(part._forward_hooks for part in model.modules())
        raise ZeroDivisionError


def test_projections_leave_no_hook_behind() -> None:
    model = tiny()
    with pytest.raises(ZeroDivisionError):
        interrupted(model)
    assert not any(part._forward_hooks for part in model.modules())
    with projections(model, wanted=False) as caught:
        assert not any(part._forward_hooks for part in model.modules())
        model(batch(0)["input_ids"])
    assert caught == []


def test_the_true_tokens_are_the_loss_by_default() -> None:
    assert [getattr(LossWeights(), name) for name in PARTS] == [1, 0, 0, 0, 0, 0]
    assert set(vars(LossWeights())) == {*PARTS, "vectors"}


@given(st.lists(st.sampled_from([0.0, 1e-9, 1.0, 25.0]), min_size=6, max_size=6))
def test_all_parts_but_the_first_distil(weights: list[float]) -> None:
    assert LossWeights(*weights).distill is any(weights[1:])
