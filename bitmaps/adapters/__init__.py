"""The adapters that come with the package, and the program that makes them.

Imports any room below it. A new adapter is a file ``<name>.safetensors`` in this folder.
"""
