"""llama.cpp as a peer: a BERT in its own formats, through the wheel ``xllamacpp``.

llama.cpp has no masked-language head. It gives the mean of the last hidden states of each sequence,
so only the encoder can be compared. The wheel is compiled for AVX2 and answers as a server does: a
request in Python, without a connection. A build for the processor at hand may be faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitmaps.bert import Bert

FILE = "model.gguf"
SLOTS, UBATCH = 8, 512  # sequences at a time, and llama.cpp's default number of tokens
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
NAMES = {
    "embeddings.word": "token_embd",
    "embeddings.position": "position_embd",
    "embeddings.token_type": "token_types",
    "embeddings.norm": "token_embd_norm",
    "attention.query": "attn_q",
    "attention.key": "attn_k",
    "attention.value": "attn_v",
    "attention.output": "attn_output",
    "attention.norm": "attn_output_norm",
    "ffnn.expand": "ffn_up",
    "ffnn.contract": "ffn_down",
    "ffnn.norm": "layer_output_norm",
}
"""Our modules and those of a GGUF file."""


def write_llama(model: Bert, folder: Path, batches: Sequence[Tensor], quantization: str) -> None:
    """A GGUF file, whose matrices are quantized to ``Q8_0`` or ``Q4_0``.

    Its tokens have names that mean nothing, because token ids are sent.
    """
    import gguf

    kind, config = gguf.GGMLQuantizationType[quantization], model.config
    folder.mkdir(parents=True)
    writer = gguf.GGUFWriter(folder / FILE, "bert")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_token_type_count(config.type_vocab_size)
    writer.add_tokenizer_model("bert")
    tokens = [*SPECIAL, *(f"\u2581{number}" for number in range(len(SPECIAL), config.vocab_size))]
    kinds = (gguf.TokenType.CONTROL, gguf.TokenType.NORMAL)
    writer.add_token_list(tokens)
    writer.add_token_types([kinds[number >= len(SPECIAL)] for number in range(len(tokens))])
    for add, name in (
        (writer.add_pad_token_id, "[PAD]"), (writer.add_unk_token_id, "[UNK]"),
        (writer.add_bos_token_id, "[CLS]"), (writer.add_eos_token_id, "[SEP]"),
    ):  # fmt: skip
        add(SPECIAL.index(name))
    for name, parameter in model.named_parameters():
        if not name.startswith("head."):
            values = parameter.detach().numpy()
            if name.endswith("weight") and values.ndim == 2 and not is_small_table(name):
                quantized = gguf.quants.quantize(values, kind)
                writer.add_tensor(gguf_name(name), quantized, raw_dtype=kind)
            else:
                writer.add_tensor(gguf_name(name), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def is_small_table(name: str) -> bool:
    return name.startswith(("embeddings.position", "embeddings.token_type"))


def gguf_name(name: str) -> str:
    """Our parameter's name -> GGUF's.

    >>> gguf_name("encoder.layers.3.ffnn.norm.bias")
    'blk.3.layer_output_norm.bias'
    """
    module, tensor = name.rsplit(".", 1)
    if not module.startswith("encoder."):
        return f"{NAMES[module]}.{tensor}"
    _, _, number, inside = module.split(".", 3)
    return f"blk.{number}.{NAMES[inside]}.{tensor}"


def open_llama(folder: Path) -> Any:
    """A function as ``Predict``, which takes no positions and returns (batch, hidden)."""
    import xllamacpp

    options = xllamacpp.CommonParams()
    options.model.path = str(folder / FILE)
    options.embedding, options.embd_normalize = True, -1
    options.n_parallel, options.n_ctx = SLOTS, SLOTS * UBATCH
    for threads in (options.cpuparams, options.cpuparams_batch):
        threads.n_threads = torch.get_num_threads()
        threads.poll = 0  # idle threads would spin on the cores that the next run needs
    options.warmup, options.verbosity = False, 0
    server = xllamacpp.Server(options)

    def predict(ids: Tensor, mask: Tensor, positions: Tensor) -> Any:
        assert not len(positions), "llama.cpp has no masked-language head"
        sequences = [row[kept].tolist() for row, kept in zip(ids, mask.bool(), strict=True)]
        found = server.handle_embeddings({"input": sequences, "model": FILE})
        return np.array([one["embedding"] for one in found["data"]], dtype=np.float32)

    return predict
