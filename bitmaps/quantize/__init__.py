"""Weights of two values: quantizers, layers that own them, conversion, calibration, rotation.

Imports ``bert``, ``packed`` and shared modules. A new scale, threshold or gradient goes into
``quantizer``; a new component into ``convert``.
"""
