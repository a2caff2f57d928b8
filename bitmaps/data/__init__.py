"""Text: its sources, tokens, masks and batches. Imports shared modules only.

Add a source of text in ``sources.py``. Every mask is drawn in ``masking.py``; never change a draw.
"""
