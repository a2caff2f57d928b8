"""Speed as ratios to peers, timed in alternation; size, memory and scores beside the same peers.

Imports the models, the data and the metrics, never jobs or reports. A peer of a matrix is a
function in ``peers.py``, and a peer of a whole model a ``Deployment`` in ``deployments.py``. A part
is a module like ``linear.py``, listed in ``__main__``.
"""
