from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from transformers.activations import ACT2FN

from bitmaps.bert import BertConfig
from bitmaps.bert.activations import COMMON, LEARNED, activation
from bitmaps.errors import InputError


@pytest.mark.parametrize("name", [*COMMON, "mish", "quick_gelu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_function_is_that_of_transformers_to_the_bit(name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([3 * torch.randn(10_000, generator=generator), torch.tensor([0.0, -0.0, 1e30])])
    x = x.to(dtype)
    assert torch.equal(activation(name)(x), ACT2FN[name](x))


def test_the_common_ones_are_names_of_transformers() -> None:
    assert COMMON.keys() <= set(ACT2FN)


def test_learned_functions_are_those_with_parameters() -> None:
    assert {name for name in ACT2FN if list(ACT2FN[name].parameters())} == LEARNED


@pytest.mark.parametrize("wrong", ["gelu2", "", None, ["gelu"], "prelu", "xielu"])
def test_another_name_is_refused_with_the_valid_ones(wrong: object) -> None:
    with pytest.raises(
        InputError, match=r"^unknown hidden_act .*; valid are gelu, gelu_10, (?!.*prelu).*tanh$"
    ):
        BertConfig(hidden_act=wrong)  # type: ignore[arg-type]


@pytest.mark.slow
def test_transformers_is_imported_for_rare_functions_alone() -> None:
    code = (
        "import sys; from bitmaps.bert import Bert, BertConfig;"
        "sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=9);"
        "Bert(BertConfig(hidden_act='gelu_new', **sizes));"
        "assert 'transformers' not in sys.modules;"
        "Bert(BertConfig(hidden_act='mish', **sizes))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
