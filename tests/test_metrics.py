"""The three scores, against references that share no code with them."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import label_ranking_average_precision_score

from bitmaps.metrics import MaskedAccuracy, MaskedCrossEntropy, MaskedMRR

METRICS = [MaskedCrossEntropy, MaskedAccuracy, MaskedMRR]
every = pytest.mark.parametrize("metric", METRICS)


def score(metric, *batches):
    metric = metric() if isinstance(metric, type) else metric
    for logits, labels in batches:
        metric.update(torch.as_tensor(logits), torch.as_tensor(labels))
    return metric.compute().item()


def sample(seed, vocabulary=50, shape=(4, 9), step=None):
    """Logits and labels, a third of them ignored; with ``step``, logits come in steps and so have ties."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(-5, 3, (*shape, vocabulary)).astype(np.float32)
    if step:
        logits = (np.round(logits / step) * step).astype(np.float32)
    labels = generator.integers(0, vocabulary, shape)
    labels[generator.random(shape) < 1 / 3] = -100
    labels.flat[0] = 1  # one at least is scored
    return logits, labels


def reference(logits, labels, top=32):
    """Brute force, token by token, in float64."""
    cross_entropies, hits, reciprocals = [], [], []
    for row, label in zip(logits.reshape(-1, logits.shape[-1]).astype(np.float64), labels.flat, strict=True):
        if label == -100:
            continue
        cross_entropies.append(np.logaddexp.reduce(row) - row[label])
        others = [x for i, x in enumerate(row) if i != label]
        rank = 1 + sum(x >= row[label] for x in others)
        hits.append(all(x < row[label] for x in others))
        reciprocals.append(1 / rank if rank <= top else 0)
    return [np.mean(cross_entropies), np.mean(hits), np.mean(reciprocals)]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([2, 31, 33, 80]), st.sampled_from([None, 1.0, 4.0]))
def test_scores_are_those_of_brute_force(seed, vocabulary, step):
    logits, labels = sample(seed, vocabulary, step=step)
    expected = reference(logits, labels)
    assert [score(metric, (logits, labels)) for metric in METRICS] == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("step", [None, 2.0])
def test_mrr_is_sklearns_label_ranking_precision(step):
    logits, labels = sample(1, step=step)
    kept = labels != -100
    truth = np.eye(50, dtype=int)[labels[kept]]
    expected = label_ranking_average_precision_score(truth, logits[kept])
    assert score(MaskedMRR(top=50), (logits, labels)) == pytest.approx(expected, abs=1e-7)


@every
def test_ignored_positions_do_not_matter(metric):
    logits, labels = sample(2)
    other = np.where((labels == -100)[..., None], np.nan, logits)
    assert score(metric, (other, labels)) == score(metric, (logits, labels))


@every
def test_batches_add_up_by_their_tokens(metric):
    logits, labels = sample(3, shape=(9, 7))
    labels[4:6] = -100
    parts = [(logits[i:j], labels[i:j]) for i, j in ((0, 1), (1, 4), (4, 6), (6, 9))]
    assert score(metric, *parts) == pytest.approx(score(metric, (logits, labels)), rel=1e-6)


def test_sums_are_long_enough_for_a_large_corpus():
    metric = MaskedCrossEntropy()
    metric.total += 1e9  # fp32 would round the next token away
    metric.update(torch.tensor([[0.0, 0.5]]), torch.tensor([0]))
    assert metric.total.item() - 1e9 == pytest.approx(np.log(1 + np.exp(0.5)), rel=1e-5)


def test_a_token_of_a_thousand_nats_is_finite():
    assert score(MaskedCrossEntropy, ([[0.0, 1000.0]], [0])) == 1000.0


def test_logits_that_are_all_alike_score_nothing():
    logits, labels = torch.zeros(5, 40), torch.arange(5)
    assert score(MaskedAccuracy, (logits, labels)) == 0
    assert score(MaskedMRR, (logits, labels)) == 0
    assert score(MaskedCrossEntropy, (logits, labels)) == pytest.approx(np.log(40))


@pytest.mark.parametrize(("metric", "expected"), [(MaskedAccuracy, 1.0), (MaskedMRR, 1.0)])
def test_a_right_answer_counts_though_its_logit_is_negative(metric, expected):
    assert score(metric, ([[-9.0, -1.0, -5.0]], [1])) == expected


def test_a_rank_beyond_thirty_two_counts_nothing():
    logits = -torch.arange(40.0)[None]
    assert score(MaskedMRR, (logits, [31])) == pytest.approx(1 / 32)
    assert score(MaskedMRR, (logits, [32])) == 0


@every
def test_bfloat16_logits_are_scored_in_fp32(metric):
    logits, labels = sample(4)
    rounded = torch.from_numpy(logits).bfloat16()
    assert score(metric, (rounded, labels)) == score(metric, (rounded.float(), labels))


@every
def test_shapes_that_do_not_fit_are_refused(metric):
    with pytest.raises(ValueError, match=r"\(2, 3, 5\).*\(2, 4\)"):
        score(metric, (torch.zeros(2, 3, 5), torch.zeros(2, 4, dtype=torch.int64)))


@every
@pytest.mark.parametrize("label", [-1, 5, -101])
def test_a_label_outside_the_vocabulary_is_refused(metric, label):
    with pytest.raises(ValueError, match=r"0\.\.4"):
        score(metric, (torch.zeros(1, 5), [label]))


@every
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_are_refused(metric, bad):
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        score(metric, ([[0.0, 1.0], [bad, 1.0]], [1, 1]))


@every
def test_no_scored_position_is_nan_and_not_a_number_that_looks_well(metric):
    assert np.isnan(score(metric, (torch.zeros(2, 5), [-100, -100])))


@every
def test_a_reset_forgets(metric):
    metric, batch = metric(), sample(5)
    score(metric, sample(6))
    metric.reset()
    assert score(metric, batch) == score(type(metric)(), batch)


@every
def test_pickling_keeps_the_sums(metric):
    metric, (logits, labels) = metric(), sample(7)
    score(metric, (logits, labels))
    copy = pickle.loads(pickle.dumps(metric))
    more = sample(8)
    assert score(copy, more) == score(metric, more)


BATCHES = [sample(seed, shape=(seed, 3)) for seed in (1, 2, 3, 4)]


def share(rank, store, queue):
    """What one of two processes scores; the first has one batch, the second three."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    queue.put([score(metric, *(BATCHES[:1] if rank == 0 else BATCHES[1:])) for metric in METRICS])
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_score_what_one_does(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=share, args=(rank, tmp_path / "store", queue)) for rank in (0, 1)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    expected = [score(metric, *BATCHES) for metric in METRICS]
    assert results[0] == results[1] == pytest.approx(expected, rel=1e-6)
