"""What an adapter trains, and that its file gives the trained model back."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from bitmaps.adapters.low_rank import adapter_tensors, add_low_rank
from bitmaps.bert import Bert
from bitmaps.bert.checkpoint import load, save
from bitmaps.bert.finding import sha256

RANK = 3


def adapted(model: Bert) -> Bert:
    model = copy.deepcopy(model)
    add_low_rank(model, RANK)
    return model


@torch.inference_mode()
def test_new_factors_change_nothing(tiny: Bert, ids: Tensor) -> None:
    assert torch.equal(adapted(tiny)(ids), tiny(ids))


def test_factors_biases_norms_and_head_are_trained_and_no_matrix(tiny: Bert) -> None:
    parameters = dict(adapted(tiny).named_parameters())
    frozen = {name for name, p in parameters.items() if not p.requires_grad}
    tables = {f"embeddings.{table}.weight" for table in ("word", "position", "token_type")}
    assert tables <= frozen
    linears = [name for name in frozen - tables if ".linear.weight" in name]
    assert set(linears) == frozen - tables
    assert len(linears) == 2 * 6  # six matrices in each of two layers
    assert "head.transform.weight" in parameters.keys() - frozen


@torch.inference_mode()
def test_a_trained_adapter_loads_as_the_model_that_was_trained(
    tiny: Bert, ids: Tensor, tmp_path: Path
) -> None:
    save(tiny, tmp_path / "base")
    model = adapted(tiny)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            change = 0.1 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_((parameter + change).half())  # as the file stores it
    base = sha256(tmp_path / "base" / "model.safetensors")
    file = tmp_path / "adapter.safetensors"
    save_file(adapter_tensors(model), file, {"format": "pt", "base_sha256": base})
    loaded = load(tmp_path / "base", adapter=file)
    torch.testing.assert_close(loaded(ids), model(ids), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(loaded(ids), tiny(ids), atol=0.01)
