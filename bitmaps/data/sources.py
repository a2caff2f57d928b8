"""Where sentences come from."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# the httpx whose errors the client of the Hub raises
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

from bitmaps.data.treebank import detokenize
from bitmaps.errors import InputError

SPLITS = ("train", "validation", "test")
NAMES = ("wiki", "ptb", "text", "hub")
PTB_FILES = {"train": "ptb.train.txt", "validation": "ptb.valid.txt", "test": "ptb.test.txt"}
PTB_HUB = (
    "hf://datasets/ptb-text-only/ptb_text_only@refs/convert/parquet/penn_treebank/{split}/*.parquet"
)
TEXT_FILES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}


@dataclass(frozen=True)
class Source:
    """A text with a train, a validation and a test split.

    Attributes:
        name: ``wiki``, the articles in the gensim wheel; ``ptb``, the Penn Treebank as Mikolov
            prepared it, from ``dir`` or the Hub; ``text``, a user's files in ``dir``; or ``hub``, a
            data set of the Hub.
        dir: the folder of ``ptb`` or ``text``.
        path: the Hub id of the data set.
        configuration: the configuration of a data set that has several.
        column: the column of the data set that holds the text.
        streaming: fetch only the rows that are used.
    """

    name: str
    dir: str | None = None
    path: str | None = None
    configuration: str | None = None
    column: str = "text"
    streaming: bool = False

    def check(self, *splits: str) -> None:
        """Report mistakes before anything is loaded. The files of ``splits`` are read.

        Raises:
            InputError: for an unknown source, a missing setting, a setting that the source does not
                read, or a file that is missing, empty or not UTF-8.
        """
        if self.name not in NAMES:
            raise InputError(f"unknown data set {self.name!r}; valid are {', '.join(NAMES)}")
        if self.name == "wiki" and importlib.util.find_spec("gensim") is None:
            raise InputError(
                "data=wiki needs the articles in the gensim wheel, which is not installed: "
                "pip install -c constraints.txt -e '.[offline]'"
            )
        self.check_settings()
        if self.name in ("ptb", "text") and self.dir is not None:
            for split in splits:
                read_lines(self.file(split))

    def check_settings(self) -> None:
        """Raises:
        InputError: for a missing setting, or one that this source does not read."""
        if self.dir is not None and self.name not in ("ptb", "text"):
            raise InputError(
                f"data.dir={self.dir} has no effect with data={self.name}; "
                "only data=text and data=ptb read it"
            )
        of_the_hub = {
            "path": self.path,
            "configuration": self.configuration,
            "streaming": self.streaming or None,
        }
        for key, value in of_the_hub.items() if self.name != "hub" else ():
            if value is not None:
                raise InputError(
                    f"data.{key}={value} has no effect with data={self.name}; "
                    "only data=hub reads it"
                )
        if self.name == "text" and self.dir is None:
            raise InputError(
                "data=text needs data.dir=<folder with train.txt, validation.txt and test.txt>"
            )
        if self.name == "hub" and self.path is None:
            raise InputError("data=hub needs data.path=<Hub id of a data set>")

    def file(self, split: str) -> Path:
        """The file of a split in ``dir``.

        Raises:
            InputError: when the folder or the file is missing.
        """
        folder = Path(self.dir or "").expanduser()
        if not folder.is_dir():
            raise InputError(f"data.dir={self.dir} is not a folder")
        of_text = [f"{stem}.txt" for stem in TEXT_FILES[split]]
        names = [PTB_FILES[split]] if self.name == "ptb" else of_text
        for name in names:
            if (folder / name).is_file():
                return folder / name
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "it is empty"
        raise InputError(f"data.dir={self.dir} has no {' or '.join(names)} (found: {found})")

    def place(self, split: str) -> str:
        """Where a split is, for messages: its file, or the split of a data set."""
        if self.dir is not None:
            return str(self.file(split))
        return f"the {split} split of data={self.name}" + (f" ({self.path})" if self.path else "")

    def sentences(self, split: str, unknown: str, limit: int | None = None) -> list[str]:
        """The first ``limit`` sentences of a split, or all of them.

        Args:
            unknown: the tokenizer's unknown token, which replaces ``<unk>`` in ``ptb``.

        Raises:
            InputError: when the text cannot be read.
        """
        match self.name:
            case "wiki":
                from bitmaps.data.wiki import wiki  # imports gensim, an extra

                texts = wiki(split)
            case "ptb" if self.dir is None:
                files = {split: PTB_HUB.format(split=split)}
                rows = load_from_hub("parquet", split, "sentence", data_files=files)
                texts = [detokenize(text, unknown) for text in rows]
            case "ptb":
                texts = [detokenize(text, unknown) for text in read_lines(self.file(split))]
            case "text":
                texts = read_lines(self.file(split))
            case _:
                texts = load_from_hub(
                    str(self.path),
                    split,
                    self.column,
                    limit,
                    name=self.configuration,
                    streaming=self.streaming,
                )
        return texts[:limit]


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file that are not blank, without surrounding white space.

    Raises:
        InputError: when the file is empty or not UTF-8.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}"
        ) from error
    sentences = [stripped for line in lines if (stripped := line.strip())]
    if not sentences:
        raise InputError(f"{path} holds no text")
    return sentences


def load_from_hub(
    path: str, split: str, column: str, limit: int | None = None, **options: Any
) -> list[str]:
    """The first ``limit`` texts in one column of a Hub data set, or all. Blank ones are left out.

    Raises:
        InputError: when the Hub cannot deliver the data set, or the split or column does not exist.
    """
    from datasets import load_dataset  # importing it takes a second
    from datasets.exceptions import DatasetsError

    texts: list[str] = []
    try:
        # a streamed data set fetches its rows in this loop, and may not know its columns before
        for row in load_dataset(path, split=split, **options):
            if column not in row:
                raise InputError(f"{path} has no column {column!r}; valid are {', '.join(row)}")
            if not isinstance(row[column], str):
                raise InputError(
                    f"column {column!r} of {path} holds {row[column]!r}, which is not text"
                )
            if text := row[column].strip():
                texts.append(text)
            if len(texts) == limit:
                break
    except InputError:
        raise
    # unreachable or not found; an unknown configuration or split; damaged files; or a data set that
    # is a script, which `datasets` no longer runs
    except (OSError, ValueError, RuntimeError, httpx.HTTPError, DatasetsError) as error:
        raise InputError(
            f"the Hub did not deliver the data set {options.get('data_files', path)!r}: {error}. "
            "Sources that work offline: data=wiki, data=text data.dir=<folder>, "
            "data=ptb data.dir=<folder with ptb.{train,valid,test}.txt>"
        ) from error
    return texts
