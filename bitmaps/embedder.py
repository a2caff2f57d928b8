"""Vectors of texts where another program brings the batches, as Ray Data does on a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitmaps.embedding.vectors import BATCH_SIZE, check_encoder, embed
from bitmaps.errors import InputError
from bitmaps.loading import load


class Embedder:
    """Adds the vectors of a column of texts to a batch of rows.

    The model is opened once, when the object is made. Ray Data makes one in each of its actors::

        ds.map_batches(
            bitmaps.Embedder, fn_constructor_kwargs={"model": folder}, batch_size=256, concurrency=2
        )

    Args:
        model, act: as ``bitmaps.load`` takes them.
        column: of the texts.
        output: the new column, (rows, hidden) in fp32.
        batch_size: texts that the model takes at once.

    Raises:
        InputError: as ``bitmaps.load``, and for a model of another task.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        act: str | None = None,
        column: str = "text",
        output: str = "vector",
        batch_size: int = BATCH_SIZE,
    ) -> None:
        self.model = load(model, act=act)
        check_encoder(self.model)
        self.column, self.output, self.batch_size = column, output, batch_size

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The same columns and the new one.

        Raises:
            InputError: for a batch without the column or with one of the new one's name; for what
                is no text.
        """
        if self.column not in batch or self.output in batch:
            what = f"has {self.output!r} already" if self.output in batch else "lacks it"
            raise InputError(
                f"the vectors of {self.column!r} become {self.output!r}, but the batch {what}; "
                f"it has {', '.join(batch)}"
            )
        vectors = embed(self.model, batch[self.column], batch_size=self.batch_size)
        return {**batch, self.output: vectors}
