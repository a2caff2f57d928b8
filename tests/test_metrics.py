"""The three scores, against references that share no code with them, and what each sentence adds to
them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import label_ranking_average_precision_score  # type: ignore[import-untyped]
from torchmetrics import Metric

from bitmaps.metrics import MaskedAccuracy, MaskedCrossEntropy, MaskedMRR, SentenceSums

METRICS: list[type[Metric]] = [MaskedCrossEntropy, MaskedAccuracy, MaskedMRR]
every = pytest.mark.parametrize("metric", METRICS)


Logits = NDArray[np.float32]
Labels = NDArray[np.int64]


def score(metric: Metric | type[Metric], *batches: tuple[Any, Any]) -> float:
    metric = metric() if isinstance(metric, type) else metric
    for logits, labels in batches:
        metric.update(torch.as_tensor(logits), torch.as_tensor(labels))
    result: float = metric.compute().item()
    return result


def sample(
    seed: int, vocabulary: int = 50, shape: tuple[int, ...] = (4, 9), step: float | None = None
) -> tuple[Logits, Labels]:
    """Logits and labels, a third of them ignored; with ``step``, logits come in steps and so have
    ties."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(-5, 3, (*shape, vocabulary)).astype(np.float32)
    if step:
        logits = (np.round(logits / step) * step).astype(np.float32)
    labels = generator.integers(0, vocabulary, shape)
    labels[generator.random(shape) < 1 / 3] = -100
    labels.flat[0] = 1  # one at least is scored
    return logits, labels


def each_token(logits: Logits, labels: Labels, top: int = 32) -> NDArray[np.float64]:
    """Brute force, token by token, in float64: (scored tokens, 3)."""
    scores = []
    for row, label in zip(
        logits.reshape(-1, logits.shape[-1]).astype(np.float64), labels.flat, strict=True
    ):
        if label == -100:
            continue
        others = [x for i, x in enumerate(row) if i != label]
        rank = 1 + sum(x >= row[label] for x in others)
        hit = all(x < row[label] for x in others)
        scores.append([np.logaddexp.reduce(row) - row[label], hit, 1 / rank if rank <= top else 0])
    return np.array(scores, dtype=np.float64)


def reference(logits: Logits, labels: Labels) -> list[float]:
    return [float(mean) for mean in each_token(logits, labels).mean(0)]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([2, 31, 33, 80]), st.sampled_from([None, 1.0, 4.0]))
def test_scores_are_those_of_brute_force(seed: int, vocabulary: int, step: float | None) -> None:
    logits, labels = sample(seed, vocabulary, step=step)
    expected = reference(logits, labels)
    assert [score(metric, (logits, labels)) for metric in METRICS] == pytest.approx(
        expected, rel=1e-5, abs=1e-7
    )


@every
def test_positions_that_are_all_scored_may_come_in_any_shape(metric: type[Metric]) -> None:
    logits, labels = sample(9, vocabulary=7, shape=(7, 7))
    labels = np.abs(labels) % 7
    flat = score(metric, (logits.reshape(49, 7), labels.reshape(49)))
    assert flat == pytest.approx(reference(logits, labels)[METRICS.index(metric)], rel=1e-5)
    assert score(metric, (logits, labels)) == pytest.approx(flat, rel=1e-6)
    assert score(metric, (logits[0, 0], labels[0, 0])) == pytest.approx(
        reference(logits[:1, :1], labels[:1, :1])[METRICS.index(metric)], rel=1e-5
    )


@pytest.mark.parametrize("step", [None, 2.0])
def test_mrr_is_sklearns_label_ranking_precision(step: float | None) -> None:
    logits, labels = sample(1, step=step)
    kept = labels != -100
    truth = np.eye(50, dtype=int)[labels[kept]]
    expected = label_ranking_average_precision_score(truth, logits[kept])
    assert score(MaskedMRR(top=50), (logits, labels)) == pytest.approx(expected, abs=1e-7)


@every
def test_ignored_positions_do_not_matter(metric: type[Metric]) -> None:
    logits, labels = sample(2)
    other = np.where((labels == -100)[..., None], np.nan, logits)
    assert score(metric, (other, labels)) == score(metric, (logits, labels))


@every
def test_batches_add_up_by_their_tokens(metric: type[Metric]) -> None:
    logits, labels = sample(3, shape=(9, 7))
    labels[4:6] = -100
    parts = [(logits[i:j], labels[i:j]) for i, j in ((0, 1), (1, 4), (4, 6), (6, 9))]
    assert score(metric, *parts) == pytest.approx(score(metric, (logits, labels)), rel=1e-6)


def test_sums_are_long_enough_for_a_large_corpus() -> None:
    metric = MaskedCrossEntropy()
    metric.total += 1e9  # fp32 would round the next token away
    metric.update(torch.tensor([[0.0, 0.5]]), torch.tensor([0]))
    assert metric.total.item() - 1e9 == pytest.approx(np.log(1 + np.exp(0.5)), rel=1e-5)


def test_a_token_of_a_thousand_nats_is_finite() -> None:
    assert score(MaskedCrossEntropy, ([[0.0, 1000.0]], [0])) == 1000.0


def test_logits_that_are_all_alike_score_nothing() -> None:
    logits, labels = torch.zeros(5, 40), torch.arange(5)
    assert score(MaskedAccuracy, (logits, labels)) == 0
    assert score(MaskedMRR, (logits, labels)) == 0
    assert score(MaskedCrossEntropy, (logits, labels)) == pytest.approx(np.log(40))


@pytest.mark.parametrize(("metric", "expected"), [(MaskedAccuracy, 1.0), (MaskedMRR, 1.0)])
def test_a_right_answer_counts_though_its_logit_is_negative(
    metric: type[Metric], expected: float
) -> None:
    assert score(metric, ([[-9.0, -1.0, -5.0]], [1])) == expected


def test_a_rank_beyond_thirty_two_counts_nothing() -> None:
    logits = -torch.arange(40.0)[None]
    assert score(MaskedMRR, (logits, [31])) == pytest.approx(1 / 32)
    assert score(MaskedMRR, (logits, [32])) == 0


@every
def test_bfloat16_logits_are_scored_in_fp32(metric: type[Metric]) -> None:
    logits, labels = sample(4)
    rounded = torch.from_numpy(logits).bfloat16()
    assert score(metric, (rounded, labels)) == score(metric, (rounded.float(), labels))


@every
def test_shapes_that_do_not_fit_are_refused(metric: type[Metric]) -> None:
    with pytest.raises(ValueError, match=r"\(2, 3, 5\).*\(2, 4\)"):
        score(metric, (torch.zeros(2, 3, 5), torch.zeros(2, 4, dtype=torch.int64)))


@every
@pytest.mark.parametrize("label", [-1, 5, -101])
def test_a_label_outside_the_vocabulary_is_refused(metric: type[Metric], label: int) -> None:
    with pytest.raises(ValueError, match=r"0\.\.4"):
        score(metric, (torch.zeros(1, 5), [label]))


@every
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_are_refused(metric: type[Metric], bad: float) -> None:
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        score(metric, ([[0.0, 1.0], [bad, 1.0]], [1, 1]))


@every
def test_infinities_that_cancel_are_refused(metric: type[Metric]) -> None:
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        score(metric, ([[float("inf"), 1.0, -float("inf")]], [1]))


@every
def test_logits_whose_sum_overflows_are_scored(metric: type[Metric]) -> None:
    logits = [[3e38, 1e38, 2e38], [2e38, 3e38, 3e38]]
    expected = dict(zip(METRICS, (np.log(2) / 2, 0.5, 0.75), strict=True))
    assert score(metric, (logits, [0, 1])) == pytest.approx(expected[metric])


@every
def test_no_scored_position_is_nan_and_not_a_number_that_looks_well(metric: type[Metric]) -> None:
    assert np.isnan(score(metric, (torch.zeros(2, 5), [-100, -100])))


@every
def test_a_reset_forgets(metric: type[Metric]) -> None:
    used, batch = metric(), sample(5)
    score(used, sample(6))
    used.reset()
    assert score(used, batch) == score(metric, batch)


@every
def test_pickling_keeps_the_sums(metric: type[Metric]) -> None:
    used, more = metric(), sample(8)
    score(used, sample(7))
    copy = pickle.loads(pickle.dumps(used))
    assert score(copy, more) == score(used, more)


def sums(sentences: int, *batches: tuple[Any, Any, Any]) -> SentenceSums:
    metric = SentenceSums(sentences)
    for batch in batches:
        metric.update(*map(torch.as_tensor, batch))
    return metric


def tokens_of_sentences(
    seed: int, sentences: int, step: float | None
) -> tuple[Logits, Labels, Labels]:
    """Scored tokens of sentences in any order, of which the last has none."""
    logits, labels = sample(seed, 40, (30,), step)
    kept = labels != -100
    numbers = np.random.default_rng(seed).integers(0, sentences - 1, kept.sum())
    return logits[kept], labels[kept], numbers


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32), st.integers(2, 6), st.sampled_from([None, 1.0, 4.0]), st.integers(0, 30)
)
def test_what_sentences_add_up_to_is_counted_by_hand_and_gives_the_scores(
    seed: int, sentences: int, step: float | None, cut: int
) -> None:
    logits, labels, numbers = tokens_of_sentences(seed, sentences, step)
    found = sums(
        sentences,
        (logits[:cut], labels[:cut], numbers[:cut]),
        (logits[cut:], labels[cut:], numbers[cut:]),
    ).compute()
    expected = np.zeros((sentences, 4))
    for number, token in zip(numbers, each_token(logits, labels), strict=True):
        expected[number] += [1, *token]
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert not found[-1].any()
    count, *totals = found.sum(0).tolist()
    assert count == len(labels)
    scores = [score(metric, (logits, labels)) for metric in METRICS]
    assert [total / count for total in totals] == pytest.approx(scores, rel=1e-9)


def test_a_sentence_may_come_in_several_batches_and_several_sets_of_masks() -> None:
    logits, labels, numbers = tokens_of_sentences(1, 4, None)
    whole = sums(4, (logits, labels, numbers)).compute()
    order = np.random.default_rng(0).permutation(len(labels))
    singly = sums(4, *((logits[[i]], labels[[i]], numbers[[i]]) for i in order)).compute()
    np.testing.assert_allclose(singly, whole, rtol=1e-9)
    np.testing.assert_allclose(
        sums(4, *[(logits, labels, numbers)] * 5).compute(), 5 * whole, rtol=1e-9
    )


def test_the_sums_of_a_sentence_have_a_top_of_their_own() -> None:
    metric = SentenceSums(1, top=2)
    for label in (1, 2):
        metric.update(-torch.arange(4.0)[None], torch.tensor([label]), torch.tensor([0]))
    assert metric.compute()[0, 3].item() == 0.5
    assert sums(1, (-torch.arange(40.0)[None], [31], [0])).compute()[0, 3].item() == pytest.approx(
        1 / 32
    )
    assert sums(1, (-torch.arange(40.0)[None], [32], [0])).compute()[0, 3].item() == 0


def test_the_sums_of_sentences_are_long_enough_for_many_sets() -> None:
    metric = SentenceSums(1)
    metric.sums += 1e9  # fp32 would round the next token away
    metric.update(torch.tensor([[0.0, 0.5]]), torch.tensor([0]), torch.tensor([0]))
    assert (metric.compute()[0] - 1e9).tolist() == pytest.approx(
        [1, np.log(1 + np.exp(0.5)), 0, 0.5], abs=1e-5
    )


def test_sums_of_sentences_are_forgotten_and_pickled() -> None:
    batch = tokens_of_sentences(2, 4, None)
    metric = sums(4, batch)
    before = metric.compute().clone()
    assert torch.equal(pickle.loads(pickle.dumps(metric)).compute(), before)
    metric.reset()
    assert not metric.sums.any()
    metric.update(*map(torch.as_tensor, batch))
    assert torch.equal(metric.compute(), before)


BATCHES = [sample(seed, shape=(seed, 3)) for seed in (1, 2, 3, 4)]


def share(rank: int, store: Path, queue: Any) -> None:
    """What one of two processes scores; the first has one batch, the second three."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    queue.put([score(metric, *(BATCHES[:1] if rank == 0 else BATCHES[1:])) for metric in METRICS])
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_score_what_one_does(tmp_path: Path) -> None:
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [
        context.Process(target=share, args=(rank, tmp_path / "store", queue)) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    results = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    expected = [score(metric, *BATCHES) for metric in METRICS]
    assert results[0] == results[1] == pytest.approx(expected, rel=1e-6)
