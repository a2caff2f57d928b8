"""A local page on which people try models: masked words, sentences, classes.

Imports what finds and runs models: ``bert``, ``packed``, ``quantize``, ``data``, ``runs``,
``command``, ``scoring`` and ``jobs``. ``groups`` opens the models, ``answers`` asks them, and
``page`` alone draws. It needs the extra ``show``. A new question is a function in ``answers.py``,
and a form in ``page.py``.
"""
