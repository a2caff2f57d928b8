"""What a user asks for: configurations, their checks, ``--help``, and runs that continue others.

Imports ``runs``, ``packed`` (to recognize a packed folder) and shared modules. A new choice is a
file in ``conf/``; a new key is a field in ``parts.py`` or ``schema.py``.
"""
