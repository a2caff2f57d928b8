"""Weights of two values: the map, the layers, and the table of what can be binarized."""
