"""Weights in real bits: storage, discovery in floats, the file format, layers and C kernels.

Imports ``bert`` and shared modules. A new storage goes into ``weights`` and ``format``
(docs/format.md), a new kernel into ``native/`` (docs/kernels.md).
"""
