"""The packed folder: ``config.json``, the tokenizer and ``model.safetensors`` with weights in bits.

docs/format.md specifies it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bitmaps.bert import Bert, BertConfig
from bitmaps.bert.checkpoint import config_of, hugging_face_name, write_pooling
from bitmaps.bert.families import SUFFIXES
from bitmaps.errors import InputError
from bitmaps.packed import kernels as native
from bitmaps.packed import tiles
from bitmaps.packed.belonging import canonical, check_keys, check_sizes, shaping_keys
from bitmaps.packed.discover import fewest_bits
from bitmaps.packed.integrity import digest, read_content, write
from bitmaps.packed.model import PackedBert, assemble
from bitmaps.packed.weights import PackedWeight, PacksItself
from bitmaps.vocabulary import Act, Activations, Storage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT, VERSION = "bitmaps", "2"
READS = ("1", "2")  # docs/format.md: a version that was written once opens for ever
FILE, MODEL_TYPE = "model.safetensors", "bitmaps"
CLASSES = "Bitmaps"  # what the names of the classes in `bitmaps.hf` begin with


@torch.no_grad()
def pack_model(
    model: Bert, embeddings: Storage | None = None, head: Storage | None = None
) -> dict[str, PackedWeight | Tensor]:
    """Every parameter as it will be stored: packed if that takes fewer bytes, otherwise in fp32.

    A quantized layer packs its own effective weight. In any other parameter the bits are looked for
    (``bitmaps.packed.discover``).

    Args:
        embeddings: the storage of the word, position and type tables and of an untied decoder, if
            it takes fewer bits than they have. ``None`` rounds nothing.
        head: the same for the other matrices of the head.

    Raises:
        InputError: for a weight that is not finite, or would not be after rounding.
    """
    layers = {id(m.weight): m for m in model.modules() if isinstance(m, PacksItself)}
    parts: dict[str, PackedWeight | Tensor] = {}
    for name, parameter in model.named_parameters():
        if ".quantizer." in name:  # a learned scale, which is part of the packed weight
            continue
        layer = layers.get(id(parameter))
        packed = None if layer is None else layer.pack()
        weight = parameter.detach().cpu().float() if packed is None else packed.dense()
        if not weight.isfinite().all():
            raise InputError(f"{name} holds a number that is not finite")
        if packed is None and weight.ndim == 2:
            packed = fewest_bits(weight, table=name == "embeddings.word.weight")
        asked = storage_asked(name, embeddings, head) if weight.ndim == 2 else None
        has = Storage.fp32 if packed is None else packed.storage
        if asked is not None and asked.bits < has.bits:
            packed = PackedWeight.rounded(weight, asked)
            if not packed.data.isfinite().all():
                raise InputError(f"{name} holds a number that {asked} cannot hold")
        parts[name] = weight if packed is None or packed.nbytes >= weight.nbytes else packed
    return parts


def storage_asked(name: str, embeddings: Storage | None, head: Storage | None) -> Storage | None:
    """The storage that was asked for a parameter."""
    if name.startswith(("embeddings.", "head.decoder.")):
        return embeddings and Storage(embeddings)
    return head and Storage(head) if name.startswith("head.") else None


def tensors_of(name: str, part: PackedWeight | Tensor) -> dict[str, Tensor]:
    """The tensors that a parameter becomes in the file."""
    if isinstance(part, Tensor):
        return {name: part.contiguous()}
    suffix = {Storage.bit: ".bits", Storage.fp16: ""}.get(part.storage, f".{part.storage}")
    found = {name + suffix: part.in_rows}
    if part.storage != Storage.bit:
        return found if part.high is None else found | {f"{name}.scale": part.high}
    assert part.high is not None
    if part.low is None:
        found[f"{name}.scale"] = part.high
    else:
        found[f"{name}.high"] = part.high
        if part.low.any():
            found[f"{name}.low"] = part.low
    return found if part.column is None else found | {f"{name}.column": part.column}


def save(
    model: Bert,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    embeddings: Storage | None = None,
    head: Storage | None = None,
) -> None:
    """Write a model, with quantized layers or of floats, as a packed folder: all of it or nothing.

    Raises:
        InputError: when the folder exists, cannot be made, or as ``pack_model`` does.
    """
    if folder.exists():
        raise InputError(f"{folder} exists already: choose another folder")
    parts = pack_model(model, embeddings, head)
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error}") from error
    write_model(model.config, parts, draft)
    tokenizer.save_pretrained(draft)
    draft.rename(folder)


def write_model(
    config: BertConfig, parts: Mapping[str, PackedWeight | Tensor], folder: Path
) -> None:
    """Write all of a packed folder but the tokenizer into a folder without a model.

    Equal models give equal bytes.

    Args:
        parts: the parameters by name (``pack_model``, ``PackedBert.parts``).

    Raises:
        OSError: when it cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    shapes = {}
    for name, part in parts.items():
        name = hugging_face_name(name)
        tensors |= tensors_of(name, part)
        if isinstance(part, PackedWeight):
            shapes[name] = list(part.shape)
    words = parts["embeddings.word.weight"]
    stored = words.storage if isinstance(words, PackedWeight) else Storage.fp32
    values = config.to_dict() | {
        "model_type": MODEL_TYPE,
        "architectures": [CLASSES + SUFFIXES[config.task]],
        "bitmaps": (config.bitmaps or {})
        | {"embeddings": stored, "task": config.task}
        | ({} if config.model_type == "bert" else {"family": config.model_type}),
    }
    text = json.dumps(values, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    keys = canonical(shaping_keys(config))
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "shapes": canonical(shapes),
        "config": keys,
        "digest": digest(tensors, keys.encode() + b"\0"),
    }
    write(folder / FILE, tensors, metadata)
    write_pooling(config, folder)


def is_packed(folder: Path) -> bool:
    """Whether a model's folder is a packed one."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # which whoever reads the file reports
        return False
    return isinstance(config, dict) and config.get("model_type") == MODEL_TYPE


@dataclass(frozen=True)
class PackedFile:
    """A file that was checked.

    Attributes:
        tensors: by name. The file is mapped: a tensor stays in it until it is used.
        shapes: of the packed matrices.
        config: the keys that the weights were written for (``belonging``); ``None`` in version 1.
        nonfinite: the names of the tensors that hold a NaN or an infinity.
    """

    tensors: dict[str, Tensor]
    shapes: dict[str, list[int]]
    config: dict[str, Any] | None
    nonfinite: frozenset[str]


def read(path: Path) -> PackedFile:
    """Open and check a file.

    Raises:
        InputError: for a file that is missing, truncated, of another format or an unknown version,
            or changed since it was written.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        first = metadata["config"].encode() + b"\0" if "config" in metadata else b""
        content = read_content(path, first)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is truncated or not a safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"{path} is not a packed model: its format is {metadata.get('format')!r}; "
            f"valid is {FORMAT!r}"
        )
    version = metadata.get("version")
    if version not in READS:
        raise InputError(
            f"{path} has version {version!r}; this package reads versions {' and '.join(READS)}"
        )
    if metadata.get("digest") != content.digest:
        raise InputError(
            f"{path} is damaged: its content has digest {content.digest}, but it was written with "
            f"{metadata.get('digest')}"
        )
    shapes = table(path, metadata, "shapes")
    if not all(is_shape(shape) for shape in shapes.values()):
        raise InputError(f"{path} has no table of shapes in its metadata")
    config = None if version == "1" else table(path, metadata, "config")
    return PackedFile(tensors, shapes, config, content.nonfinite)


def table(path: Path, metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    """A JSON object in the metadata."""
    try:
        found = json.loads(metadata[name])
    except (KeyError, ValueError, RecursionError) as error:
        raise InputError(f"{path} has no table of {name} in its metadata") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} has no table of {name} in its metadata")
    return found


def is_shape(found: object) -> bool:
    return (
        isinstance(found, list)
        and len(found) == 2
        and all(isinstance(size, int) and size > 0 for size in found)
    )


def take(file: PackedFile, name: str, shape: tuple[int, ...]) -> PackedWeight | Tensor:
    """Remove one parameter from the tensors of a file, and return it.

    Raises:
        InputError: when it is missing, or a part of it has an unexpected shape or type or is not
            finite.
    """

    tensors = file.tensors

    def part(suffix: str, dtype: torch.dtype, wanted: tuple[int, ...]) -> Tensor:
        tensor = tensors.pop(name + suffix, None)
        if tensor is None:
            raise InputError(f"{name + suffix} is missing")
        if tuple(tensor.shape) != wanted or tensor.dtype != dtype:
            raise InputError(
                f"{name + suffix} is {tensor.dtype} of shape {tuple(tensor.shape)}, "
                f"but the model needs {dtype} of {wanted}"
            )
        if name + suffix in file.nonfinite:
            raise InputError(f"{name + suffix} holds a number that is not finite")
        return tensor

    if name in tensors:
        if tensors[name].dtype == torch.float16 and len(shape) == 2:
            return PackedWeight(Storage.fp16, shape[1], part("", torch.float16, shape))
        return part("", torch.float32, shape)
    if len(shape) != 2:
        raise InputError(f"{name} is missing")
    rows, columns = shape
    for storage, dtype, width in (
        (Storage.int8, torch.int8, columns),
        (Storage.int4, torch.uint8, (columns + 1) // 2),
    ):
        if f"{name}.{storage}" in tensors:
            data = part(f".{storage}", dtype, (rows, width))
            return PackedWeight(storage, columns, data, part(".scale", torch.float32, (rows,)))
    data = part(".bits", torch.uint8, (rows, (columns + 7) // 8))
    if columns % 8 and (data[:, -1] >> columns % 8).any():
        raise InputError(f"{name}.bits has bits beyond its {columns} columns")
    low = None
    if f"{name}.scale" in tensors:
        high = part(".scale", torch.float32, (rows,))
    else:
        high = part(".high", torch.float32, (rows,))
        has_low = f"{name}.low" in tensors
        low = part(".low", torch.float32, (rows,)) if has_low else torch.zeros(rows)
    column = part(".column", torch.float32, (columns,)) if f"{name}.column" in tensors else None
    return PackedWeight(Storage.bit, columns, data, high, low, column)


def default_activations(config: BertConfig) -> Activations:
    """What the activations of a packed model become unless something else is asked: int6 if it was
    trained with int6, otherwise int8."""
    needed = config.needed_activations()
    return needed if needed is Activations.int6 else Activations.int8


def load(folder: Path, act: Act | None) -> PackedBert:
    """Open a packed folder in evaluation mode.

    Nothing is unpacked: weights stay in the file's pages, which processes share. Where kernels read
    bits in tiles (``bitmaps.packed.tiles``), each process has its own copy of the bits instead.

    Args:
        act: what activations are rounded to before they are multiplied with one-bit matrices
            (``bitmaps.packed.activations``); ``None`` is ``default_activations``. Layers trained
            with one-bit inputs always use ``a1``.

    Raises:
        InputError: when the folder is damaged or does not fit its ``config.json``, before anything
            computes with it; when ``BITMAPS_KERNELS`` names kernels that do not exist or do not run
            here.
    """
    native.kernels()  # reports errors now, not in the first forward pass
    path, config = folder / FILE, config_of(folder)
    file = read(path)
    parts: dict[str, PackedWeight | Tensor] = {}
    try:
        if file.config is not None:
            check_keys(config, file.config)
        check_sizes(config, file.tensors)
        for name, parameter in PackedBert(config).named_parameters():
            theirs, shape = hugging_face_name(name), tuple(parameter.shape)
            if theirs in file.shapes and tuple(file.shapes.pop(theirs)) != shape:
                raise InputError(f"{theirs} has another shape than the {shape} of config.json")
            parts[name] = take(file, theirs, shape)
        if left := sorted({*file.tensors, *file.shapes}):
            raise InputError(f"no BERT of its config.json has: {', '.join(left[:5])}")
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    model = assemble(config, parts, act or default_activations(config).act)
    used = {id(buffer) for buffer in model.buffers()}
    for part in parts.values():
        if isinstance(part, PackedWeight) and id(part.data) not in used:
            tiles.discard(part.data)
    return model
