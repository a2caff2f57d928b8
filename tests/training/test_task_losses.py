"""What sentence encoders and classifiers learn from, beside numpy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring.examples import SIZE, TINY, array, of_lightning, softmax, trainer
from torch import Tensor
from torch.utils.data import DataLoader
from training.by_hand import hidden_by_hand, kl

from bitmaps.bert import Bert
from bitmaps.bert.pooling import MODES, Pooling
from bitmaps.data.batches import Batch
from bitmaps.quantize.convert import make_trainable, matrices
from bitmaps.quantize.quantizer import Quantization
from bitmaps.training.losses import (
    LossWeights,
    distances,
    distillation,
    run_classes,
    run_vectors,
    similarities,
)
from bitmaps.training.module import SentenceClassifier, SentenceEncoder, Trained
from bitmaps.vocabulary import Component, Task

pytestmark = [
    of_lightning,
    pytest.mark.filterwarnings(
        "ignore:Metric `SpearmanCorrcoef` will save all",
        "ignore:You defined a `validation_step` but have no",
    ),
]

EVERYTHING = LossWeights(1, 1, 1, 1, 1, 1, 1)
CLASSES = [0, 2, 4]


def encoder(seed: int = 0, mode: str = "mean", normalize: bool = True) -> Bert:
    config = replace(TINY, task=Task.sentence_embedding, pooling=Pooling(mode, normalize))
    return Bert(config).randomize(torch.Generator().manual_seed(seed)).set_dropout(0.0).eval()


def classifier(classes: int, seed: int = 0) -> Bert:
    labels = tuple(map(str, range(classes)))
    config = replace(TINY, task=Task.classification, labels=labels)
    return Bert(config).randomize(torch.Generator().manual_seed(seed)).set_dropout(0.0).eval()


def batch(classes: int = 2, rows: int = 6, seed: int = 0) -> Batch:
    """Pairs of sentences, the last row half padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, SIZE, (rows, 10), generator=generator)
    attended = torch.ones_like(ids, dtype=torch.bool)
    attended[-1, 5:] = False
    labels = torch.arange(rows) % classes if classes else torch.randn(rows, generator=generator)
    return {
        "sentences": torch.arange(rows),
        "input_ids": ids.where(attended, 0),
        "attention_mask": attended,
        "token_type_ids": torch.randint(2, ids.shape, generator=generator),
        "labels": labels,
    }


def unit(x: Tensor) -> np.ndarray:
    numbers = array(x)
    return numbers / np.linalg.norm(numbers, axis=1, keepdims=True)


def similarities_by_hand(vectors: Tensor) -> np.ndarray:
    x = unit(vectors)
    return np.array(
        [[x[i] @ x[j] / 0.05 for j in range(len(x)) if j != i] for i in range(len(x))]
    ).reshape(len(x), -1)


@settings(deadline=None)
@given(rows=st.integers(2, 9), width=st.integers(2, 9), seed=st.integers(0, 2**31))
def test_similarities_are_the_cosines_to_the_others(rows: int, width: int, seed: int) -> None:
    vectors = torch.randn(2, rows, width, generator=torch.Generator().manual_seed(seed))
    ours, theirs = similarities(vectors[0]), similarities(vectors[1])
    assert ours.shape == (rows, rows - 1)
    np.testing.assert_allclose(ours, similarities_by_hand(vectors[0]), atol=1e-4)
    if rows > 2:  # of two sentences each has one other
        x, y = (torch.from_numpy(similarities_by_hand(one)) for one in vectors)
        assert distillation(ours, theirs).item() == pytest.approx(kl(y, x), rel=1e-3, abs=1e-4)


def test_one_sentence_is_like_no_other() -> None:
    """The last batch of a small training set."""
    assert similarities(torch.randn(1, 5)).shape == (1, 0)
    vectors = torch.randn(1, 5, requires_grad=True)
    found = distillation(similarities(vectors), similarities(torch.randn(1, 5)))
    assert found.item() == 0


def test_scores_are_distilled_by_their_squared_distance() -> None:
    student, teacher = torch.randn(2, 6, 1, generator=torch.Generator().manual_seed(0))
    expected = ((array(student) - array(teacher)) ** 2).mean()
    assert distillation(student, teacher).item() == pytest.approx(expected)
    assert distillation(student.half(), teacher.half()).dtype == torch.float32


@pytest.mark.parametrize("project", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_a_run_of_an_encoder_is_what_it_computes(mode: str, project: bool) -> None:
    model, data = encoder(1, mode), batch()
    with torch.no_grad():
        found = run_vectors(model, data["input_ids"], data["attention_mask"], project)
        vectors = model(data["input_ids"], data["attention_mask"])
    assert found.vectors is not None
    torch.testing.assert_close(found.vectors, vectors)
    np.testing.assert_allclose(found.logits, similarities_by_hand(vectors), atol=1e-4)
    assert (len(found.states), len(found.projections)) == (3, 6 if project else 0)


@pytest.mark.parametrize("project", [True, False])
@pytest.mark.parametrize("classes", CLASSES)
def test_a_run_of_a_classifier_is_what_it_computes(classes: int, project: bool) -> None:
    model, data = classifier(classes, 1), batch(classes)
    inputs = data["input_ids"], data["attention_mask"], data["token_type_ids"]
    with torch.no_grad():
        found = run_classes(model, *inputs, project)
        torch.testing.assert_close(found.logits, model(*inputs))
        without = run_classes(model, *inputs[:2], torch.zeros_like(inputs[2]), project)
    assert not torch.allclose(found.logits, without.logits)  # the second sentence is told apart
    assert found.vectors is None
    assert (len(found.states), len(found.projections)) == (3, 6 if project else 0)


def step(
    module: Trained, data: Batch, monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, dict[str, float]]:
    """The loss of one step and its parts, without a trainer."""
    parts: dict[str, Tensor] = {}
    monkeypatch.setattr(module, "log_dict", lambda values: parts.update(values))
    monkeypatch.setattr(module, "log", lambda *args, **kwargs: None)
    loss = module.training_step(data, 0)
    return loss, {name.removeprefix("train/"): value.item() for name, value in parts.items()}


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_an_encoder_learns_what_numpy_computes(
    mode: str, normalize: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher = (encoder(seed, mode, normalize) for seed in (1, 2))
    data = batch()
    weights = LossWeights(0, 2.0, 3.0, vectors=5.0)
    module = SentenceEncoder(student, teacher, weights, originals=None)
    loss, parts = step(module, data, monkeypatch)
    inputs = data["input_ids"], data["attention_mask"]
    with torch.no_grad():
        ours, theirs = student(*inputs), teacher(*inputs)
        states, wanted = student.encode(*inputs), teacher.encode(*inputs)
    x, y = (torch.from_numpy(similarities_by_hand(one)) for one in (ours, theirs))
    expected = {
        "logits": kl(y, x),
        "hidden": hidden_by_hand(states, wanted, data["attention_mask"]),
        "vectors": 1 - (unit(ours) * unit(theirs)).sum(1).mean(),
    }
    assert parts == pytest.approx(expected, rel=1e-3)
    total = sum(getattr(weights, name) * part for name, part in expected.items())
    assert loss.item() == pytest.approx(total, rel=1e-3)


@pytest.mark.parametrize("classes", CLASSES)
def test_a_classifier_learns_what_numpy_computes(
    classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher, data = classifier(classes, 1), classifier(classes, 2), batch(classes)
    weights = LossWeights(0.5, 2.0, 3.0)
    loss, parts = step(SentenceClassifier(student, teacher, weights), data, monkeypatch)
    inputs = data["input_ids"], data["attention_mask"], data["token_type_ids"]
    with torch.no_grad():
        ours, theirs = student(*inputs), teacher(*inputs)
        states, wanted = student.encode(*inputs), teacher.encode(*inputs)
    if classes:
        error = -np.log(softmax(array(ours))[np.arange(6), data["labels"]]).mean()
    else:
        error = ((array(ours)[:, 0] - array(data["labels"])) ** 2).mean()
    expected = {
        "cross_entropy": error,
        "logits": kl(theirs, ours) if classes else ((array(ours) - array(theirs)) ** 2).mean(),
        "hidden": hidden_by_hand(states, wanted, data["attention_mask"]),
    }
    assert parts == pytest.approx(expected, rel=1e-3)
    total = sum(getattr(weights, name) * part for name, part in expected.items())
    assert loss.item() == pytest.approx(total, rel=1e-3)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = SentenceEncoder(encoder(1), encoder(1), EVERYTHING, originals=None)
    loss, parts = step(module, batch(), monkeypatch)
    assert set(parts) == {"logits", "hidden", "directions", "attention", "relations", "vectors"}
    assert parts == pytest.approx(dict.fromkeys(parts, 0), abs=1e-5)
    assert loss.item() == pytest.approx(0, abs=1e-4)


def test_the_vectors_weigh_nothing_for_a_classifier() -> None:
    data = batch()
    inputs = data["input_ids"], data["attention_mask"], data["token_type_ids"]
    ours, theirs = (run_classes(classifier(2, seed), *inputs, False) for seed in (1, 2))
    assert set(distances(ours, theirs, inputs[1], LossWeights(vectors=1.0))) == {"hidden"}


def binarized(model: Bert) -> Bert:
    components = [Component.embeddings, Component.attention, Component.ffnn]
    if model.config.task is Task.classification:
        components.append(Component.head)
    return make_trainable(model, components, Quantization()).train()


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-2)


@pytest.mark.parametrize(
    ("kind", "model", "teacher", "classes"),
    [
        *((SentenceEncoder, encoder(1, mode), encoder(2, mode), 2) for mode in MODES),
        *((SentenceClassifier, classifier(n, 1), classifier(n, 2), n) for n in CLASSES),
    ],
)
@pytest.mark.parametrize("part", ["logits", "everything"])
def test_a_step_of_training_reaches_every_binarized_matrix(
    kind: type[Trained], model: Bert, teacher: Bert, classes: int, part: str
) -> None:
    student = Bert(model.config)
    student.load_state_dict(model.state_dict())
    student = binarized(student.set_dropout(0.0))
    weights = EVERYTHING if part == "everything" else LossWeights(0, 1)
    more = {"originals": None} if kind is SentenceEncoder else {}
    module = kind(student, teacher, weights, optimizer=adam, **more)
    found: dict[str, Tensor] = {}

    def keep(optimizer: torch.optim.Optimizer) -> None:
        found.update(
            {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}
        )

    module.on_before_optimizer_step = keep  # type: ignore[method-assign]
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    data = DataLoader([batch(classes)], batch_size=None)  # type: ignore[arg-type,var-annotated]
    trainer(max_steps=1).fit(module, data)
    wanted = [
        name
        for name, parameter in student.named_parameters()
        if parameter.ndim == 2 and ".quantizer" not in name and "embeddings." not in name
    ]
    assert len(wanted) >= 12
    for name in wanted:
        assert found[name].isfinite().all()
        assert found[name].abs().sum() > 0, name
        assert not torch.equal(student.get_parameter(name), before[name])
    assert all(parameter.isfinite().all() for parameter in student.parameters())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_the_matrices_of_a_classifier_are_components() -> None:
    found = set(matrices(classifier(3), [Component.head]))
    assert found == {"head.pooler.weight", "head.classifier.weight"}
