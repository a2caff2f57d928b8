"""What is seen of the signs in a training, recomputed by hand."""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lightning import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bitmaps.bert import Bert
from bitmaps.data.batches import Batch
from bitmaps.packed import format as folder
from bitmaps.quantize.convert import binarize_naive, make_trainable, to_float
from bitmaps.quantize.layers import QuantizedEmbedding, QuantizedLinear
from bitmaps.quantize.quantizer import Quantization, Quantizer
from bitmaps.training.module import MaskedLanguageModel
from bitmaps.training.sign_watch import (
    FROZEN,
    RANDOM,
    SignWatch,
    outside_window,
    quantized_layers,
    share,
    values_of,
    verdict,
)
from bitmaps.vocabulary import Center, Scale, Scaling, ValueSet

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*isinstance.treespec, LeafSpec.*",  # Lightning 2.6 on torch 2.13
    "ignore:.*does not have many workers.*",
    "ignore:.*have no `val_dataloader`.*",
)

FFNN = {
    f"encoder.layers.{layer}.ffnn.{name}" for layer in (0, 1) for name in ("expand", "contract")
}
ATTENTION = {
    f"encoder.layers.{layer}.attention.{name}"
    for layer in (0, 1)
    for name in ("query", "key", "value", "output")
}


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="bitmaps.training.sign_watch")
    return caplog


def verdicts(said: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [
        (r.levelname, r.getMessage())
        for r in said.records
        if r.name == "bitmaps.training.sign_watch"
    ]


# Which layers


@pytest.mark.parametrize(
    ("components", "expected"),
    [
        ((), set()),
        (("ffnn",), FFNN),
        (("attention", "ffnn"), ATTENTION | FFNN),
        # the decoder is the word table
        (("embeddings", "head"), {"embeddings.word", "embeddings.position", "head.transform"}),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_layers_of_one_bit_are_found_once_by_their_names(
    tiny: Bert, components: tuple[str, ...], expected: set[str], wrapped: bool
) -> None:
    make_trainable(tiny, components, Quantization())
    found = quantized_layers(MaskedLanguageModel(tiny) if wrapped else tiny)
    assert found.keys() == expected
    for name, layer in found.items():
        assert layer is tiny.get_submodule(name)


@pytest.mark.parametrize("words", ["fp16", "int8", "int4"])
def test_words_in_fewer_bits_are_no_layers_of_one_bit(tiny: Bert, words: Any) -> None:
    make_trainable(tiny, ["ffnn"], Quantization(), words)
    assert isinstance(tiny.embeddings.word, QuantizedEmbedding)
    assert quantized_layers(tiny).keys() == FFNN


# The window


def layer_of(seed: int, quantization: Quantization) -> QuantizedLinear:
    """A layer whose weights moved after its scales were computed, as in a training."""
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(7, 5)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(5, 7, generator=generator))
        layer = QuantizedLinear.from_float(linear, Quantizer(linear.weight, quantization))
        layer.weight += 0.5 * torch.randn(5, 7, generator=generator)
    return layer


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    scale=st.sampled_from(["none", "tensor", "row", "rank_one"]),
    scaling=st.sampled_from(["computed", "learned"]),
    center=st.sampled_from(["none", "tensor", "row"]),
    values=st.sampled_from(["pm1", "01"]),
)
def test_outside_are_weights_beyond_the_magnitude_of_their_own_value(
    seed: int, scale: Scale, scaling: Scaling, center: Center, values: ValueSet
) -> None:
    layer = layer_of(seed, Quantization(values, scale, scaling, center))
    assert isinstance(layer.quantizer, Quantizer)
    weight = layer.weight.detach().double().numpy()
    if center != "none":
        weight = weight - (weight.mean() if center == "tensor" else weight.mean(1, keepdims=True))
    row, column = layer.quantizer.scales(layer.weight)
    # the largest of the two values in magnitude, for {0,1} too: what a weight would be if its bit
    # were the high one
    magnitude = row.detach().double().numpy() * (
        1.0 if column is None else column.detach().double().numpy()
    )
    # the only positive weight of a column is its own magnitude: which side it falls to is rounding
    assume(bool((np.abs(np.abs(weight) - magnitude) > 1e-5).all()))
    assert outside_window(layer) == pytest.approx((np.abs(weight) > magnitude).mean(), abs=1e-6)


def test_outside_knows_all_and_nothing() -> None:
    layer = layer_of(0, Quantization())
    with torch.no_grad():
        layer.weight.fill_(1e-6)
    assert outside_window(layer) == 0
    with torch.no_grad():
        layer.weight.fill_(-1e6)
    assert outside_window(layer) == 1
    assert layer.weight.grad_fn is None


# The share and the verdict


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30), st.integers(0, 30)
)
def test_share_is_over_all_bits_and_not_over_layers(
    pairs: list[tuple[bool, bool]], cut: int
) -> None:
    one, other = torch.tensor(pairs).T
    cut = min(cut, len(pairs) - 1)
    now, before = {"a": one[:cut], "b": one[cut:]}, {"b": other[cut:], "a": other[:cut]}
    assert share(now, before) == pytest.approx(np.mean([a != b for a, b in pairs]))


@pytest.mark.parametrize(
    ("flipped", "rate", "level", "words"),
    [
        (0.0, 0.0, "WARNING", ("frozen", "flipped 0 of", "optimizer.lr", "recipe.gradient")),
        (FROZEN / 2, 2 * RANDOM, "WARNING", ("frozen", "5e-05")),
        (0.3, 2 * RANDOM, "WARNING", ("random", "0.02", "optimizer.lr")),
        (FROZEN, RANDOM, "INFO", ("0.0001", "0.01 a step")),
        (0.31, 1e-5, "INFO", ("0.31 of all signs", "1e-05 a step")),
    ],
)
def test_the_verdict_is_frozen_or_random_or_nothing_to_warn_of(
    said: pytest.LogCaptureFixture, flipped: float, rate: float, level: str, words: tuple[str, ...]
) -> None:
    verdict(flipped, rate)
    ((found, message),) = verdicts(said)
    assert found == level
    assert all(word in message for word in words)
    if level == "INFO":
        assert "frozen" not in message
        assert "random" not in message


# In a training


def batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 60, (4, 6), generator=generator)
    labels = torch.full_like(ids, -100)
    labels[:, 2] = ids[:, 2]
    return {
        "sentences": torch.arange(4),
        "input_ids": ids.where(labels == -100, 4),
        "attention_mask": torch.ones_like(ids, dtype=torch.bool),
        "labels": labels,
    }


class Record(Callback):
    """What is logged after every step, and copies of the layers then; ``SignWatch`` is to come
    first."""

    def __init__(self) -> None:
        self.layers: list[dict[str, QuantizedLinear | QuantizedEmbedding]] = []
        self.logged: dict[int, dict[str, float]] = {}
        self.seen: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.layers.append(copy.deepcopy(quantized_layers(pl_module)))

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.seen = of_signs(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == len(self.layers):  # not in the middle of an accumulated step
            self.layers.append(copy.deepcopy(quantized_layers(pl_module)))
        if (now := of_signs(trainer)) != self.seen:
            self.logged[trainer.global_step] = now


def of_signs(trainer: Trainer) -> dict[str, float]:
    names = ("flips/", "outside/", "high/")
    return {n: v.item() for n, v in trainer.callback_metrics.items() if n.startswith(names)}


def fit(
    model: Bert, every: int, max_steps: int, lr: float = 0.05, **options: Any
) -> tuple[SignWatch, Record]:
    watch, record = SignWatch(every), Record()
    module = MaskedLanguageModel(
        model.train(), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=lr)
    )
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=-1,
        max_steps=max_steps,
        callbacks=[watch, record],
        **options,
    )
    batches: Any = [batch(seed) for seed in range(40)]
    trainer.fit(module, train_dataloaders=DataLoader(batches, batch_size=None))
    return watch, record


def trainable(model: Bert, components: tuple[str, ...] = ("embeddings", "ffnn")) -> Bert:
    return make_trainable(
        model.set_dropout(0.0), components, Quantization("pm1", "row", "learned", "row")
    )


Layers = dict[str, QuantizedLinear | QuantizedEmbedding]


def high(layer: QuantizedLinear | QuantizedEmbedding) -> NDArray[np.bool_]:
    """Which bits are high, by what the layer computes with."""
    effective: NDArray[np.bool_] = layer.effective_weight.detach().numpy() > 0
    return effective


def flips(now: Layers, before: Layers) -> dict[str, int]:
    return {name: int((high(now[name]) != high(before[name])).sum()) for name in now}


def looks_by_hand(now: Layers, before: Layers, steps: int) -> dict[str, float]:
    flipped = flips(now, before)
    sizes = {name: layer.weight.numel() for name, layer in now.items()}
    found = {f"flips/{name}": flipped[name] / sizes[name] / steps for name in now}
    found["flips/all"] = sum(flipped.values()) / sum(sizes.values()) / steps
    for name, layer in now.items():
        weight = layer.weight.detach().numpy()
        centered = weight - weight.mean(1, keepdims=True)
        found[f"outside/{name}"] = float(
            (np.abs(centered) > np.abs(layer.effective_weight.detach().numpy())).mean()
        )
        found[f"high/{name}"] = float(high(layer).mean())
    return found


@pytest.mark.parametrize("accumulate", [1, 2])
def test_looks_are_what_changed_since_the_last_one_a_step(tiny: Bert, accumulate: int) -> None:
    watch, record = fit(trainable(tiny), every=3, max_steps=8, accumulate_grad_batches=accumulate)
    assert len(record.layers) == 9
    assert list(record.logged) == [3, 6, 8]  # the last one at the end, two steps later
    for step, last in ((3, 0), (6, 3), (8, 6)):
        expected = looks_by_hand(record.layers[step], record.layers[last], step - last)
        names = {name.split("/", 1)[1] for name in expected} - {"all"}
        assert names == {"embeddings.word", "embeddings.position", *FFNN}
        assert record.logged[step] == pytest.approx(expected, rel=1e-5, abs=1e-7)
        assert expected["flips/all"] > 0  # or else nothing was counted
    assert watch.rate == pytest.approx(record.logged[8]["flips/all"])


def test_the_verdict_is_on_all_steps_and_the_rate_of_the_last(
    tiny: Bert, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[float, float, int]] = []
    monkeypatch.setattr("bitmaps.training.sign_watch.verdict", lambda *found: given.append(found))
    _, record = fit(trainable(tiny), every=4, max_steps=6)
    first, last = record.layers[0], record.layers[-1]
    flipped = sum(flips(last, first).values()) / sum(
        layer.weight.numel() for layer in last.values()
    )
    assert len(given) == 1
    assert given[0] == pytest.approx((flipped, record.logged[6]["flips/all"], 0), rel=1e-5)
    # bits that flip back are no longer flipped
    assert flipped < 4 * record.logged[4]["flips/all"] + 2 * record.logged[6]["flips/all"] + 1e-9


@pytest.mark.parametrize(("lr", "word"), [(0.0, "frozen"), (3.0, "random")])
def test_a_training_ends_with_a_warning_of_signs_that_are_frozen_or_random(
    tiny: Bert, said: pytest.LogCaptureFixture, lr: float, word: str
) -> None:
    fit(trainable(tiny, ("ffnn",)), every=2, max_steps=6, lr=lr)
    ((level, message),) = verdicts(said)
    assert level == "WARNING"
    assert f"signs are {word}" in message


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.global_step >= self.step


def test_a_training_that_is_stopped_between_two_looks_is_judged_as_it_is_then(
    tiny: Bert, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[float, float, int]] = []
    monkeypatch.setattr("bitmaps.training.sign_watch.verdict", lambda *found: given.append(found))
    watch, record = SignWatch(every=4), Record()
    module = MaskedLanguageModel(
        trainable(tiny).train(), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05)
    )
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=-1,
        max_steps=20,
        callbacks=[watch, record, StopAt(3)],
    )
    batches: Any = [batch(seed) for seed in range(40)]
    trainer.fit(module, train_dataloaders=DataLoader(batches, batch_size=None))
    first, last = record.layers[0], record.layers[3]
    flipped = sum(flips(last, first).values()) / sum(
        layer.weight.numel() for layer in last.values()
    )
    assert flipped > 0
    assert given == [pytest.approx((flipped, flipped / 3, 0), rel=1e-5)]


def test_a_training_that_was_resumed_says_since_when(said: pytest.LogCaptureFixture) -> None:
    verdict(0.0, 0.0, 40)
    ((level, message),) = verdicts(said)
    assert (level, "all signs since step 40" in message) == ("INFO", True)


def test_a_training_that_moves_some_signs_ends_without_a_warning(
    tiny: Bert, said: pytest.LogCaptureFixture
) -> None:
    _, record = fit(trainable(tiny, ("ffnn",)), every=2, max_steps=6, lr=0.3)
    assert 0 < record.logged[6]["flips/all"] < RANDOM
    ((level, message),) = verdicts(said)
    assert level == "INFO"
    assert "training flipped" in message


@pytest.mark.parametrize("words", [None, "int8"])
def test_nothing_is_said_of_a_model_without_bits(
    tiny: Bert, said: pytest.LogCaptureFixture, words: Any
) -> None:
    model = make_trainable(tiny, (), Quantization(), words)
    watch, record = fit(model, every=1, max_steps=3)
    assert record.logged == {}
    assert verdicts(said) == []
    assert watch.rate == 0


def test_looking_changes_no_step(tiny: Bert) -> None:
    weights: list[dict[str, Tensor]] = []
    for every in (1, 25):
        model = trainable(copy.deepcopy(tiny))
        fit(model, every, max_steps=3)
        weights.append(model.state_dict())
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


@pytest.mark.parametrize("values", ["01", "pm1"])
def test_the_values_of_a_matrix_are_the_lowest_and_the_highest_of_each_row(
    tiny: Bert, pack: Any, values: ValueSet
) -> None:
    assert values_of(tiny) == {}
    binarize_naive(tiny, ("embeddings", "ffnn"), values, "row", "matrices")
    found = values_of(tiny)
    assert set(found) == FFNN | {
        "embeddings.word",
        "embeddings.position",
    }  # the decoder is the word table
    for name in found:
        weight = tiny.get_submodule(name).weight.detach()
        assert torch.equal(
            found[name].sort().values, torch.cat([weight.amin(-1), weight.amax(-1)]).sort().values
        )
    packed = values_of(folder.load(pack(tiny), "f32"))
    assert set(packed) == set(found)
    assert all(torch.equal(packed[name], found[name]) for name in found)


def test_the_values_of_a_matrix_with_scales_a_column_are_those_of_every_row_and_column(
    tiny: Bert, pack: Any
) -> None:
    model = to_float(make_trainable(tiny, ("attention",), Quantization("pm1", "rank_one"), "fp32"))
    for one in (model, folder.load(pack(model), "f32")):
        found = values_of(one)
        assert set(found) == ATTENTION
        for name in found:
            weight = model.get_submodule(name).weight.detach().flatten().abs()
            expected = torch.cat([-weight, weight]).sort().values
            torch.testing.assert_close(found[name].sort().values, expected, rtol=1e-4, atol=0)
