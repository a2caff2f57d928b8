"""All layers in one call: what the layers give one by one, and when they are called one by one."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from packed.layers_by_hand import binary, every_act, packed
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from bitmaps.bert import Bert
from bitmaps.bert.encoder import Encoder
from bitmaps.packed import kernels as native
from bitmaps.packed.encoder import PackedEncoder, Stack
from bitmaps.vocabulary import Act

pytestmark = pytest.mark.skipif(
    (found := native.kernels()) is None or not found.attends,
    reason="the kernels for this processor have no attention",
)


def model_of(act: Act = Act.a8, **changes: Any) -> Bert:
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 50}
    return packed(binary("layers", **(sizes | changes)), act)


IDS = torch.arange(21).view(3, 7)
MASK = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 6 + [0]])


def one_by_one(model: Bert, mask: Tensor | None) -> list[Tensor]:
    x = model.embeddings(IDS, torch.zeros_like(IDS))
    return Encoder.forward(model.encoder, x, None if mask is None else mask.bool()[:, None, None])


def agree(states: list[Tensor], others: list[Tensor]) -> bool:
    return len(states) == len(others) and all(map(torch.equal, states, others))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> mock.Mock:
    """Counts the calls of all layers at once."""
    spy = mock.Mock(side_effect=Stack.run)
    monkeypatch.setattr(Stack, "run", lambda self, *inputs: spy(self, *inputs))
    return spy


@every_act
@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "mask"])
def test_all_layers_at_once_are_the_layers_one_by_one(
    act: Act, mask: Tensor | None, runs: mock.Mock
) -> None:
    model = model_of(act)
    assert isinstance(model.encoder, PackedEncoder)
    states = model.encode(IDS, mask)
    assert runs.call_count == 1
    assert agree(states, one_by_one(model, mask))
    assert runs.call_count == 1


def replace_bias(layer: Any) -> None:
    layer.attention.query.bias = layer.attention.query.bias + 1


def replace_scale(layer: Any) -> None:
    layer.ffnn.expand.weight.high = 2 * layer.ffnn.expand.weight.high


def replace_gain(layer: Any) -> None:
    layer.ffnn.norm.weight = nn.Parameter(2 * layer.ffnn.norm.weight)


def replace_epsilon(layer: Any) -> None:
    layer.attention.norm.eps = 1.0


def replace_matrix(layer: Any) -> None:
    layer.attention.output = layer.attention.value


def change_in_place(layer: Any) -> None:
    layer.attention.norm.bias.data.add_(1)


@pytest.mark.parametrize(
    "replace",
    [replace_bias, replace_scale, replace_gain, replace_epsilon, replace_matrix, change_in_place],
)
def test_what_is_replaced_counts_from_the_next_call_on(
    replace: Callable[[Any], None], runs: mock.Mock
) -> None:
    model = model_of()
    before = model.encode(IDS)
    with torch.no_grad():
        replace(model.encoder.layers[1])
    after = model.encode(IDS)
    assert torch.equal(after[1], before[1])
    assert not torch.equal(after[2], before[2])
    assert agree(after, one_by_one(model, None))
    assert runs.call_count == 2


def test_a_hook_sees_every_layer(runs: mock.Mock) -> None:
    model, seen = model_of(), []
    expected = model.encode(IDS)
    first, second = model.encoder.layers
    handles = [
        block.register_forward_hook(lambda *given: seen.append(given[2]))
        for block in (first, second.attention, second.ffnn)
    ]
    assert agree(model.encode(IDS), expected)
    assert torch.equal(seen[0], expected[1])
    assert torch.equal(seen[2], expected[2])
    assert len(seen) == 3
    for handle in handles:
        handle.remove()
    model.encode(IDS)
    assert runs.call_count == 2


def test_a_hook_of_all_modules_sees_every_layer(runs: mock.Mock) -> None:
    model, seen = model_of(), []
    expected = model.encode(IDS)
    handle = register_module_forward_hook(lambda *given: seen.append(given[0]))
    try:
        assert agree(model.encode(IDS), expected)
    finally:
        handle.remove()
    assert {*model.encoder.layers} < {*seen}
    assert agree(model.encode(IDS), expected)
    assert runs.call_count == 2


def test_layers_are_called_one_by_one_where_they_have_to_be(runs: mock.Mock) -> None:
    model = model_of()
    x = model.embeddings(IDS, torch.zeros_like(IDS))
    pairs = torch.ones(3, 7, 7, dtype=torch.bool).tril()[:, None]
    model.encoder(x, pairs)
    model.encoder(x.bfloat16(), None)
    model.train().encoder(x, None)
    model.eval()
    model_of(hidden_act="relu").encode(IDS)
    model_of(num_attention_heads=4).encode(IDS)  # heads of 16 numbers
    packed(binary("ffnn", hidden_size=64, num_attention_heads=2), Act.a8).encode(IDS)
    assert runs.call_count == 0


def test_a_copy_computes_with_its_own_tensors(runs: mock.Mock) -> None:
    model = model_of()
    expected = model.encode(IDS)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    replace_bias(model.encoder.layers[0])
    model.encoder.layers[1].ffnn.norm.bias.data.add_(1)
    for found in copies:
        assert agree(found.encode(IDS), expected)
    assert not torch.equal(model.encode(IDS)[2], expected[2])
    assert runs.call_count == 4


def test_inputs_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="but the matrix takes 64 numbers"):
        model_of().encoder(torch.zeros(3, 7, 128), None)


def test_no_sentences_give_no_states() -> None:
    states = model_of().encode(torch.zeros(0, 7, dtype=torch.int64))
    assert [tuple(state.shape) for state in states] == [(0, 7, 64)] * 3
