"""Labeled sentences and pairs of sentences: the files of a folder, and the tasks of GLUE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

# the httpx whose errors the client of the Hub raises
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

from bitmaps.data.sources import TEXT_FILES
from bitmaps.data.tables import (
    READERS,
    USUAL,
    WHOLE_NUMBER,
    Columns,
    Examples,
    cut,
    listed,
    read_examples,
)
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
