"""From a model to numbers: its scores, what it predicts, its size and its time.

Imports ``bert``, ``packed``, ``data``, ``runs`` and ``command``. A new measurement is a function in
``measure.py`` and a field in ``bitmaps/runs/records.py``.
"""
