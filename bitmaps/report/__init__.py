"""What users see of finished runs: tables, pictures, ``results.html``, and the model card.

Imports ``bitmaps.vocabulary`` and ``bitmaps.runs``; the card also ``bitmaps.command.parts``,
``bitmaps.bert`` and ``bitmaps.packed``. ``entries`` alone decides which rows belong together; a
new way to show them is a module that takes a ``Comparison``.
"""
