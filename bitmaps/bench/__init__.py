"""Speed as ratios to peers, timed in alternation. Imports the models, never jobs or reports.

A peer is a function in ``peers.py``; a part is a module like ``linear.py``, listed in ``__main__``.
"""
