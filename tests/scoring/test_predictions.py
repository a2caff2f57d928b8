"""What a model predicts: each number against another way to compute it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import entropy
from sklearn.metrics import accuracy_score
from transformers import BertTokenizer, PreTrainedTokenizerBase

from bitmaps.bert import Bert
from bitmaps.data.batches import Example
from bitmaps.errors import InputError
from bitmaps.hf import to_transformers
from bitmaps.runs.analysis import Analysis, FrequentToken, Sentence
from bitmaps.runs.records import parse
from bitmaps.scoring.filling import chosen_sentences, fill, piece, sentence_of
from bitmaps.scoring.predictions import BINS, LISTED, Predicted, Predictions, analyse, verdict
from bitmaps.vocabulary import IGNORE

MASK = 4  # of the fixture's tokenizer
PIECES = 28


def random_predictions(count: int, seed: int, vocabulary: int = PIECES) -> Predicted:
    generator = np.random.RandomState(seed)
    labels = generator.randint(5, PIECES, count)
    kind = generator.random_sample(count)
    inputs = np.where(
        kind < 0.6, MASK, np.where(kind < 0.8, labels, generator.randint(5, PIECES, count))
    )
    tokens = np.where(
        generator.random_sample(count) < 0.3, labels, generator.randint(vocabulary, size=count)
    )
    # no hit where another token scores as high
    hits = (tokens == labels) & (generator.random_sample(count) < 0.9)
    return Predicted(
        labels,
        inputs,
        tokens,
        hits,
        generator.random_sample(count),
        generator.exponential(size=count),
    )


def occurring(seed: int) -> NDArray[np.int64]:
    """From once to 3,000 times."""
    return np.exp(np.random.RandomState(seed).uniform(0, 8, PIECES)).astype(np.int64)


@pytest.mark.parametrize("seed", range(3))
def test_each_number_of_an_analysis_is_what_another_way_gives(
    tokenizer: PreTrainedTokenizerBase, seed: int
) -> None:
    predicted, occurrences = random_predictions(500, seed), occurring(seed)
    found = analyse(predicted, tokenizer, occurrences, [])
    rows = list(zip(*predicted, strict=True))
    counts = Counter(row[2] for row in rows)
    assert found.masked_tokens == 500
    assert found.distinct == len(counts)
    assert found.entropy == pytest.approx(entropy(list(counts.values())))
    assert found.mean_entropy == pytest.approx(sum(row[5] for row in rows) / 500)
    expected = sorted(counts, key=lambda token: (-counts[token], token))[:LISTED]
    assert [one.token for one in found.predicted] == tokenizer.convert_ids_to_tokens(expected)
    for one, token in zip(found.predicted, expected, strict=True):
        sure = [row[4] for row in rows if row[2] == token]
        assert one.share == pytest.approx(counts[token] / 500)
        assert one.true_share == pytest.approx(sum(row[0] == token for row in rows) / 500)
        assert one.confidence == pytest.approx(math.fsum(sure) / len(sure))
        assert one.confidence_std == pytest.approx(
            np.sqrt(np.mean((np.array(sure) - np.mean(sure)) ** 2))
        )
    confidence, sure = found.confidence, [row[4] for row in rows]
    assert (confidence.mean, confidence.std) == pytest.approx((np.mean(sure), np.std(sure)))
    assert confidence.histogram == [
        sum(int(value * BINS) == n for value in sure) for n in range(BINS)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_the_accuracy_is_split_by_input_and_by_frequency(
    tokenizer: PreTrainedTokenizerBase, seed: int
) -> None:
    predicted, occurrences = random_predictions(500, seed), occurring(seed)
    found = analyse(predicted, tokenizer, occurrences, [])
    kinds = [
        "mask" if i == MASK else "unchanged" if i == t else "random"
        for t, i, *_ in zip(*predicted, strict=True)
    ]
    for kind, split in found.by_input.items():
        hits = [hit for hit, other in zip(predicted.hits, kinds, strict=True) if other == kind]
        assert split.masked_tokens == len(hits)
        assert split.accuracy == pytest.approx(accuracy_score([True] * len(hits), hits))
    assert [split.at_least for split in found.by_frequency] == [1, 10, 100, 1000]
    for split in found.by_frequency:
        low = split.at_least
        high = low * (10 if low < 1000 else 1000)
        hits = [
            hit
            for hit, t in zip(predicted.hits, predicted.labels, strict=True)
            if low <= occurrences[t] < high
        ]
        assert split.masked_tokens == len(hits)
        assert split.accuracy == (pytest.approx(np.mean(hits)) if hits else None)


@settings(deadline=None)
@given(count=st.integers(1, 60), seed=st.integers(0, 2**16), pieces=st.integers(1, PIECES + 20))
def test_the_parts_of_an_analysis_add_up(
    tokenizer: PreTrainedTokenizerBase, count: int, seed: int, pieces: int
) -> None:
    # a model may have more tokens than its tokenizer has pieces
    predicted = random_predictions(count, seed, pieces)
    found = analyse(predicted, tokenizer, occurring(seed), [])
    accuracy = predicted.hits.mean()
    for splits in (found.by_input.values(), found.by_frequency):
        assert sum(split.masked_tokens for split in splits) == count
        hits = sum(split.masked_tokens * (split.accuracy or 0) for split in splits)
        assert hits / count == pytest.approx(accuracy)
        assert all((split.accuracy is None) == (split.masked_tokens == 0) for split in splits)
    assert sum(found.confidence.histogram) == count
    assert 0 <= found.entropy <= math.log(found.distinct) + 1e-9
    shares = [one.share for one in found.predicted]
    assert shares == sorted(shares, reverse=True)
    assert len(shares) == min(found.distinct, LISTED)
    if found.distinct <= LISTED:
        assert sum(shares) == pytest.approx(1)
    assert parse(Analysis, asdict(found)) == found  # plain numbers, which JSON has


def test_a_model_that_predicts_one_token_has_no_entropy(tokenizer: PreTrainedTokenizerBase) -> None:
    predicted = random_predictions(50, 0)._replace(
        tokens=np.full(50, 7), confidences=np.full(50, 1 + 1e-9)
    )
    found = analyse(predicted, tokenizer, occurring(0), [])
    assert (found.distinct, found.entropy, str(found.entropy)) == (1, 0.0, "0.0")
    assert (
        found.verdict
        == "predicts 'cat' for 100 % of masked tokens with mean confidence 1.000: collapsed"
    )
    # a probability that rounding put above 1 is in the last bin
    assert found.confidence.histogram == [0] * (BINS - 1) + [50]


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (1.0, "predicts '.' for 100 % of masked tokens with mean confidence 0.019: collapsed"),
        (0.99999, "predicts '.' for 99.9 % of masked tokens with mean confidence 0.019: collapsed"),
        (0.251, "predicts '.' for 25.1 % of masked tokens with mean confidence 0.019: collapsed"),
        (
            0.25,
            "predicts 9 distinct tokens; most often '.' (25.0 % of predictions, 5.0 % of targets)",
        ),
    ],
)
def test_a_verdict_names_the_token_and_says_what_has_collapsed(share: float, words: str) -> None:
    assert verdict(FrequentToken(".", share, true_share=0.05, confidence=0.0191), 9) == words


def test_what_is_as_frequent_in_the_text_has_not_collapsed() -> None:
    right = verdict(FrequentToken("[UNK]", 0.4, true_share=0.4, confidence=0.9), 9)
    assert right.endswith("(40.0 % of predictions, 40.0 % of targets)")
    often = FrequentToken("[UNK]", 0.9, true_share=0.4, confidence=0.9)
    assert verdict(often, 9).endswith(": collapsed")


def test_the_sentences_of_an_analysis_are_those_that_were_filled_in(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    shown = [Sentence("the [MASK] sat", ["the", "[MASK]", "sat"], [])]
    predicted, occurrences = random_predictions(50, 0), occurring(0)
    assert analyse(predicted, tokenizer, occurrences, shown).sentences == shown


def test_a_token_beyond_the_tokenizers_pieces_goes_by_its_number(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    assert [piece(tokenizer, token) for token in (5, MASK, PIECES - 1, PIECES, 59)] == [
        "the", "[MASK]", "blue", f"[{PIECES}]", "[59]",
    ]  # fmt: skip


def scores(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, labels and inputs; some logits tie."""
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(count, PIECES, generator=generator) * 4).round()
    return (
        logits,
        torch.randint(PIECES, (count,), generator=generator),
        torch.randint(PIECES, (count,), generator=generator),
    )


def test_predictions_are_what_a_plain_loop_finds() -> None:
    logits, labels, inputs = scores(200, 0)
    metric = Predictions()
    metric.update(logits, labels, inputs)
    found = metric.compute()
    for n, row in enumerate(logits.double().numpy()):
        probabilities = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        best = [token for token in range(PIECES) if row[token] == row.max()]
        assert (found.labels[n], found.inputs[n]) == (labels[n], inputs[n])
        assert found.tokens[n] == best[0]
        assert found.hits[n] == (best == [labels[n]])
        assert found.confidences[n] == pytest.approx(probabilities.max(), rel=1e-5)
        assert found.entropies[n] == pytest.approx(entropy(probabilities), rel=1e-4)


@settings(deadline=None, max_examples=30)
@given(cuts=st.lists(st.integers(0, 40), max_size=4), seed=st.integers(0, 100))
def test_batches_are_predicted_as_if_at_once(cuts: list[int], seed: int) -> None:
    parts = scores(40, seed)
    at_once, batched = Predictions(), Predictions()
    at_once.update(*parts)
    for low, high in zip(
        [0, *sorted(cuts)], [*sorted(cuts), 40], strict=True
    ):  # some have no masked token
        batched.update(*(part[low:high] for part in parts))
    for one, other in zip(at_once.compute(), batched.compute(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_predictions_are_forgotten_with_a_reset() -> None:
    metric = Predictions()
    metric.update(*scores(3, 0))
    metric.reset()
    metric.update(*scores(2, 1))
    assert len(metric.compute().labels) == 2


def test_an_entropy_is_a_number_however_far_apart_the_logits_are() -> None:
    metric = Predictions()
    metric.update(
        torch.tensor([[3e38, -3e38, 0.0], [0.0, 0.0, 0.0]]),
        torch.tensor([0, 1]),
        torch.tensor([0, 0]),
    )
    found = metric.compute()
    np.testing.assert_allclose(found.entropies, [0, math.log(3)], rtol=1e-6)
    np.testing.assert_allclose(found.confidences, [1, 1 / 3], rtol=1e-6)
    assert found.hits.tolist() == [True, False]  # a tie is no hit


def example(number: int, ids: list[int], masked: dict[int, int]) -> Example:
    """Ids, and the true tokens at some positions."""
    labels = np.full(len(ids), IGNORE)
    for position, token in masked.items():
        labels[position] = token
    return number, np.array(ids), labels


def test_sentences_are_chosen_by_seed_among_those_with_a_masked_token() -> None:
    examples = [example(n, [2, MASK, 3], {1: 5} if n % 3 else {}) for n in range(60)]
    again = [example(n, [2, 6, 3], {1: 6}) for n in range(60)]  # another set of masks
    chosen = [number for number, *_ in chosen_sentences([*examples, *again], 481)]
    assert len(chosen) == len(set(chosen)) == 8
    assert chosen == [number for number, *_ in chosen_sentences([*examples, *again], 481)]
    assert chosen != [number for number, *_ in chosen_sentences([*examples, *again], 482)]
    for number, ids, _ in chosen_sentences([*examples, *again], 481):
        assert ids[1] == (MASK if number % 3 else 6)  # of its first set that masks anything
    assert [n % 3 > 0 for n, *_ in chosen_sentences(examples, 0)] == [True] * 8


def test_few_sentences_are_all_chosen() -> None:
    examples = [example(n, [2, MASK, 3], {1: 5}) for n in range(3)]
    assert sorted(number for number, *_ in chosen_sentences(examples, 0)) == [0, 1, 2]
    assert chosen_sentences([example(0, [2, 5, 3], {})], 0) == []


def test_a_users_sentence_is_masked_where_it_says_so(tokenizer: PreTrainedTokenizerBase) -> None:
    number, ids, labels = sentence_of("The [MASK] sat on [MASK] mat", tokenizer, 12)
    assert number == -1
    assert tokenizer.convert_ids_to_tokens(ids) == [
        "[CLS]",
        "the",
        "[MASK]",
        "sat",
        "on",
        "[MASK]",
        "mat",
        "[SEP]",
    ]
    assert np.flatnonzero(labels != IGNORE).tolist() == [2, 5]
    assert sentence_of("the " * 9 + "[MASK]", tokenizer, 12)[1].shape == (12,)  # as long as can be


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"text='' is empty: give it a sentence with \[MASK\]"),
        (" \t\n", "is empty"),
        (
            "the cat sat",
            r"text='the cat sat' has nothing to fill in: put \[MASK\] where a word is missing",
        ),
        ("the [mask] sat", "nothing to fill in"),
        ("the " * 10 + "[MASK]", "has 13 pieces, more than the model's 12 positions"),
    ],
)
def test_a_users_sentence_that_cannot_be_filled_is_refused(
    tokenizer: PreTrainedTokenizerBase, text: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        sentence_of(text, tokenizer, 12)


def test_masks_are_filled_as_transformers_fills_them(tiny: Bert, tokenizer: BertTokenizer) -> None:
    text = "the [MASK] sat on the mat"
    (found,) = fill(tiny, [sentence_of(text, tokenizer, 12)], tokenizer)
    assert found.text == text
    assert found.pieces == text.split()
    (masked,) = found.masked
    assert (masked.position, masked.true) == (1, None)
    pipeline = transformers.pipeline(
        "fill-mask", model=to_transformers(tiny), tokenizer=tokenizer, device="cpu", top_k=5
    )
    theirs: list[dict[str, Any]] = pipeline(text)
    ids = [one["token"] for one in theirs]
    assert [one.token for one in masked.predictions] == [piece(tokenizer, token) for token in ids]
    assert [one.probability for one in masked.predictions] == pytest.approx(
        [one["score"] for one in theirs], rel=1e-4
    )


def test_masked_sentences_are_filled_beside_their_true_tokens(
    tiny: Bert, tokenizer: PreTrainedTokenizerBase
) -> None:
    examples = [
        example(3, [2, MASK, 8, MASK, 10, 3], {1: 5, 3: 9}),
        example(1, [2, 5, 6, 3], {2: 6}),  # unchanged
    ]
    tiny.train()
    found = fill(tiny, examples, tokenizer)
    assert tiny.training
    assert [len(sentence.masked) for sentence in found] == [2, 1]
    tiny.eval()
    for (_, ids, labels), sentence in zip(examples, found, strict=True):
        with torch.inference_mode():
            (probabilities,) = tiny(torch.tensor(ids[None])).softmax(-1).numpy()
        assert sentence.pieces == tokenizer.convert_ids_to_tokens(ids[1:-1])
        for masked in sentence.masked:
            place = masked.position + 1
            assert masked.true == tokenizer.convert_ids_to_tokens(int(labels[place]))
            best = np.argsort(-probabilities[place])[:5]
            assert [one.token for one in masked.predictions] == [
                piece(tokenizer, token) for token in best
            ]
            assert [one.probability for one in masked.predictions] == pytest.approx(
                probabilities[place][best], rel=1e-4
            )
