"""BERT in full precision, one file for each component that can be binarized on its own.

May import ``vocabulary`` and ``errors`` only; it does not know that it may be binarized.
A new shape constant goes into ``config``, a tensor name of Hugging Face into ``checkpoint``.
"""

from bitmaps.bert.config import BertConfig
from bitmaps.bert.model import Bert

__all__ = ["Bert", "BertConfig"]
