"""How close vectors are to others, and to judgements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning import LightningDataModule
from scoring.examples import SIZE, TINY, of_lightning, poison, trainer
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch.utils.data import DataLoader

from bitmaps.bert import Bert
from bitmaps.bert.pooling import Pooling
from bitmaps.data.batches import Batch, plain_batch
from bitmaps.embedding.vectors import embed_batches
from bitmaps.scoring import vectors as scoring
from bitmaps.scoring.vectors import Agreement, ScoredVectors, correlations, neighbours
from bitmaps.vocabulary import Task


def drawn(rows: int, columns: int, seed: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def encoder(seed: int = 0) -> Bert:
    config = replace(TINY, task=Task.sentence_embedding, pooling=Pooling("mean", False))
    return Bert(config).randomize(torch.Generator().manual_seed(seed)).set_dropout(0.5).eval()


def batches(count: int = 23, size: int = 5, seed: int = 0) -> list[Batch]:
    """Sentences of 3 to 12 pieces, whose numbers are in no order."""
    generator = np.random.default_rng(seed)
    rows = [generator.integers(5, SIZE, generator.integers(3, 13)) for _ in range(count)]
    order = generator.permutation(count)
    return [
        plain_batch(part.tolist(), [rows[i] for i in part], 0)
        for part in np.split(order, range(size, count, size))
    ]


def nearest(vectors: Tensor, count: int) -> list[set[int]]:
    """By scikit-learn, in fp64; the first found is the sentence itself."""
    x = vectors.double().numpy()
    found = NearestNeighbors(n_neighbors=count + 1, metric="cosine", algorithm="brute").fit(x)
    rows = found.kneighbors(x, return_distance=False)
    return [set(row.tolist()) - {number} for number, row in enumerate(rows)]


def shares(ours: Tensor, theirs: Tensor, count: int) -> float:
    pairs = zip(nearest(ours, count), nearest(theirs, count), strict=True)
    return float(np.mean([len(a & b) / count for a, b in pairs]))


def mean_cosine(ours: Tensor, theirs: Tensor) -> float:
    x, y = ours.double().numpy(), theirs.double().numpy()
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return float(((x * y).sum(1) / lengths).mean())


@pytest.mark.parametrize("block", [1, 7, 40, 1024])
@pytest.mark.parametrize("count", [1, 10, 39])
def test_neighbours_are_those_of_scikit_learn(
    block: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "BLOCK", block)
    vectors = drawn(40, 8, 0) * torch.linspace(0.1, 9, 40)[:, None]  # lengths do not matter
    found = neighbours(vectors, count)
    assert found.shape == (40, count)
    assert [set(row) for row in found.tolist()] == nearest(vectors, count)
    cosines = torch.cosine_similarity(vectors[:, None], vectors[found], dim=-1)
    assert (cosines.diff(dim=1) <= 1e-6).all()  # the nearest first


def test_a_sentence_is_no_neighbour_of_itself_even_beside_its_equal() -> None:
    vectors = drawn(6, 4, 0)[[0, 0, 1, 2, 3, 4]]
    found = neighbours(vectors, 1)[:, 0].tolist()
    assert found[:2] == [1, 0]
    assert all(one != own for own, one in enumerate(found))


@settings(deadline=None, max_examples=25)
@given(
    rows=st.integers(11, 60),
    columns=st.integers(3, 20),
    noise=st.floats(0, 3),
    parts=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
def test_agreement_is_the_mean_cosine_and_the_shared_neighbours(
    rows: int, columns: int, noise: float, parts: int, seed: int
) -> None:
    theirs = drawn(rows, columns, seed)
    ours = theirs + noise * drawn(rows, columns, seed + 1)
    metric = Agreement()
    for one, other in zip(ours.tensor_split(parts), theirs.tensor_split(parts), strict=True):
        metric.update(one, other)
    cosine, recall = metric.compute()
    assert cosine.item() == pytest.approx(mean_cosine(ours, theirs), abs=1e-5)
    # a tie that fp32 breaks the other way moves one neighbour of one sentence
    assert recall.item() == pytest.approx(shares(ours, theirs, 10), abs=2.1 / (10 * rows))


@pytest.mark.parametrize("rows", [2, 5, 10, 11])
def test_of_few_sentences_all_others_are_neighbours(rows: int) -> None:
    metric = Agreement()
    metric.update(drawn(rows, 4, 0), drawn(rows, 4, 1))
    assert metric.compute()[1].item() == 1


def test_of_twelve_sentences_one_is_no_neighbour() -> None:
    ours, theirs = drawn(12, 4, 0), drawn(12, 4, 1)
    metric = Agreement()
    metric.update(ours, theirs)
    recall = metric.compute()[1].item()
    assert 0.9 - 1e-6 < recall < 1
    assert recall == pytest.approx(shares(ours, theirs, 10))


def test_one_sentence_has_no_neighbours() -> None:
    metric = Agreement()
    metric.update(torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]]))
    cosine, recall = metric.compute()
    assert cosine.item() == pytest.approx(0.96)
    assert recall.isnan()


def test_vectors_that_agree_but_for_their_lengths_agree() -> None:
    vectors = drawn(30, 6, 0)
    metric = Agreement()
    metric.update(vectors * torch.linspace(0.1, 5, 30)[:, None], vectors)
    assert [one.item() for one in metric.compute()] == pytest.approx([1, 1])


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_a_vector_of_nan_or_infinity_is_refused(number: float, side: int) -> None:
    both = [drawn(3, 4, 0), drawn(3, 4, 1)]
    both[side][1, 2] = number
    with pytest.raises(FloatingPointError):
        Agreement().update(*both)


class Plain(LightningDataModule):
    def __init__(self, given: list[Batch]) -> None:
        super().__init__()
        self.given = given

    def val_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self.given, batch_size=None)  # type: ignore[arg-type]

    test_dataloader = val_dataloader


@of_lightning
@pytest.mark.parametrize("run", ["validate", "test"])
def test_a_model_is_scored_against_the_original(run: str) -> None:
    model, original, given = encoder(0), encoder(1), batches()
    for name, parameter in original.named_parameters():  # alike, and yet not the same
        parameter.data.lerp_(model.get_parameter(name).data, 0.8)
    ours, theirs = embed_batches(model, given), embed_batches(original, given)
    module = ScoredVectors(model, theirs)
    for _ in range(2):  # the second forgets the first
        getattr(trainer(), run)(module, datamodule=Plain(given), verbose=False)
        assert set(module.results) == {"cosine", "recall_at_10"}
        assert module.results["cosine"] == pytest.approx(mean_cosine(ours, theirs), abs=1e-5)
        assert module.results["recall_at_10"] == pytest.approx(
            shares(ours, theirs, 10), abs=2.1 / 230
        )
    assert not any(name.startswith("originals") for name in module.state_dict())


@of_lightning
def test_the_original_agrees_with_itself() -> None:
    model, given = encoder(), batches()
    module = ScoredVectors(model, embed_batches(model, given))
    trainer().validate(module, datamodule=Plain(given), verbose=False)
    assert module.results == pytest.approx({"cosine": 1, "recall_at_10": 1}, abs=1e-6)


@of_lightning
def test_without_an_original_there_is_nothing_to_score() -> None:
    module = ScoredVectors(encoder(), None)
    trainer().validate(module, datamodule=Plain(batches()), verbose=False)
    assert module.results == {}


@of_lightning
def test_scoring_nan_weights_names_the_module() -> None:
    given = batches()
    model = poison(encoder(), "encoder.layers.1.ffnn.expand.weight")
    module = ScoredVectors(model, embed_batches(encoder(), given))
    with pytest.raises(FloatingPointError, match=r": encoder\.layers\.1\.ffnn\.expand$"):
        trainer().validate(module, datamodule=Plain(given), verbose=False)


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(3, 40),
    whole=st.booleans(),
    shape=st.sampled_from([torch.sin, torch.exp, torch.neg]),
    seed=st.integers(0, 2**31),
)
def test_correlations_are_those_of_scipy(
    count: int, whole: bool, shape: Callable[[Tensor], Tensor], seed: int
) -> None:
    scores = drawn(count, 1, seed)[:, 0] * 2
    scores = scores.round() if whole else scores  # with ties, as judgements have
    cosines = torch.tanh(shape(scores) + 0.3 * drawn(count, 1, seed + 1)[:, 0])
    if len(scores.unique()) == 1:
        assert all(np.isnan(correlations(cosines, scores)))
        return
    x, y = cosines.double().numpy(), scores.double().numpy()
    expected = [scipy.stats.spearmanr(x, y).statistic, scipy.stats.pearsonr(x, y).statistic]
    assert correlations(cosines, scores) == pytest.approx([100 * one for one in expected], abs=1e-3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("equal", [0, 1])
def test_equal_numbers_correlate_with_nothing(equal: int) -> None:
    both = [torch.arange(5.0), torch.arange(5.0)]
    both[equal] = torch.full((5,), 0.7)
    assert all(np.isnan(correlations(*both)))
