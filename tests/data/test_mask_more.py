"""Tokens that training masks beyond its targets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bitmaps.data.masking import Vocabulary, mask_more

PAD, UNKNOWN, CLS, SEP, MASK = range(5)
UNTOUCHED = torch.tensor([PAD, CLS, SEP, MASK])
TOY = Vocabulary(
    mask=MASK, pad=PAD, unknown=UNKNOWN, untouched=(CLS, SEP), replacements=np.arange(5, 60)
)


def batch(shape: tuple[int, int] = (50, 40)) -> tuple[Tensor, Tensor]:
    """Ids with special tokens anywhere, and targets anywhere."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(60, shape, generator=generator)
    return ids, torch.rand(shape, generator=generator) < 0.15


shares = st.floats(0, 1)
seeds = st.lists(st.integers(0, 2**32 - 1), min_size=3, max_size=3)


@given(shares, seeds)
def test_only_tokens_that_are_neither_targets_nor_special_are_masked(
    share: float, seed: list[int]
) -> None:
    ids, targets = batch()
    masked, counted = mask_more(ids, targets, share, TOY, seed)
    more = counted & ~targets
    assert counted[targets].all()
    assert not torch.isin(ids[more], UNTOUCHED).any()
    assert torch.equal(masked, torch.where(more, MASK, ids))


@given(seeds)
def test_a_share_of_0_masks_nothing_more_and_a_share_of_1_everything_else(seed: list[int]) -> None:
    ids, targets = batch()
    masked, counted = mask_more(ids, targets, 0.0, TOY, seed)
    assert torch.equal(masked, ids)
    assert torch.equal(counted, targets)
    _, counted = mask_more(ids, targets, 1.0, TOY, seed)
    assert torch.equal(counted, targets | ~torch.isin(ids, UNTOUCHED))


def test_the_share_is_that_of_the_tokens_that_can_be_masked() -> None:
    ids, targets = batch((400, 60))
    more = mask_more(ids, targets, 0.3, TOY, (0, 7, 0))[1] & ~targets
    free = ~targets & ~torch.isin(ids, UNTOUCHED)
    assert more.sum() / free.sum() == pytest.approx(0.3, abs=0.01)


def test_unknown_tokens_can_be_masked() -> None:
    ids = torch.full((1, 200), UNKNOWN)
    assert mask_more(ids, ids != UNKNOWN, 0.5, TOY, (0, 0, 0))[1].sum() > 60


def test_each_part_of_the_seed_matters_and_nothing_else_does() -> None:
    ids, targets = batch()
    found = [
        mask_more(ids, targets, 0.3, TOY, seed)[1].tolist()
        for seed in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    ]
    assert all(found.count(one) == 1 for one in found)
    torch.rand(3)
    np.random.random(3)
    assert mask_more(ids, targets, 0.3, TOY, [0, 0, 0])[1].tolist() == found[0]


def test_the_batch_itself_is_left_alone() -> None:
    ids, targets = batch()
    before = ids.clone(), targets.clone()
    mask_more(ids, targets, 0.7, TOY, (1, 2, 3))
    assert torch.equal(ids, before[0])
    assert torch.equal(targets, before[1])


@pytest.mark.parametrize(
    ("share", "seed", "expected"),
    [
        (0.3, (0, 7, 0), [[6, 8, 10, 13, 14, 20, 26], [4, 18]]),
        (0.3, (0, 8, 0), [[1, 4, 6, 8, 14, 16, 18, 21, 25, 27], [2, 8, 13, 16]]),
        (0.3, (5, 7, 1), [[3, 4, 12, 16, 21, 27, 28], [4, 8, 9, 16]]),
        (0.123, (481, 123_456, 3), [[], [3, 7, 12, 19]]),
    ],
)
def test_the_draws_never_change(
    share: float, seed: tuple[int, int, int], expected: list[list[int]]
) -> None:
    ids = torch.tensor([[CLS, *range(5, 33), SEP], [CLS, *range(33, 53), SEP, *[PAD] * 8]])
    targets = torch.zeros(ids.shape, dtype=torch.bool)
    targets[:, 5] = targets[0, 9] = True
    ids[0, 5] = MASK
    more = mask_more(ids, targets, share, TOY, seed)[1] & ~targets
    assert [row.nonzero().flatten().tolist() for row in more] == expected
