"""bitmaps: binarized transformers for making fast predictions.

model = bitmaps.load(source)                               # a Hugging Face folder or Hub id, a run folder, or a packed one
logits = model(input_ids, attention_mask, token_type_ids)  # (batch, length, vocabulary), fp32
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitmaps.loading import load, to_transformers

__version__ = "0.1.0"
__all__ = ["ADAPTERS", "__version__", "load", "to_transformers"]

ADAPTERS = Path(__file__).parent / "adapters"
"""Where the adapters lie that come with the package, as ``<name>.safetensors``."""


def __getattr__(name: str) -> Any:
    # torch and transformers take seconds to import: `python train.py --help` does without them
    if name in ("load", "to_transformers"):
        from bitmaps import loading

        return getattr(loading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
