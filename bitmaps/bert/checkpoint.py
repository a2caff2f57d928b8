"""Hugging Face checkpoints: naming, opening and writing them.

Only safetensors are read. A ``pytorch_model.bin`` is a pickle, which can run code, and this package
unpickles nothing from outside.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from bitmaps.bert.config import BertConfig
from bitmaps.bert.families import FAMILIES, joined, parts_of
from bitmaps.bert.finding import check_sha256, locate
from bitmaps.bert.head import Head
from bitmaps.bert.model import Bert, on_meta
from bitmaps.bert.pooling import Pooling
from bitmaps.bert.tensors import prefix_before, read_safetensors, read_tensors
from bitmaps.errors import InputError
from bitmaps.vocabulary import HeadSource, Task

# Our modules and Hugging Face's; {} stands for the number of a layer.
MODULES = {
    "embeddings.word": "bert.embeddings.word_embeddings",
    "embeddings.position": "bert.embeddings.position_embeddings",
    "embeddings.token_type": "bert.embeddings.token_type_embeddings",
    "embeddings.norm": "bert.embeddings.LayerNorm",
    "encoder.layers.{}.attention.query": "bert.encoder.layer.{}.attention.self.query",
    "encoder.layers.{}.attention.key": "bert.encoder.layer.{}.attention.self.key",
    "encoder.layers.{}.attention.value": "bert.encoder.layer.{}.attention.self.value",
    "encoder.layers.{}.attention.output": "bert.encoder.layer.{}.attention.output.dense",
    "encoder.layers.{}.attention.norm": "bert.encoder.layer.{}.attention.output.LayerNorm",
    "encoder.layers.{}.ffnn.expand": "bert.encoder.layer.{}.intermediate.dense",
    "encoder.layers.{}.ffnn.contract": "bert.encoder.layer.{}.output.dense",
    "encoder.layers.{}.ffnn.norm": "bert.encoder.layer.{}.output.LayerNorm",
    "head.transform": "cls.predictions.transform.dense",
    "head.norm": "cls.predictions.transform.LayerNorm",
    "head.decoder": "cls.predictions.decoder",
    "head.pooler": "bert.pooler.dense",
    "head.classifier": "classifier",
}
OWN_HEAD = {
    Task.masked_lm: "cls.predictions.",
    Task.sentence_embedding: "bert.",
    Task.classification: "classifier.",
}
"""What the names of a task's own head begin with. Heads of other tasks are ignored."""
WORDS, DECODER = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder"
HEADS = {
    Task.masked_lm: "cls.predictions.transform.dense.weight",
    Task.classification: "classifier.weight",
}
"""The tensor that shows whether a checkpoint has the head of a task."""
HEAD_NAMES = {
    Task.masked_lm: "masked-language-model head",
    Task.classification: "classifier",
}
SIZES = {
    "vocab_size": (WORDS, 0),
    "hidden_size": (WORDS, 1),
    "max_position_embeddings": ("bert.embeddings.position_embeddings.weight", 0),
    "type_vocab_size": ("bert.embeddings.token_type_embeddings.weight", 0),
    "intermediate_size": ("bert.encoder.layer.0.intermediate.dense.weight", 0),
}
"""A size in ``config.json`` -> the tensor and the axis that show it."""
BUFFERS: dict[str, tuple[Callable[[int], Tensor], str]] = {
    "bert.embeddings.position_ids": (torch.arange, "0, 1, 2, ..."),
    "bert.embeddings.token_type_ids": (partial(torch.zeros, dtype=torch.long), "0, 0, 0, ..."),
}
"""Constants that older files hold, as a function of their length."""


def hugging_face_name(name: str) -> str:
    """Our parameter's name -> Hugging Face's.

    >>> hugging_face_name("head.norm.bias")
    'cls.predictions.transform.LayerNorm.bias'
    """
    module, number, tensor = parts_of(name)
    return joined(MODULES[module], number, tensor)


def apply_adapter(tensors: dict[str, Tensor], path: Path, checkpoint: Path) -> None:
    """Add a low-rank adapter (Hu et al. 2021) to the tensors of its checkpoint, in place.

    For each pair ``<module>.lora_A.weight`` (r, in) and ``<module>.lora_B.weight`` (out, r),
    ``W += B A``. Every other tensor of the file replaces or adds the one of its name.

    Raises:
        InputError: when the file is not an adapter, was made for another checkpoint file, or holds
            anything but finite floating-point numbers.
    """
    adapter, metadata = read_safetensors(path)
    if "base_sha256" not in metadata:
        raise InputError(
            f"{path} is not an adapter: its metadata does not name the checkpoint that it was made "
            "for (base_sha256)"
        )
    check_sha256(checkpoint, metadata["base_sha256"])
    for name, tensor in adapter.items():
        check_numbers(f"{path}: {name}", tensor)
    modules = {name.rsplit(".lora_", 1)[0] for name in adapter if ".lora_" in name}
    for module in sorted(modules):
        try:
            tensors[f"{module}.weight"] += adapter.pop(f"{module}.lora_B.weight") @ adapter.pop(
                f"{module}.lora_A.weight"
            )
        except (KeyError, RuntimeError) as error:  # a name that is missing, shapes that do not fit
            raise InputError(f"{path} does not fit {checkpoint}: {module}: {error}") from error
    tensors.update(adapter)


def settle(config: BertConfig, tensors: dict[str, Tensor]) -> tuple[BertConfig, dict[str, Tensor]]:
    """Each parameter once, and a configuration that ties what the file ties.

    ``cls.predictions.bias`` is a second name of the decoder's bias. A tied matrix can have the name
    of the word embeddings, of the decoder, or both. Two matrices that differ are not tied, whatever
    the configuration says: ``transformers`` does the same.
    """
    tensors = dict(tensors)
    if (bias := tensors.pop("cls.predictions.bias", None)) is not None:
        tensors.setdefault(f"{DECODER}.bias", bias)
    if config.tie_word_embeddings and (decoder := tensors.get(f"{DECODER}.weight")) is not None:
        if torch.equal(tensors.setdefault(WORDS, decoder), decoder):
            del tensors[f"{DECODER}.weight"]
        else:
            config = replace(config, tie_word_embeddings=False)
    return config, tensors


def build(
    config: BertConfig, tensors: dict[str, Tensor], head: HeadSource = HeadSource.checkpoint
) -> Bert:
    """A ``Bert`` with these tensors.

    Tensors of other tasks (``bert.pooler``, ``cls.seq_relationship``, a classifier) are ignored.

    Args:
        head: ``new`` initializes what the checkpoint lacks of the head.

    Raises:
        InputError: when a tensor is missing, unknown, of another shape or type, or holds a NaN or
            an infinity, or the head is missing.
    """
    config, tensors = settle(config, tensors)
    check_sizes(config, tensors)
    with on_meta():
        model = Bert(config)
    tied = config.tie_word_embeddings
    wanted = {
        ours: hugging_face_name(ours)
        for ours in model.state_dict()
        if not (tied and ours == "head.decoder.weight")
    }
    if head_is_missing(config, tensors, head):
        fresh = Bert(config).state_dict()
        for ours, theirs in wanted.items():
            if ours.startswith("head."):
                tensors.setdefault(theirs, fresh[ours])
    check_names(config, tensors, set(wanted.values()))
    for ours, theirs in wanted.items():
        check_tensor(theirs, tensors[theirs], model.get_parameter(ours).shape)
    model.load_state_dict(
        {ours: tensors[theirs] for ours, theirs in wanted.items()}, strict=False, assign=True
    )
    model.tie()  # assigning replaced one of the two names of the shared parameter
    return model.requires_grad_().eval()


def head_is_missing(config: BertConfig, tensors: dict[str, Tensor], head: HeadSource) -> bool:
    """Whether the checkpoint has no head of the task, so that a new one is needed.

    Raises:
        InputError: when a new one was not asked for.
    """
    if config.task not in HEADS:
        return False
    first = HEADS[config.task]
    beginning = first if config.task is Task.classification else "cls.predictions."
    if any(name.startswith(beginning) for name in tensors):
        return False
    prefix = prefix_before(first, tensors)
    if prefix is None and head == HeadSource.checkpoint:
        hint = "name an adapter that has one, or initialize one with model.head=new"
        if config.task is Task.classification:
            hint = "train one with train.py task=classification, and name its run folder"
        raise InputError(f"the checkpoint has no {HEAD_NAMES[config.task]} (no {first}): {hint}")
    return prefix is None


def check_sizes(config: BertConfig, tensors: dict[str, Tensor]) -> None:
    """Compare the configuration with the tensors, before a model of its sizes is built.

    Raises:
        InputError: when they differ, or a tensor that shows a size is missing.
    """
    if missing := {name for name, _ in SIZES.values()} - tensors.keys():
        raise lacks(missing, config, tensors)
    for size, (name, axis) in SIZES.items():
        shape, said = tuple(tensors[name].shape), getattr(config, size)
        if shape[axis : axis + 1] != (said,):
            raise InputError(f"config.json says {size}={said}, but {name} has shape {shape}")
    found = [re.match(r"bert\.encoder\.layer\.(\d+)\.", name) for name in tensors]
    layers = len({match[1] for match in found if match})
    if layers != config.num_hidden_layers:
        raise InputError(
            f"config.json says num_hidden_layers={config.num_hidden_layers}, "
            f"but the checkpoint has {layers} layers"
        )


def check_names(config: BertConfig, tensors: dict[str, Tensor], wanted: set[str]) -> None:
    """Raises:
    InputError: when a tensor is missing, or one of the body or the head is unknown."""
    if missing := wanted - tensors.keys():
        raise lacks(missing, config, tensors)
    unknown = [
        name
        for name in sorted(tensors.keys() - wanted - BUFFERS.keys())
        if name.startswith(("bert.", OWN_HEAD[config.task])) and not name.startswith("bert.pooler.")
    ]
    if unknown:
        raise InputError(f"no BERT of its config.json has: {some(unknown)}")
    for name, (usual, said) in BUFFERS.items():
        buffer = tensors.get(name, torch.empty(0)).flatten()
        if not torch.equal(buffer.long(), usual(buffer.numel())):
            raise InputError(f"{name} is not {said}, which is the only supported content")


def lacks(missing: set[str], config: BertConfig, tensors: dict[str, Tensor]) -> InputError:
    """The error for tensors that a checkpoint lacks, with the likely reason."""
    names = sorted(missing)
    hint = "another architecture"
    if (prefix := prefix_before(names[0], tensors)) is not None:
        hint = f"some of its names begin with {prefix!r}; rename them if it is a BERT"
    elif missing == {f"{DECODER}.weight"} and not config.tie_word_embeddings:
        hint = "it is the word embeddings' own only if config.json says tie_word_embeddings=true"
    elif all(name.startswith("cls.") for name in names):
        hint = "a part of its masked-language-model head"
    return InputError(f"the checkpoint lacks {some(names)}: {hint}")


def some(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def check_tensor(name: str, tensor: Tensor, shape: torch.Size) -> None:
    """Raises:
    InputError: when it has another shape, or holds anything but finite floating-point numbers."""
    if tensor.shape != shape:
        raise InputError(
            f"{name} has shape {tuple(tensor.shape)}, but config.json needs {tuple(shape)}"
        )
    check_numbers(name, tensor)


def check_numbers(name: str, tensor: Tensor) -> None:
    """Raises:
    InputError: when it holds anything but finite floating-point numbers."""
    if tensor.dtype != torch.float32:
        found = str(tensor.dtype).removeprefix("torch.")
        raise InputError(f"{name} holds {found}; valid are floating-point numbers")
    if wrong := int((~tensor.isfinite()).sum()):
        raise InputError(f"{name} holds NaN or infinity at {wrong} of {tensor.numel()} places")


def config_of(folder: Path, task: Task | None = None) -> BertConfig:
    """The configuration of a model's folder, for a task.

    Args:
        task: by default what the folder says. A body alone in a folder of sentence-transformers
            is a sentence encoder.

    Raises:
        InputError: when a file is missing, damaged, or of another architecture.
    """
    config = BertConfig.from_file(folder / "config.json")
    if task is None and is_sentence_encoder(folder):
        task = Task.sentence_embedding
    config = config if task is None else replace(config, task=task)
    if config.task is Task.sentence_embedding:
        config = replace(config, pooling=Pooling.read(folder))
    return config


def is_sentence_encoder(folder: Path) -> bool:
    """Whether a folder is one of sentence-transformers, and its model a body alone."""
    if not (folder / "modules.json").is_file():
        return False
    try:
        named = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return named in [[family.architecture(Task.sentence_embedding)] for family in FAMILIES.values()]


def load(
    source: str | Path,
    *,
    adapter: str | Path | None = None,
    head: HeadSource = HeadSource.checkpoint,
    task: Task | None = None,
    labels: tuple[str, ...] | None = None,
) -> Bert:
    """Open a BERT, in fp32 and evaluation mode.

    Args:
        source: a Hugging Face folder or Hub id, a run folder, or ``package:<package>/<folder>``.
        adapter: a safetensors file to add to it (``apply_adapter``). The shipped ones are in
            ``bitmaps.ADAPTERS``.
        head: ``new`` initializes what the checkpoint lacks of the head.
        task: what the model is for; by default what the folder says. An adapter and a new head
            make it a masked-language model.
        labels: the classes of a new classifier.

    Raises:
        InputError: when it cannot be found or read, or is no BERT of that task.
    """
    folder = locate(str(source))
    if task is None and (adapter is not None or head == HeadSource.new):
        task = Task.masked_lm
    config = config_of(folder, task)
    config = config if labels is None else replace(config, labels=labels)
    try:
        tensors = read_tensors(folder, config)
        if adapter is not None:
            config, tensors = settle(config, tensors)  # before one of two equal matrices changes
            apply_adapter(tensors, Path(adapter), folder / "model.safetensors")
        return build(config, tensors, head)
    except InputError as error:
        where = "" if str(folder) in str(error) else f"{folder}: "
        names = "" if config.model_type == "bert" else " (tensors are named as in a BERT)"
        raise InputError(f"{where}{error}{names}") from error


def write_pooling(config: BertConfig, folder: Path) -> None:
    """Write the files of sentence-transformers beside a sentence encoder; nothing for other
    tasks."""
    if config.task is Task.sentence_embedding:
        config.pooling.write(folder, config.hidden_size, config.max_position_embeddings)


def save(model: Bert, folder: Path) -> None:
    """Write ``config.json`` and ``model.safetensors`` in Hugging Face's layout, a tied tensor once,
    and for a sentence encoder the files of sentence-transformers.

    Raises:
        TypeError: for a model that is not of floats alone, such as a packed one.
        FileExistsError: when the folder already holds a model.
    """
    parameters, config = dict(model.named_parameters()), model.config
    untied = isinstance(model.head, Head) and (
        model.head.decoder.weight is not model.embeddings.word.weight
    )
    if isinstance(model.head, Head):
        config = replace(config, tie_word_embeddings=not untied)
    with on_meta():
        if parameters.keys() != dict(Bert(config).named_parameters()).keys():
            raise TypeError(
                "only a model of floats is written like this: copy a packed folder instead"
            )
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "config.json").open("x", encoding="utf-8") as file:
        json.dump(config.to_dict(), file, indent=2, sort_keys=True)
        file.write("\n")
    write_pooling(config, folder)
    tensors = {hugging_face_name(name): p.detach().contiguous() for name, p in parameters.items()}
    if untied and config.family.names_bias_twice:  # transformers looks for both names then
        tensors["cls.predictions.bias"] = tensors[f"{DECODER}.bias"].clone()
    tensors = config.family.own_tensors(tensors, config.pad_token_id)
    # a sentence encoder is a body alone, whose names have no `bert.`
    if config.task is Task.sentence_embedding:
        body = f"{config.family.prefix}."
        tensors = {name.removeprefix(body): tensor for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
