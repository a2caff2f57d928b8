"""Masking: what may become a target, and by what it is replaced."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bitmaps.data.masking import Vocabulary, mask_sentence

PAD, UNKNOWN, CLS, SEP, MASK = SPECIAL = 0, 100, 101, 102, 103
SIZE = 30522  # BERT's uncased vocabulary
BERT = Vocabulary(
    mask=MASK,
    pad=PAD,
    unknown=UNKNOWN,
    untouched=(CLS, SEP),
    replacements=np.array([i for i in range(SIZE) if i not in SPECIAL]),
)

words = st.integers(104, SIZE - 1) | st.just(UNKNOWN)
sentences = st.lists(words, min_size=1, max_size=62).map(lambda ids: np.array([CLS, *ids, SEP]))
seeds = st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=3)


@given(sentences, seeds)
def test_inputs_differ_from_the_sentence_only_at_targets(ids, seed):
    inputs, labels = mask_sentence(ids, seed, BERT)
    targets = labels != -100
    np.testing.assert_array_equal(labels[targets], ids[targets])
    np.testing.assert_array_equal(inputs[~targets], ids[~targets])


@given(sentences, seeds)
def test_cls_and_sep_are_never_targets_wherever_they_stand(ids, seed):
    ids = np.concatenate([ids, ids])
    inputs, labels = mask_sentence(ids, seed, BERT)
    special = (ids == CLS) | (ids == SEP)
    assert (labels[special] == -100).all()
    np.testing.assert_array_equal(inputs[special], ids[special])


@given(sentences, seeds)
def test_a_replacement_is_the_mask_or_no_special_piece(ids, seed):
    inputs, _ = mask_sentence(ids, seed, BERT)
    changed = set(inputs[inputs != ids].tolist())
    assert not changed & (set(SPECIAL) - {MASK})


@given(sentences, seeds)
def test_the_sentence_itself_is_left_alone(ids, seed):
    before = ids.copy()
    mask_sentence(ids, seed, BERT)
    np.testing.assert_array_equal(ids, before)


def test_shares_are_those_of_devlin_et_al():
    ids = np.random.default_rng(0).integers(104, SIZE, 400_000)
    inputs, labels = mask_sentence(ids, [1, 2], BERT)
    targets = labels != -100
    assert abs(targets.mean() - 0.15) < 0.002
    masked = inputs[targets] == MASK
    kept = inputs[targets] == ids[targets]
    assert abs(masked.mean() - 0.8) < 0.006
    assert abs(kept.mean() - 0.1) < 0.005
    drawn = inputs[targets][~masked & ~kept]
    assert abs(len(drawn) / targets.sum() - 0.1) < 0.005
    assert abs(drawn.mean() / (SIZE / 2) - 1) < 0.03  # uniform over the vocabulary
    assert drawn.min() < 104  # [unused…] pieces are no special ones
    assert not set(drawn.tolist()) & set(SPECIAL)


def test_targets_lie_evenly_over_the_positions_of_a_sentence():
    ids = np.full(20, 2000)
    targets = np.mean([mask_sentence(ids, [481, n], BERT)[1] != -100 for n in range(4000)], axis=0)
    assert targets.min() > 0.12
    assert targets.max() < 0.18


def test_unknown_pieces_can_be_targets():
    _, labels = mask_sentence(np.full(200, UNKNOWN), [481, 0], BERT)
    assert 10 < (labels == UNKNOWN).sum() < 60


def test_each_number_of_the_seed_matters():
    ids = np.arange(1000, 1060)
    results = [
        mask_sentence(ids, seed, BERT)[0].tolist()
        for seed in ([0, 0], [1, 0], [0, 1], [0, 0, 1], [1, 1])
    ]
    assert all(results.count(result) == 1 for result in results)


def test_masks_depend_on_neither_the_order_nor_numpys_global_state():
    generator = np.random.default_rng(0)
    texts = [generator.integers(104, SIZE, length) for length in generator.integers(3, 60, 40)]
    forward = {n: mask_sentence(ids, [481, n], BERT) for n, ids in enumerate(texts)}
    for n in reversed(range(40)):
        np.random.random(n)
        np.testing.assert_array_equal(mask_sentence(texts[n], [481, n], BERT), forward[n])


# "The little harbour town slept under a thin blanket of snow while three fishing boats waited for
# the morning tide to
# carry them out to sea.", in BERT's uncased pieces
HARBOUR = [
    101, 1996, 2210, 7440, 2237, 7771, 2104, 1037, 4857, 8768, 1997, 4586, 2096, 2093, 5645,
    6242, 4741, 2005, 1996, 2851, 10401, 2000, 4287, 2068, 2041, 2000, 2712, 1012, 102,
]  # fmt: skip


def test_the_evaluation_masks_never_change():
    inputs, labels = mask_sentence(np.array(HARBOUR), [481, 8], BERT)
    expected = {
        7: (1037, 2120),
        10: (1997, 103),
        14: (5645, 103),
        15: (6242, 30117),
        19: (2851, 2851),
        23: (2068, 103),
    }
    assert {i: (labels[i], inputs[i]) for i in range(len(HARBOUR)) if labels[i] != -100} == expected
    assert [i for i in range(len(HARBOUR)) if inputs[i] != HARBOUR[i]] == [7, 10, 14, 15, 23]
