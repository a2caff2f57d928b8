"""BERT restructured: one file for each component that can be binarized on its own."""

from bitmaps.bert.config import BertConfig
from bitmaps.bert.model import Bert

__all__ = ["Bert", "BertConfig"]
