"""Packed folders in transformers, beside the floats that they stand for."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hf.conftest import Make
from hf.folders import LABELS, Folders, batch_of
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    pipeline,
)

import bitmaps
import bitmaps.hf
from bitmaps.bert.families import FAMILIES
from bitmaps.errors import InputError
from bitmaps.packed.kernels import ACTS
from bitmaps.packed.layers import PackedLinear
from bitmaps.vocabulary import Task

OPENERS = {
    Task.masked_lm: AutoModelForMaskedLM,
    Task.sentence_embedding: AutoModel,
    Task.classification: AutoModelForSequenceClassification,
}
TASKS = list(Task)


def floats(folders: Folders, opener: Any) -> transformers.PreTrainedModel:
    """The model that transformers makes of the floats; only a pooler may be missing."""
    model, report = opener.from_pretrained(folders.floats, output_loading_info=True)
    assert all("pooler" in name for name in report["missing_keys"])
    return model.eval()


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_packed_folder_computes_what_its_floats_do(name: str, task: Task, make: Make) -> None:
    folders = make(name, task)
    batch = batch_of(folders.config)
    tokens = batch["attention_mask"].bool()
    for opener in {AutoModel, OPENERS[task]}:
        ours = opener.from_pretrained(folders.packed, act="f32")
        assert not ours.training
        theirs = floats(folders, opener)
        with torch.no_grad():
            found = ours(**batch, output_hidden_states=True)
            expected = theirs(**batch, output_hidden_states=True)
        assert list(found) == [key for key in expected if key != "pooler_output"]
        assert len(found.hidden_states) == len(expected.hidden_states) == 3
        for key in ("last_hidden_state", "logits"):
            if key in found:
                per_token = found[key].ndim == 3
                kept = tokens if per_token else torch.ones(3, dtype=torch.bool)
                close(found[key][kept], expected[key][kept])
        for state, other in zip(found.hidden_states, expected.hidden_states, strict=True):
            close(state[tokens], other[tokens])
        assert ours.num_parameters() == sum(
            parameter.numel() for key, parameter in theirs.named_parameters()
            if not (opener is AutoModel and "pooler" in key)
        ) + extra(folders, opener)  # fmt: skip
        assert ours.num_parameters(only_trainable=True) == 0


def extra(folders: Folders, opener: Any) -> int:
    """Weights that the equal BERT has and this architecture not, or the other way round: rows of
    positions, a token type, and the head, which the body keeps here."""
    config, family = folders.config, folders.config.family
    rows = -family.first_position(config.pad_token_id) + (not family.token_types)
    found = rows * config.hidden_size
    if opener is AutoModel:
        whole = bitmaps.load(folders.packed)
        found += sum(
            part.shape.numel() if isinstance(part, torch.Tensor) else part.shape[0] * part.shape[1]
            for name, part in whole.parts().items()  # type: ignore[attr-defined]
            if name.startswith("head.")
        )
    return found


@pytest.mark.parametrize("task", [Task.masked_lm, Task.classification])
@pytest.mark.parametrize("name", FAMILIES)
def test_labels_give_the_loss_of_transformers(name: str, task: Task, make: Make) -> None:
    folders = make(name, task)
    batch = batch_of(folders.config)
    labels = torch.tensor([2, 0, 1])
    if task is Task.masked_lm:
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        labels[0, :3] = -100
    ours = OPENERS[task].from_pretrained(folders.packed, act="f32")
    theirs = floats(folders, OPENERS[task])
    found, expected = ours(**batch, labels=labels), theirs(**batch, labels=labels)
    close(found.loss, expected.loss)
    assert found.loss > 0.1
    as_tuple = ours(**batch, labels=labels, return_dict=False)
    assert isinstance(as_tuple, tuple)
    close(as_tuple[0], expected.loss)
    assert torch.equal(as_tuple[1], found.logits)


def test_a_model_of_scores_has_the_squared_error(make: Make) -> None:
    folders = make("bert", Task.classification, labels=())
    batch, scores = batch_of(folders.config), torch.tensor([0.5, 2.0, -1.0])
    ours = AutoModelForSequenceClassification.from_pretrained(folders.packed, act="f32")
    theirs = floats(folders, AutoModelForSequenceClassification)
    assert ours.config.num_labels == theirs.config.num_labels == 1
    close(ours(**batch, labels=scores).loss, theirs(**batch, labels=scores).loss)


@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_are_those_of_the_architecture(name: str, side: str, make: Make) -> None:
    """RoBERTa counts tokens that are no padding, wherever the padding is."""
    folders = make(name, Task.masked_lm)
    batch = batch_of(folders.config)
    if side == "left":
        batch = {key: tensor.flip(1) for key, tensor in batch.items()}
    tokens = batch["attention_mask"].bool()
    first = folders.config.family.first_position(0)
    ours = AutoModelForMaskedLM.from_pretrained(folders.packed, act="f32")
    theirs = floats(folders, AutoModelForMaskedLM)
    own = first + torch.arange(7).flip(0)[None].expand(3, 7)
    for given in ({}, {"position_ids": own}):
        close(ours(**batch, **given).logits[tokens], theirs(**batch, **given).logits[tokens])
    assert not torch.allclose(
        ours(**batch).logits[tokens], ours(**batch, position_ids=own).logits[tokens], atol=0.01
    )


def test_the_configuration_says_what_is_returned(masked: Folders) -> None:
    batch = batch_of(masked.config)
    model = AutoModelForMaskedLM.from_pretrained(masked.packed, output_hidden_states=True)
    assert len(model(**batch).hidden_states) == 3
    model = AutoModelForMaskedLM.from_pretrained(masked.packed, return_dict=False)
    assert isinstance(model(**batch), tuple)


def acts(model: torch.nn.Module) -> set[str]:
    return {str(module.act) for module in model.modules() if isinstance(module, PackedLinear)}


@pytest.mark.parametrize("act", [*ACTS, None])
def test_act_is_that_of_bitmaps_load(act: str | None, masked: Folders) -> None:
    expected = bitmaps.load(masked.packed, act=act)
    batch = batch_of(masked.config)
    config = transformers.AutoConfig.from_pretrained(masked.packed)
    config.act = act
    for model in (
        AutoModelForMaskedLM.from_pretrained(masked.packed, act=act),
        AutoModelForMaskedLM.from_pretrained(masked.packed, config=config),
        bitmaps.hf.BitmapsForMaskedLM.from_pretrained(masked.packed, act=act),
    ):
        assert acts(model) == acts(expected) == {act or "a8"}
        assert torch.equal(model(**batch).logits, expected(**batch))
    with pytest.raises(InputError, match="act='a4' is unknown; valid are f32, a16"):
        AutoModel.from_pretrained(masked.packed, act="a4")


def test_features_are_the_states_of_the_last_layer(make: Make) -> None:
    for task in TASKS:
        folders = make("bert", task)
        ours = pipeline(
            "feature-extraction", model=str(folders.packed), model_kwargs={"act": "f32"}
        )
        theirs = pipeline("feature-extraction", model=str(folders.floats))
        found, expected = ours("the cat sat on a mat"), theirs("the cat sat on a mat")
        assert len(found[0]) == 8
        assert {len(state) for state in found[0]} == {32}
        close(torch.tensor(found), torch.tensor(expected))


def test_the_mask_is_filled(masked: Folders) -> None:
    ours = pipeline("fill-mask", model=str(masked.packed), model_kwargs={"act": "f32"})
    theirs = pipeline("fill-mask", model=str(masked.floats))
    text = "the [MASK] sat on the big dog"
    found, expected = ours(text), theirs(text)
    assert [guess["token_str"] for guess in found] == [guess["token_str"] for guess in expected]
    for guess, other in zip(found, expected, strict=True):
        assert guess["score"] == pytest.approx(other["score"], rel=1e-3)


@pytest.mark.parametrize("labels", [LABELS, ()])
def test_text_is_classified(labels: tuple[str, ...], make: Make) -> None:
    folders = make("bert", Task.classification, labels=labels)
    ours = pipeline("text-classification", model=str(folders.packed), model_kwargs={"act": "f32"})
    theirs = pipeline("text-classification", model=str(folders.floats))
    texts = ["the cat sat", "a big dog and a small bird ran on"]
    for options in ({}, {"top_k": None}, {"batch_size": 2}):
        found, expected = ours(texts, **options), theirs(texts, **options)
        for one, other in zip(found, expected, strict=True):
            pairs = zip(one, other, strict=True) if isinstance(one, list) else [(one, other)]
            for guess, wanted in pairs:
                assert guess["label"] == wanted["label"]
                assert guess["score"] == pytest.approx(wanted["score"], rel=1e-3, abs=1e-4)
    named = {guess["label"] for guess in ours(texts[0], top_k=None)}
    assert named == set(labels or ["LABEL_0"])


def test_no_pipeline_complains(masked: Folders, caplog: pytest.LogCaptureFixture) -> None:
    transformers.utils.logging.enable_propagation()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pipeline("fill-mask", model=str(masked.packed))("the [MASK] sat")
            pipeline("feature-extraction", model=str(masked.packed))("the cat sat")
    finally:
        transformers.utils.logging.disable_propagation()
    assert not [record for record in caplog.records if record.levelname != "INFO"]


def test_weights_stay_in_the_pages_of_the_file(masked: Folders) -> None:
    """Those that the kernels do not read in tiles, of which each process has a copy."""
    model = AutoModelForMaskedLM.from_pretrained(masked.packed)
    spans = [
        [int(number, 16) for number in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(masked.packed / "model.safetensors"))
    ]
    tensors = [
        model.bert.embeddings.word.weight.data,
        *(parameter for _, parameter in model.named_parameters()),
    ]
    assert len(tensors) > 10
    for tensor in tensors:
        assert any(start <= tensor.data_ptr() < end for start, end in spans)


WITHOUT_IMPORT = """
import sys
from transformers import AutoModelForMaskedLM
try:
    AutoModelForMaskedLM.from_pretrained(sys.argv[1])
except ValueError as error:
    assert "bitmaps" in str(error)
else:
    raise AssertionError("it opened")
import bitmaps
bitmaps.BinarizeConfig  # imports bitmaps.hf
AutoModelForMaskedLM.from_pretrained(sys.argv[1])
"""


def test_transformers_alone_refuses_a_packed_folder(masked: Folders) -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_IMPORT, str(masked.packed)], check=True)


@pytest.mark.parametrize("task", TASKS)
def test_a_class_for_another_task_is_refused(task: Task, make: Make) -> None:
    folder = make("bert", task).packed
    for other in set(TASKS) - {task, Task.sentence_embedding}:
        with pytest.raises(
            InputError, match=rf"is for {other}, and this model is for {task}: .* opens it"
        ):
            OPENERS[other].from_pretrained(folder)


def test_a_model_of_no_weights_is_refused(masked: Folders) -> None:
    config = transformers.AutoConfig.from_pretrained(masked.packed)
    with pytest.raises(InputError, match="BitmapsModel has no random weights"):
        AutoModel.from_config(config)
    with pytest.raises(InputError, match="config is a BertConfig; valid is a BitmapsConfig"):
        bitmaps.hf.BitmapsModel.from_pretrained(masked.packed, config=transformers.BertConfig())
    with pytest.raises(InputError, match="is not packed: transformers opens it by itself"):
        bitmaps.hf.BitmapsModel.from_pretrained(masked.floats)


def test_a_damaged_folder_is_refused(masked: Folders, tmp_path: Path) -> None:
    shutil.copytree(masked.packed, tmp_path / "damaged")
    path = tmp_path / "damaged" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    with pytest.raises(InputError, match="is damaged"):
        AutoModel.from_pretrained(tmp_path / "damaged")


UNSUPPORTED: list[tuple[dict[str, Any], str]] = [
    ({"device_map": "auto"}, "device_map='auto' is not supported .*to.device"),
    ({"dtype": torch.float16}, "dtype=torch.float16 is not supported .*computes in float32"),
    ({"dtype": "bfloat16"}, "dtype='bfloat16' is not supported .*computes in float32"),
    ({"attn_implementation": "sdpa"}, "attn_implementation='sdpa' .* own attention"),
    ({"attn_implementation": "flash_attention_2"}, "'flash_attention_2' .* own attention"),
    ({"use_safetensors": False}, "use_safetensors=False is not supported"),
    ({"weights_only": False}, "weights_only=False is not supported .*unpickled"),
    ({"ignore_mismatched_sizes": True}, "ignore_mismatched_sizes=True is not supported"),
    ({"low_cpu_mem_usage": True}, "low_cpu_mem_usage=True is not supported"),
    ({"variant": "fp16"}, "variant='fp16' is not supported"),
    ({"state_dict": {}}, "state_dict={} is not supported"),
    ({"key_mapping": {"a": "b"}}, "key_mapping=.* is not supported"),
    ({"max_memory": {0: 1}}, "max_memory=.* is not supported"),
    ({"output_attentions": True}, "output_attentions is not supported"),
    ({"hidden_size": 48}, "hidden_size is 48 in the configuration, and 32 in the model"),
    ({"num_labels": 5}, "id2label is .* in the configuration, and"),
    ({"is_decoder": True}, "is_decoder is True"),
    ({"hidden_dropout_prob": 0.5}, "hidden_dropout_prob is 0.5"),
    ({"bitmaps": {"task": "masked_lm"}}, "bitmaps is"),
    ({"atc": "f32"}, "atc='f32' is not supported"),
]


@pytest.mark.parametrize(("options", "named"), UNSUPPORTED, ids=lambda value: str(value)[:30])
def test_an_option_without_effect_is_refused(
    options: dict[str, Any], named: str, masked: Folders
) -> None:
    for opener in (AutoModelForMaskedLM, bitmaps.hf.BitmapsForMaskedLM):
        with pytest.raises(InputError, match=named):
            opener.from_pretrained(masked.packed, **options)


@pytest.mark.filterwarnings("ignore")
def test_a_quantization_of_a_packed_folder_is_refused(masked: Folders) -> None:
    with pytest.raises(InputError, match="the weights are in bits already"):
        AutoModel.from_pretrained(masked.packed, quantization_config=bitmaps.BinarizeConfig())


@pytest.mark.parametrize("dtype", [None, "auto", "float32", torch.float32])
def test_options_that_say_what_is_so_are_taken(dtype: Any, masked: Folders) -> None:
    model, report = AutoModelForMaskedLM.from_pretrained(
        masked.packed, dtype=dtype, output_loading_info=True, trust_remote_code=False,
        use_safetensors=True, weights_only=True, device_map=None,
    )  # fmt: skip
    assert model.dtype is torch.float32
    assert not any(report.values())


@pytest.mark.parametrize("task", TASKS)
def test_an_argument_without_effect_is_refused(task: Task, make: Make) -> None:
    folders = make("bert", task)
    batch, model = batch_of(folders.config), OPENERS[task].from_pretrained(folders.packed)
    for given in ({"output_attentions": True}, {"inputs_embeds": torch.zeros(3, 7, 32)}):
        with pytest.raises(InputError, match=f"{next(iter(given))} is not supported"):
            model(**batch, **given)
    for name in ("past_key_values", "encoder_hidden_states", "use_cache", "head_mask"):
        with pytest.raises(TypeError, match=name):
            model(**batch, **{name: None})
    with pytest.raises(InputError, match="inputs_embeds is not supported"):
        model()
    assert model(**batch, output_attentions=False, inputs_embeds=None)


def test_what_is_no_prediction_is_refused(masked: Folders) -> None:
    model = AutoModelForMaskedLM.from_pretrained(masked.packed)
    before = model(**batch_of(masked.config)).logits
    training = "training is not supported: the weights of a packed model are bits"
    for call, named in (
        (model.train, training),
        (model.requires_grad_, training),
        (model.enable_input_require_grads, training),
        (model.activation_checkpointing_enable, "activation checkpointing"),
        (lambda: model.resize_token_embeddings(99), "resize_token_embeddings is not supported"),
        (lambda: model.set_input_embeddings(None), "set_input_embeddings is not supported"),
        (lambda: model.set_attn_implementation("eager"), "have their own attention"),
        (model.half, "computes in float32, not in float16"),
        (model.bfloat16, "computes in float32, not in bfloat16"),
        (lambda: model.to(torch.float16), "computes in float32, not in float16"),
        (lambda: model.to("cpu", torch.float64), "computes in float32, not in float64"),
    ):
        with pytest.raises(ValueError, match=named):
            call()
    assert torch.equal(model(**batch_of(masked.config)).logits, before)
    assert not model.training


def test_inputs_that_do_not_fit_are_refused(masked: Folders) -> None:
    model = AutoModelForMaskedLM.from_pretrained(masked.packed)
    ids = torch.ones(2, 13, dtype=torch.long)
    for given, named in (
        ({"input_ids": ids}, "a sequence of 13 tokens is longer than the model's 12 positions"),
        (
            {"input_ids": ids[:, :5], "attention_mask": torch.ones(2, 1, 5, 5)},
            r"attention_mask must be \(batch, length\) or \(batch, length, length\)",
        ),
    ):
        with pytest.raises(InputError, match=named):
            model(**given)


def test_a_head_that_there_is_not_is_refused(masked: Folders) -> None:
    for head in (transformers.AutoModelForTokenClassification, transformers.AutoModelForCausalLM):
        with pytest.raises(ValueError, match=r"Unrecognized configuration class .*BitmapsConfig"):
            head.from_pretrained(masked.packed)


def test_embeddings_can_be_asked_for(masked: Folders) -> None:
    model = AutoModelForMaskedLM.from_pretrained(masked.packed, act="f32")
    theirs = floats(masked, AutoModelForMaskedLM)
    ids = batch_of(masked.config)["input_ids"]
    close(model.get_input_embeddings()(ids), theirs.get_input_embeddings()(ids))
    states = torch.randn(2, 32)
    close(model.get_output_embeddings()(states), theirs.get_output_embeddings()(states))


def test_the_configuration_is_that_of_the_equal_bert(make: Make, tmp_path: Path) -> None:
    for name in FAMILIES:
        folders = make(name, Task.sentence_embedding)
        config = transformers.AutoConfig.from_pretrained(folders.packed)
        assert (config.hidden_size, config.num_hidden_layers) == (32, 2)
        assert config.max_position_embeddings == 12
        assert config.family is FAMILIES[name]
        config.save_pretrained(tmp_path / f"again-{name}")
        assert vars(transformers.AutoConfig.from_pretrained(tmp_path / f"again-{name}")).items() >= {
            (key, value) for key, value in vars(config).items()
            if isinstance(value, int | str) and key not in ("_name_or_path", "transformers_version")
        }  # fmt: skip
        own = json.loads((tmp_path / f"again-{name}" / "config.json").read_text())
        theirs = json.loads((folders.packed / "config.json").read_text())
        assert {key: own.get(key) for key in theirs} == theirs
