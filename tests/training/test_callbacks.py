"""Inputs that a training rounds gradually, or from one step on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning import Callback
from scoring.examples import Sentences, of_lightning, tiny, trainer

from bitmaps.bert import Bert
from bitmaps.quantize.convert import make_trainable, round_activations
from bitmaps.quantize.quantizer import Quantization
from bitmaps.quantize.rounding import InputQuantizer, input_quantizers
from bitmaps.training.callbacks import RoundedInputs, ValidatesLastStep
from bitmaps.training.module import MaskedLanguageModel
from bitmaps.vocabulary import Act, Activations, Component

pytestmark = of_lightning

ONE_BIT = ("query", "key")


def student() -> Bert:
    model = make_trainable(tiny(), [Component.attention], Quantization(), one_bit=ONE_BIT)
    return round_activations(model, [Component.attention], Activations.bit, ONE_BIT)


def shares(model: Bert, act: Act = Act.a1) -> set[float]:
    found = [one for one in input_quantizers(model) if one.act is act]
    assert len(found) == 4  # queries and keys, or values and outputs, of two layers
    return {one.share.item() for one in found}


class Seen(Callback):
    """The shares of one-bit inputs and of int8 in each training step, and in each validation."""

    def __init__(self, model: Bert) -> None:
        self.model = model
        self.trained: list[tuple[set[float], set[float]]] = []
        self.validated: list[tuple[set[float], set[float]]] = []

    def shares(self) -> tuple[set[float], set[float]]:
        return shares(self.model), shares(self.model, Act.a8)

    def on_before_backward(self, *_: Any) -> None:
        self.trained.append(self.shares())

    def on_validation_batch_end(self, *_: Any) -> None:
        self.validated.append(self.shares())


@pytest.fixture(scope="module")
def trained() -> tuple[Bert, Seen]:
    model = student()
    seen = Seen(model)
    module = MaskedLanguageModel(
        model.train(), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01)
    )
    rounding = RoundedInputs(input_quantizers(model), 0.75)
    trainer(max_steps=8, val_check_interval=2, callbacks=[rounding, seen]).fit(
        module, datamodule=Sentences()
    )
    return model, seen


def test_the_share_of_signs_rises_over_the_first_half(trained: tuple[Bert, Seen]) -> None:
    _, seen = trained
    signs = [of_signs for of_signs, _ in seen.trained]
    assert signs == [{0.0}, {0.25}, {0.5}, {0.75}, *[{1.0}] * 4]


def test_other_inputs_are_rounded_from_the_step_that_was_asked_for(
    trained: tuple[Bert, Seen],
) -> None:
    _, seen = trained
    assert [of_int8 for _, of_int8 in seen.trained] == [*[{0.0}] * 6, {1.0}, {1.0}]


def test_validation_and_the_trained_model_round_all_inputs(trained: tuple[Bert, Seen]) -> None:
    model, seen = trained
    assert seen.validated == [({1.0}, {1.0})] * 8  # two batches, four times
    assert shares(model) == shares(model, Act.a8) == {1.0}


def test_a_share_is_a_mixture_of_floats_and_signs() -> None:
    quantizer = InputQuantizer(Act.a1)
    x = torch.tensor([[1.0, -3.0]])
    for share, expected in ((0.0, [1.0, -3.0]), (0.5, [1.5, -2.5]), (1.0, [2.0, -2.0])):
        RoundedInputs([quantizer]).set_shares(share, 1.0)
        assert quantizer(x).tolist() == [expected]
    assert not quantizer.state_dict()  # nothing of it is in a checkpoint


class Validations(Callback):
    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_validation_end(self, trainer: Any, *_: Any) -> None:
        self.steps.append(trainer.global_step)


@pytest.mark.parametrize(
    ("steps", "every", "batches", "expected"),
    [(5, 2, 1, [2, 4, 5]), (4, 2, 1, [2, 4]), (1, 3, 1, [1]), (3, 2, 2, [2, 3])],
)
def test_the_last_step_is_validated_once(
    steps: int, every: int, batches: int, expected: list[int]
) -> None:
    module = MaskedLanguageModel(
        student().train(), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01)
    )
    seen = Validations()
    trainer(
        max_steps=steps,
        val_check_interval=every * batches,
        accumulate_grad_batches=batches,
        callbacks=[ValidatesLastStep(), seen],
    ).fit(module, datamodule=Sentences())
    assert seen.steps == expected


@pytest.mark.parametrize(("start", "int8"), [(0.0, 1.0), (0.25, 1.0), (0.26, 0.0), (1.0, 0.0)])
def test_a_training_that_is_resumed_goes_on_where_it_was(start: float, int8: float) -> None:
    model = student()
    rounding = RoundedInputs(input_quantizers(model), start)
    run: Any = type("Run", (), {"global_step": 3, "max_steps": 12})
    rounding.on_train_batch_start(run)
    assert shares(model) == {0.5}
    assert shares(model, Act.a8) == {int8}
