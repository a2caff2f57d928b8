"""Labeled sentences and pairs of sentences: the files of a folder, and the tasks of GLUE."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

# the httpx whose errors the client of the Hub raises
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

from bitmaps.data.sources import TEXT_FILES
from bitmaps.errors import InputError

GLUE = "nyu-mll/glue"
# The columns with the text of each task of GLUE. All have the column `label` too.
GLUE_TEXTS = {
    **dict.fromkeys(("cola", "sst2"), ("sentence",)),
    **dict.fromkeys(("mrpc", "stsb", "rte", "wnli"), ("sentence1", "sentence2")),
    "qqp": ("question1", "question2"),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
}
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


@dataclass(frozen=True)
class LabeledSource:
    """Labeled sentences with a train, a validation and a test split.

    Attributes:
        name: ``labeled``, a user's files in ``dir``; or ``glue``, a task of GLUE on the Hub.
        dir: the folder of ``labeled``, with a .csv, .tsv or .jsonl file a split.
        configuration: the task of ``glue``.
        columns: the columns of the files of ``labeled``.
    """

    name: str
    dir: str | None = None
    configuration: str | None = None
    columns: Columns = USUAL

    def check(self, *splits: str) -> None:
        """Report mistakes before anything is loaded. The files of ``splits`` are read.

        Raises:
            InputError: for an unknown source, a missing setting, a setting that the source does not
                read, a file that `read_examples` refuses, splits of different kinds, or a label
                that the train split lacks, if it is among ``splits``.
        """
        self.check_settings()
        if self.name != "labeled":
            return
        read = {split: self.read(split) for split in splits}
        for split, examples in read.items():
            if (kind := examples.kind()) != (wanted := read[splits[0]].kind()):
                raise InputError(
                    f"{self.place(split)} holds {kind}, but {self.place(splits[0])} holds "
                    f"{wanted}; valid is the same in all splits"
                )
            if examples.labels is not None and "train" in read:
                class_numbers(examples, label_names(read["train"]), self.place(split))

    def check_settings(self) -> None:
        """Raises:
        InputError: for an unknown source, a missing setting, or one that it does not read."""
        if self.name not in ("labeled", "glue"):
            raise InputError(f"unknown data set {self.name!r}; valid are labeled, glue")
        unread, reader = {"configuration": self.configuration}, "glue"
        if self.name == "glue":
            named = self.columns.named().items()
            unread = {"dir": self.dir} | {f"columns.{role}": name for role, name in named}
            reader = "labeled"
        for key, value in unread.items():
            if value is not None:
                raise InputError(
                    f"data.{key}={value} has no effect with data={self.name}; "
                    f"only data={reader} reads it"
                )
        if self.name == "glue" and self.configuration not in GLUE_TEXTS:
            raise InputError(
                f"data=glue has no task data.configuration={self.configuration}; "
                f"valid are {', '.join(GLUE_TEXTS)}"
            )
        if self.name == "labeled" and self.dir is None:
            raise InputError("data=labeled needs data.dir=<folder with train, validation and test>")
        self.columns.tables()

    def file(self, split: str) -> Path:
        """The file of a split in ``dir``.

        Raises:
            InputError: when the folder or the file is missing, or when several files fit.
        """
        folder = Path(self.dir or "").expanduser()
        if not folder.is_dir():
            raise InputError(f"data.dir={self.dir} is not a folder")
        stems = TEXT_FILES[split]
        names = [f"{stem}{ending}" for stem in stems for ending in READERS]
        files = [name for name in names if (folder / name).is_file()]
        if len(files) > 1:
            raise InputError(
                f"data.dir={self.dir} has {' and '.join(files)} for the {split} split; "
                "valid is one file"
            )
        if not files:
            found = listed(sorted(path.name for path in folder.iterdir())) or "it is empty"
            raise InputError(f"data.dir={self.dir} has no {' or '.join(names)} (found: {found})")
        return folder / files[0]

    def place(self, split: str) -> str:
        """Where a split is, for messages: its file, or the split of a task."""
        if self.name == "labeled":
            return str(self.file(split))
        return f"the {split} split of data=glue ({self.configuration})"

    def read(self, split: str, limit: int | None = None) -> Examples:
        """The first ``limit`` examples of a split, or all of them.

        Raises:
            InputError: when the settings are wrong or the split cannot be read.
        """
        self.check_settings()
        if self.name == "glue":
            return load_glue(str(self.configuration), split, limit)
        examples = read_examples(self.file(split), self.columns)
        return replace(
            examples,
            first=examples.first[:limit],
            second=examples.second and examples.second[:limit],
            labels=examples.labels and examples.labels[:limit],
            scores=examples.scores and examples.scores[:limit],
        )


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


def load_glue(task: str, split: str, limit: int | None = None) -> Examples:
    """The first ``limit`` examples in a split of a task of GLUE, or all. Of MNLI's validation and
    test splits the matched ones are taken. The labels are the names of the classes.

    Raises:
        InputError: when the Hub cannot deliver the task, or when the split has no labels.
    """
    from datasets import ClassLabel, load_dataset  # importing it takes a second
    from datasets.exceptions import DatasetsError

    matched = task == "mnli" and split != "train"
    wanted = (*GLUE_TEXTS[task], "label")
    try:
        data = load_dataset(GLUE, name=task, split=f"{split}_matched" if matched else split)
    # the errors that bitmaps.data.sources.load_from_hub explains
    except (OSError, ValueError, RuntimeError, httpx.HTTPError, DatasetsError) as error:
        raise InputError(
            f"the Hub did not deliver the data set {GLUE!r} ({task}): {error}. "
            "A source that works offline: data=labeled data.dir=<folder>"
        ) from error
    if missing := set(wanted) - set(data.column_names):
        raise InputError(
            f"{GLUE} ({task}) has no {listed(sorted(missing))}; it has {listed(data.column_names)}"
        )
    first, *pairs, targets = (list(data[name][:limit]) for name in wanted)
    second = pairs[0] if pairs else None
    if -1 in targets:
        raise InputError(f"the {split} split of GLUE has no labels: valid is data.split=validation")
    if task == "stsb":
        return Examples(first, second, labels=None, scores=targets)
    feature = data.features["label"]
    if not isinstance(feature, ClassLabel):
        raise InputError(f"the labels of {GLUE} ({task}) are {feature}; valid are classes")
    names = tuple(feature.names)
    return Examples(first, second, [names[target] for target in targets], None, names)


def label_names(examples: Examples) -> tuple[str, ...]:
    """The classes: in the data set's own order; else whole numbers by size, and other labels as
    sorted text.

    Raises:
        InputError: for examples with scores.
    """
    if examples.labels is None:
        raise InputError(f"{examples.kind()} have no classes; valid are examples with a label")
    if examples.names is not None:
        return examples.names
    labels = sorted(set(examples.labels))
    if all(WHOLE_NUMBER.fullmatch(label) for label in labels):
        labels.sort(key=int)
    return tuple(labels)


def class_numbers(examples: Examples, names: Sequence[str], place: str) -> list[int]:
    """The index in ``names`` of each label.

    Args:
        place: where the examples are, for messages.

    Raises:
        InputError: for examples with scores, or a label that ``names`` lacks.
    """
    if examples.labels is None:
        raise InputError(f"{place} holds {examples.kind()}; valid are examples with a label")
    numbers = {name: number for number, name in enumerate(names)}
    for row, label in enumerate(examples.labels, start=1):
        if label not in numbers:
            raise InputError(
                f"{place}: row {row} has the label {cut(repr(label))}, which training has not "
                f"seen; valid are {listed(names)}"
            )
    return [numbers[label] for label in examples.labels]


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
