"""What a run leaves behind: typed records, and the folder that holds them.

Imports ``bitmaps.vocabulary`` and ``bitmaps.errors`` only. A new column of the table is a field in
``records.py``; a new file of a run folder belongs into ``folder.py``.
"""
