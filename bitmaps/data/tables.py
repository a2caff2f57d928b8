"""Tables of labeled sentences: which columns they have, and how their files are read."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from bitmaps.errors import InputError

# The columns that are read together, in order of preference
SCORED_PAIRS = ("sentence1", "sentence2", "score")
TABLES: Sequence[tuple[str, ...]] = (
    ("sentence1", "sentence2", "label"),
    SCORED_PAIRS,
    ("sentence", "label"),
    ("sentence", "score"),
)
# int() reads no more than some thousand digits; a label of more than 18 is a text like any other
WHOLE_NUMBER = re.compile(r"-?[0-9]{1,18}")

T = TypeVar("T")
Row = dict[str, Any]


@dataclass(frozen=True)
class Columns:
    """The names of the columns of a table, where they are not the usual ones.

    None stands for the usual name, which is the attribute's own. A sentence may also be in the
    column ``text``. A table with ``sentence1`` and ``sentence2`` holds pairs. If a table has a
    label and a score, the label is read, unless ``score`` is named here.
    """

    sentence: str | None = None
    sentence1: str | None = None
    sentence2: str | None = None
    label: str | None = None
    score: str | None = None

    def named(self) -> dict[str, str]:
        """The columns that are named here, by attribute."""
        return {role: name for role, name in asdict(self).items() if name is not None}

    def tables(self, scored_pairs: bool = False) -> list[tuple[str, ...]]:
        """The sets of columns that may be read, in order of preference.

        Raises:
            InputError: when no set has all the columns that are named here.
        """
        tables = TABLES if not scored_pairs else [SCORED_PAIRS]
        named = self.named()
        fit = [table for table in tables if named.keys() <= set(table)]
        if not fit:
            given = ", ".join(f"columns.{role}={name}" for role, name in named.items())
            raise InputError(f"{given} cannot be read; valid are {choice(tables)}")
        return fit


USUAL = Columns()


@dataclass(frozen=True)
class Examples:
    """Sentences or pairs of sentences, with a label or a score each.

    Attributes:
        first: the sentences, or the first sentence of each pair.
        second: the second sentence of each pair; None for single sentences.
        labels: as they are written, without surrounding white space; whole numbers as decimal text.
        scores: finite. Exactly one of ``labels`` and ``scores`` is not None.
        names: the classes in the data set's own order, where it has one.
    """

    first: list[str]
    second: list[str] | None
    labels: list[str] | None
    scores: list[float] | None
    names: tuple[str, ...] | None = None

    def kind(self) -> str:
        """What an example is, for messages."""
        text = "sentences" if self.second is None else "pairs of sentences"
        return f"{text} with a {'label' if self.scores is None else 'score'}"


def read_examples(path: Path, columns: Columns = USUAL, *, scored_pairs: bool = False) -> Examples:
    """The examples in a .csv, .tsv or .jsonl file of UTF-8 text, with or without a BOM.

    CSV is quoted as usual. In TSV a double quote is part of the text. JSONL is an object a line,
    and the first one names the columns. Other columns are ignored, and so are empty lines. Messages
    count the rows from 1, without the header.

    Args:
        scored_pairs: read ``sentence1``, ``sentence2`` and ``score``, and nothing else.

    Raises:
        InputError: when the file cannot be read, has no rows, lacks a column, or has a row with a
            wrong number of fields, without a text, without a label or without a finite score.
    """
    tables = columns.tables(scored_pairs)
    if path.suffix not in READERS:
        raise InputError(f"{path} has the ending {path.suffix!r}; valid are {', '.join(READERS)}")
    names, rows = READERS[path.suffix](path, read_text(path))
    if not rows:
        raise InputError(f"{path} holds no rows")
    found = find_columns(path, names, columns, tables)

    def values(role: str, convert: Callable[[object], T]) -> list[T] | None:
        return column(path, rows, found[role], convert) if role in found else None

    return Examples(
        first=values("sentence", as_sentence) or values("sentence1", as_sentence) or [],
        second=values("sentence2", as_sentence),
        labels=values("label", as_label),
        scores=values("score", as_score),
    )


def column(path: Path, rows: list[Row], name: str, convert: Callable[[object], T]) -> list[T]:
    """One converted value a row.

    Raises:
        InputError: for a row without the column, or with a value that ``convert`` refuses.
    """
    values = []
    for number, row in enumerate(rows, start=1):
        if name not in row:
            raise InputError(f"{path}: row {number} has no {name!r}")
        try:
            values.append(convert(row[name]))
        except ValueError as error:
            raise InputError(
                f"{path}: row {number} has the {name} {cut(repr(row[name]))}; valid is {error}"
            ) from error
    return values


def read_text(path: Path) -> str:
    """Raises:
    InputError: when the file cannot be read, is not UTF-8 or has a NUL."""
    try:
        # not in text mode, which would change the line ends inside quoted fields
        text = path.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}"
        ) from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise InputError(f"{path} is not text: line {line} has a NUL")
    return text


def read_csv(path: Path, text: str) -> tuple[list[str], list[Row]]:
    records: list[list[str]] = []
    try:
        for record in csv.reader(io.StringIO(text, newline=""), strict=True):
            if record:
                records.append(record)
    except csv.Error as error:
        where = f"row {len(records)}" if records else "the header"
        raise InputError(
            f"{path}: {where} is not CSV: {error}; valid is a field in double quotes, with each "
            "double quote inside it doubled"
        ) from error
    return with_header(path, iter(records))


def read_tsv(path: Path, text: str) -> tuple[list[str], list[Row]]:
    # not splitlines, which also splits at characters that a text may contain
    lines = (line.removesuffix("\r") for line in text.split("\n"))
    return with_header(path, (line.split("\t") for line in lines if line))


def with_header(path: Path, records: Iterator[list[str]]) -> tuple[list[str], list[Row]]:
    """The names in the first record, and the other records by these names."""
    names = next(records, [])
    rows = []
    for number, record in enumerate(records, start=1):
        if len(record) != len(names):
            raise InputError(
                f"{path}: row {number} has {len(record)} fields; valid are the {len(names)} of the "
                f"header: {listed(names)}"
            )
        rows.append(dict(zip(names, record, strict=True)))
    return names, rows


def read_jsonl(path: Path, text: str) -> tuple[list[str], list[Row]]:
    rows: list[Row] = []
    for line in filter(str.strip, text.split("\n")):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(cut(line.strip()))
        # a whole number of thousands of digits is a ValueError too
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path}: row {len(rows) + 1} is no JSON object: {error}; "
                'valid is a line such as {"sentence": "...", "label": "..."}'
            ) from error
        rows.append(row)
    return list(rows[0]) if rows else [], rows


READERS = {".csv": read_csv, ".tsv": read_tsv, ".jsonl": read_jsonl}


def find_columns(
    path: Path, names: list[str], columns: Columns, tables: list[tuple[str, ...]]
) -> dict[str, str]:
    """The columns that are read, by their usual names: the first of ``tables`` that is there.

    Raises:
        InputError: when a column is missing or is there twice.
    """
    there = {"sentence": "text"} if "text" in names else {}
    there |= {role: role for table in TABLES for role in table if role in names}
    there |= columns.named()
    if missing := [name for name in there.values() if name not in names]:
        raise InputError(f"{path} has no column {missing[0]!r}; it has {listed(names)}")
    for table in tables:
        if there.keys() >= set(table):
            found = {role: there[role] for role in table}
            if twice := [name for name in found.values() if names.count(name) > 1]:
                raise InputError(f"{path} has several columns {twice[0]!r}; valid is one")
            return found
    raise InputError(f"{path} has the columns {listed(names)}; valid are {choice(tables)}")


def as_sentence(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("text")
    try:
        value.encode()  # JSON can write half of a surrogate pair, which no tokenizer reads
    except UnicodeEncodeError as error:
        raise ValueError("text without unpaired surrogates") from error
    return value


def as_label(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError("text that is not empty, or a whole number")
    return as_sentence(value).strip()


def as_score(value: object) -> float:
    try:
        # float() would read 1_5 as 15, and True as 1
        plain = not isinstance(value, bool) and "_" not in str(value)
        score = float(value) if plain and isinstance(value, str | int | float) else math.nan
    except (ValueError, OverflowError):
        score = math.nan
    if not math.isfinite(score):
        raise ValueError("a finite number")
    return score


def listed(names: Sequence[str]) -> str:
    """Names for a message: the first of them, if there are many."""
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return ", ".join(map(cut, names[:12])) + more


def choice(tables: Sequence[tuple[str, ...]]) -> str:
    """Sets of columns for a message."""
    return " or ".join(", ".join(table) for table in tables)


def cut(text: str) -> str:
    """The start of a text that is too long for a message."""
    return text if len(text) <= 60 else f"{text[:57]}..."
