"""The benchmark of the packed models against their peers: ``python -m bitmaps.bench``.

Imports any room below it. A new peer or a new thing to time goes into ``__main__``.
"""
