"""Where a run is recorded besides its folder: CSV, TensorBoard or Weights & Biases.

Imports ``bert``, ``runs`` and ``report``, and from ``training`` what reads a model's scales.
Another tracker is a class beside ``WandbTracking``.
"""
