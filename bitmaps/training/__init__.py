"""Training through the binarization: the module, its losses and its callbacks.

Imports ``bert``, ``packed``, ``quantize``, ``data`` and ``scoring``. A new part of the loss is a
function in ``losses.py``, a field of ``LossWeights`` and of ``Loss`` in ``command/parts.py``.
"""
