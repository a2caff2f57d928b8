"""Weights of two values: quantizers, layers that own them, conversion, calibration, rotation.

May import ``bert``, ``packed.weights``, ``vocabulary`` and ``errors``.
A new scale, threshold or gradient goes into ``quantizer``; a new component into ``convert``.
"""
