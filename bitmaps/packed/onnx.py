"""A packed model as an ONNX file, which other runtimes open.

The file has standard operators alone. It stores the weights as the packed file does, and operators
unpack them: one bit a weight stays one bit a weight. Products are those of floats (``act="f32"``).
"""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import bitmaps
from bitmaps.bert import Bert, BertConfig
from bitmaps.errors import InputError
from bitmaps.packed.custom_ops import check_act_of_onnx
from bitmaps.packed.encoder import PackedEncoder
from bitmaps.packed.layers import PackedLinear
from bitmaps.vocabulary import Task

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET, IR_VERSION = 18, 8  # the first with BitwiseAnd, and the version that came with it
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
LARGEST = 2**31 - 2**24  # bytes of weights; a file takes 2 GiB with its graph
TOLERANCE = 1e-4
SENTENCES = ((1, 1), (3, 40), (1, 512))  # how many, and of how many tokens at most


def export_onnx(model: Bert, file: str | Path) -> float:
    """Write a packed model as an ONNX file, once ONNX Runtime has computed the same with it.

    The inputs are ``input_ids`` and ``attention_mask``, and ``token_type_ids`` if the model has
    several types: int64 (batch, length), both of any size. The output is that of ``Bert.forward``:
    ``logits``, or ``sentence_embedding`` of a sentence encoder. The metadata of the file has the
    ``task`` and ``max_length``, the ``id2label`` of a classifier, and ``pooling`` and ``normalize``
    of a sentence encoder.

    Args:
        model: a packed model, opened with ``act="f32"``.
        file: the file to write; the folder must exist.

    Returns:
        The largest difference between ONNX Runtime's outputs and the model's own, on random
        sentences; relative to the largest output if that is above 1.

    Raises:
        InputError: when the file exists or cannot be written; without the extra ``onnx``; for a
            model that is not packed, rounds its activations, or takes 2 GiB; and when ONNX Runtime
            computes something else.
    """
    file = Path(file)
    check_file(file)
    check_model(model)
    content = serialized(model)
    difference = largest_difference(model, content)
    if not difference <= TOLERANCE:  # NaN too
        raise InputError(
            f"{file} is not written: ONNX Runtime's outputs differ from the model's by "
            f"{difference:.1e}; valid is at most {TOLERANCE}"
        )
    draft = file.with_name(f".{file.name}.draft")
    try:
        draft.write_bytes(content)
        check_file(file)  # again, as an export takes a minute
        draft.rename(file)
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error}") from error
    finally:
        draft.unlink(missing_ok=True)
    return difference


def check_file(file: Path) -> None:
    """Raises:
    InputError: when the file exists or has no folder, or a package of the extra is missing."""
    if file.exists() or file.is_symlink():
        raise InputError(f"{file} exists already: choose another file")
    if not file.parent.is_dir():
        raise InputError(f"{file} cannot be written: there is no folder {file.parent}")
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"an ONNX file needs packages that are not installed ({', '.join(missing)}): "
            "pip install -c constraints.txt -e '.[onnx]'"
        )


def check_model(model: Bert) -> None:
    """Raises:
    InputError: for a model that no ONNX file can hold."""
    if not isinstance(model.encoder, PackedEncoder):
        raise InputError(
            'the model is not packed; valid is bitmaps.load(<packed folder>, act="f32")'
        )
    for module in model.modules():
        if isinstance(module, PackedLinear) and module.product_act is not None:
            check_act_of_onnx(module.product_act)
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    if size > LARGEST:
        raise InputError(
            f"the weights take {size / 2**30:.2f} GiB, and an ONNX file at most 2: "
            "store the word table in fewer bits, as by --embeddings int8"
        )


def serialized(model: Bert) -> bytes:
    """The content of the file."""
    import onnx

    inputs = sentences(model.config, 2, 2)
    output = "sentence_embedding" if model.config.task is Task.sentence_embedding else "logits"
    with quiet():
        program: Any = torch.onnx.export(
            model,
            inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=INPUTS[: len(inputs)],
            output_names=[output],
            dynamic_shapes=({0: "batch", 1: "length"},) * len(inputs),
            optimize=False,  # it would unpack small matrices
            verbose=False,
        )
    proto = program.model_proto
    graph = proto.graph
    values = (*graph.value_info, *graph.initializer, *graph.input, *graph.output)
    for part in (graph, *graph.node, *values):
        part.ClearField("metadata_props")  # traces of calls, with paths on this machine
    proto.ir_version = IR_VERSION
    onnx.helper.set_model_props(proto, metadata(model.config))
    proto.producer_name, proto.producer_version = "bitmaps", bitmaps.__version__
    content: bytes = proto.SerializeToString()
    return content


@contextmanager
def quiet() -> Iterator[None]:
    """Without what the exporter says of its own future, and of packages that are not needed."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def metadata(config: BertConfig) -> dict[str, str]:
    """What a program that opens the file alone has to know of the model."""
    length = config.max_position_embeddings
    found: dict[str, Any] = {"task": config.task}
    if config.task is Task.sentence_embedding:
        pooling = config.pooling
        found |= {"pooling": pooling.mode, "normalize": json.dumps(pooling.normalize)}
        length = min(length, pooling.length or length)
    if config.task is Task.classification:
        found["id2label"] = json.dumps(config.to_dict()["id2label"])
    return {name: str(value) for name, value in found.items()} | {"max_length": str(length)}


def sentences(config: BertConfig, batch: int, length: int) -> tuple[Tensor, ...]:
    """Random inputs of the model, (batch, length) each: all but the first end in padding."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (batch, length), generator=generator)
    lengths = torch.randint(1, length + 1, (batch, 1), generator=generator)
    lengths[0] = length
    mask = (torch.arange(length) < lengths).long()
    types = torch.randint(config.type_vocab_size, (batch, length), generator=generator)
    return (ids, mask, types) if config.type_vocab_size > 1 else (ids, mask)


@torch.inference_mode()
def largest_difference(model: Bert, content: bytes) -> float:
    """Between ONNX Runtime's outputs and the model's (``export_onnx``)."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found = []
    for batch, most in SENTENCES:
        length = min(most, model.config.max_position_embeddings)
        inputs = sentences(model.config, batch, length)
        feed = {name: x.numpy() for name, x in zip(INPUTS, inputs, strict=False)}
        expected = model(*inputs)
        difference = (torch.from_numpy(session.run(None, feed)[0]) - expected).abs().max()
        found.append(difference / expected.abs().max().clamp(min=1))
    return float(torch.stack(found).max())  # NaN if one is
