"""What is said of a mistake that Hydra or OmegaConf finds: one line."""

from __future__ import annotations

import pytest
from command.commands import composed
from hydra.errors import ConfigCompositionException, HydraException

from bitmaps.command.mistakes import one_line
from bitmaps.errors import InputError


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("loss=best", "loss=best is unknown; valid are bibert, bit, bwn, common, onebit, tokens"),
        ("seed=abc", "seed: Value 'abc' of type 'str' could not be converted to Integer"),
        ("data.split=dev", "data.split: Invalid value 'dev', expected one of [validation, test]"),
        (
            "optimizer.rate=1",
            "there is no optimizer.rate; valid are optimizer._target_, optimizer.lr, optimizer.weight_decay",
        ),
        (
            "a b=1",
            "a b=1 cannot be read: unexpected ' '; valid is key=value, with special characters in quotes: "
            "'key=\"value\"'",
        ),
    ],
)
def test_a_line_says_what_and_where_and_the_valid_values(override: str, line: str) -> None:
    with pytest.raises(HydraException) as caught:
        composed("train", override)
    assert str(one_line(caught.value)) == line


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("max_steps=10", "fine_tuning.max_steps or trainer.max_steps"),
        ("lr=1e-3", "fine_tuning.lr or optimizer.lr"),
        ("trainer.devises=2", "trainer.devices"),
        ("mask_sed=3", "mask_seed or mask_sets"),
        ("data.split_=test", "data.split"),
    ],
)
def test_a_key_that_is_not_there_names_the_one_that_was_meant(override: str, meant: str) -> None:
    with pytest.raises(HydraException) as caught:
        composed("train", override)
    key = override.partition("=")[0]
    line = str(one_line(caught.value))
    assert line.startswith(f"there is no {key}; did you mean {meant}? valid are ")


def test_a_line_is_printable_and_not_endless() -> None:
    error = ConfigCompositionException(
        "first\n\tsecond \x1b[31m" + "x" * 5000 + "\n  full_key: seed"
    )
    line = str(one_line(error))
    assert line.startswith(r"seed: first second \x1b[31mxxx")
    assert line.isprintable()
    assert len(line) < 1010


def test_a_mistake_of_ours_is_said_as_it_is() -> None:
    assert str(one_line(InputError("seed=-1 is too small; valid is 0 or more"))) == (
        "seed=-1 is too small; valid is 0 or more"
    )
