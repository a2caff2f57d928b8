"""bitmaps: binarized transformers for making fast predictions.

model = bitmaps.load(source)                               # any model: Hub id, run, packed folder
logits = model(input_ids, attention_mask, token_type_ids)  # (batch, length, vocabulary), fp32
vectors = model(input_ids, attention_mask)                 # (batch, hidden), of a sentence encoder
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitmaps.hf import to_transformers
    from bitmaps.loading import load

__version__ = "0.1.0"
__all__ = ["ADAPTERS", "__version__", "load", "to_transformers"]

ADAPTERS = Path(__file__).parent / "adapters"
"""The folder of the adapters that come with the package, as ``<name>.safetensors``."""


def __getattr__(name: str) -> Any:
    # torch and transformers take seconds to import, and `python train.py --help` needs neither
    if name == "load":
        from bitmaps.loading import load

        return load
    if name == "to_transformers":
        from bitmaps.hf import to_transformers

        return to_transformers
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
