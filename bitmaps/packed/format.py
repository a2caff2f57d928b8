"""The packed folder: ``config.json``, the tokenizer, and ``model.safetensors`` with weights in real bits (docs/format.md)."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedTokenizerBase
from transformers import BertConfig as TransformersConfig

from bitmaps.bert import Bert, BertConfig
from bitmaps.bert.checkpoint import hugging_face_name
from bitmaps.errors import InputError
from bitmaps.packed import kernels as native
from bitmaps.packed.kernels import Act
from bitmaps.packed.layers import PackedAttention, PackedEmbedding, PackedFeedForward, PackedLinear
from bitmaps.packed.weights import PackedWeight
from bitmaps.quantize.rounding import BITS, Stored, signed_inputs

FORMAT, VERSION = "bitmaps", "1"
FILE = "model.safetensors"


class PackedConfig(TransformersConfig):
    """What ``transformers`` takes ``config.json`` for. Its tokenizers open in a packed folder; of a model it says that there is
    none for this configuration, instead of starting with random weights."""

    model_type = "bitmaps"


AutoConfig.register(PackedConfig.model_type, PackedConfig, exist_ok=True)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, each ended by a zero byte and followed by the tensor's bytes, in the order of the names."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode() + b"\0")
        found.update(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def pack_model(
    model: Bert, embeddings: Stored | None = None, head: Stored | None = None
) -> dict[str, PackedWeight | Tensor]:
    """Every parameter of a model as it is to be stored: a ``PackedWeight`` where few bits give it back, else the fp32 tensor.

    Args:
        embeddings, head: what to round word, position and type tables (and a decoder of its own), and the head's transform, to,
            where they are not in fewer bits as they are. ``None``: nothing is rounded.

    Raises:
        InputError: for a weight that is not finite, or would not be.
    """
    parts: dict[str, PackedWeight | Tensor] = {}
    for name, parameter in model.named_parameters():
        weight = parameter.detach().cpu().float()
        if not weight.isfinite().all():
            raise InputError(f"{name} holds a number that is not finite")
        of_tables = name.startswith(("embeddings.", "head.decoder."))
        of_head = name.startswith("head.transform.")
        packed = (
            PackedWeight.exactly(weight, name == "embeddings.word.weight")
            if weight.ndim == 2
            else None
        )
        asked = embeddings if of_tables else head if of_head else None
        if (
            weight.ndim == 2
            and asked is not None
            and BITS[asked] < (32 if packed is None else BITS.get(packed.kind, 1))
        ):
            packed = PackedWeight.rounded(weight, asked)
            if not packed.data.isfinite().all():
                raise InputError(f"{name} holds a number that {asked} does not")
        parts[name] = weight if packed is None or packed.nbytes >= weight.nbytes else packed
    return parts


def tensors_of(name: str, part: PackedWeight | Tensor) -> dict[str, Tensor]:
    """The tensors that a parameter becomes in the file."""
    if isinstance(part, Tensor):
        return {name: part.contiguous()}
    suffix = {"bit": ".bits", "fp16": ""}.get(part.kind, f".{part.kind}")
    found = {name + suffix: part.data}
    if part.kind != "bit":
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
    embeddings: Stored | None = None,
    head: Stored | None = None,
) -> None:
    """Write a model of effective weights as a packed folder, all of it or nothing.

    Raises:
        InputError: when the folder is there already.
    """
    if folder.exists():
        raise InputError(f"{folder} is there already: choose another folder")
    parts = pack_model(model, embeddings, head)
    tensors: dict[str, Tensor] = {}
    shapes = {}
    for name, part in parts.items():
        name = hugging_face_name(name)
        tensors |= tensors_of(name, part)
        if isinstance(part, PackedWeight):
            shapes[name] = list(part.shape)
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error}") from error
    words = parts["embeddings.word.weight"]
    config = model.config.to_dict() | {
        "model_type": PackedConfig.model_type,
        "architectures": ["bitmaps.packed"],
    }
    config["bitmaps"] = (model.config.bitmaps or {}) | {
        "embeddings": words.kind if isinstance(words, PackedWeight) else "fp32"
    }
    (draft / "config.json").write_text(
        json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "shapes": json.dumps(shapes),
        "digest": digest(tensors),
    }
    save_file(tensors, draft / FILE, metadata=metadata)
    tokenizer.save_pretrained(draft)
    draft.rename(folder)


def is_packed(folder: Path) -> bool:
    """Whether a model's folder is a packed one."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == PackedConfig.model_type


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """The tensors, which stay in the file until they are used (they are mapped), and the shapes of the packed ones.

    Raises:
        InputError: for a file that is missing, truncated, of another format or version, or changed since it was written.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is truncated or not a safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"{path} is no packed model: its format is {metadata.get('format')!r}; valid is {FORMAT!r}"
        )
    if metadata.get("version") != VERSION:
        raise InputError(
            f"{path} has version {metadata.get('version')!r}; this package reads version {VERSION}"
        )
    if metadata.get("digest") != (actual := digest(tensors)):
        raise InputError(
            f"{path} is damaged: its content has digest {actual}, but was written with {metadata.get('digest')}"
        )
    try:
        shapes = json.loads(metadata["shapes"])
        assert all(len(shape) == 2 and min(shape) > 0 for shape in shapes.values())
    except (KeyError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise InputError(f"{path} has no table of shapes in its metadata") from error
    return tensors, shapes


def take(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> PackedWeight | Tensor:
    """One parameter out of the tensors of a file, from which it is removed.

    Raises:
        InputError: when it is missing, or a part of it has another shape or type than the model asks for, or is not finite.
    """

    def part(suffix: str, dtype: torch.dtype, wanted: tuple[int, ...]) -> Tensor:
        tensor = tensors.pop(name + suffix, None)
        if tensor is None:
            raise InputError(f"{name + suffix} is missing")
        if tuple(tensor.shape) != wanted or tensor.dtype != dtype:
            raise InputError(
                f"{name + suffix} is {tensor.dtype} of shape {tuple(tensor.shape)}, but the model asks for {dtype} of {wanted}"
            )
        # not `isfinite` of all, which would take more memory than the file
        if (
            dtype.is_floating_point
            and tensor.numel()
            and not torch.stack(tensor.aminmax()).isfinite().all()
        ):
            raise InputError(f"{name + suffix} holds a number that is not finite")
        return tensor

    if name in tensors:
        if tensors[name].dtype == torch.float16 and len(shape) == 2:
            return PackedWeight("fp16", shape[1], part("", torch.float16, shape))
        return part("", torch.float32, shape)
    if len(shape) != 2:
        raise InputError(f"{name} is missing")
    rows, columns = shape
    for kind, dtype, width in (
        ("int8", torch.int8, columns),
        ("int4", torch.uint8, (columns + 1) // 2),
    ):
        if f"{name}.{kind}" in tensors:
            data = part(f".{kind}", dtype, (rows, width))
            return PackedWeight(kind, columns, data, part(".scale", torch.float32, (rows,)))  # type: ignore[arg-type]
    data = part(".bits", torch.uint8, (rows, (columns + 7) // 8))
    if columns % 8 and (data[:, -1] >> columns % 8).any():
        raise InputError(f"{name}.bits has bits beyond its {columns} columns")
    low = None
    if f"{name}.scale" in tensors:
        high = part(".scale", torch.float32, (rows,))
    else:
        high = part(".high", torch.float32, (rows,))
        low = (
            part(".low", torch.float32, (rows,)) if f"{name}.low" in tensors else torch.zeros(rows)
        )
    column = part(".column", torch.float32, (columns,)) if f"{name}.column" in tensors else None
    return PackedWeight("bit", columns, data, high, low, column)


def load(folder: Path, act: Act) -> Bert:
    """Open a packed folder, in evaluation mode. Nothing is unpacked: weights stay in the file's pages, which processes share.

    Args:
        act: what activations are rounded to before they are multiplied with one-bit matrices (``bitmaps.packed.operations``).
            Where the model was trained on the signs of its inputs (``one_bit_inputs``) it is ``a1``.

    Raises:
        InputError: when the folder is damaged or does not fit its ``config.json``, before anything computes with it; when the
            kernels that ``BITMAPS_KERNELS`` asks for are none, or none that run here.
    """
    native.kernels()  # what is wrong with them is said now, not by the first forward pass
    path, config = folder / FILE, BertConfig.from_file(folder / "config.json")
    tensors, shapes = read(path)
    parts: dict[str, PackedWeight | Tensor] = {}
    try:
        for name, parameter in on_meta(config).named_parameters():
            theirs, shape = hugging_face_name(name), tuple(parameter.shape)
            if theirs in shapes and tuple(shapes.pop(theirs)) != shape:
                raise InputError(f"{theirs} has another shape than the {shape} of config.json")
            parts[name] = take(tensors, theirs, shape)
        if left := sorted({*tensors, *shapes}):
            raise InputError(
                f"there are tensors that no BERT of its config.json has: {', '.join(left[:5])}"
            )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return assemble(config, parts, act)


def on_meta(config: BertConfig) -> Bert:
    """A model with the blocks that can run packed, without a number in it."""
    with torch.device("meta"):
        model = Bert(config)
        for layer in model.encoder.layers:
            layer.attention = PackedAttention(config)
            layer.ffnn = PackedFeedForward(config)
    return model


def assemble(config: BertConfig, parts: Mapping[str, PackedWeight | Tensor], act: Act) -> Bert:
    """A model of these parameters (``pack_model``), in evaluation mode."""
    model, signed = on_meta(config), signed_inputs(config)
    for name, part in parts.items():
        place(model, name, part, "a1" if name.split(".")[-2] in signed else act)
    return model.requires_grad_(False).eval()


def place(model: Bert, name: str, part: PackedWeight | Tensor, act: Act) -> None:
    """Put one parameter where it belongs, in packed form as a packed layer."""
    path, _, last = name.rpartition(".")
    module: Any = model.get_submodule(path)
    if isinstance(part, Tensor):
        parameter = nn.Parameter(part, requires_grad=False)
        if isinstance(module, PackedLinear):  # its matrix came before
            module.bias = parameter.detach()
        else:
            setattr(module, last, parameter)
        if name == "embeddings.word.weight" and model.config.tie_word_embeddings:
            model.head.decoder.weight = parameter
        return
    above, _, own = path.rpartition(".")
    if isinstance(module, nn.Embedding):
        setattr(model.get_submodule(above), own, PackedEmbedding(part))
        if own == "word" and model.config.tie_word_embeddings:
            model.head.decoder = PackedLinear(part, model.head.decoder.bias, act)  # type: ignore[assignment]
    else:
        setattr(model.get_submodule(above), own, PackedLinear(part, module.bias, act))


@torch.no_grad()
def to_float(model: Bert) -> Bert:
    """An ordinary ``Bert`` with the weights, in fp32, that a packed one stands for."""
    plain = Bert(model.config)
    for name, parameter in plain.named_parameters():
        path, _, last = name.rpartition(".")
        part = getattr(model.get_submodule(path), last)
        parameter.copy_(part.dense() if isinstance(part, PackedWeight) else part)
    return plain.eval()
