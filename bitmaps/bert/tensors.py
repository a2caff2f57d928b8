"""The tensors of a Hugging Face folder, under their present-day names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bitmaps.bert.config import BertConfig
from bitmaps.bert.families import Family, by_name
from bitmaps.errors import InputError

WRAPPERS = re.compile(r"((module|_orig_mod|model)\.)*")
"""What DataParallel, ``torch.compile`` and a training class around a model put before its names."""


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of one file, floating point ones in fp32, and its metadata.

    Raises:
        InputError: for a file that is missing, truncated or not safetensors.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise InputError(f"{path} is truncated or not a safetensors file: {error}") from error
    return {name: in_fp32(tensor) for name, tensor in tensors.items()}, metadata


def in_fp32(tensor: Tensor) -> Tensor:
    """A tensor of floating-point numbers in fp32; any other as it is."""
    pairs = tensor.dtype is torch.float4_e2m1fn_x2  # two numbers a byte, without a conversion
    return tensor.float() if tensor.is_floating_point() and not pairs else tensor


def read_tensors(folder: Path, config: BertConfig) -> dict[str, Tensor]:
    """The tensors of a Hugging Face folder under a BERT's present-day names, in fp32.

    As in ``transformers``, ``model.safetensors`` goes before an index of shards.

    Raises:
        InputError: when there is no safetensors file, it is damaged, or two tensors have one name.
    """
    tensors: dict[str, Tensor] = {}
    for path in files_of(folder):
        for name, tensor in read_safetensors(path)[0].items():
            if name in tensors and not torch.equal(tensors[name], tensor):
                raise InputError(f"{path} and another shard differ in {name}")
            tensors[name] = tensor
    present = under_present_names(tensors, config.family)
    return config.family.tensors_in_bert(present, config.pad_token_id)


def files_of(folder: Path) -> list[Path]:
    """The safetensors files of a folder: ``model.safetensors``, or the shards of its index."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        pickles = ", ".join(sorted(path.name for path in folder.glob("*.bin")))
        hint = f"; {pickles} is a pickle, which is never read: convert it to safetensors"
        raise InputError(f"{folder} has no model.safetensors{hint if pickles else ''}")
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        files = [folder / name for name in sorted(names)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{index} is damaged: {error!r}") from error
    if not files:
        raise InputError(f"{index} names no file: its weight_map is empty")
    if outside := [path for path in files if path.parent != folder]:
        raise InputError(f"{index} names {outside[0]}; valid are files beside it")
    return files


def under_present_names(tensors: dict[str, Tensor], family: Family) -> dict[str, Tensor]:
    """Tensors by present-day names.

    ``LayerNorm.gamma`` and ``beta`` become ``weight`` and ``bias``. The names of a body alone get
    the name that it has in a whole model, such as ``bert.``. A prefix of ``WRAPPERS`` that all
    names have is dropped.

    Raises:
        InputError: when two tensors that differ have the same name then.
    """
    prefix = common_wrapper(tensors)

    def present_name(name: str) -> str:
        present = name.removeprefix(prefix)
        present = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", present)
        present = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", present)
        return f"{family.prefix}.{present}" if present.startswith(family.body) else present

    return by_name((present_name(name), tensor) for name, tensor in tensors.items())


def common_wrapper(names: Iterable[str]) -> str:
    """The prefix of wrappers that all names share, or nothing.

    >>> common_wrapper(["module.bert.pooler.dense.bias", "module.cls.predictions.bias"])
    'module.'
    """
    prefixes = {found[0] for name in names if (found := WRAPPERS.match(name))}
    return prefixes.pop() if len(prefixes) == 1 else ""


def prefix_before(wanted: str, names: Iterable[str]) -> str | None:
    """What stands before ``wanted``, or before its part after ``bert.``, in one of the names."""
    for ending in (f".{wanted}", f".{wanted.removeprefix('bert.')}"):
        for name in names:
            if name.endswith(ending):
                return name.removesuffix(ending[1:])
    return None
