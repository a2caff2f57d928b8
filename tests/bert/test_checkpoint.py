from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from bert.folders import (
    LAYER,
    rewrite,
    same,
    theirs,
    write_adapter,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import httpx
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitmaps.bert import Bert
from bitmaps.bert.checkpoint import load, save
from bitmaps.bert.finding import NotOnHubError, check_sha256, locate
from bitmaps.errors import InputError


def test_saved_model_loads_back_with_the_same_logits(tiny: Bert, folder: Path, ids: Tensor) -> None:
    model = load(folder)
    assert torch.equal(model(ids), tiny(ids))
    assert model.config == tiny.config
    assert not model.training
    assert all(p.requires_grad and not p.is_meta for p in model.parameters())


def test_saved_model_opens_in_transformers_with_the_same_logits(
    tiny: Bert, folder: Path, ids: Tensor
) -> None:
    model, report = transformers.BertForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    same(model.eval()(ids).logits, tiny(ids))


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_model_loads_with_the_same_logits_and_ties(
    tiny: Bert, tmp_path: Path, ids: Tensor, tied: bool
) -> None:
    reference = theirs(tiny, tie_word_embeddings=tied)
    reference.save_pretrained(tmp_path)
    model = load(tmp_path)
    same(model(ids), reference(ids).logits)
    assert (model.head.decoder.weight is model.embeddings.word.weight) is tied


@pytest.mark.parametrize("tied", [True, False])
def test_round_trip_keeps_ties_and_writes_a_tied_tensor_once(
    tiny: Bert, tmp_path: Path, ids: Tensor, tied: bool
) -> None:
    theirs(tiny, tie_word_embeddings=tied).save_pretrained(tmp_path / "a")
    model = load(tmp_path / "a")
    save(model, tmp_path / "b")
    again = load(tmp_path / "b")
    assert torch.equal(again(ids), model(ids))
    assert (again.head.decoder.weight is again.embeddings.word.weight) is tied
    assert (
        "cls.predictions.decoder.weight" in load_file(tmp_path / "b" / "model.safetensors")
    ) is not tied


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_body_without_head_loads_only_with_a_new_head(
    tiny: Bert, tmp_path: Path, ids: Tensor, prefix: str
) -> None:
    body = theirs(tiny).bert
    body.save_pretrained(tmp_path)
    rewrite(
        tmp_path,
        lambda tensors: {prefix + name.removeprefix("bert."): t for name, t in tensors.items()},
    )
    with pytest.raises(InputError, match=r"model\.head=new"):
        load(tmp_path)
    model = load(tmp_path, head="new")
    same(model.encode(ids)[-1], body(ids).last_hidden_state)
    assert model.head.decoder.weight is model.embeddings.word.weight
    assert not model.head.transform.bias.any()
    assert model.head.transform.weight.std() > 0.1


def test_new_head_is_not_used_where_the_checkpoint_has_one(
    tiny: Bert, folder: Path, ids: Tensor
) -> None:
    assert torch.equal(load(folder, head="new")(ids), tiny(ids))


def test_saving_over_a_model_is_refused(tiny: Bert, folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError):
        save(tiny.randomize(), folder)
    assert (folder / "model.safetensors").read_bytes() == before


def test_sha256_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"weights" * 100_000)
    check_sha256(path, hashlib.sha256(b"weights" * 100_000).hexdigest())
    with pytest.raises(InputError, match=f"{path} has SHA-256 .* not {'0' * 64}"):
        check_sha256(path, "0" * 64)
    with pytest.raises(InputError, match="missing"):
        check_sha256(tmp_path / "none", "0" * 64)


def test_run_folder_leads_to_its_model(tiny: Bert, tmp_path: Path) -> None:
    save(tiny, tmp_path / "run" / "model")
    assert locate(str(tmp_path / "run")) == tmp_path / "run" / "model"
    assert locate(str(tmp_path / "run" / "model")) == tmp_path / "run" / "model"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Python package that cannot be imported."""
    folder = tmp_path / "carrier_of_a_model"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_model_inside_a_package_is_found_without_importing_it(
    tiny: Bert, package: Path, ids: Tensor
) -> None:
    save(tiny, package / "model")
    assert torch.equal(load("package:carrier_of_a_model/model")(ids), tiny(ids))


@pytest.mark.parametrize(
    "source", ["package:not_installed/model", "package:not.installed/model", "package:/model"]
)
def test_package_that_is_not_installed_says_what_to_install(source: str) -> None:
    with pytest.raises(InputError, match=r"pip install -c constraints.txt -e '\.\[offline\]'"):
        locate(source)


@pytest.mark.usefixtures("package")
def test_package_without_the_folder_is_an_input_error() -> None:
    with pytest.raises(InputError, match="carrier_of_a_model"):
        load("package:carrier_of_a_model/none")


@pytest.mark.usefixtures("no_hub")
def test_missing_or_empty_folder_is_an_input_error(tmp_path: Path) -> None:
    for source in (tmp_path, tmp_path / "none", "./none", "~/none", "a/b/c"):
        with pytest.raises(InputError, match="holds no model"):
            locate(str(source))


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(*_: Any, **__: Any) -> str:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)


def http_error() -> HfHubHTTPError:
    request = httpx.Request("GET", "https://huggingface.co")
    return HfHubHTTPError("401", response=httpx.Response(401, request=request))


@pytest.mark.parametrize(
    "error", [LocalEntryNotFoundError("not cached"), http_error(), ConnectionError("no route")]
)
def test_an_unreachable_hub_is_named_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def snapshot_download(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    reason = type(error).__name__
    with pytest.raises(NotOnHubError, match=f"'some/model' is not a folder here.*{reason}"):
        locate("some/model")


def test_what_cannot_be_a_hub_id_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(*_: Any, **__: Any) -> str:
        raise HFValidationError("bad characters")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(InputError, match=r"'no id!'.*bad characters"):
        locate("no id!")


def test_hub_id_is_downloaded_without_pickles(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    asked = []

    def snapshot_download(source: str, allow_patterns: list[str]) -> str:
        asked.append((source, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert locate("some/model") == folder
    [(source, patterns)] = asked
    assert source == "some/model"
    assert not any(
        Path(file).match(p)
        for p in patterns
        for file in ("pytorch_model.bin", "flax_model.msgpack")
    )
    assert all(
        any(Path(file).match(p) for p in patterns) for file in ("model.safetensors", "config.json")
    )


def test_adapter_adds_low_rank_products_and_replaces_tensors(folder: Path, tmp_path: Path) -> None:
    module = LAYER.removesuffix(".weight")
    bias = "bert.encoder.layer.0.output.dense.bias"
    adapter = {
        f"{module}.lora_A.weight": torch.randn(3, 16).half(),
        f"{module}.lora_B.weight": torch.randn(24, 3).half(),
        bias: torch.randn(16).half(),
    }
    base = folder / "model.safetensors"
    before = base.read_bytes()
    original = load_file(base)
    model = load(folder, adapter=write_adapter(tmp_path, adapter, base))

    a, b = (adapter[f"{module}.lora_{x}.weight"].numpy().astype(np.float64) for x in "AB")
    changed = dict(model.named_parameters())
    np.testing.assert_allclose(
        changed.pop("encoder.layers.1.ffnn.expand.weight").detach().numpy(),
        original[LAYER].numpy() + b @ a,
        atol=1e-5,
    )
    assert torch.equal(changed.pop("encoder.layers.0.ffnn.contract.bias"), adapter[bias].float())
    unchanged = dict(load(folder).named_parameters())
    assert all(torch.equal(parameter, unchanged[name]) for name, parameter in changed.items())
    assert base.read_bytes() == before


def test_adapter_supplies_a_missing_head(
    tiny: Bert, folder: Path, tmp_path: Path, ids: Tensor
) -> None:
    whole = load_file(folder / "model.safetensors")
    rewrite(
        folder, lambda tensors: {name: t for name, t in tensors.items() if name.startswith("bert.")}
    )
    head = {name: t for name, t in whole.items() if name.startswith("cls.")}
    adapter = write_adapter(tmp_path, head, folder / "model.safetensors")
    assert torch.equal(load(folder, adapter=adapter)(ids), tiny(ids))


def test_adapter_of_another_checkpoint_is_refused(tiny: Bert, folder: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path, {LAYER: torch.zeros(24, 16)}, folder / "model.safetensors")
    save(tiny.randomize(), tmp_path / "other")
    with pytest.raises(InputError, match=r"other/model\.safetensors has SHA-256"):
        load(tmp_path / "other", adapter=adapter)


def test_adapter_without_its_checkpoints_hash_is_an_input_error(
    folder: Path, tmp_path: Path
) -> None:
    save_file({LAYER: torch.zeros(24, 16)}, tmp_path / "adapter.safetensors")
    with pytest.raises(InputError, match=r"adapter\.safetensors"):
        load(folder, adapter=tmp_path / "adapter.safetensors")


@pytest.mark.parametrize("name", [f"{LAYER.removesuffix('weight')}lora_A.weight", LAYER])
@pytest.mark.parametrize("wrong", [torch.full((24, 16), float("nan")), torch.ones(24, 16).long()])
def test_an_adapter_of_no_finite_numbers_is_named(
    folder: Path, tmp_path: Path, name: str, wrong: Tensor
) -> None:
    adapter = write_adapter(tmp_path, {name: wrong}, folder / "model.safetensors")
    with pytest.raises(InputError, match=rf"adapter\.safetensors: {re.escape(name)} holds"):
        load(folder, adapter=adapter)
