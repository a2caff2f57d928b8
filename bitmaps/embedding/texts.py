"""Files of texts: parquet, JSON lines and plain lines, read from end to end in little memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bitmaps.data.tables import as_sentence, cut, listed
from bitmaps.embedding.vectors import groups
from bitmaps.errors import InputError

ROWS = 1024  # read at once
BUFFER = 2**20  # bytes of a column chunk of parquet that are in memory at once
PLAIN = "text"  # what the only column of a .txt is called
OWN = ("row", "vector")
"""The columns of an output that no input may name."""

Line = tuple[int, dict[str, Any]]
"""The number of a line, counted from 1, and what it holds by column."""


@dataclass(frozen=True)
class Texts:
    """A file of texts.

    Attributes:
        path: ends with .parquet, .jsonl, or .txt, which has one text a line.
        column: holds the texts.
        keep: further columns that the output gets.
    """

    path: Path
    column: str = PLAIN
    keep: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        """Those that are read, each once."""
        return list(dict.fromkeys((self.column, *self.keep)))

    def check(self) -> None:
        """Raises:
        InputError: for what is no file of a kind that is read, or a column that the output has."""
        valid = ", ".join(READERS)
        if self.path.is_dir():
            raise InputError(f"{self.path} is a folder; valid is a file that ends with {valid}")
        if self.path.suffix not in READERS:
            raise InputError(f"{self.path} ends with {self.path.suffix!r}; valid are {valid}")
        if not self.path.is_file():
            raise InputError(f"there is no file {self.path}")
        if self.path.suffix == ".txt" and self.columns != [PLAIN]:
            named = next(name for name in self.columns if name != PLAIN)
            raise InputError(f"{self.path} has one text a line, and no column {named!r}")
        if taken := [name for name in self.keep if name in OWN]:
            raise InputError(f"the output has its own column {taken[0]!r}: rename that of the file")

    def batches(self, schema: pa.Schema | None = None) -> Iterator[pa.RecordBatch]:
        """The columns, some rows at a time.

        Args:
            schema: their types (``survey``); by default what each batch looks like.

        Raises:
            InputError: for a file that cannot be read, without one of the columns, or with a row
                that holds no text.
        """
        with readable(self.path):
            yield from READERS[self.path.suffix](self, schema)

    def tables(self, rows: int, schema: pa.Schema) -> Iterator[pa.Table]:
        """The same, exactly ``rows`` rows at a time; the last table may be shorter."""
        return regrouped(self.batches(schema), rows)

    def parts(self, size: int, schema: pa.Schema) -> Iterator[list[str]]:
        """The texts, ``size`` at a time; the last list may be shorter."""
        for table in self.tables(size, schema):
            yield table[self.column].to_pylist()


@dataclass(frozen=True)
class Survey:
    """What a file holds, all of which was read.

    Attributes:
        rows: how many there are.
        schema: the types of the columns.
    """

    rows: int
    schema: pa.Schema


def survey(texts: Texts) -> Survey:
    """Read a file once, so that its mistakes are found before anything is computed.

    Raises:
        InputError: as ``Texts.check`` and ``Texts.batches``, and for a file without a row.
    """
    texts.check()
    rows, schema = 0, None
    for batch in texts.batches():
        rows += batch.num_rows
        try:
            found = [batch.schema] if schema is None else [schema, batch.schema]
            schema = pa.unify_schemas(found, promote_options="permissive")
        except pa.ArrowException as error:
            raise InputError(f"{texts.path} holds two types in one column: {error}") from error
    if schema is None or not rows:
        raise InputError(f"{texts.path} holds no texts")
    return Survey(rows, schema)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raises:
    InputError: in place of what reading raises."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def check_columns(texts: Texts, names: list[str]) -> None:
    """Raises:
    InputError: when the file does not have each column once."""
    for name in texts.columns:
        if names.count(name) != 1:
            what = "several columns" if name in names else "no column"
            raise InputError(f"{texts.path} has {what} {name!r}; it has {listed(names)}")


def read_parquet(texts: Texts, schema: pa.Schema | None) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(texts.path, buffer_size=BUFFER, pre_buffer=False) as file:
        types = file.schema_arrow
        check_columns(texts, types.names)
        own = types.field(texts.column).type
        if not is_text(own):
            raise InputError(
                f"{texts.path}: the column {texts.column!r} holds {own}; valid is string"
            )
        row = 0
        for batch in file.iter_batches(ROWS, columns=texts.columns, use_threads=False):
            batch.validate(full=True)
            place = batch.schema.get_field_index(texts.column)
            found = batch.column(place).cast(pa.large_string())
            if found.null_count:
                row += found.is_null().to_pylist().index(True)
                raise InputError(
                    f"{texts.path}: row {row}, counted from 0, has no text: its {texts.column} "
                    "is null"
                )
            yield batch.set_column(place, texts.column, found).select(texts.columns)
            row += batch.num_rows


def is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def read_jsonl(texts: Texts, schema: pa.Schema | None) -> Iterator[pa.RecordBatch]:
    return from_lines(texts, objects(texts), schema)


def read_txt(texts: Texts, schema: pa.Schema | None) -> Iterator[pa.RecordBatch]:
    lines = ((number, {texts.column: line}) for number, line in lines_of(texts.path))
    return from_lines(texts, lines, schema)


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of UTF-8 text, with or without a BOM, and their numbers."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(f"{path}: line {number} is not UTF-8 text: {error}") from error
            if number == 1:
                line = line.removeprefix("\ufeff")
            yield number, line.removesuffix("\n").removesuffix("\r")


def objects(texts: Texts) -> Iterator[Line]:
    """The JSON object of each line that is not blank. The first one names the columns."""
    first = True
    for number, line in lines_of(texts.path):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            if not isinstance(found, dict):
                raise ValueError(cut(line.strip()))
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{texts.path}: line {number} is no JSON object: {error}; "
                f'valid is a line such as {{"{texts.column}": "..."}}'
            ) from error
        if first:
            check_columns(texts, list(found))
            first = False
        if texts.column not in found:
            raise InputError(f"{texts.path}: line {number} has no {texts.column!r}")
        yield number, found


def from_lines(
    texts: Texts, lines: Iterable[Line], schema: pa.Schema | None
) -> Iterator[pa.RecordBatch]:
    for group in groups(lines, ROWS):
        arrays = [
            text_column(texts, group)
            if name == texts.column
            else column(texts, group, name, schema)
            for name in texts.columns
        ]
        yield pa.RecordBatch.from_arrays(arrays, names=texts.columns)


def text_column(texts: Texts, lines: list[Line]) -> pa.Array:
    found = []
    for number, values in lines:
        try:
            found.append(as_sentence(values[texts.column]))
        except ValueError as error:
            shown = cut(json.dumps(values[texts.column]))
            raise InputError(
                f"{texts.path}: line {number} has the {texts.column} {shown}; valid is {error}"
            ) from error
    return pa.array(found, pa.large_string())


def column(texts: Texts, lines: list[Line], name: str, schema: pa.Schema | None) -> pa.Array:
    values = [line.get(name) for _, line in lines]
    try:
        return pa.array(values, None if schema is None else schema.field(name).type)
    except (pa.ArrowException, ValueError, OverflowError, UnicodeError) as error:
        raise InputError(
            f"{texts.path}: lines {lines[0][0]} to {lines[-1][0]} hold no one type in {name!r}: "
            f"{error}"
        ) from error


def regrouped(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    missing = rows
    for batch in batches:
        start = 0
        while start < batch.num_rows:
            held.append(batch.slice(start, missing))
            start += held[-1].num_rows
            missing -= held[-1].num_rows
            if not missing:
                yield pa.Table.from_batches(held)
                held, missing = [], rows
    if held:
        yield pa.Table.from_batches(held)


READERS: dict[str, Callable[[Texts, pa.Schema | None], Iterator[pa.RecordBatch]]] = {
    ".parquet": read_parquet,
    ".jsonl": read_jsonl,
    ".txt": read_txt,
}
