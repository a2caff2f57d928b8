"""How often a classifier is right, beside scikit-learn and scipy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from lightning import LightningDataModule
from scoring.examples import SIZE, TINY, array, of_lightning, poison, softmax, trainer
from sklearn import metrics
from torch.utils.data import DataLoader

from bitmaps.bert import Bert
from bitmaps.data.batches import Batch
from bitmaps.data.classified import Classified
from bitmaps.scoring.classes import ScoredClasses, classification_error
from bitmaps.vocabulary import Task

pytestmark = [
    of_lightning,
    pytest.mark.filterwarnings("ignore:Metric `SpearmanCorrcoef` will save all"),
]


def classifier(classes: int, seed: int = 0) -> Bert:
    labels = tuple(f"class {number}" for number in range(classes))
    config = replace(TINY, task=Task.classification, labels=labels)
    return Bert(config).randomize(torch.Generator().manual_seed(seed)).set_dropout(0.0).eval()


def batches(targets: np.ndarray, size: int = 7, seed: int = 0) -> list[Batch]:
    """Pairs of sentences of 4 to 12 pieces with these targets; the last batch is smaller."""
    generator = np.random.default_rng(seed)
    ids = [generator.integers(5, SIZE, generator.integers(4, 13)) for _ in targets]
    types = [(np.arange(len(one)) > len(one) // 2).astype(int) for one in ids]
    found = Classified(ids, types, targets)
    return [
        found.batch(range(len(targets))[first : first + size], 0)
        for first in range(0, len(targets), size)
    ]


class Labeled(LightningDataModule):
    def __init__(self, given: list[Batch]) -> None:
        super().__init__()
        self.given = given

    def val_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self.given, batch_size=None)  # type: ignore[arg-type]

    test_dataloader = val_dataloader


def logits_of(model: Bert, given: list[Batch]) -> np.ndarray:
    """Each pair alone, so without padding."""
    found = []
    for batch in given:
        for ids, mask, types in zip(
            batch["input_ids"], batch["attention_mask"], batch["token_type_ids"], strict=True
        ):
            with torch.no_grad():
                found.append(array(model(ids[mask][None], None, types[mask][None])[0]))
    return np.array(found)


def noisy(right: np.ndarray, classes: int, seed: int) -> np.ndarray:
    """Targets that a model with these predictions gets right half of the time."""
    generator = np.random.default_rng(seed)
    wrong = generator.integers(0, classes, len(right))
    return np.where(generator.random(len(right)) < 0.5, right, wrong)


@pytest.mark.parametrize("run", ["validate", "test"])
@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_classes_are_scored_as_scikit_learn_does(run: str, classes: int, seed: int) -> None:
    model = classifier(classes, seed)
    logits = logits_of(model, batches(np.zeros(60, dtype=np.int64)))
    targets = noisy(logits.argmax(1), classes, seed)
    assert len(set(targets.tolist())) == classes
    module = ScoredClasses(model)
    for _ in range(2):  # the second forgets the first
        getattr(trainer(), run)(module, datamodule=Labeled(batches(targets)), verbose=False)
        predicted = logits.argmax(1)
        average = "binary" if classes == 2 else "macro"
        chances = softmax(logits)[np.arange(len(targets)), targets]
        assert module.results == pytest.approx(
            {
                "loss": -np.log(chances).mean(),
                "sentences": 60,
                "accuracy": metrics.accuracy_score(targets, predicted),
                "score": metrics.accuracy_score(targets, predicted),
                "f1": metrics.f1_score(targets, predicted, average=average),
                "matthews": metrics.matthews_corrcoef(targets, predicted),
            },
            rel=1e-4,
        )
    assert set(module.shown) <= set(module.results)


@pytest.mark.parametrize("run", ["validate", "test"])
@pytest.mark.parametrize("seed", [0, 1])
def test_scores_are_scored_as_scipy_does(run: str, seed: int) -> None:
    model = classifier(0, seed)
    logits = logits_of(model, batches(np.zeros(40, dtype=np.float32)))[:, 0]
    noise = np.random.default_rng(seed).normal(size=40) * logits.std()
    targets = np.round(logits + noise, 1).astype(np.float32)
    module = ScoredClasses(model)
    getattr(trainer(), run)(module, datamodule=Labeled(batches(targets)), verbose=False)
    assert module.results == pytest.approx(
        {
            "loss": ((logits - targets) ** 2).mean(),
            "sentences": 40,
            "spearman": 100 * scipy.stats.spearmanr(logits, targets).statistic,
            "score": 100 * scipy.stats.spearmanr(logits, targets).statistic,
            "pearson": 100 * scipy.stats.pearsonr(logits, targets).statistic,
        },
        rel=1e-4,
    )
    assert set(module.shown) <= set(module.results)


def test_a_class_that_no_sentence_has_counts_as_in_scikit_learn() -> None:
    """A class that is predicted, and is nowhere right."""
    model = classifier(4)
    logits = logits_of(model, batches(np.zeros(60, dtype=np.int64)))
    predicted = logits.argmax(1)
    never = int(np.bincount(predicted, minlength=4).argmax())
    targets = np.where(predicted == never, (never + 1) % 4, predicted)
    module = ScoredClasses(model)
    trainer().validate(module, datamodule=Labeled(batches(targets)), verbose=False)
    expected = metrics.f1_score(targets, predicted, average="macro", zero_division=0)
    assert module.results["f1"] == pytest.approx(expected, rel=1e-5)


def test_f1_of_two_classes_is_that_of_class_1() -> None:
    model = classifier(2)
    logits = logits_of(model, batches(np.zeros(60, dtype=np.int64)))
    model.head.classifier.bias.data[0] += np.diff(logits).max() + 1  # type: ignore[union-attr,operator]
    targets = np.tile([0, 0, 1], 20)
    module = ScoredClasses(model)
    trainer().validate(module, datamodule=Labeled(batches(targets)), verbose=False)
    assert module.results["accuracy"] == pytest.approx(2 / 3)
    assert module.results["f1"] == 0


@pytest.mark.parametrize("share", [0.1, 1 / 3, 0.5])
def test_a_classifier_that_always_says_one_class_has_no_correlation(share: float) -> None:
    """As naively binarized ones do."""
    model = classifier(2)
    logits = logits_of(model, batches(np.zeros(60, dtype=np.int64)))
    model.head.classifier.bias.data[0] += np.diff(logits).max() + 1  # type: ignore[union-attr,operator]
    targets = (np.arange(60) < 60 * share).astype(np.int64)
    module = ScoredClasses(model)
    trainer().validate(module, datamodule=Labeled(batches(targets)), verbose=False)
    assert module.results["matthews"] == metrics.matthews_corrcoef(targets, np.zeros(60)) == 0


@pytest.mark.parametrize("classes", [0, 3])
def test_scoring_nan_weights_names_the_module(classes: int) -> None:
    model = poison(classifier(classes), "head.pooler.bias")
    dtype = np.int64 if classes else np.float32
    module = ScoredClasses(model)
    with pytest.raises(FloatingPointError, match=r": head\.pooler$"):
        trainer().validate(module, datamodule=Labeled(batches(np.zeros(9, dtype))), verbose=False)


def test_the_error_is_a_cross_entropy_or_a_squared_error() -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    expected = -np.log(softmax(array(logits))[np.arange(6), labels]).mean()
    assert classification_error(logits, labels).item() == pytest.approx(expected)
    assert classification_error(logits.bfloat16(), labels).dtype == torch.float32
    scores = torch.tensor([0.5, 1, -2, 0, 3, 1], dtype=torch.float64)
    squares = ((array(logits[:, 0]) - scores.numpy()) ** 2).mean()
    assert classification_error(logits[:, :1], scores).item() == pytest.approx(squares)
