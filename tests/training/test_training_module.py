"""The LightningModule: its losses, and a training of a tiny model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bitmaps.bert import Bert, BertConfig
from bitmaps.data.batches import Batch
from bitmaps.data.masking import Vocabulary
from bitmaps.quantize.convert import make_trainable, to_float
from bitmaps.quantize.quantizer import Quantization
from bitmaps.training.module import (
    LossWeights,
    MaskedLanguageModel,
    attention_error,
    direction_error,
    distillation,
    first_nonfinite_module,
    hidden_error,
    projections,
    relation_error,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*isinstance.treespec, LeafSpec.*",  # Lightning 2.6 on torch 2.13
    "ignore:.*does not have many workers.*",
)

Array = NDArray[np.float64]

MASK, UNKNOWN, SIZE, HEADS = 4, 1, 60, 2
TINY = BertConfig(
    vocab_size=SIZE,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=HEADS,
    intermediate_size=32,
    max_position_embeddings=16,
    initializer_range=0.3,
)
PARTS = ("cross_entropy", "logits", "hidden", "directions", "attention", "relations")
EVERYTHING = LossWeights(1, 1, 1, 1, 1, 1)


def tiny(seed: int = 0) -> Bert:
    return Bert(TINY).randomize(torch.Generator().manual_seed(seed)).set_dropout(0.0).eval()


def binary(seed: int = 0) -> Bert:
    model = make_trainable(tiny(seed), ["attention", "ffnn"], Quantization(gradient="scaled"))
    return model.train()


def batch(
    seed: int, rows: int = 8, length: int = 10, first: int = 0, unknown: str = "one"
) -> Batch:
    """Sentences of one repeated piece, which a model can learn to fill in; the last is half padding. None, one or all of the
    targets are unknown; sentences are numbered from ``first``."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, SIZE, (rows, 1), generator=generator).repeat(1, length)
    attended = torch.ones_like(ids, dtype=torch.bool)
    attended[-1, length // 2 :] = False
    chosen = (torch.rand(ids.shape, generator=generator) < 0.3) & attended
    chosen[:, 1] = True
    labels = torch.where(chosen, ids, -100)
    if unknown == "one":
        labels[0, 1] = UNKNOWN
    if unknown == "all":
        labels[chosen] = UNKNOWN
    return {
        "sentences": torch.arange(first, first + rows),
        "input_ids": torch.where(chosen, MASK, ids).where(attended, 0),
        "attention_mask": attended,
        "labels": labels,
    }


class Sentences(LightningDataModule):
    """Eleven sentences to score."""

    vocabulary = Vocabulary(
        mask=MASK, pad=0, unknown=UNKNOWN, untouched=(2, 3), replacements=np.arange(5, SIZE)
    )

    def __init__(self, *unknown: str) -> None:
        super().__init__()
        first, second = unknown or ("one", "one")
        self.scored = [batch(100, unknown=first), batch(101, rows=3, first=8, unknown=second)]

    def train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader([batch(seed) for seed in range(12)] * 20, batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self.scored, batch_size=None)  # type: ignore[arg-type]

    test_dataloader = val_dataloader


def trainer(**settings: Any) -> Trainer:
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(accelerator="cpu", num_sanity_val_steps=0, max_epochs=-1, **quiet | settings)


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def array(x: Tensor) -> Array:
    result: Array = x.detach().double().numpy()
    return result


def softmax(logits: Array) -> Array:
    powers: Array = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def kl(teacher: Tensor, student: Tensor) -> float:
    p, q = softmax(array(teacher)), softmax(array(student))
    return float((p * (np.log(p) - np.log(q))).sum(-1).mean())


def test_distillation_is_the_kl_divergence_from_the_teacher() -> None:
    student, teacher = torch.randn(2, 7, 11, generator=torch.Generator().manual_seed(0)) * 3
    assert distillation(student, teacher).item() == pytest.approx(kl(teacher, student), rel=1e-5)
    assert distillation(teacher, student).item() != pytest.approx(kl(teacher, student), rel=1e-2)
    assert distillation(teacher + 5, teacher).item() == pytest.approx(0, abs=1e-6)


# The parts of the loss between hidden states and projections, token by token in fp64


def tokens_of(kept: Tensor) -> Iterator[tuple[int, int]]:
    """Sentence and position of each token that is none of padding."""
    for sentence, position in np.argwhere(kept.numpy()):
        yield int(sentence), int(position)


def hidden_by_hand(student: list[Tensor], teacher: list[Tensor], kept: Tensor) -> float:
    errors = []
    for s, t in zip(map(array, student), map(array, teacher), strict=True):
        errors.append(np.mean([(s[at] - t[at]) ** 2 for at in tokens_of(kept)]))
    return float(np.mean(errors))


def directions_by_hand(student: list[Tensor], teacher: list[Tensor], kept: Tensor) -> float:
    distances = []
    for s, t in zip(map(array, student), map(array, teacher), strict=True):
        for at in tokens_of(kept):
            distances.append(
                ((s[at] / np.linalg.norm(s[at]) - t[at] / np.linalg.norm(t[at])) ** 2).sum()
            )
    return float(np.mean(distances))


def attention_by_hand(student: list[Tensor], teacher: list[Tensor], kept: Tensor) -> float:
    """Over query, key, value, query ...: the scores of each pair of tokens, one by one."""
    errors = []
    for layer in range(0, len(student), 3):
        (query, key), (query_t, key_t) = (
            [array(x) / x.shape[-1] ** 0.25 for x in xs[layer : layer + 2]]
            for xs in (student, teacher)
        )
        squares = [
            (query[b, h, i] @ key[b, h, j] - query_t[b, h, i] @ key_t[b, h, j]) ** 2
            for b, h in np.ndindex(query.shape[:2])
            for i in np.flatnonzero(kept[b])
            for j in np.flatnonzero(kept[b])
        ]
        errors.append(np.mean(squares))
    return float(np.mean(errors))


def relations_by_hand(student: list[Tensor], teacher: list[Tensor], kept: Tensor) -> float:
    """Each head of each sentence on its own, padding cut off."""
    distances = []
    for s, t in zip(student, teacher, strict=True):
        for b, h in np.ndindex(s.shape[:2]):
            one, other = (array(x)[b, h][kept[b].numpy()] for x in (s, t))
            p, q = (x @ x.T for x in (one, other))
            distances.append(((p / np.linalg.norm(p) - q / np.linalg.norm(q)) ** 2).sum())
    return float(np.mean(distances))


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
    """What a part compares, and which tokens are none of padding: two at least of each sentence, and not all."""
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


def step(
    module: MaskedLanguageModel, data: Batch, monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, dict[str, float]]:
    """The loss of one step and its parts, without a trainer."""
    parts: dict[str, Tensor] = {}
    monkeypatch.setattr(module, "log_dict", lambda values: parts.update(values))
    monkeypatch.setattr(module, "log", lambda *args, **kwargs: None)
    loss = module.training_step(data, 0)
    return loss, {name.removeprefix("train/"): value.item() for name, value in parts.items()}


def projected(model: Bert, states: list[Tensor]) -> list[Tensor]:
    """Queries, keys and values (batch, heads, length, d) of each layer in turn, computed from what goes into the layer."""
    found = []
    for number, x in enumerate(states[:-1]):
        weights = dict(model.encoder.layers[number].named_parameters())
        for name in ("query", "key", "value"):
            out = x @ weights[f"attention.{name}.weight"].T + weights[f"attention.{name}.bias"]
            found.append(torch.stack(out.split(out.shape[-1] // HEADS, -1), 1))
    return found


def test_the_loss_weighs_what_numpy_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, data = tiny(1), tiny(2), batch(0)
    weights = LossWeights(0.5, 2.0, 3.0, 5.0, 7.0, 11.0)
    loss, parts = step(MaskedLanguageModel(student, teacher, weights), data, monkeypatch)
    with torch.no_grad():
        states, wanted = (
            m.encode(data["input_ids"], data["attention_mask"]) for m in (student, teacher)
        )
        kept, tokens = data["labels"] != -100, data["attention_mask"]
        logits, targets = student.head(states[-1])[kept], teacher.head(wanted[-1])[kept]
        ours, theirs = projected(student, states), projected(teacher, wanted)
    chances = softmax(array(logits))
    expected = {
        "cross_entropy": -np.log(chances[range(len(chances)), data["labels"][kept]]).mean(),
        "logits": kl(targets, logits),
        "hidden": hidden_by_hand(states, wanted, tokens),
        "directions": directions_by_hand(states, wanted, tokens),
        "attention": attention_by_hand(ours, theirs, tokens),
        "relations": relations_by_hand(ours, theirs, tokens),
    }
    assert parts == pytest.approx(expected, rel=1e-4)
    total = sum(weight * expected[name] for name, weight in vars(weights).items())
    assert loss.item() == pytest.approx(total, rel=1e-4)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loss, parts = step(MaskedLanguageModel(tiny(1), tiny(1), EVERYTHING), batch(0), monkeypatch)
    assert parts | {"cross_entropy": 0} == pytest.approx(dict.fromkeys(PARTS, 0), abs=1e-6)
    assert loss.item() == pytest.approx(parts["cross_entropy"], rel=1e-4)


def test_a_part_that_weighs_nothing_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PARTS:
        weights = LossWeights(**{part: float(part == name) for part in PARTS})
        module = MaskedLanguageModel(tiny(1), tiny(2), weights)
        loss, parts = step(module, batch(0), monkeypatch)
        # cross entropy, and the distance from a teacher that is there, are only looked at
        assert set(parts) == {"cross_entropy", name} | (
            {"hidden"} if name != "cross_entropy" else set()
        )
        assert loss.item() == pytest.approx(parts[name], rel=1e-6)


REACHED = {  # a part -> matrices of the last layer that it trains
    "logits": {"query", "key", "value", "attention.output", "expand", "contract"},
    "hidden": {"query", "key", "value", "attention.output", "expand", "contract"},
    "directions": {"query", "key", "value", "attention.output", "expand", "contract"},
    "attention": {"query", "key"},
    "relations": {"query", "key", "value"},
}


@pytest.mark.parametrize(("name", "reached"), REACHED.items())
def test_a_part_trains_the_binarized_matrices_before_it(
    name: str, reached: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    student = binary(1)
    weights = LossWeights(**{part: float(part == name) for part in PARTS})
    step(MaskedLanguageModel(student, tiny(2), weights), batch(0), monkeypatch)[0].backward()
    gradients = {
        parameter: layer.get_parameter(parameter).grad
        for layer in student.encoder.layers[-1:]
        for parameter, value in layer.named_parameters()
        if value.ndim > 1 and parameter.endswith("weight")
    }
    trained = {
        n for n, gradient in gradients.items() if gradient is not None and gradient.abs().sum() > 0
    }
    assert trained == {
        n for n in gradients if any(n.endswith(f"{short}.weight") for short in reached)
    }
    assert len(trained) == len(reached)
    below = student.encoder.layers[0].get_parameter("ffnn.expand.weight").grad
    assert below is not None
    assert below.abs().sum() > 0


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


def test_a_batch_in_which_nothing_came_to_be_masked_does_no_harm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = batch(0)
    data["labels"] = torch.full((8, 10), -100)
    for weights in (LossWeights(), EVERYTHING):
        loss, parts = step(MaskedLanguageModel(tiny(1), tiny(2), weights), data, monkeypatch)
        assert torch.isfinite(loss)
        assert parts["cross_entropy"] == parts.get("logits", 0) == 0


def test_the_true_tokens_are_the_loss_by_default() -> None:
    assert [getattr(LossWeights(), name) for name in PARTS] == [1, 0, 0, 0, 0, 0]
    assert set(vars(LossWeights())) == set(PARTS)


@given(st.lists(st.sampled_from([0.0, 1e-9, 1.0, 25.0]), min_size=6, max_size=6))
def test_all_parts_but_the_first_distil(weights: list[float]) -> None:
    assert LossWeights(*weights).distill is any(weights[1:])


@pytest.mark.parametrize("name", PARTS[1:])
def test_distillation_needs_a_teacher(name: str) -> None:
    with pytest.raises(ValueError, match="teacher"):
        MaskedLanguageModel(tiny(), loss=LossWeights(**{name: 1.0}))
    MaskedLanguageModel(tiny(), loss=LossWeights())


def test_a_teacher_that_nothing_is_learned_from_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = tiny(2)
    monkeypatch.setattr(teacher, "encode", lambda *args: pytest.fail("the teacher was run"))
    step(MaskedLanguageModel(tiny(1), teacher, LossWeights()), batch(0), monkeypatch)


def test_a_model_without_an_optimizer_can_only_be_scored() -> None:
    with pytest.raises(ValueError, match="no optimizer"):
        MaskedLanguageModel(tiny()).configure_optimizers()


def test_the_teacher_is_neither_trained_nor_saved() -> None:
    student, teacher = binary(), tiny(2).train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    module = MaskedLanguageModel(student, teacher, EVERYTHING, sgd)
    trainer(max_steps=3).fit(module, datamodule=Sentences())
    module.train()
    assert not any(part.training for part in teacher.modules())
    assert not any(
        parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters()
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert set(module.state_dict()) == {f"model.{name}" for name in student.state_dict()}
    assert len(list(module.parameters())) == len(list(student.parameters()))


class Record(Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.validations: list[tuple[int, float]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.losses.append(trainer.callback_metrics["train/loss"].item())
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, MaskedLanguageModel)
        self.validations.append((trainer.global_step, pl_module.results["cross_entropy"]))
        for name, value in pl_module.results.items():
            assert trainer.callback_metrics[f"val/{name}"].item() == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize(
    "loss",
    [LossWeights(), LossWeights(1, 1, 1), LossWeights(0, 1, 1, 1, 1, 1)],
    ids=["alone", "distilled", "every part of the teacher"],
)
def test_training_binary_layers_in_bf16_lowers_the_loss(loss: LossWeights) -> None:
    student, record = binary(), Record()
    module = MaskedLanguageModel(
        student,
        tiny(2),
        loss,
        lambda parameters: torch.optim.AdamW(parameters, lr=0.02),
        lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 10, 0.5),
    )
    settings = {
        "precision": "bf16-mixed",
        "accumulate_grad_batches": 2,
        "gradient_clip_val": 1.0,
        "val_check_interval": 30,
    }
    run = trainer(max_steps=45, callbacks=[record], **settings)
    run.fit(module, datamodule=Sentences())
    assert run.global_step == 45
    assert len(record.losses) == 90
    assert np.mean(record.losses[-10:]) < 0.8 * np.mean(record.losses[:10])
    assert [at for at, _ in record.validations] == [15, 30, 45]
    assert record.rates[-1] == pytest.approx(0.02 / 2**4)  # the schedule counts steps, not batches
    assert all(parameter.dtype == torch.float32 for parameter in student.parameters())
    for name, weight in to_float(student).named_parameters():
        if weight.ndim == 2 and name.startswith("encoder"):
            assert all(len(row.unique()) <= 2 for row in weight), name


def by_hand(
    model: Bert, batches: Iterable[Batch]
) -> Iterator[tuple[int, bool, float, bool, float]]:
    """Of each target in float64: the number of its sentence, whether it is known, its cross entropy, whether it is hit, and the
    reciprocal of its rank."""
    for data in batches:
        with torch.no_grad():
            chances = softmax(array(model(data["input_ids"], data["attention_mask"])))
        for i, j in np.argwhere(data["labels"].numpy() != -100):
            label, row = int(data["labels"][i, j]), chances[i, j]
            rank = int((row >= row[label]).sum())
            reciprocal = 1 / rank if rank <= 32 else 0.0
            yield (
                int(data["sentences"][i]),
                label != UNKNOWN,
                -np.log(row[label]),
                row.argmax() == label,
                reciprocal,
            )


SCORES = ("cross_entropy", "accuracy", "mrr")
UNKNOWNS = {
    ("one", "one"): 2,
    ("none", "none"): 0,
    ("none", "one"): 1,
    ("all", "none"): 22,
    ("all", "all"): 31,
}


@pytest.mark.parametrize("run", ["validate", "test"])
@pytest.mark.parametrize("unknown", UNKNOWNS)
def test_a_model_is_scored_with_and_without_unknown_targets(
    run: str, unknown: tuple[str, str]
) -> None:
    data, module = Sentences(*unknown), MaskedLanguageModel(tiny())
    getattr(trainer(), run)(module, datamodule=data, verbose=False)
    targets = list(by_hand(module.model, data.scored))
    known = [target for target in targets if target[1]]
    assert len(targets) == len(known) + UNKNOWNS[unknown]
    assert (module.results["masked_tokens"], module.results["known_tokens"]) == (
        len(targets),
        len(known),
    )
    everything = np.mean([target[2:] for target in targets], axis=0)
    assert [module.results[name] for name in SCORES] == pytest.approx(everything, rel=1e-5)
    if known:
        expected = np.mean([target[2:] for target in known], axis=0)
        assert [module.results[f"known_{name}"] for name in SCORES] == pytest.approx(
            expected, rel=1e-5
        )
    else:  # no number that looks well
        assert unknown == ("all", "all")
        assert not any(f"known_{name}" in module.results for name in SCORES)


def test_without_unknown_targets_the_known_scores_are_the_scores() -> None:
    module = MaskedLanguageModel(tiny())
    trainer().validate(module, datamodule=Sentences("none", "none"), verbose=False)
    assert all(module.results[f"known_{name}"] == module.results[name] for name in SCORES)


@pytest.mark.parametrize("unknown", [("none", "none"), ("one", "one"), ("all", "all")])
def test_validation_while_fitting_minds_no_share_of_unknown_targets(
    unknown: tuple[str, str],
) -> None:
    module, record = MaskedLanguageModel(binary(), optimizer=sgd), Record()
    trainer(max_steps=2, val_check_interval=1, callbacks=[record]).fit(
        module, datamodule=Sentences(*unknown)
    )
    assert [at for at, _ in record.validations] == [1, 2]


@pytest.mark.parametrize("run", ["validate", "test"])
def test_a_model_leaves_the_sums_of_each_sentence(run: str) -> None:
    data, module = (
        Sentences(),
        MaskedLanguageModel(tiny(), sentences=12),
    )  # one more than has masked tokens
    getattr(trainer(), run)(module, datamodule=data, verbose=False)
    expected = np.zeros((12, 4))
    for number, _, *scores in by_hand(module.model, data.scored):
        expected[number] += [1, *scores]
    assert module.sentence_sums is not None
    assert module.sentence_sums.dtype == torch.float64
    np.testing.assert_allclose(module.sentence_sums, expected, rtol=1e-5)
    counts, *sums = module.sentence_sums.sum(0).tolist()
    assert counts == module.results["masked_tokens"]
    assert [total / counts for total in sums] == pytest.approx(
        [module.results[name] for name in SCORES], rel=1e-9
    )


def test_no_sums_are_kept_unless_the_sentences_are_counted() -> None:
    module = MaskedLanguageModel(tiny())
    trainer().validate(module, datamodule=Sentences(), verbose=False)
    assert module.sentence_sums is None


@pytest.mark.parametrize("sentences", [0, 11])
def test_scoring_again_forgets_what_was_scored_before(sentences: int) -> None:
    module, results, sums = MaskedLanguageModel(tiny(), sentences=sentences), [], []
    for _ in range(2):
        trainer().validate(module, datamodule=Sentences(), verbose=False)
        results.append(module.results)
        sums.append(None if module.sentence_sums is None else module.sentence_sums.tolist())
    assert results[0] == results[1]
    assert sums[0] == sums[1]


def poison(model: Bert, name: str) -> Bert:
    with torch.no_grad():
        model.get_parameter(name).view(-1)[-1] = torch.nan
    return model


PLANTED = {
    "embeddings.norm.bias": "embeddings.norm",
    "encoder.layers.0.attention.output.bias": "encoder.layers.0.attention.output",
    "encoder.layers.1.ffnn.expand.weight": "encoder.layers.1.ffnn.expand",
    "head.decoder.bias": "head.decoder",
}


@pytest.mark.parametrize(("parameter", "module"), PLANTED.items())
def test_the_first_module_that_makes_a_nan_is_found(parameter: str, module: str) -> None:
    model, data = poison(tiny(), parameter), batch(0)
    found = first_nonfinite_module(model, lambda: model(data["input_ids"], data["attention_mask"]))
    assert found == module
    assert not any(part._forward_hooks for part in model.modules())


def test_no_module_is_blamed_without_reason() -> None:
    model, data = tiny(), batch(0)
    found = first_nonfinite_module(model, lambda: model(data["input_ids"], data["attention_mask"]))
    assert found not in dict(model.named_modules())


@pytest.mark.parametrize("loss", [LossWeights(), EVERYTHING], ids=["alone", "distilled"])
def test_training_with_nan_weights_stops_and_names_the_module(loss: LossWeights) -> None:
    module = MaskedLanguageModel(
        poison(binary(), "encoder.layers.1.ffnn.expand.bias"), tiny(2), loss, sgd
    )
    with pytest.raises(
        FloatingPointError, match=r"at step 0 .*: encoder\.layers\.1\.ffnn\.expand$"
    ):
        trainer(max_steps=3).fit(module, datamodule=Sentences())


@pytest.mark.parametrize("run", ["validate", "test"])
def test_scoring_nan_weights_stops_and_names_the_module(run: str) -> None:
    module = MaskedLanguageModel(poison(tiny(), "head.transform.bias"), sentences=11)
    with pytest.raises(FloatingPointError, match=r": head\.transform$"):
        getattr(trainer(), run)(module, datamodule=Sentences(), verbose=False)


def test_more_tokens_are_masked_than_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are neither targets nor special, a share of them, the same for the same batch of the same seed alone."""
    vocabulary = Vocabulary(
        mask=4, pad=0, unknown=1, untouched=(2, 3), replacements=np.arange(5, 60)
    )
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(60, (50, 40), generator=generator)
    targets = torch.rand(ids.shape, generator=generator) < 0.15

    def masked(
        share: float, number: int, seed: int = 0, last: float | None = None
    ) -> tuple[Tensor, Tensor]:
        trainer = SimpleNamespace(
            datamodule=SimpleNamespace(vocabulary=vocabulary), fit_loop=SimpleNamespace(total_batch_idx=number),
            global_step=number, max_steps=10,
        )  # fmt: skip
        monkeypatch.setattr(MaskedLanguageModel, "trainer", trainer)
        shares = share, share if last is None else last
        module = MaskedLanguageModel(
            tiny(), tiny(), LossWeights(logits=1.0), more_masked=shares, seed=seed
        )
        return module.mask_more(ids, targets)

    same, kept = masked(0.0, 0)
    assert torch.equal(same, ids)
    assert torch.equal(kept, targets)
    found, kept = masked(0.3, 7)
    chosen = kept & ~targets
    assert kept[targets].all()
    assert not torch.isin(ids[chosen], torch.tensor([0, 2, 3, 4])).any()
    assert torch.equal(found, torch.where(chosen, 4, ids))
    free = ~targets & ~torch.isin(ids, torch.tensor([0, 2, 3, 4]))
    assert chosen.sum() / free.sum() == pytest.approx(0.3, abs=0.05)
    assert torch.equal(masked(0.3, 7)[1], kept)
    assert not torch.equal(masked(0.3, 8)[1], kept)
    assert not torch.equal(masked(0.3, 7, seed=1)[1], kept)
    assert masked(1.0, 7)[1].sum() == (free | targets).sum()
    for number in (0, 5, 10):  # of ten steps
        falling, level = masked(0.8, number, last=0.2), masked(0.8 - 0.06 * number, number)
        assert torch.equal(falling[1], level[1])
    assert torch.equal(masked(0.0, 0, last=0.5)[0], ids)
    assert not torch.equal(masked(0.0, 5, last=0.5)[0], ids)
