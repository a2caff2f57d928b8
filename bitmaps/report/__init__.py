"""What a set of runs came to: a table (``table``), and a page to look at (``page``)."""
