"""The ways to run a BERT on a CPU: packed in one bit, and the peers that this is compared with.

A peer is used as its documentation says. A deployment writes a folder from a full-precision model,
once: it converts the model, and quantizes it if that is its point. It then opens this folder alone,
so that the size of the files and the memory of a process that opens them are its own.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitmaps.bench.llama import open_llama, write_llama
from bitmaps.bench.peers import int8_dynamic, needs_seven_bits, onnx_options
from bitmaps.bert import Bert
from bitmaps.bert.checkpoint import save
from bitmaps.packed import format as packed
from bitmaps.quantize.convert import binarize_naive
from bitmaps.vocabulary import PLUS_MINUS_ONE, Act, Component, Scale, Scope, Storage

Predict = Callable[[Tensor, Tensor, Tensor], Any]
"""Token ids and their attention mask, (batch, length) each, and the flat indices of the positions
that are scored, to logits (positions, vocabulary)."""

EAGER, FUSED = "transformers, eager", "transformers, fused attention"
ONNX_INT8, OPENVINO, OPENVINO_INT8 = "ONNX Runtime int8", "OpenVINO", "OpenVINO int8"
INPUTS = ("ids", "mask", "positions")
ONNX_FILE, OPENVINO_FILE, TORCH_FILE = "model.onnx", "model.xml", "model.pt"
COUNTED = (".safetensors", ".onnx", ".xml", ".bin", ".pt", ".gguf")
"""The files that are a model. Tokenizers and model cards are left out."""

SHAPES = 64  # kinds of shapes that torch.compile may meet

LAYERS = (Component.attention, Component.ffnn)


@dataclass(frozen=True)
class Deployment:
    """One way to run a BERT.

    Attributes:
        name: as it is called in tables.
        files: the name of its folder. Deployments that open the same files have the same one.
        write: (model, folder, batches) writes the folder. ``model`` is in full precision, and
            ``batches`` are token ids without padding, (batch, length) each, for calibration.
        open: opens the folder for ``torch.get_num_threads()`` threads.
        packages: modules that must be installed.
        programs: commands that must be installed.
        has_head: whether it computes logits. Otherwise it takes no scored positions.
    """

    name: str
    files: str
    write: Callable[[Bert, Path, Sequence[Tensor]], None]
    open: Callable[[Path], Predict]
    packages: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    has_head: bool = True

    @property
    def missing(self) -> list[str]:
        """What it needs and is not installed."""
        packages = [name for name in self.packages if importlib.util.find_spec(name) is None]
        return packages + [name for name in self.programs if shutil.which(name) is None]

    def prepare(self, model: Bert, folder: Path, batches: Sequence[Tensor]) -> Path:
        """Its folder in ``folder``, written unless it is there already."""
        own = folder / self.files
        if not own.exists():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # converters warn of their own future
                self.write(model, own, batches)
        return own


def file_bytes(folder: Path) -> int:
    """The size of a model's files."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.suffix in COUNTED)


def write_one_bit(
    model: Bert, folder: Path, batches: Sequence[Tensor], components: tuple[Component, ...]
) -> None:
    """The matrices of ``components`` in one bit and row scales. A word table that is not one of
    them is in int8."""
    from transformers import BertTokenizer

    binary = Bert(model.config)
    binary.load_state_dict(model.state_dict())
    binarize_naive(binary, components, PLUS_MINUS_ONE, Scale.row, Scope.matrices)
    packed.save(binary, folder, BertTokenizer(), embeddings=Storage.int8)


def open_one_bit(folder: Path, act: Act) -> Predict:
    model = packed.load(folder, act)

    def predict(ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        logits: Tensor = model.head(model.encode(ids, mask)[-1].flatten(0, 1)[positions])
        return logits

    return predict


class ScoredPositions(nn.Module):
    """``transformers``' BERT with logits at the scored positions only, as the contenders have."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        hidden = self.model.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        logits: Tensor = self.model.cls(hidden.flatten(0, 1)[positions])
        return logits


def write_floats(model: Bert, folder: Path, batches: Sequence[Tensor]) -> None:
    save(model, folder)


def open_floats(folder: Path, attention: str) -> ScoredPositions:
    import transformers  # not at the top: its memory is not that of the other deployments

    transformers.utils.logging.disable_progress_bar()
    found = transformers.BertForMaskedLM.from_pretrained(folder, attn_implementation=attention)
    return ScoredPositions(found.eval())


def open_compiled(folder: Path) -> Predict:
    # after too many kinds of shapes torch runs a model uncompiled, and it counts earlier models too
    torch.compiler.reset()
    torch._dynamo.config.recompile_limit = SHAPES
    compiled: Predict = torch.compile(open_floats(folder, "sdpa"))
    return compiled


def write_torch_int8(model: Bert, folder: Path, batches: Sequence[Tensor]) -> None:
    with tempfile.TemporaryDirectory() as name:
        save(model, Path(name) / "floats")
        quantized = int8_dynamic(open_floats(Path(name) / "floats", "sdpa"))
    folder.mkdir(parents=True)
    torch.save(quantized, folder / TORCH_FILE)


def open_torch_int8(folder: Path) -> Predict:
    quantized: Predict = torch.load(folder / TORCH_FILE, weights_only=False)  # written just before
    return quantized


def example() -> tuple[Tensor, Tensor, Tensor]:
    """Inputs to trace a model with."""
    ids = torch.arange(8).reshape(2, 4)
    return ids, torch.ones_like(ids), torch.tensor([1, 6])


def write_onnx(model: Bert, folder: Path, batches: Sequence[Tensor]) -> None:
    """Exported with eager attention, whose parts the optimizer fuses into one operation."""
    from onnxruntime.transformers.optimizer import optimize_model

    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as name:
        save(model, Path(name) / "floats")
        exported = Path(name) / ONNX_FILE
        torch.onnx.export(
            open_floats(Path(name) / "floats", "eager"),
            example(),
            exported,
            dynamo=False,  # the optimizer knows the patterns of this exporter
            opset_version=17,
            input_names=list(INPUTS),
            output_names=["logits"],
            dynamic_axes={"ids": [0, 1], "mask": [0, 1], "positions": [0]},
        )
        optimized = optimize_model(
            str(exported),
            model_type="bert",
            num_heads=model.config.num_attention_heads,
            hidden_size=model.config.hidden_size,
        )
        optimized.save_model_to_file(str(folder / ONNX_FILE))


def write_onnx_int8(model: Bert, folder: Path, batches: Sequence[Tensor]) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as name:
        write_onnx(model, Path(name) / "floats", batches)
        quantize_dynamic(
            Path(name) / "floats" / ONNX_FILE,
            folder / ONNX_FILE,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=needs_seven_bits(),
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # of fused operations
        )


def open_onnx(folder: Path) -> Predict:
    import onnxruntime

    session = onnxruntime.InferenceSession(
        folder / ONNX_FILE, onnx_options(), providers=["CPUExecutionProvider"]
    )

    def predict(*inputs: Tensor) -> Any:
        feed = {name: one.numpy() for name, one in zip(INPUTS, inputs, strict=True)}
        return session.run(None, feed)[0]

    return predict


def openvino_model(model: Bert) -> Any:
    import openvino

    with tempfile.TemporaryDirectory() as name:
        save(model, Path(name) / "floats")
        floats = open_floats(Path(name) / "floats", "sdpa")
        return openvino.convert_model(floats, example_input=example())


def write_openvino(model: Bert, folder: Path, batches: Sequence[Tensor]) -> None:
    import openvino

    # the compression to fp16 on disk is OpenVINO's default
    openvino.save_model(openvino_model(model), folder / OPENVINO_FILE)


def write_openvino_int8(model: Bert, folder: Path, batches: Sequence[Tensor]) -> None:
    """Static int8 by NNCF's post-training quantization for transformers."""
    import nncf
    import openvino

    def inputs(ids: Tensor) -> list[Any]:
        return [ids.numpy(), torch.ones_like(ids).numpy(), torch.arange(ids.numel()).numpy()]

    quantized = nncf.quantize(
        openvino_model(model),
        nncf.Dataset(batches, inputs),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(batches),
    )
    openvino.save_model(quantized, folder / OPENVINO_FILE)


def open_openvino(folder: Path) -> Predict:
    import openvino

    # one stream: a batch is answered as soon as possible, by all threads
    options = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "NUM_STREAMS": 1}
    compiled = openvino.Core().compile_model(folder / OPENVINO_FILE, "CPU", options)

    def predict(*inputs: Tensor) -> Any:
        # logits stay in its memory until the next call: nothing is copied
        return compiled([one.numpy() for one in inputs], share_outputs=True)[0]

    return predict


def openvino_precision() -> str:
    """What OpenVINO computes in by its own choice: ``bf16`` where the processor has it, or
    ``f32``."""
    import openvino

    name: str = openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name()
    return name


def one_bit(act: Act, components: tuple[Component, ...] = LAYERS) -> Deployment:
    """A packed model, of random rather than trained bits."""
    return Deployment(
        f"one bit, {act}",
        "one bit, " + "+".join(components),
        partial(write_one_bit, components=components),
        partial(open_one_bit, act=act),
    )


def llama_cpp(quantization: str) -> Deployment:
    """llama.cpp with matrices in ``quantization``."""
    return Deployment(
        f"llama.cpp {quantization}",
        f"llama.cpp {quantization}",
        partial(write_llama, quantization=quantization),
        open_llama,
        ("xllamacpp", "gguf"),
        has_head=False,
    )


CONTENDERS = (
    one_bit(Act.a6),
    one_bit(Act.a8),
    one_bit(Act.a11),
    one_bit(Act.a1, (*LAYERS, Component.embeddings)),
)
PEERS = (
    Deployment(EAGER, "fp32", write_floats, partial(open_floats, attention="eager")),
    Deployment(FUSED, "fp32", write_floats, partial(open_floats, attention="sdpa")),
    Deployment("torch.compile", "fp32", write_floats, open_compiled, programs=("g++",)),
    Deployment("torch int8 dynamic", "torch int8", write_torch_int8, open_torch_int8),
    Deployment("ONNX Runtime fp32", "onnx", write_onnx, open_onnx, ("onnx", "onnxruntime")),
    Deployment(ONNX_INT8, "onnx int8", write_onnx_int8, open_onnx, ("onnx", "onnxruntime")),
    Deployment(OPENVINO, "openvino", write_openvino, open_openvino, ("openvino",)),
    Deployment(
        OPENVINO_INT8, "openvino int8", write_openvino_int8, open_openvino, ("openvino", "nncf")
    ),
    llama_cpp("Q8_0"),
    llama_cpp("Q4_0"),
)


def installed() -> tuple[Deployment, ...]:
    """The contenders, and the peers that can run here."""
    return (*CONTENDERS, *(peer for peer in PEERS if not peer.missing))


def left_out() -> list[str]:
    """A line for each peer that cannot run here."""
    return [
        f"{peer.name} is left out: {', '.join(peer.missing)} not installed "
        "(pip install -c constraints.txt -e '.[bench]')"
        for peer in PEERS
        if peer.missing
    ]
