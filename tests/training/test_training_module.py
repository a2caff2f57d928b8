"""The LightningModule that trains: the loss of a step, and a training of a tiny model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from scoring.examples import (
    MASK,
    Sentences,
    array,
    batch,
    of_lightning,
    poison,
    softmax,
    tiny,
    trainer,
)
from torch import Tensor, nn
from training.by_hand import (
    attention_by_hand,
    directions_by_hand,
    hidden_by_hand,
    kl,
    projected,
    relations_by_hand,
)

from bitmaps.bert import Bert
from bitmaps.data.batches import Batch
from bitmaps.errors import InputError
from bitmaps.quantize.convert import make_trainable, to_float
from bitmaps.quantize.quantizer import Quantization
from bitmaps.training.losses import LossWeights
from bitmaps.training.module import MaskedLanguageModel, move_checkpoints
from bitmaps.vocabulary import Component, Gradient

pytestmark = of_lightning

PARTS = ("cross_entropy", "logits", "hidden", "directions", "attention", "relations")
EVERYTHING = LossWeights(1, 1, 1, 1, 1, 1)


def binary(seed: int = 0) -> Bert:
    model = make_trainable(
        tiny(seed), [Component.attention, Component.ffnn], Quantization(gradient=Gradient.scaled)
    )
    return model.train()


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def step(
    module: MaskedLanguageModel, data: Batch, monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, dict[str, float]]:
    """The loss of one step and its parts, without a trainer."""
    parts: dict[str, Tensor] = {}
    monkeypatch.setattr(module, "log_dict", lambda values: parts.update(values))
    monkeypatch.setattr(module, "log", lambda *args, **kwargs: None)
    loss = module.training_step(data, 0)
    return loss, {name.removeprefix("train/"): value.item() for name, value in parts.items()}


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
    total = sum(getattr(weights, name) * part for name, part in expected.items())
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


def test_a_batch_in_which_nothing_came_to_be_masked_does_no_harm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = batch(0)
    data["labels"] = torch.full((8, 10), -100)
    for weights in (LossWeights(), EVERYTHING):
        loss, parts = step(MaskedLanguageModel(tiny(1), tiny(2), weights), data, monkeypatch)
        assert torch.isfinite(loss)
        assert parts["cross_entropy"] == parts.get("logits", 0) == 0


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
        "val_check_interval": 20,
    }
    run = trainer(max_steps=30, callbacks=[record], **settings)
    run.fit(module, datamodule=Sentences())
    assert run.global_step == 30
    assert len(record.losses) == 60
    assert np.mean(record.losses[-10:]) < 0.8 * np.mean(record.losses[:10])
    assert [at for at, _ in record.validations] == [10, 20, 30]
    assert record.rates[-1] == pytest.approx(0.02 / 2**3)  # the schedule counts steps, not batches
    assert all(parameter.dtype == torch.float32 for parameter in student.parameters())
    for name, weight in to_float(student).named_parameters():
        if weight.ndim == 2 and name.startswith("encoder"):
            assert all(len(row.unique()) <= 2 for row in weight), name


@pytest.mark.parametrize("unknown", [("none", "none"), ("one", "one"), ("all", "all")])
def test_validation_while_fitting_minds_no_share_of_unknown_targets(
    unknown: tuple[str, str],
) -> None:
    module, record = MaskedLanguageModel(binary(), optimizer=sgd), Record()
    trainer(max_steps=2, val_check_interval=1, callbacks=[record]).fit(
        module, datamodule=Sentences(*unknown)
    )
    assert [at for at, _ in record.validations] == [1, 2]


@pytest.mark.parametrize("loss", [LossWeights(), EVERYTHING], ids=["alone", "distilled"])
def test_training_with_nan_weights_stops_and_names_the_module(loss: LossWeights) -> None:
    module = MaskedLanguageModel(
        poison(binary(), "encoder.layers.1.ffnn.expand.bias"), tiny(2), loss, sgd
    )
    message = r"at step 0 .*: encoder\.layers\.1\.ffnn\.expand; lower optimizer\.lr"
    with pytest.raises(InputError, match=message):
        trainer(max_steps=3).fit(module, datamodule=Sentences())


IDS = torch.randint(60, (20, 40), generator=torch.Generator().manual_seed(0))
TARGETS = torch.rand(IDS.shape, generator=torch.Generator().manual_seed(1)) < 0.15
FREE = ~TARGETS & ~torch.isin(IDS, torch.tensor([0, 2, 3, MASK]))  # of ``Sentences.vocabulary``


@pytest.fixture
def more(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensor]:
    """What a module masks of the same batch beyond its targets, at a step of ten."""
    teacher = tiny()

    def masked(
        first: float, last: float, number: int = 0, seed: int = 0, rank: int = 0, **module: Any
    ) -> Tensor:
        trainer = SimpleNamespace(
            datamodule=Sentences(),
            fit_loop=SimpleNamespace(total_batch_idx=number),
            global_step=number,
            max_steps=10,
        )
        monkeypatch.setattr(MaskedLanguageModel, "trainer", trainer)
        monkeypatch.setattr(MaskedLanguageModel, "global_rank", rank)
        given: dict[str, Any] = {"teacher": teacher, "loss": LossWeights(logits=1.0)} | module
        distilled = MaskedLanguageModel(teacher, more_masked=(first, last), seed=seed, **given)
        found, counted = distilled.mask_more(IDS, TARGETS)
        assert counted[TARGETS].all()
        chosen = counted & ~TARGETS
        assert not chosen[~FREE].any()
        assert torch.equal(found, torch.where(chosen, MASK, IDS))
        return chosen

    return masked


def test_more_tokens_are_masked_than_count(more: Callable[..., Tensor]) -> None:
    assert not more(0.0, 0.0).any()
    assert torch.equal(more(1.0, 1.0), FREE)
    chosen = more(0.3, 0.3, 7)
    assert chosen.sum() / FREE.sum() == pytest.approx(0.3, abs=0.05)


def test_what_is_masked_depends_on_the_batch_the_seed_and_the_process(
    more: Callable[..., Tensor],
) -> None:
    chosen = more(0.3, 0.3, 7)
    assert torch.equal(more(0.3, 0.3, 7), chosen)
    for other in ({"number": 8}, {"number": 7, "seed": 1}, {"number": 7, "rank": 1}):
        assert not torch.equal(more(0.3, 0.3, **other), chosen)


def test_the_share_changes_along_a_straight_line(more: Callable[..., Tensor]) -> None:
    for number in (0, 5, 10):  # of ten steps
        level = 0.8 - 0.06 * number
        assert torch.equal(more(0.8, 0.2, number), more(level, level, number))
    assert not more(0.0, 0.5).any()
    assert more(0.0, 0.5, 5).any()


@pytest.mark.parametrize("module", [{"teacher": None, "loss": None}, {"loss": LossWeights()}])
def test_without_a_teacher_to_learn_from_no_more_are_masked(
    more: Callable[..., Tensor], module: dict[str, Any]
) -> None:
    assert not more(0.5, 0.5, **module).any()


def checkpoint(folder: Path) -> tuple[ModelCheckpoint, dict[str, Any]]:
    """A callback that has trained in a folder, and its state."""
    callback = ModelCheckpoint(folder, "best", "val/cross_entropy", mode="min")
    module = MaskedLanguageModel(tiny().train(), optimizer=sgd)
    run = trainer(
        max_steps=1, callbacks=[callback], enable_checkpointing=True, val_check_interval=1
    )
    run.fit(module, datamodule=Sentences())
    return callback, callback.state_dict()


def test_a_run_that_was_moved_knows_its_best_checkpoint(tmp_path: Path) -> None:
    callback, state = checkpoint(tmp_path / "old" / "checkpoints")
    (tmp_path / "old").rename(tmp_path / "new")
    here = tmp_path / "new" / "checkpoints"
    move_checkpoints(state, str(here))
    assert state["dirpath"] == str(here)
    assert state["best_model_path"] == state["kth_best_model_path"] == str(here / "best.ckpt")
    assert state["best_k_models"] == {str(here / "best.ckpt"): callback.best_model_score}
    resumed = ModelCheckpoint(here, "best", "val/cross_entropy", mode="min")
    resumed.load_state_dict(state)  # says so if it forgets the best checkpoint: the test fails
    assert resumed.best_model_score == callback.best_model_score


def test_a_resumed_run_that_was_not_moved_keeps_its_paths(tmp_path: Path) -> None:
    _, state = checkpoint(tmp_path / "checkpoints")
    before = dict(state)
    move_checkpoints(state, str(tmp_path / "checkpoints"))
    assert state == before


def test_a_checkpoint_that_is_not_in_the_new_folder_keeps_its_path(tmp_path: Path) -> None:
    _, state = checkpoint(tmp_path / "old")
    before = dict(state)
    move_checkpoints(state, str(tmp_path / "empty"))
    assert state == before


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_moved_run_is_resumed_with_its_best_checkpoint(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    first = ModelCheckpoint(old, "best", "val/cross_entropy", mode="min", save_last=True)
    settings = {"enable_checkpointing": True, "val_check_interval": 1}
    trainer(max_steps=1, callbacks=[first], **settings).fit(
        MaskedLanguageModel(tiny().train(), optimizer=sgd), datamodule=Sentences()
    )
    old.rename(new)
    resumed = ModelCheckpoint(new, "best", "val/cross_entropy", mode="min", save_last=True)
    trainer(max_steps=1, callbacks=[resumed], **settings).fit(
        MaskedLanguageModel(tiny().train(), optimizer=sgd),
        datamodule=Sentences(),
        ckpt_path=new / "last.ckpt",
        weights_only=True,
    )
    assert resumed.best_model_path == str(new / "best.ckpt")
    assert resumed.best_model_score == first.best_model_score
    assert not old.exists()


def test_a_checkpoint_names_no_file_outside_its_folder_for_removal(tmp_path: Path) -> None:
    """Lightning removes the file of a model that is no longer among the best."""
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "best.ckpt").touch()
    (folder / "link").symlink_to(tmp_path)
    best = torch.tensor(0.0)
    harm = {"old/../../victim": best, "old/link/victim": best, "/victim": best}
    state = {
        "dirpath": "old", "best_model_path": "old/best.ckpt", "kth_best_model_path": "old/link/victim",
        "last_model_path": "", "best_k_models": {"old/best.ckpt": best} | harm,
    }  # fmt: skip
    move_checkpoints(state, str(folder))
    assert state["best_model_path"] == str(folder / "best.ckpt")
    assert list(state["best_k_models"]) == [str(folder / "best.ckpt")]
    assert (state["kth_best_model_path"], state["last_model_path"]) == ("", "")
