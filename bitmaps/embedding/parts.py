"""The vectors of a file while they are made: parts in a folder beside the output.

A part that is there is whole. A command that was killed therefore goes on with those that are
missing. The output appears in one step, when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bitmaps.bert.finding import sha256
from bitmaps.embedding.texts import OWN, Texts
from bitmaps.embedding.vectors import Vectors
from bitmaps.embedding.workers import OpenModel, embed_parts
from bitmaps.errors import InputError
from bitmaps.runs.files import read_json, remove_drafts, replaced, sync, write_json
from bitmaps.runs.folder import lock_folder

PART = 1024  # texts; a kill loses the work on one part of each process
GROUP = 16 * PART  # rows of a row group of the output
CARD = "README.md"  # of a model's folder: it may be written again
JOB, DRAFT = "job.json", "whole.parquet"
SAID = b"bitmaps"
"""The key of the job in the metadata of an output."""


@dataclass(frozen=True)
class Job:
    """What vectors depend on. Parts of one job never mix with those of another.

    Attributes:
        model: SHA-256 of the model's folder (``folder_digest``).
        act: what its activations are rounded to.
        input: SHA-256 of the file of texts.
        column: that holds them.
        rows: how many there are.
        hidden: numbers of a vector.
        batch_size: texts that the model takes at once, which can change a last digit. Where
            activations are rounded, that may then be another one.
        part: texts of a part.
    """

    model: str
    act: str
    input: str
    column: str
    rows: int
    hidden: int
    batch_size: int
    part: int = PART

    @property
    def parts(self) -> int:
        return -(-self.rows // self.part)

    def size(self, number: int) -> int:
        """The texts of a part."""
        return min(self.part, self.rows - number * self.part)


def folder_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of a model's files, without its card.

    Raises:
        OSError: when one cannot be read.
    """
    found = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        if file.name != CARD:
            found.update(f"{file.relative_to(folder).as_posix()}\0{sha256(file)}\n".encode())
    return found.hexdigest()


class Parts:
    """The parts of a job that are done.

    Attributes:
        folder: where they are.
        job: what they are of.
    """

    def __init__(self, folder: Path, job: Job) -> None:
        self.folder, self.job = folder, job

    def path(self, number: int) -> Path:
        return self.folder / f"{number:08}.npy"

    def read(self, number: int) -> Vectors:
        """A part, whose numbers stay in the file until they are used.

        Raises:
            InputError: when it is missing or damaged.
        """
        path, shape = self.path(number), (self.job.size(number), self.job.hidden)
        try:
            found = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path} is missing or damaged: {error}") from error
        if found.shape != shape or found.dtype != np.float32:
            raise InputError(f"{path} holds {found.dtype} of {found.shape}, not float32 of {shape}")
        return found

    def write(self, number: int, vectors: Vectors) -> None:
        """Raises:
        OSError: when it cannot be written, for example on a full disk."""
        with replaced(self.path(number)) as draft, draft.open("wb") as file:
            np.save(file, vectors)

    def missing(self) -> list[int]:
        """The numbers of the parts that are not done. A damaged one is made again."""

        def is_missing(number: int) -> bool:
            try:
                self.read(number)
            except InputError:
                return True
            return False

        return [number for number in range(self.job.parts) if is_missing(number)]

    def remove(self) -> None:
        shutil.rmtree(self.folder)


def folder_of(output: Path) -> Path:
    """Where the parts of an output are."""
    return output.with_name(f"{output.name}.parts")


@contextmanager
def claimed(output: Path, job: Job) -> Iterator[Parts]:
    """The parts of an output, which no other process works on meanwhile.

    Raises:
        InputError: when another process does, or the folder holds anything but parts of this job.
    """
    folder = folder_of(output)
    folder.mkdir(exist_ok=True)
    lock = lock_folder(folder)
    try:
        remove_drafts(folder)
        path = folder / JOB
        if path.is_file():
            check_same(folder, read_json(path), job)
        elif others := {file.name for file in folder.iterdir()} - {".lock"}:
            raise InputError(f"{folder} is no folder of parts: it holds {min(others)}")
        else:
            write_json(path, asdict(job))
        yield Parts(folder, job)
    finally:
        lock.release()


def check_same(folder: Path, begun: object, job: Job) -> None:
    """Raises:
    InputError: when a folder was begun for another job."""
    said = begun if isinstance(begun, dict) else {}
    for name, value in asdict(job).items():
        if said.get(name) != value:
            raise InputError(
                f"{folder} was begun with {name} {said.get(name)!s:.16}, and this command has "
                f"{value!s:.16}: valid is the same command, or another output"
            )


def make(
    parts: Parts,
    missing: Sequence[int],
    texts: Texts,
    schema: pa.Schema,
    open_model: OpenModel,
    processes: int,
) -> Iterator[int]:
    """Make the missing parts. Yields how many texts are done each time that a part is.

    Raises:
        OSError: when a part cannot be written, or a process has ended (``embed_parts``).
    """
    job, wanted = parts.job, frozenset(missing)
    done = job.rows - sum(map(job.size, missing))
    chosen = (part for part in enumerate(texts.parts(job.part, schema)) if part[0] in wanted)
    for number, vectors in embed_parts(
        chosen, min(processes, len(wanted)), open_model, job.batch_size
    ):
        parts.write(number, vectors)
        done += len(vectors)
        yield done


def made_by(output: Path) -> tuple[dict[str, Any], list[str]] | None:
    """The job that made an output which is there, and its columns; ``None`` if there is no file.

    Raises:
        InputError: for any other file, which is never replaced.
    """
    if not output.exists():
        return None
    try:
        schema = pq.read_schema(output)
        return json.loads(schema.metadata[SAID]), schema.names
    except (OSError, pa.ArrowException, TypeError, KeyError) as error:
        raise InputError(f"{output} exists already: choose another file") from error


def schema_of(job: Job, kept: Iterable[pa.Field]) -> pa.Schema:
    """The columns of an output: ``row`` (int64, from 0), those that are kept, and ``vector`` (a
    list of ``hidden`` float32). Its metadata have the job as JSON, under ``bitmaps``."""
    row, vector = OWN
    fields = [
        pa.field(row, pa.int64()), *kept, pa.field(vector, pa.list_(pa.float32(), job.hidden))
    ]  # fmt: skip
    return pa.schema(fields, metadata={SAID: json.dumps(asdict(job))})


def tables_of(
    parts: Parts, texts: Texts, found: pa.Schema, schema: pa.Schema
) -> Iterator[pa.Table]:
    """The output, a row group at a time."""
    job = parts.job
    kept = texts.tables(GROUP, found) if texts.keep else None
    for first in range(0, job.rows, GROUP):
        end = min(first + GROUP, job.rows)
        numbers = range(first // job.part, -(-end // job.part))
        vectors = np.concatenate([parts.read(number) for number in numbers])
        columns = [] if kept is None else next(kept).select(texts.keep).columns
        flat = pa.array(vectors.reshape(-1))
        lists = pa.FixedSizeListArray.from_arrays(flat, job.hidden)
        yield pa.table([pa.array(np.arange(first, end)), *columns, lists], schema=schema)


def assemble(parts: Parts, texts: Texts, found: pa.Schema, output: Path) -> None:
    """Make the output (``schema_of``) of parts that are all there, and remove them.

    Args:
        found: the types of the columns of the texts.

    Raises:
        InputError: when the output exists by now, or a part is damaged.
        OSError: when it cannot be written, for example on a full disk.
    """
    draft = parts.folder / DRAFT
    schema = schema_of(parts.job, map(found.field, texts.keep))
    with pq.ParquetWriter(
        draft,
        schema,
        compression="zstd",
        use_dictionary=list(texts.keep),  # no two numbers of a vector are the same
    ) as writer:
        for table in tables_of(parts, texts, found, schema):
            writer.write_table(table)
    sync(draft)
    if output.exists():
        raise InputError(f"{output} exists by now: move it away, and type the same command")
    draft.rename(output)
    sync(output.parent)
    parts.remove()
