"""Every way to run a BERT computes the same function, as far as its numbers allow."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bitmaps.bench import deployments
from bitmaps.bench.deployments import CONTENDERS, EAGER, FUSED, PEERS, Deployment, Predict
from bitmaps.bert import Bert, BertConfig
from bitmaps.vocabulary import Act

CONFIG = BertConfig(
    vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    max_position_embeddings=64, initializer_range=0.3,
)  # fmt: skip
EXACT = {EAGER, FUSED, "torch.compile", "ONNX Runtime fp32"}
BY_BATCH = {"torch int8 dynamic", "ONNX Runtime int8"}  # one scale for a whole batch
LIKENESS = {Act.a6: 0.98, Act.a8: 0.999, Act.a11: 0.9999, Act.a1: 0.1}  # to activations in fp32
FAST = {FUSED}

peers_of_tests = [
    pytest.param(peer, id=peer.name, marks=() if peer.name in FAST else pytest.mark.slow)
    for peer in PEERS
    if peer.has_head
]
quiet = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")


@pytest.fixture(scope="module")
def full() -> Bert:
    return Bert(CONFIG).randomize(torch.Generator().manual_seed(0)).eval()


@pytest.fixture(scope="module")
def open_one(
    full: Bert, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Deployment], Predict]:
    """Opens a deployment of ``full``, and skips the test if its packages are missing."""
    folder = tmp_path_factory.mktemp("deployments")
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randint(60, (1, 16), generator=generator) for _ in range(8)]

    def opened(one: Deployment) -> Predict:
        if one.missing:
            pytest.skip(f"{one.missing} not installed")
        predict = one.open(one.prepare(full, folder, batches))
        # an output may stay in the memory of the library until the next call
        return lambda *inputs: torch.as_tensor(predict(*inputs)).clone()

    return opened


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Three sequences, the second of which is shorter, and a position of each but for one more."""
    ids = torch.randint(60, (3, 9), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return ids, mask, torch.tensor([0, 4, 9, 11, 20])


def likeness(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])


def reference(model: Bert, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
    return model(ids, mask).flatten(0, 1)[positions]


@quiet
@torch.inference_mode()
@pytest.mark.parametrize("peer", peers_of_tests)
def test_a_peer_is_the_model_that_it_was_made_of(
    peer: Deployment,
    full: Bert,
    open_one: Callable[[Deployment], Predict],
    inputs: tuple[Tensor, Tensor, Tensor],
) -> None:
    predict, (ids, mask, positions) = open_one(peer), inputs
    found, wanted = predict(*inputs), reference(full, *inputs)
    assert found.shape == wanted.shape
    if peer.name in EXACT:
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert likeness(found, wanted) > 0.99
    check_mask(predict, inputs, peer.name in BY_BATCH)
    if peer.name == "torch.compile":
        return  # which takes half a minute for every further kind of shape
    assert predict(ids, mask, positions[:0]).shape == (0, 60)
    other = (ids[:1, :4], mask[:1, :4], positions[:2] // 2)  # another batch and length
    assert likeness(predict(*other), reference(full, *other)) > 0.99


@torch.inference_mode()
@pytest.mark.parametrize("quantization", ["Q8_0", "Q4_0"])
def test_llama_cpp_gives_the_mean_of_the_last_states(
    quantization: str,
    full: Bert,
    open_one: Callable[[Deployment], Predict],
    inputs: tuple[Tensor, Tensor, Tensor],
) -> None:
    predict, (ids, mask, positions) = open_one(deployments.llama_cpp(quantization)), inputs
    found = predict(ids, mask, positions[:0])
    kept = mask[..., None]
    wanted = (full.encode(ids, mask)[-1] * kept).sum(1) / kept.sum(1)
    assert found.shape == wanted.shape == (3, 32)
    assert likeness(found, wanted) > {"Q8_0": 0.999, "Q4_0": 0.9}[quantization]
    assert torch.equal(found, predict(torch.where(mask.bool(), ids, 59 - ids), mask, positions[:0]))


@torch.inference_mode()
@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda one: one.name)
def test_a_contender_rounds_its_activations_alone(
    contender: Deployment,
    open_one: Callable[[Deployment], Predict],
    inputs: tuple[Tensor, Tensor, Tensor],
) -> None:
    predict = open_one(contender)
    exact = open_one(replace(contender, open=lambda f: deployments.open_one_bit(f, Act.f32)))
    act = Act(contender.name.removeprefix("one bit, "))
    found, wanted = predict(*inputs), exact(*inputs)
    assert found.shape == wanted.shape == (5, 60)
    assert LIKENESS[act] < likeness(found, wanted) < 1
    check_mask(predict, inputs)
    assert predict(inputs[0], inputs[1], inputs[2][:0]).shape == (0, 60)


def check_mask(
    predict: Predict, inputs: tuple[Tensor, Tensor, Tensor], roughly: bool = False
) -> None:
    """What is in the place of padding changes nothing, unless the mask shows it."""
    ids, mask, positions = inputs
    other = torch.where(mask.bool(), ids, 59 - ids)
    of_second = positions // ids.shape[1] == 1  # which has the padding

    def change(mask: Tensor) -> float:
        one, two = predict(ids, mask, positions), predict(other, mask, positions)
        return float((one - two)[of_second].abs().max())

    shown = change(torch.ones_like(mask))
    assert shown > 0.5
    assert change(mask) < (0.3 * shown if roughly else 1e-5)


@pytest.mark.parametrize("contender", CONTENDERS[1:], ids=lambda one: one.name)
def test_the_files_of_a_contender_are_a_fraction(
    contender: Deployment, full: Bert, tmp_path: Path
) -> None:
    path = contender.prepare(full, tmp_path, [])
    whole = deployments.file_bytes(PEERS[0].prepare(full, tmp_path, []))
    assert 4 * sum(p.numel() for p in full.parameters()) < whole
    assert 0 < deployments.file_bytes(path) < whole / 2
    assert (path / "tokenizer.json").is_file()  # which is not counted
    (path / "tokenizer.json").write_bytes(bytes(whole))
    assert deployments.file_bytes(path) < whole / 2


def test_deployments_of_the_same_files_write_them_once(full: Bert, tmp_path: Path) -> None:
    eager, fused = (peer for peer in PEERS if peer.name in (EAGER, FUSED))
    path = eager.prepare(full, tmp_path, [])
    (path / "model.safetensors").write_bytes(b"kept")
    assert fused.prepare(full, tmp_path, []) == path
    assert (path / "model.safetensors").read_bytes() == b"kept"


def test_a_peer_that_cannot_run_is_left_out_with_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "nncf" else find("json")
    )
    monkeypatch.setattr(shutil, "which", lambda name: None)
    lines = deployments.left_out()
    assert [line.partition(" is left out: ")[0] for line in lines] == [
        "torch.compile",
        "OpenVINO int8",
    ]
    assert "g++ not installed" in lines[0]
    assert "nncf not installed" in lines[1]
    assert "[bench]" in lines[1]
    names = {one.name for one in deployments.installed()}
    assert names >= {FUSED, "OpenVINO", "one bit, a6"}
    assert not names & {"torch.compile", "OpenVINO int8"}
