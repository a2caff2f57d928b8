"""What the two commands do with a checked configuration; each job returns an ``Outcome``.

Imports every room but ``report`` and ``tracking``, which only observe outcomes. A new way to make a
model is a job of its own beside ``train.py`` and ``evaluate.py``.
"""
