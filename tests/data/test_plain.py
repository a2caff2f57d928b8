"""The parts of sentences that a sentence encoder learns from."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitmaps.data.plain import PlainStream

FIRST, LAST, PAD = 1, 2, 0


def stream_of(lengths: list[int], cropped: float, seed: int = 0, batch: int = 4) -> PlainStream:
    """Sentences of which every piece is another number."""
    pieces = np.split(np.arange(3, 3 + sum(lengths)), np.cumsum(lengths)[:-1])
    sentences = [np.array([FIRST, *ids, LAST]) for ids in pieces]
    return PlainStream(PAD, cropped, sentences, batch, seed)


def contains(whole: np.ndarray, part: np.ndarray) -> bool:
    places = range(len(whole) - len(part) + 1)
    return any((whole[place : place + len(part)] == part).all() for place in places)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=4, max_size=20),
    cropped=st.floats(0, 1),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 3),
)
def test_a_part_is_a_run_of_pieces_between_cls_and_sep(
    lengths: list[int], cropped: float, seed: int, epoch: int
) -> None:
    stream = stream_of(lengths, cropped, seed)
    numbers = np.arange(len(lengths))
    batch = stream.batch(numbers, epoch)
    found = [
        row[mask.bool()].numpy()
        for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert [len(row) for row in found] == stream.lengths(epoch).tolist()
    for whole, row in zip(stream.sentences, found, strict=True):
        assert (row[0], row[-1]) == (FIRST, LAST)
        assert 3 <= len(row) <= len(whole)
        assert contains(whole[1:-1], row[1:-1])


def test_the_share_of_parts_and_their_lengths_are_as_asked() -> None:
    stream = stream_of([10] * 4000, 0.5)
    lengths = stream.lengths(0) - 2
    counts = np.bincount(lengths, minlength=11)
    # one in ten of the parts is the whole sentence
    assert counts[10] / 4000 == pytest.approx(0.55, abs=0.03)
    assert counts[1:10] / 4000 == pytest.approx(np.full(9, 0.05), abs=0.015)
    first, end = stream.spans(0)
    assert first[lengths == 5].min() == 1
    assert end[lengths == 5].max() == 11


def test_whole_sentences_without_cropping() -> None:
    stream = stream_of([3, 5, 7, 2], 0.0)
    assert stream.lengths(3).tolist() == [5, 7, 9, 4]


def test_parts_are_the_same_in_a_resumed_stream_and_others_in_another_epoch() -> None:
    lengths = [6] * 12
    whole = [batch["input_ids"] for batch in islice(stream_of(lengths, 1.0), 9)]
    sentences = stream_of(lengths, 1.0).sentences
    resumed = [b["input_ids"] for b in islice(PlainStream(PAD, 1.0, sentences, 4, 0, 5), 4)]
    assert all((one == other).all() for one, other in zip(whole[5:], resumed, strict=True))
    stream = stream_of(lengths, 1.0)
    assert (stream.lengths(0) != stream.lengths(1)).any()
    assert (stream.lengths(0) == stream_of(lengths, 1.0).lengths(0)).all()
