from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import httpx
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitmaps.bert import Bert, checkpoint
from bitmaps.bert.checkpoint import check_sha256, load, locate, save
from bitmaps.errors import InputError

LAYER = "bert.encoder.layer.1.intermediate.dense.weight"


@pytest.fixture
def folder(tiny: Bert, tmp_path: Path) -> Path:
    """``tiny`` as this project writes it."""
    save(tiny, tmp_path / "saved")
    return tmp_path / "saved"


def theirs(tiny: Bert, **changes: Any) -> transformers.BertForMaskedLM:
    torch.manual_seed(4)
    model = transformers.BertForMaskedLM(
        transformers.BertConfig(**(tiny.config.to_dict() | changes))
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.2, 0.3)
    return model.eval()


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(
        {name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors"
    )


def reconfigure(folder: Path, **changes: Any) -> None:
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(values | changes), encoding="utf-8")


def same(logits: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


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


@pytest.mark.parametrize("tied", [True, False])
def test_sharded_checkpoint_is_read_whole(
    tiny: Bert, tmp_path: Path, ids: Tensor, tied: bool
) -> None:
    reference = theirs(tiny, vocab_size=300, intermediate_size=200, tie_word_embeddings=tied)
    reference.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    same(load(tmp_path)(ids), reference(ids).logits)


def test_missing_shard_is_named(tiny: Bert, tmp_path: Path) -> None:
    theirs(tiny, vocab_size=300, intermediate_size=200).save_pretrained(
        tmp_path, max_shard_size="20KB"
    )
    shard = min(tmp_path.glob("*.safetensors"))
    shard.unlink()
    with pytest.raises(InputError, match=f"{shard.name} is missing"):
        load(tmp_path)


def test_damaged_index_is_named(tiny: Bert, tmp_path: Path) -> None:
    theirs(tiny, vocab_size=300, intermediate_size=200).save_pretrained(
        tmp_path, max_shard_size="20KB"
    )
    index = tmp_path / "model.safetensors.index.json"
    index.write_bytes(index.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"model\.safetensors\.index\.json"):
        load(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loads_as_fp32(tiny: Bert, tmp_path: Path, dtype: torch.dtype) -> None:
    reference = theirs(tiny).to(dtype)
    reference.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(
        model.embeddings.word.weight, reference.bert.embeddings.word_embeddings.weight.float()
    )


def test_old_names_and_other_tasks_tensors_are_understood(
    tiny: Bert, folder: Path, ids: Tensor
) -> None:
    old = {
        "LayerNorm.weight": "LayerNorm.gamma",
        "LayerNorm.bias": "LayerNorm.beta",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }

    def age(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        for new, name in old.items():
            tensors = {k.replace(new, name): v for k, v in tensors.items()}
        return tensors | {
            "bert.embeddings.position_ids": torch.arange(12)[None],
            "bert.pooler.dense.weight": torch.zeros(16, 16),
            "cls.seq_relationship.bias": torch.zeros(2),
        }

    rewrite(folder, age)
    assert "bert.embeddings.LayerNorm.gamma" in load_file(folder / "model.safetensors")
    assert torch.equal(load(folder)(ids), tiny(ids))


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


def test_missing_weights_are_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no model\.safetensors$"):
        load(folder)


def test_pickle_is_never_read(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"pytorch_model\.bin is a pickle"):
        load(folder)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_file_is_named(folder: Path, kept: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"model\.safetensors is truncated"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "roberta"}, "'roberta'"),
        ({"num_hidden_layers": 3}, r"num_hidden_layers=3, but the checkpoint has 2 layers$"),
        ({"num_hidden_layers": 1}, r"num_hidden_layers=1, but the checkpoint has 2 layers$"),
        ({"num_hidden_layers": 10**9}, r"num_hidden_layers=1000000000, but .* 2 layers$"),
        ({"vocab_size": 64}, r"vocab_size=64, but .*word_embeddings.weight has shape \(60, 16\)$"),
        ({"hidden_size": 2**62}, r"hidden_size=\d+, but .*word_embeddings.* has shape \(60, 16\)$"),
        (
            {"max_position_embeddings": 9},
            r"max_position_embeddings=9, but .* has shape \(12, 16\)$",
        ),
        ({"type_vocab_size": 1}, r"type_vocab_size=1, but .* has shape \(2, 16\)$"),
        ({"intermediate_size": 25}, r"intermediate_size=25, but .* has shape \(24, 16\)$"),
    ],
)
def test_another_architecture_is_an_input_error(
    folder: Path, changes: dict[str, Any], named: str
) -> None:
    reconfigure(folder, **changes)
    with pytest.raises(InputError, match=named):
        load(folder)


@pytest.mark.parametrize("head", ["checkpoint", "new"])
def test_missing_layer_tensor_is_named(folder: Path, head: checkpoint.Head) -> None:
    rewrite(folder, lambda tensors: {name: t for name, t in tensors.items() if name != LAYER})
    with pytest.raises(InputError, match=f"lacks {LAYER}"):
        load(folder, head=head)


WORDS = "bert.embeddings.word_embeddings.weight"
DECODER = "cls.predictions.decoder.weight"


def opened_by_transformers(folder: Path, ids: Tensor) -> Tensor:
    """Its logits, of a folder in which it misses nothing."""
    model, report = transformers.BertForMaskedLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    assert not report["missing_keys"]
    return model.eval()(ids).logits


@pytest.mark.parametrize(
    ("content", "tied"),
    [
        (lambda words: {DECODER: words}, True),  # both, and the same
        (lambda words: {DECODER: words.flip(0)}, False),  # both, and different
        (lambda words: {DECODER: words, WORDS: None}, True),  # the decoder alone
    ],
)
def test_what_the_file_ties_is_tied(
    tiny: Bert, folder: Path, ids: Tensor, tmp_path: Path, content: Any, tied: bool
) -> None:
    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors |= content(tensors[WORDS])
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    rewrite(folder, change)
    model = load(folder)
    same(model(ids), opened_by_transformers(folder, ids))
    assert torch.equal(model(ids), tiny(ids)) is tied
    assert model.config.tie_word_embeddings is tied
    assert (model.head.decoder.weight is model.embeddings.word.weight) is tied
    save(model, tmp_path / "again")
    same(opened_by_transformers(tmp_path / "again", ids), model(ids))


def test_an_adapter_changes_both_names_of_a_tied_matrix(
    tiny: Bert, folder: Path, tmp_path: Path, ids: Tensor
) -> None:
    low_rank = {
        WORDS.replace("weight", "lora_A.weight"): torch.randn(1, 16),
        WORDS.replace("weight", "lora_B.weight"): torch.randn(60, 1),
    }
    base = folder / "model.safetensors"
    expected = load(folder, adapter=write_adapter(tmp_path, low_rank, base))(ids)
    rewrite(folder, lambda tensors: tensors | {DECODER: tensors[WORDS]})
    model = load(folder, adapter=write_adapter(tmp_path, low_rank, base))
    assert model.config.tie_word_embeddings
    assert torch.equal(model(ids), expected)


def test_an_untied_model_without_decoder_is_told_of_the_tie(folder: Path) -> None:
    reconfigure(folder, tie_word_embeddings=False)
    with pytest.raises(
        InputError, match=rf"lacks {DECODER}: .* only if config.json says tie_word_embeddings=true$"
    ):
        load(folder, head="new")


@pytest.mark.parametrize("head", ["checkpoint", "new"])
@pytest.mark.parametrize(
    ("lost", "named"), [("decoder.bias", "decoder.bias"), ("transform", "transform.LayerNorm.bias")]
)
def test_half_a_head_is_not_thrown_away(
    folder: Path, head: checkpoint.HeadSource, lost: str, named: str
) -> None:
    rewrite(
        folder,
        lambda tensors: {n: t for n, t in tensors.items() if f"predictions.{lost}" not in n},
    )
    with pytest.raises(
        InputError,
        match=rf"lacks cls\.predictions\.{named}.*: a part of its masked-language-model head",
    ) as error:
        load(folder, head=head)
    assert "head=new" not in str(error.value)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.model."])
@pytest.mark.parametrize("body", [False, True])
def test_the_prefix_of_a_wrapper_is_dropped(
    tiny: Bert, folder: Path, ids: Tensor, prefix: str, body: bool
) -> None:
    start = "bert." if body else ""
    rewrite(
        folder,
        lambda tensors: (
            {
                prefix + name.removeprefix("bert."): t
                for name, t in tensors.items()
                if name.startswith(start)
            }
            if body
            else {prefix + name: t for name, t in tensors.items()}
        ),
    )
    model = load(folder, head="new" if body else "checkpoint")
    assert torch.equal(model.encode(ids)[-1], tiny.encode(ids)[-1])
    assert body or torch.equal(model(ids), tiny(ids))


@pytest.mark.parametrize("head", ["checkpoint", "new"])
@pytest.mark.parametrize(
    ("renamed", "prefix"),
    [
        (lambda name: f"student.{name}", "student."),
        (lambda name: f"student.{name.removeprefix('bert.')}", "student."),
        (lambda name: f"module.{name}" if name.startswith("bert.") else name, "module."),
        (lambda name: f"module.{name}" if name.startswith("cls.") else name, "module."),
    ],
)
def test_another_prefix_is_named(
    folder: Path, head: checkpoint.HeadSource, renamed: Callable[[str], str], prefix: str
) -> None:
    rewrite(folder, lambda tensors: {renamed(name): t for name, t in tensors.items()})
    with pytest.raises(
        InputError, match=f"lacks .*: some of its names begin with '{prefix}'; rename"
    ):
        load(folder, head=head)


def test_two_tensors_of_one_name_must_be_the_same(tiny: Bert, folder: Path, ids: Tensor) -> None:
    new, old = "bert.embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.gamma"
    rewrite(folder, lambda tensors: tensors | {old: tensors[new]})
    assert torch.equal(load(folder)(ids), tiny(ids))
    rewrite(folder, lambda tensors: tensors | {old: tensors[new] + 1})
    with pytest.raises(InputError, match=f"two different tensors for {new}$"):
        load(folder)


@pytest.mark.parametrize("name", [LAYER, "bert.encoder.layer.0.attention.self.query.bias", WORDS,
                                  "cls.predictions.decoder.bias"])  # fmt: skip
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.flatten().index_fill(0, torch.tensor([1, 3]), float("nan")),
         "NaN or infinity at 2 of"),
        (lambda t: t.double() * 1e300, "NaN or infinity at"),
        (lambda t: t.long(), "int64; valid are floating-point numbers$"),
        (lambda t: t > 0, "bool; valid are floating-point numbers$"),
    ],
)  # fmt: skip
def test_a_weight_that_is_no_finite_number_is_named(
    folder: Path, name: str, change: Callable[[Tensor], Tensor], said: str
) -> None:
    rewrite(folder, lambda tensors: tensors | {name: change(tensors[name]).view_as(tensors[name])})
    with pytest.raises(InputError, match=rf"saved: {re.escape(name)} holds {said}"):
        load(folder)


def test_numbers_of_other_tasks_are_not_looked_at(tiny: Bert, folder: Path, ids: Tensor) -> None:
    nan = torch.full((16, 16), float("nan"))
    rewrite(
        folder,
        lambda tensors: tensors | {"bert.pooler.dense.weight": nan, "classifier.weight": nan},
    )
    assert torch.equal(load(folder)(ids), tiny(ids))


@pytest.mark.parametrize(
    "name",
    [
        "bert.encoder.layer.0.attention.self.distance_embedding.weight",
        "bert.encoder.layer.0.crossattention.self.query.weight",
        "bert.encoder.layer.0.intermediate_act_fn.weight",
        "cls.predictions.adapter.weight",
    ],
)
def test_a_part_of_another_architecture_is_named(folder: Path, name: str) -> None:
    rewrite(folder, lambda tensors: tensors | {name: torch.zeros(1)})
    with pytest.raises(InputError, match=f"no BERT of its config.json has: {re.escape(name)}$"):
        load(folder)


def test_other_positions_in_the_file_are_not_dropped(tiny: Bert, folder: Path, ids: Tensor) -> None:
    usual = {
        "bert.embeddings.position_ids": torch.arange(12)[None],
        "bert.embeddings.token_type_ids": torch.zeros(1, 12, dtype=torch.long),
    }
    rewrite(folder, lambda tensors: tensors | usual)
    assert torch.equal(load(folder)(ids), tiny(ids))
    for name, buffer in usual.items():
        rewrite(
            folder, lambda tensors, name=name, buffer=buffer: tensors | usual | {name: buffer + 1}
        )
        with pytest.raises(InputError, match=f"{re.escape(name)} is not"):
            load(folder)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn])
def test_odd_floating_point_types_are_read(folder: Path, ids: Tensor, dtype: torch.dtype) -> None:
    rewrite(folder, lambda tensors: {name: t.to(dtype) for name, t in tensors.items()})
    same(load(folder)(ids), opened_by_transformers(folder, ids))


def test_a_single_file_goes_before_an_index(tiny: Bert, folder: Path, ids: Tensor) -> None:
    index = {"weight_map": {LAYER: "gone.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert torch.equal(load(folder)(ids), tiny(ids))
    same(opened_by_transformers(folder, ids), tiny(ids))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"weight_map": {}}', r"index\.json names no file"),
        ('{"weight_map": []}', r"index\.json is damaged"),
        ('{"weight_map": {"a": 3}}', r"index\.json is damaged"),
        ('{"weight_map": {"a": "b", "c": null}}', r"index\.json is damaged"),
        ('{"weight_map": {"a": "b"}}', r"saved/b is missing"),
        ('{"weight_map": {"a": "../b"}}', r"index\.json names .*/saved/\.\./b; valid are files"),
        ('{"weight_map": {"a": "/tmp/b"}}', r"index\.json names /tmp/b; valid are files beside it"),
        ("{}", r"index\.json is damaged"),
        ('{"a":' * 100_000, r"index\.json is damaged"),
    ],
)
def test_an_index_without_shards_is_named(folder: Path, content: str, said: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        load(folder)


def test_shards_may_repeat_a_tensor_but_not_differ_in_it(
    tiny: Bert, folder: Path, ids: Tensor
) -> None:
    (folder / "model.safetensors").rename(folder / "1.safetensors")
    index = {"weight_map": {LAYER: "1.safetensors", WORDS: "2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    tensor = load_file(folder / "1.safetensors")[LAYER]
    save_file({LAYER: tensor}, folder / "2.safetensors")
    assert torch.equal(load(folder)(ids), tiny(ids))
    save_file({LAYER: tensor + 1}, folder / "2.safetensors")
    with pytest.raises(InputError, match=f"2.safetensors and another shard differ in {LAYER}"):
        load(folder)


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
def test_unreachable_hub_names_the_ways_without_it(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def snapshot_download(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(
        InputError,
        match=r"'some/model'.*model=minilm.*model\.source=<folder>.*model\.weights=random",
    ):
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


def write_adapter(folder: Path, tensors: dict[str, Tensor], base: Path) -> Path:
    path = folder / "adapter.safetensors"
    save_file(tensors, path, {"base_sha256": hashlib.sha256(base.read_bytes()).hexdigest()})
    return path


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
