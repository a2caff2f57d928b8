"""Train a binarized BERT: ``python train.py binarize=ffnn values=pm1``.

Every choice is a file in ``conf/``.
"""

from bitmaps.__main__ import train

if __name__ == "__main__":
    train()
