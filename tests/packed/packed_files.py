"""Names in packed files, and a reader of their tensors that uses numpy alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LAYERS = ("attention", "ffnn")
QUERY = "bert.encoder.layer.1.attention.self.query.weight"
WORDS = "bert.embeddings.word_embeddings.weight"
NORM = "bert.encoder.layer.0.output.LayerNorm.bias"


def tensors_by_numpy(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    raw, dtypes = (
        path.read_bytes(),
        {"U8": np.uint8, "I8": np.int8, "F16": np.float16, "F32": np.float32},
    )
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    metadata = header.pop("__metadata__")
    return {
        name: np.frombuffer(
            raw[start + found["data_offsets"][0] : start + found["data_offsets"][1]],
            dtypes[found["dtype"]],
        ).reshape(found["shape"])
        for name, found in header.items()
    }, metadata
