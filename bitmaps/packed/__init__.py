"""Weights in real bits: storage, discovery in floats, the file format, layers and C kernels.

May import ``bert``, ``quantize``, ``vocabulary`` and ``errors``; but ``weights``, ``operations``
and ``kernels`` must not import ``quantize``, which packs with them. A new storage goes into
``weights`` and ``format`` (docs/format.md), a new kernel into ``native/`` (docs/kernels.md).
"""
