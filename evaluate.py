"""Score a BERT as it is, binarized or trained.

For example: ``python evaluate.py -m binarize=none,all,layers``.
"""

from bitmaps.__main__ import evaluate

if __name__ == "__main__":
    evaluate()
