"""The implementations that packed matrices and training steps are compared with.

A peer of a matrix takes a linear layer and its input, and returns what to time, by name. A peer
whose library is not installed returns an empty dictionary. ``MATRIX_PEERS`` lists those that are
timed. The peers of whole models are in ``deployments.py``.
"""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitmaps.bench.timing import Run
from bitmaps.bert import BertConfig

TORCH = "torch fp32"


def torch_matrix(linear: nn.Linear, x: Tensor) -> dict[str, Run]:
    # quantize_dynamic replaces only the children of what it is given
    int8 = int8_dynamic(nn.Sequential(linear))
    return {TORCH: partial(linear, x), "torch int8 dynamic": partial(int8, x)}


def onnx_matrix(linear: nn.Linear, x: Tensor) -> dict[str, Run]:
    """ONNX Runtime in fp32 and in dynamic int8."""
    if importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("onnx") is None:
        return {}
    import onnx
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    feed = {"x": x.numpy()}
    runs: dict[str, Run] = {}
    with tempfile.TemporaryDirectory() as name:
        fp32, int8 = Path(name) / "fp32.onnx", Path(name) / "int8 dynamic.onnx"
        onnx.save(onnx_model(linear), fp32)
        quantize_dynamic(
            fp32,
            int8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=needs_seven_bits(),
        )
        for path in (fp32, int8):
            session = onnxruntime.InferenceSession(
                path, onnx_options(), providers=["CPUExecutionProvider"]
            )
            runs[f"ONNX Runtime {path.stem}"] = partial(session.run, None, feed)
    return runs


def needs_seven_bits() -> bool:
    """Whether ONNX Runtime's int8 needs weights of seven bits: without VNNI it adds two products in
    int16, which eight bits overflow. Its documentation asks for ``reduce_range`` there."""
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


def onnx_options() -> Any:
    """``onnxruntime.SessionOptions`` for ``torch.get_num_threads()`` threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 3
    # otherwise its idle threads spin on the cores that the next run needs
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def onnx_model(linear: nn.Linear) -> Any:
    """A linear layer as an ``onnx.ModelProto``: ``y = x w + b``, with ``w`` (inputs, outputs)."""
    import onnx

    float32, helper = onnx.TensorProto.FLOAT, onnx.helper
    weight = onnx.numpy_helper.from_array(linear.weight.detach().numpy().T.copy(), "w")
    bias = onnx.numpy_helper.from_array(linear.bias.detach().numpy(), "b")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Add", ["p", "b"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", float32, ["m", linear.in_features])]
    outputs = [helper.make_tensor_value_info("y", float32, ["m", linear.out_features])]
    graph = helper.make_graph(nodes, "linear", inputs, outputs, [weight, bias])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


MATRIX_PEERS = (torch_matrix, onnx_matrix)


def int8_dynamic(module: nn.Module) -> nn.Module:
    """PyTorch's int8: weights are rounded once, activations at run time."""
    with warnings.catch_warnings():
        # deprecated, with the tensors it makes, in favour of torchao, which is not part of torch
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
        return torch.ao.quantization.quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8)


def transformers_model(config: BertConfig) -> nn.Module:
    """``transformers``' BERT without dropout, with eager attention and logits at all positions."""
    import transformers

    values = {k: v for k, v in asdict(config).items() if k != "bitmaps"}
    values |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return transformers.BertForMaskedLM._from_config(
        transformers.BertConfig(**values), attn_implementation="eager"
    )
