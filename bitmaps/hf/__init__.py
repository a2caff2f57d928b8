"""Models of this package in ``transformers`` and sentence-transformers.

To import it registers the packed folder as a model type, and ``BinarizeConfig`` as a quantization::

    import bitmaps.hf
    model = AutoModelForMaskedLM.from_pretrained("<run>/packed")
    encoder = SentenceTransformer("<run>/packed")

May import ``bert``, ``packed`` and ``quantize``. A key of ``config.json`` goes into ``config``, an
option of ``from_pretrained`` into ``base``, and what a task returns into ``models``.
"""

from bitmaps.hf.config import BitmapsConfig
from bitmaps.hf.models import (
    BitmapsForMaskedLM,
    BitmapsForSequenceClassification,
    BitmapsModel,
    to_transformers,
)
from bitmaps.hf.quantizer import BinarizeConfig

__all__ = [
    "BinarizeConfig",
    "BitmapsConfig",
    "BitmapsForMaskedLM",
    "BitmapsForSequenceClassification",
    "BitmapsModel",
    "to_transformers",
]
