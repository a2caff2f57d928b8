"""Weights in real bits: the format, the layers that compute with it, and the kernels that make them fast.

    python -m bitmaps.packed <run folder> [<folder>]     # a packed model of a run
    python -m bitmaps.packed info                        # which kernels this machine runs

docs/format.md and docs/kernels.md tell how they work.
"""
