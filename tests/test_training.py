"""The LightningModule: its losses, and a training of a tiny model."""

import numpy as np
import pytest
import torch
from lightning import Callback, LightningDataModule, Trainer
from torch.utils.data import DataLoader

from bitmaps.bert import Bert, BertConfig
from bitmaps.binary.components import make_trainable, to_float
from bitmaps.data.masking import Vocabulary
from bitmaps.training import LossWeights, MaskedLanguageModel, distillation, first_nonfinite_module, hidden_error

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*isinstance.treespec, LeafSpec.*",  # Lightning 2.6 on torch 2.13
    "ignore:.*does not have many workers.*",
)

MASK, UNKNOWN, SIZE = 4, 1, 60
TINY = BertConfig(
    vocab_size=SIZE,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=16,
    initializer_range=0.3,
)


def tiny(seed=0):
    return Bert(TINY).randomize(torch.Generator().manual_seed(seed)).set_dropout(0.0).eval()


def binary(seed=0):
    model = make_trainable(tiny(seed), ["attention", "ffnn"], "pm1", "row", gradient="scaled", center=True)
    return model.train()


def batch(seed, rows=8, length=10):
    """Sentences of one repeated piece, which a model can learn to fill in; the last is half padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, SIZE, (rows, 1), generator=generator).repeat(1, length)
    attended = torch.ones_like(ids, dtype=torch.bool)
    attended[-1, length // 2 :] = False
    chosen = (torch.rand(ids.shape, generator=generator) < 0.3) & attended
    chosen[:, 1] = True
    labels = torch.where(chosen, ids, -100)
    labels[0, 1] = UNKNOWN
    return {
        "input_ids": torch.where(chosen, MASK, ids).where(attended, 0),
        "attention_mask": attended,
        "labels": labels,
    }


class Sentences(LightningDataModule):
    vocabulary = Vocabulary(mask=MASK, pad=0, unknown=UNKNOWN, untouched=(2, 3), replacements=np.arange(5, SIZE))

    def train_dataloader(self):
        return DataLoader([batch(seed) for seed in range(12)] * 20, batch_size=None)

    def val_dataloader(self):
        return DataLoader([batch(100), batch(101, rows=3)], batch_size=None)

    test_dataloader = val_dataloader


def trainer(**settings):
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(accelerator="cpu", num_sanity_val_steps=0, max_epochs=-1, **quiet | settings)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def kl(teacher, student):
    p, q = softmax(teacher.double().numpy()), softmax(student.double().numpy())
    return (p * (np.log(p) - np.log(q))).sum(-1).mean()


def test_distillation_is_the_kl_divergence_from_the_teacher():
    student, teacher = torch.randn(2, 7, 11, generator=torch.Generator().manual_seed(0)) * 3
    assert distillation(student, teacher).item() == pytest.approx(kl(teacher, student), rel=1e-5)
    assert distillation(teacher, student).item() != pytest.approx(kl(teacher, student), rel=1e-2)
    assert distillation(teacher + 5, teacher).item() == pytest.approx(0, abs=1e-6)


def test_hidden_error_is_the_mean_square_over_tokens_and_states():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 4, 6, 5, generator=generator)
    kept = torch.rand(4, 6, generator=generator) < 0.7
    expected = np.mean([((s - t).numpy()[kept.numpy()] ** 2).mean() for s, t in zip(student, teacher, strict=True)])
    student[:, ~kept] = torch.nan
    assert hidden_error(list(student), list(teacher), kept).item() == pytest.approx(expected, rel=1e-6)
    assert hidden_error(list(student), list(teacher), kept.long()).item() == pytest.approx(expected, rel=1e-6)


def step(module, data, monkeypatch):
    """The loss of one step and its parts, without a trainer."""
    parts = {}
    monkeypatch.setattr(module, "log_dict", lambda values: parts.update(values))
    monkeypatch.setattr(module, "log", lambda *args, **kwargs: None)
    loss = module.training_step(data, 0)
    return loss, {name.removeprefix("train/"): value.item() for name, value in parts.items()}


def test_the_loss_weighs_what_numpy_computes(monkeypatch):
    student, teacher, data = tiny(1), tiny(2), batch(0)
    module = MaskedLanguageModel(student, teacher, LossWeights(0.5, 2.0, 3.0))
    loss, parts = step(module, data, monkeypatch)
    with torch.no_grad():
        states, wanted = (m.encode(data["input_ids"], data["attention_mask"]) for m in (student, teacher))
        kept = data["labels"] != -100
        logits, targets = student.head(states[-1])[kept], teacher.head(wanted[-1])[kept]
    chances = softmax(logits.double().numpy())
    expected = {
        "cross_entropy": -np.log(chances[range(len(chances)), data["labels"][kept]]).mean(),
        "logits": kl(targets, logits),
        "hidden": np.mean(
            [(s - t)[data["attention_mask"]].square().mean() for s, t in zip(states, wanted, strict=True)]
        ),
    }
    assert parts == pytest.approx(expected, rel=1e-4)
    total = 0.5 * expected["cross_entropy"] + 2 * expected["logits"] + 3 * expected["hidden"]
    assert loss.item() == pytest.approx(total, rel=1e-4)


def test_a_part_that_weighs_nothing_is_not_computed(monkeypatch):
    parts = [
        set(step(MaskedLanguageModel(tiny(1), tiny(2), LossWeights(*weights)), batch(0), monkeypatch)[1])
        for weights in ((1, 0, 0), (0, 1, 0), (1, 0, 1))
    ]
    assert parts == [{"cross_entropy"}, {"cross_entropy", "logits"}, {"cross_entropy", "hidden"}]


def test_a_batch_in_which_nothing_came_to_be_masked_does_no_harm(monkeypatch):
    data = batch(0) | {"labels": torch.full((8, 10), -100)}
    for weights in (LossWeights(1, 0, 0), LossWeights(1, 1, 1)):
        loss, _ = step(MaskedLanguageModel(tiny(1), tiny(2), weights), data, monkeypatch)
        assert torch.isfinite(loss)


def test_distillation_needs_a_teacher():
    with pytest.raises(ValueError, match="teacher"):
        MaskedLanguageModel(tiny(), loss=LossWeights(1, 1, 0))
    MaskedLanguageModel(tiny(), loss=LossWeights(1, 0, 0))


def test_a_model_without_an_optimizer_can_only_be_scored():
    with pytest.raises(ValueError, match="no optimizer"):
        MaskedLanguageModel(tiny()).configure_optimizers()


def test_the_teacher_is_neither_trained_nor_saved():
    student, teacher = binary(), tiny(2).train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    module = MaskedLanguageModel(student, teacher, LossWeights(), sgd)
    trainer(max_steps=3).fit(module, datamodule=Sentences())
    module.train()
    assert not any(part.training for part in teacher.modules())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert set(module.state_dict()) == {f"model.{name}" for name in student.state_dict()}
    assert len(list(module.parameters())) == len(list(student.parameters()))


class Record(Callback):
    def __init__(self):
        self.losses, self.rates, self.validations = [], [], []

    def on_train_batch_end(self, trainer, module, *_):
        self.losses.append(trainer.callback_metrics["train/loss"].item())
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_validation_end(self, trainer, module):
        self.validations.append((trainer.global_step, module.results["cross_entropy"]))
        assert trainer.callback_metrics["val/cross_entropy"].item() == pytest.approx(module.results["cross_entropy"])


@pytest.mark.parametrize("loss", [LossWeights(1, 0, 0), LossWeights(1, 1, 1)], ids=["alone", "distilled"])
def test_training_binary_layers_in_bf16_lowers_the_loss(loss):
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


def by_hand(model, batches):
    """Cross entropy, accuracy and count in float64, of all targets and of those that are known."""
    for unknown in (None, UNKNOWN):
        losses, hits = [], []
        for data in batches:
            with torch.no_grad():
                chances = softmax(model(data["input_ids"], data["attention_mask"]).double().numpy())
            for row, label in zip(chances.reshape(-1, SIZE), data["labels"].flatten().tolist(), strict=True):
                if label not in (-100, unknown):
                    losses.append(-np.log(row[label]))
                    hits.append(row.argmax() == label)
        yield np.mean(losses), np.mean(hits), len(losses)


@pytest.mark.parametrize("run", ["validate", "test"])
def test_a_model_is_scored_with_and_without_unknown_targets(run):
    module = MaskedLanguageModel(tiny())
    getattr(trainer(), run)(module, datamodule=Sentences(), verbose=False)
    everything, known = by_hand(module.model, Sentences().val_dataloader())
    assert everything[2] == known[2] + 2
    names = ("cross_entropy", "accuracy", "masked_tokens")
    assert [module.results[name] for name in names] == pytest.approx(everything, rel=1e-5)
    names = ("known_cross_entropy", "known_accuracy", "known_tokens")
    assert [module.results[name] for name in names] == pytest.approx(known, rel=1e-5)
    assert 0 <= module.results["known_mrr"] <= 1


def test_scoring_again_forgets_what_was_scored_before():
    module, results = MaskedLanguageModel(tiny()), []
    for _ in range(2):
        trainer().validate(module, datamodule=Sentences(), verbose=False)
        results.append(module.results)
    assert results[0] == results[1]


def poison(model, name):
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
def test_the_first_module_that_makes_a_nan_is_found(parameter, module):
    model, data = poison(tiny(), parameter), batch(0)
    found = first_nonfinite_module(model, lambda: model(data["input_ids"], data["attention_mask"]))
    assert found == module
    assert not any(part._forward_hooks for part in model.modules())


def test_no_module_is_blamed_without_reason():
    model, data = tiny(), batch(0)
    found = first_nonfinite_module(model, lambda: model(data["input_ids"], data["attention_mask"]))
    assert found not in dict(model.named_modules())


def test_training_with_nan_weights_stops_and_names_the_module():
    module = MaskedLanguageModel(poison(binary(), "encoder.layers.1.ffnn.expand.bias"), optimizer=sgd)
    with pytest.raises(FloatingPointError, match=r"at step 0 .*: encoder\.layers\.1\.ffnn\.expand$"):
        trainer(max_steps=3).fit(module, datamodule=Sentences())


@pytest.mark.parametrize("run", ["validate", "test"])
def test_scoring_nan_weights_stops_and_names_the_module(run):
    module = MaskedLanguageModel(poison(tiny(), "head.transform.bias"))
    with pytest.raises(FloatingPointError, match=r": head\.transform$"):
        getattr(trainer(), run)(module, datamodule=Sentences(), verbose=False)
