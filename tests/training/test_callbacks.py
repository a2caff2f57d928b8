"""One-bit inputs that are introduced gradually."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning import Callback
from scoring.examples import Sentences, of_lightning, tiny, trainer

from bitmaps.bert import Bert
from bitmaps.quantize.convert import make_trainable, round_activations
from bitmaps.quantize.quantizer import Quantization
from bitmaps.quantize.rounding import InputQuantizer, one_bit_quantizers
from bitmaps.training.callbacks import OneBitInputs
from bitmaps.training.module import MaskedLanguageModel
from bitmaps.vocabulary import Component, Storage

pytestmark = of_lightning

ONE_BIT = ("query", "key")


def student() -> Bert:
    model = make_trainable(tiny(), [Component.attention], Quantization(), one_bit=ONE_BIT)
    return round_activations(model, [Component.attention], ONE_BIT)


def shares(model: Bert) -> set[float]:
    return {quantizer.share.item() for quantizer in one_bit_quantizers(model)}


class Seen(Callback):
    """The share in each training step, and in each validation."""

    def __init__(self, model: Bert) -> None:
        self.model = model
        self.trained: list[set[float]] = []
        self.validated: list[set[float]] = []

    def on_before_backward(self, *_: Any) -> None:
        self.trained.append(shares(self.model))

    def on_validation_batch_end(self, *_: Any) -> None:
        self.validated.append(shares(self.model))


@pytest.fixture(scope="module")
def trained() -> tuple[Bert, Seen]:
    model = student()
    seen = Seen(model)
    module = MaskedLanguageModel(
        model.train(), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01)
    )
    ramp = OneBitInputs(one_bit_quantizers(model))
    trainer(max_steps=8, val_check_interval=2, callbacks=[ramp, seen]).fit(
        module, datamodule=Sentences()
    )
    return model, seen


def test_the_share_rises_over_the_first_half(trained: tuple[Bert, Seen]) -> None:
    _, seen = trained
    assert seen.trained == [{0.0}, {0.25}, {0.5}, {0.75}, *[{1.0}] * 4]


def test_validation_and_the_trained_model_have_all_of_it(trained: tuple[Bert, Seen]) -> None:
    model, seen = trained
    assert len(seen.validated) == 8  # two batches, four times
    assert seen.validated == [{1.0}] * 8
    assert shares(model) == {1.0}
    assert len(one_bit_quantizers(model)) == 4  # queries and keys of two layers


def test_a_share_is_a_mixture_of_floats_and_signs() -> None:
    quantizer = InputQuantizer(Storage.bit)
    x = torch.tensor([[1.0, -3.0]])
    for share, expected in ((0.0, [1.0, -3.0]), (0.5, [1.5, -2.5]), (1.0, [2.0, -2.0])):
        OneBitInputs([quantizer]).set_share(share)
        assert quantizer(x).tolist() == [expected]
    assert not quantizer.state_dict()  # nothing of it is in a checkpoint


def test_other_inputs_are_left_alone() -> None:
    model = student()
    eight_bits = [
        one
        for one in model.modules()
        if isinstance(one, InputQuantizer) and one.storage is Storage.int8
    ]
    OneBitInputs(one_bit_quantizers(model)).set_share(0.25)
    assert shares(model) == {0.25}
    assert len(eight_bits) == 4  # values and outputs
    assert {one.share.item() for one in eight_bits} == {1.0}


def test_a_training_that_is_resumed_goes_on_where_it_was() -> None:
    model = student()
    ramp = OneBitInputs(one_bit_quantizers(model))
    run: Any = type("Run", (), {"global_step": 3, "max_steps": 12})
    ramp.on_train_batch_start(run)
    assert shares(model) == {0.5}
