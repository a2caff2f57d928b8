"""Random BERTs, in the ways that people write them, against ``transformers``' own reading."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor
from transformers.activations import ACT2FN

import bitmaps
from bitmaps.bert import checkpoint
from bitmaps.errors import InputError

pytestmark = pytest.mark.slow

Cases = Callable[..., Iterator[tuple[int, random.Random]]]

WORDS = "bert.embeddings.word_embeddings.weight"
DECODER, BIAS = "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"
SECOND_BIAS = "cls.predictions.bias"
ACTIVATIONS = sorted(set(ACT2FN) - {"prelu", "xielu"})
DTYPES = (torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass
class Folder:
    """What is to be written.

    Attributes:
        values: of ``config.json``.
        tensors: by Hugging Face's names.
        shards: how many files the tensors are spread over.
        foreign: whether ``transformers`` does not find some tensors under these names.
        refused: what our error must say, if the folder must not open.
        extra: files to add, or to remove where there is no content.
    """

    values: dict[str, Any]
    tensors: dict[str, Tensor]
    shards: int = 1
    foreign: bool = False
    refused: str | None = None
    extra: dict[str, bytes | None] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        path.mkdir()
        (path / "config.json").write_text(json.dumps(self.values), encoding="utf-8")
        tensors = {name: tensor.clone() for name, tensor in self.tensors.items()}
        if self.shards == 1:
            save_file(tensors, path / "model.safetensors")
        else:
            files = {name: f"{i % self.shards}.safetensors" for i, name in enumerate(tensors)}
            for file in set(files.values()):
                save_file({n: t for n, t in tensors.items() if files[n] == file}, path / file)
            index = json.dumps({"metadata": {}, "weight_map": files})
            (path / "model.safetensors.index.json").write_text(index, encoding="utf-8")
        for name, content in self.extra.items():
            if content is None:
                (path / name).unlink()
            else:
                (path / name).write_bytes(content)

    def rename(self, renamed: Callable[[str], str]) -> None:
        self.tensors = {renamed(name): tensor for name, tensor in self.tensors.items()}


def random_model(draw: random.Random) -> transformers.BertForMaskedLM:
    heads = draw.randint(1, 6)
    vocabulary = draw.randint(8, 70)
    config = transformers.BertConfig(
        vocab_size=vocabulary + draw.choice((0, -vocabulary % 8)),
        hidden_size=heads * draw.randint(1, 9),
        num_hidden_layers=draw.randint(1, 3),
        num_attention_heads=heads,
        intermediate_size=draw.randint(1, 40),
        hidden_act=draw.choice(ACTIVATIONS),
        max_position_embeddings=draw.randint(6, 16),
        type_vocab_size=draw.randint(1, 4),
        layer_norm_eps=draw.choice((1e-12, 1e-7, 1e-5, 0.1)),
        pad_token_id=draw.choice((None, 0, draw.randrange(vocabulary))),
        tie_word_embeddings=draw.random() < 0.6,
    )
    model = transformers.BertForMaskedLM(config)
    generator = torch.Generator().manual_seed(draw.randrange(2**32))
    spread = draw.choice((0.02, 0.3, 1.0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean = 1.0 if name.endswith("LayerNorm.weight") else 0.0
            parameter.normal_(mean, spread, generator=generator)
        model.bert.embeddings.word_embeddings.weight[vocabulary:] = 0  # padding
        change_numbers(draw, [p for p in model.parameters() if p.ndim == 2])
    return model.to(draw.choice(DTYPES)).float().eval()


def change_numbers(draw: random.Random, matrices: list[torch.nn.Parameter]) -> None:
    """Rows and matrices of zeros, outliers, denormals, or nothing of the kind."""
    matrix = draw.choice(matrices)
    row = draw.randrange(len(matrix))
    what = draw.choice(("zero row", "zero matrix", "outlier", "denormals", "", ""))
    if what == "zero row":
        matrix[row] = 0
    elif what == "zero matrix":
        matrix.zero_()
    elif what == "outlier":
        matrix[row, draw.randrange(matrix.shape[1])] = draw.choice((-3000, 1000))
    elif what == "denormals":
        matrix.mul_(1e-39)


def tie_oddly(folder: Folder, draw: random.Random) -> None:
    """The file holds a tied matrix twice, another decoder, or the decoder alone."""
    if not folder.values["tie_word_embeddings"]:
        return
    way = draw.choice(("once", "twice", "another", "decoder"))
    if way == "another":
        folder.tensors[DECODER] = folder.tensors[DECODER].flip(0) + 0.5
    if way == "once":
        del folder.tensors[DECODER]
    if way == "decoder":
        del folder.tensors[WORDS]


def name_the_bias(folder: Folder, draw: random.Random) -> None:
    """The bias has one of its two names, or both."""
    tied = folder.values["tie_word_embeddings"]
    folder.tensors[SECOND_BIAS] = folder.tensors[BIAS]  # an untied model has it, unused
    if (lost := draw.choice((None, BIAS, SECOND_BIAS))) is not None:
        del folder.tensors[lost]
        folder.foreign |= not tied


def add_other_tasks(folder: Folder, draw: random.Random) -> None:
    hidden = folder.values["hidden_size"]
    positions = folder.values["max_position_embeddings"]
    others = {
        "bert.pooler.dense.weight": torch.zeros(hidden, hidden),
        "cls.seq_relationship.bias": torch.full((2,), float("nan")),
        "classifier.weight": torch.zeros(3, hidden),
        "bert.embeddings.position_ids": torch.arange(positions)[None],
        "bert.embeddings.token_type_ids": torch.zeros(1, positions, dtype=torch.long),
    }
    folder.tensors |= dict(draw.sample(sorted(others.items()), draw.randint(0, len(others))))


def rename(folder: Folder, draw: random.Random) -> None:
    way = draw.choice(("", "", "old", "body", "wrapper"))
    if way == "old":
        folder.rename(
            lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            )
        )
    elif way == "body":
        folder.rename(lambda name: name.removeprefix("bert."))
        folder.foreign = True
    elif way == "wrapper":
        prefix = "".join(draw.choices(("module.", "_orig_mod.", "model."), k=draw.randint(1, 3)))
        folder.rename(lambda name: prefix + name)
        folder.foreign = True


def break_tensor(folder: Folder, draw: random.Random) -> None:
    """One of the tensors that shape the logits is missing, or holds something else."""
    name = draw.choice(sorted(name for name in folder.tensors if "LayerNorm" in name))
    tensor, way = folder.tensors[name], draw.choice(("lost", "nan", "inf", "int", "bool", "shape"))
    said = {"lost": f"lacks {name}", "int": f"{name} holds int32", "bool": f"{name} holds bool"}
    if way == "lost":
        del folder.tensors[name]
    elif way in ("nan", "inf"):
        folder.tensors[name] = tensor.index_fill(0, torch.tensor([0]), float(way))
    elif way == "shape":
        folder.tensors[name] = torch.cat([tensor, tensor])
    else:
        folder.tensors[name] = tensor.to(torch.int32 if way == "int" else torch.bool)
    folder.refused = said.get(way, f"{name} h")  # "holds NaN ..." or "has shape ..."


def break_names(folder: Folder, draw: random.Random) -> None:
    way = draw.choice(("student", "headless", "half", "part", "decoder"))
    if way == "student":
        folder.rename(lambda name: f"student.{name}")
        folder.refused = "some of its names begin with 'student.'"
    elif way == "headless":
        folder.tensors = {n: t for n, t in folder.tensors.items() if "predictions" not in n}
        folder.values["tie_word_embeddings"] = True
        folder.refused = "no masked-language-model head"
    elif way == "half":
        del folder.tensors["cls.predictions.transform.dense.weight"]
        folder.refused = "lacks cls.predictions.transform.dense.weight: a part of"
    elif way == "part":
        part = draw.choice(("attention.self.distance_embedding", "crossattention.self.query"))
        name = f"bert.encoder.layer.0.{part}.weight"
        folder.tensors[name] = torch.zeros(1)
        folder.refused = f"no BERT of its config.json has: {name}"
    else:
        folder.tensors.pop(DECODER, None)
        folder.values["tie_word_embeddings"] = False
        folder.refused = f"lacks {DECODER}: "


def break_configuration(folder: Folder, draw: random.Random) -> None:
    name = draw.choice(
        ("vocab_size", "max_position_embeddings", "type_vocab_size", "intermediate_size",
         "num_hidden_layers", "other")
    )  # fmt: skip
    if name == "other":
        key, value = draw.choice(
            (("hidden_act", "prelu"), ("position_embedding_type", "relative_key"),
             ("is_decoder", True), ("quantization_config", {"quant_method": "gptq"}),
             ("model_type", "mpnet"), ("tie_word_embeddings", "false"))
        )  # fmt: skip
        folder.values[key] = value
        folder.refused = str(value)[:12] if isinstance(value, str) else key
    else:
        folder.values[name] += draw.choice((1, 8, 10**9))
        folder.values["pad_token_id"] = None
        folder.refused = f"{name}={folder.values[name]}"


def break_files(folder: Folder, draw: random.Random) -> None:
    way = draw.choice(("index", "json", "bin"))
    folder.shards = 2
    if way == "index":
        folder.extra["model.safetensors.index.json"] = b'{"weight_map": {}}'
        folder.refused = "names no file"
    elif way == "json":
        folder.extra["config.json"] = b'{"a":' * 50_000
        folder.refused = "config.json is not a JSON file"
    else:
        folder.extra |= {"model.safetensors.index.json": None, "pytorch_model.bin": b""}
        folder.refused = "pytorch_model.bin is a pickle"


BREAKS = (break_tensor, break_names, break_configuration, break_files)


def plain_folder(draw: random.Random, model: transformers.BertForMaskedLM) -> Folder:
    """All tensors under the names of ``transformers``, the second name of the bias too."""
    values = json.loads(model.config.to_json_string(use_diff=draw.random() < 0.5))
    values["model_type"] = "bert"
    for name in ("tie_word_embeddings", "hidden_size", "vocab_size", "max_position_embeddings",
                 "type_vocab_size", "intermediate_size", "num_hidden_layers"):  # fmt: skip
        values[name] = getattr(model.config, name)
    dtype = draw.choice(DTYPES)
    tensors = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    return Folder(values, tensors, draw.choice((1, 1, 2, 5)))


def inputs(draw: random.Random, config: transformers.BertConfig) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(draw.randrange(2**32))
    shape = 3, draw.randint(1, config.max_position_embeddings)
    mask = torch.ones(shape, dtype=torch.long)
    mask[1, draw.randint(1, shape[1]) :] = 0
    return {
        "input_ids": torch.randint(config.vocab_size, shape, generator=generator),
        "attention_mask": mask,
        "token_type_ids": torch.randint(config.type_vocab_size, shape, generator=generator),
    }


def assert_near(found: Tensor, expected: Tensor) -> None:
    within = 1e-4 * max(1.0, expected.abs().max().item())
    torch.testing.assert_close(found, expected, atol=within, rtol=0)


@pytest.fixture
def quiet() -> Iterator[None]:
    """``transformers`` keeps its reports of what it misses to itself."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.set_verbosity(verbosity)
    transformers.logging.enable_progress_bar()


@torch.no_grad()
@pytest.mark.usefixtures("quiet")
def test_random_berts_have_the_logits_of_transformers_or_are_refused(
    cases: Cases, tmp_path: Path
) -> None:
    for number, draw in cases(total=1000, sample=60):
        path = tmp_path / str(number)
        path.mkdir()
        model = random_model(draw)
        if draw.random() < 0.3:
            assert_refused(path, model, draw)
        else:
            assert_same(path, model, draw)
        shutil.rmtree(path)


def assert_refused(path: Path, model: transformers.BertForMaskedLM, draw: random.Random) -> None:
    """One line says why a folder does not open."""
    folder = plain_folder(draw, model)
    del folder.tensors[SECOND_BIAS]
    if folder.values["tie_word_embeddings"]:
        del folder.tensors[DECODER]
    draw.choice(BREAKS)(folder, draw)
    assert folder.refused is not None
    folder.write(path / "broken")
    with pytest.raises(InputError, match=re.escape(folder.refused)) as error:
        bitmaps.load(path / "broken")
    assert "\n" not in str(error.value)


def assert_same(path: Path, model: transformers.BertForMaskedLM, draw: random.Random) -> None:
    """A folder has the logits that it has in ``transformers``, and so has what is saved of it."""
    read = path / "folder"
    if draw.random() < 0.2:
        model.to(draw.choice(DTYPES)).save_pretrained(
            read, max_shard_size=draw.choice(("1GB", "2KB"))
        )
    else:
        folder = plain_folder(draw, model)
        tie_oddly(folder, draw)
        folder.write(path / "plain")
        for change in (name_the_bias, add_other_tasks, rename):
            change(folder, draw)
        folder.write(read)
        read = path / "plain" if folder.foreign else read
    ours = bitmaps.load(path / "folder")
    checkpoint.save(ours, path / "saved")
    again = bitmaps.load(path / "saved")
    theirs, theirs_of_ours = opened(read), opened(path / "saved")
    for batch in (inputs(draw, model.config) for _ in range(3)):
        tokens = batch["attention_mask"].bool()
        found = ours(**batch)[tokens]
        assert_near(found, theirs(**batch).logits[tokens])
        assert_near(found, theirs_of_ours(**batch).logits[tokens])
        assert torch.equal(again(**batch)[tokens], found)


def opened(path: Path) -> transformers.BertForMaskedLM:
    """A folder in which ``transformers`` misses nothing."""
    model, report = transformers.BertForMaskedLM.from_pretrained(
        path, output_loading_info=True, dtype=torch.float32
    )
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    return model.eval()
