from __future__ import annotations

import random

import pytest
import torch
import transformers
from torch import Tensor, nn

from bitmaps.bert import Bert, BertConfig
from bitmaps.bert.attention import Attention
from bitmaps.bert.checkpoint import build, hugging_face_name
from bitmaps.errors import InputError

ACTIVATIONS = ("gelu", "gelu_new", "relu", "silu")


def pair(config: BertConfig, seed: int = 0) -> tuple[Bert, transformers.BertForMaskedLM]:
    """Our model and the one of ``transformers``, with the same random weights."""
    torch.manual_seed(seed)
    theirs = transformers.BertForMaskedLM(transformers.BertConfig(**config.to_dict()))
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.normal_(1.0 if name.endswith("LayerNorm.weight") else 0.0, 0.3)
    ours = build(config, {name: tensor.clone() for name, tensor in theirs.state_dict().items()})
    return ours, theirs.eval()


def random_pair(seed: int) -> tuple[Bert, transformers.BertForMaskedLM, dict[str, Tensor]]:
    draw = random.Random(seed)
    heads = draw.choice((1, 2, 3, 4))
    config = BertConfig(
        vocab_size=draw.randint(20, 80),
        hidden_size=heads * draw.randint(4, 9),
        num_hidden_layers=draw.randint(1, 3),
        num_attention_heads=heads,
        intermediate_size=draw.randint(5, 40),
        hidden_act=ACTIVATIONS[seed % 4],
        max_position_embeddings=draw.randint(9, 14),
        type_vocab_size=draw.randint(1, 3),
        layer_norm_eps=draw.choice((1e-12, 1e-5)),
        pad_token_id=draw.randint(0, 5),
        tie_word_embeddings=draw.random() < 0.5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    ours, theirs = pair(config, seed)
    length = draw.randint(2, 9)
    lengths = torch.tensor([length, *(draw.randint(1, length) for _ in range(3))])
    mask = torch.arange(length)[None] < lengths[:, None]
    ids = torch.randint(config.vocab_size, mask.shape).where(
        mask, torch.tensor(config.pad_token_id)
    )
    types = torch.randint(config.type_vocab_size, mask.shape)
    return ours, theirs, {"input_ids": ids, "attention_mask": mask.long(), "token_type_ids": types}


@pytest.mark.parametrize("seed", range(24))
def test_logits_and_gradients_are_those_of_transformers(seed: int) -> None:
    ours, theirs, batch = random_pair(seed)
    ours.train(seed % 3 == 0)  # dropout is 0
    tokens = batch["attention_mask"].bool()
    logits, expected = ours(**batch)[tokens], theirs(**batch).logits[tokens]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)

    direction = torch.randn_like(expected) / len(expected) ** 0.5
    (logits * direction).sum().backward()
    (expected * direction).sum().backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    gradients.setdefault(
        "cls.predictions.decoder.bias", gradients["cls.predictions.bias"]
    )  # one, if tied
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad, gradients[hugging_face_name(name)], atol=1e-4, rtol=0
        )


def test_hidden_states_are_those_of_transformers() -> None:
    ours, theirs, batch = random_pair(5)
    expected = theirs(**batch, output_hidden_states=True).hidden_states
    states = ours.encode(**batch)
    assert len(states) == len(expected) == ours.config.num_hidden_layers + 1
    tokens = batch["attention_mask"].bool()
    for state, other in zip(states, expected, strict=True):
        torch.testing.assert_close(state[tokens], other[tokens], atol=1e-5, rtol=0)


def test_without_mask_and_types_everything_is_attended_to_and_of_type_0(
    tiny: Bert, ids: Tensor
) -> None:
    logits = tiny(ids)
    torch.testing.assert_close(
        logits, tiny(ids, torch.ones_like(ids), torch.zeros_like(ids)), atol=1e-5, rtol=0
    )
    assert not torch.allclose(logits, tiny(ids, token_type_ids=torch.ones_like(ids)), atol=1e-2)


def test_logits_at_positions_are_the_full_logits_there(tiny: Bert, ids: Tensor) -> None:
    positions = torch.rand(ids.shape, generator=torch.Generator().manual_seed(2)) < 0.4
    logits = tiny(ids, positions=positions)
    assert logits.shape == (int(positions.sum()), 60)
    torch.testing.assert_close(logits, tiny(ids)[positions], atol=1e-5, rtol=0)


def test_no_positions_give_no_logits(tiny: Bert, ids: Tensor) -> None:
    assert tiny(ids, positions=torch.zeros_like(ids, dtype=torch.bool)).shape == (0, 60)


def test_sequence_may_be_as_long_as_the_positions_and_no_longer(tiny: Bert) -> None:
    assert tiny(torch.zeros(1, 12, dtype=torch.long)).shape == (1, 12, 60)
    with pytest.raises(InputError, match=r"13 tokens.* 12 positions"):
        tiny(torch.zeros(1, 13, dtype=torch.long))


def test_new_model_starts_as_bert_does() -> None:
    model = Bert(
        BertConfig(vocab_size=500, hidden_size=96, num_hidden_layers=1, intermediate_size=200)
    )
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            assert 0.015 < parameter.std().item() < 0.025, name
        else:
            assert (parameter == (1.0 if name.endswith("norm.weight") else 0.0)).all(), name


def test_randomize_leaves_no_tensor_two_valued_and_gains_around_one() -> None:
    model = Bert(
        BertConfig(vocab_size=50, hidden_size=60, num_hidden_layers=2, intermediate_size=20)
    ).randomize()
    for name, parameter in model.named_parameters():
        assert parameter.unique().numel() > 2, name
        assert abs(parameter.mean().item() - name.endswith("norm.weight")) < 0.02, name


def test_randomize_is_reproducible(tiny: Bert) -> None:
    first = [p.clone() for p in tiny.randomize(torch.Generator().manual_seed(3)).parameters()]
    second = tiny.randomize(torch.Generator().manual_seed(3)).parameters()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_dropout_0_in_training_mode_is_evaluation_mode(tiny: Bert, ids: Tensor) -> None:
    expected = tiny(ids)
    assert not torch.allclose(tiny.train()(ids), expected, atol=1e-3)
    assert torch.equal(tiny.set_dropout(0.0)(ids), expected)


@pytest.mark.parametrize("kept", ["hidden", "attention"])
def test_set_dropout_reaches_hidden_states_and_attention(
    tiny: Bert, ids: Tensor, kept: str
) -> None:
    expected = tiny(ids)
    tiny.set_dropout(0.5).train()
    for module in tiny.modules():
        if isinstance(module, nn.Dropout) and kept == "attention":
            assert module.p == 0.5
            module.p = 0.0
        if isinstance(module, Attention) and kept == "hidden":
            assert module.attention_dropout == 0.5
            module.attention_dropout = 0.0
    assert not torch.allclose(tiny(ids), expected, atol=1e-2)
    assert torch.equal(tiny.eval()(ids), expected)


def test_tied_decoder_is_the_word_embeddings_parameter() -> None:
    sizes = {"vocab_size": 20, "hidden_size": 12, "num_hidden_layers": 1, "intermediate_size": 8}
    tied, untied = Bert(BertConfig(**sizes)), Bert(BertConfig(**sizes, tie_word_embeddings=False))
    assert tied.head.decoder.weight is tied.embeddings.word.weight
    assert untied.head.decoder.weight is not untied.embeddings.word.weight
    assert len(list(untied.parameters())) == len(list(tied.parameters())) + 1


@pytest.mark.parametrize("trained", [False, True])
def test_attention_in_bf16_is_close_to_fp32_and_of_its_type(trained: bool) -> None:
    """A CPU takes another way where there will be gradients."""
    config = BertConfig(
        hidden_size=64,
        num_attention_heads=2,
        num_hidden_layers=1,
        intermediate_size=64,
        vocab_size=50,
    )
    attention = Bert(config).randomize(torch.Generator().manual_seed(0)).encoder.layers[0].attention
    attention.attention_dropout = 0.0
    x, mask = (
        torch.randn(3, 7, 64, generator=torch.Generator().manual_seed(1)),
        torch.ones(3, 1, 1, 7, dtype=torch.bool),
    )
    mask[1, ..., 4:] = False
    q, k, v = (y.detach().requires_grad_(trained) for y in attention.project(x))
    halves = [y.detach().bfloat16().requires_grad_(trained) for y in (q, k, v)]
    expected = attention.attend(q, k, v, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = attention.attend(*halves, mask)
    assert actual.dtype == torch.bfloat16
    assert (actual - expected).norm() < 0.01 * expected.norm()
    if trained:
        (expected * expected.detach()).sum().backward()
        (actual * expected.detach()).sum().backward()
        for half, full in zip(halves, (q, k, v), strict=True):
            assert half.grad is not None
            assert full.grad is not None
            assert half.grad.dtype == torch.bfloat16
            assert (half.grad - full.grad).norm() < 0.03 * full.grad.norm()
