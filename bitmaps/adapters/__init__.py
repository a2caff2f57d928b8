"""Shipped adapters and the program that makes them. Imports ``bert``, ``data`` and shared modules.

``low_rank.py`` decides what is trained and stored. A new adapter is a safetensors file here.
"""
