"""From texts to vectors: of a list, of a file of any size, side by side in processes.

Imports ``bert``, ``data`` and ``runs``. A new kind of file is a reader in ``texts.py``.
"""
