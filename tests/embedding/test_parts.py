"""Parts of an output: never mixed, never half there, made again where they are missing."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from bitmaps.bert import Bert
from bitmaps.embedding import parts as making
from bitmaps.embedding.parts import (
    Job,
    assemble,
    claimed,
    folder_digest,
    folder_of,
    made_by,
    make,
)
from bitmaps.embedding.texts import Texts, survey
from bitmaps.embedding.vectors import Vectors
from bitmaps.errors import InputError

PART, ROWS, HIDDEN = 4, 23, 3
JOB = Job("model", "a8", "input", "text", ROWS, HIDDEN, 32, part=PART)
NUMBERS = range(-(-ROWS // PART))


def nothing() -> Bert:
    raise AssertionError("no process is started")


def vectors_of(texts: list[str]) -> Vectors:
    return np.array([[float(text), len(text), 0.5] for text in texts], np.float32)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are done out of order, as by several processes, and without any."""

    def embed_parts(
        parts: Iterable[tuple[int, list[str]]], processes: int, open_model: object, batch_size: int
    ) -> Iterator[tuple[int, Vectors]]:
        given = list(parts)
        assert processes == min(2, len(given))
        for number, texts in given[::2] + given[1::2]:
            yield number, vectors_of(texts)

    monkeypatch.setattr(making, "embed_parts", embed_parts)
    monkeypatch.setattr(making, "GROUP", 2 * PART)


@pytest.fixture
def texts(tmp_path: Path) -> Texts:
    path = tmp_path / "texts.jsonl"
    lines = [json.dumps({"id": f"n{number}", "text": str(number)}) for number in range(ROWS)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return Texts(path, keep=("id",))


def run(texts: Texts, output: Path, job: Job = JOB) -> list[int]:
    """As the command does it; returns how many texts were done each time."""
    schema = survey(texts).schema
    with claimed(output, job) as parts:
        done = list(make(parts, parts.missing(), texts, schema, nothing, 2))
        assemble(parts, texts, schema, output)
    return done


def check(output: Path) -> None:
    table = pq.read_table(output)
    assert table["row"].to_pylist() == list(range(ROWS))
    assert table["id"].to_pylist() == [f"n{number}" for number in range(ROWS)]
    assert table.schema.field("vector").type.list_size == HIDDEN
    found = np.array(table["vector"].to_pylist(), np.float32)
    assert (found == vectors_of([str(number) for number in range(ROWS)])).all()
    assert not folder_of(output).exists()
    assert made_by(output) == (asdict(JOB), ["row", "id", "vector"])


def test_every_vector_is_there_once_and_in_order(texts: Texts, tmp_path: Path) -> None:
    output = tmp_path / "vectors.parquet"
    assert made_by(output) is None
    assert run(texts, output) == [4, 8, 12, 16, 20, 23]
    check(output)
    assert pq.ParquetFile(output).metadata.num_row_groups == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.jsonl", "vectors.parquet"]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("damage", ["remove", "cut", "empty", "other"])
def test_a_part_that_is_missing_or_damaged_is_made_again(
    number: int, damage: str, texts: Texts, tmp_path: Path
) -> None:
    output, schema = tmp_path / "vectors.parquet", survey(texts).schema
    with claimed(output, JOB) as parts:
        list(make(parts, parts.missing(), texts, schema, nothing, 2))
        assert parts.missing() == []
        path = parts.path(number)
        content = path.read_bytes()
        path.unlink()
        if damage == "other":
            np.save(path, np.zeros((PART + 1, HIDDEN), np.float32))
        elif damage != "remove":
            path.write_bytes(content[:-1] if damage == "cut" else b"")
        assert parts.missing() == [number]
        with pytest.raises(InputError, match=path.name):
            assemble(parts, texts, schema, output)
        assert not output.exists()
    assert run(texts, output) == [ROWS]
    check(output)


@pytest.mark.parametrize(
    "name", ["model", "act", "input", "column", "rows", "hidden", "batch_size", "part"]
)
def test_parts_of_another_job_are_refused_and_left(name: str, texts: Texts, tmp_path: Path) -> None:
    output, folder = tmp_path / "vectors.parquet", tmp_path / "vectors.parquet.parts"
    with claimed(output, JOB) as parts:
        parts.write(0, vectors_of(["0", "1", "2", "3"]))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    value = "other" if isinstance(getattr(JOB, name), str) else 5
    with (
        pytest.raises(InputError) as error,
        claimed(output, replace(JOB, **{name: value})),
    ):
        pass
    assert str(error.value) == (
        f"{folder} was begun with {name} {getattr(JOB, name)}, and this command has {value}: "
        "valid is the same command, or another output"
    )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    run(texts, output)
    check(output)


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_folder_that_does_not_say_what_it_is_of_is_refused(content: str, tmp_path: Path) -> None:
    output = tmp_path / "vectors.parquet"
    folder_of(output).mkdir()
    (folder_of(output) / "job.json").write_text(content)
    with (
        pytest.raises(InputError, match=r"job\.json is not JSON|was begun with model None"),
        claimed(output, JOB),
    ):
        pass


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    output = tmp_path / "vectors.parquet"
    folder_of(output).mkdir()
    (folder_of(output) / "mine.txt").write_text("mine")
    with (
        pytest.raises(InputError, match=r"is no folder of parts: it holds mine\.txt"),
        claimed(output, JOB),
    ):
        pass
    assert (folder_of(output) / "mine.txt").read_text() == "mine"


def test_two_processes_do_not_work_on_one_output(tmp_path: Path) -> None:
    output = tmp_path / "vectors.parquet"
    with (
        claimed(output, JOB),
        pytest.raises(InputError, match="in use by another process"),
        claimed(output, JOB),
    ):
        pass


def test_a_file_that_appears_meanwhile_is_left(texts: Texts, tmp_path: Path) -> None:
    output, schema = tmp_path / "vectors.parquet", survey(texts).schema
    with claimed(output, JOB) as parts:
        list(make(parts, parts.missing(), texts, schema, nothing, 2))
        output.write_text("mine")
        with pytest.raises(InputError, match="exists by now: move it away"):
            assemble(parts, texts, schema, output)
    assert output.read_text() == "mine"
    output.unlink()
    assert run(texts, output) == []
    check(output)


def test_any_other_file_is_no_output(texts: Texts, tmp_path: Path) -> None:
    for name, make_it in {
        "text": lambda path: path.write_text("mine"),
        "folder": lambda path: path.mkdir(),
        "table": lambda path: pq.write_table(pq.read_table(tmp_path / "v").select(["row"])
                                             .replace_schema_metadata(), path),
    }.items():  # fmt: skip
        if name == "table":
            run(texts, tmp_path / "v")
        make_it(tmp_path / name)
        with pytest.raises(InputError, match="exists already: choose another file"):
            made_by(tmp_path / name)


def test_the_digest_of_a_model_is_of_all_its_files_but_the_card(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "1_Pooling/config.json"):
        (folder / name).write_text(name)
    found = folder_digest(folder)
    (folder / "README.md").write_text("card")
    assert folder_digest(folder) == found
    folder.rename(tmp_path / "elsewhere")
    assert folder_digest(tmp_path / "elsewhere") == found
    others = set()
    for name in ("config.json", "1_Pooling/config.json"):
        (tmp_path / "elsewhere" / name).write_text("other")
        others.add(folder_digest(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere" / "model.safetensors").rename(tmp_path / "elsewhere" / "other")
    others.add(folder_digest(tmp_path / "elsewhere"))
    assert len(others | {found}) == 4


class Killer:
    """Ends this process by SIGKILL when it waits for the disk for the n-th time."""

    def __init__(self, at: int) -> None:
        self.left, self.sync = at, os.fsync

    def __call__(self, handle: int) -> None:
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        self.sync(handle)


def in_a_copy(work: Callable[[], object]) -> int:
    """Do something in a copy of this process. Returns its exit code, or -9."""
    if (child := os.fork()) == 0:
        code = 70
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # since Python 3.12
def test_a_command_that_is_killed_at_any_moment_goes_on(texts: Texts, tmp_path: Path) -> None:
    run(texts, whole := tmp_path / "whole.parquet")
    for moment in range(1, 100):
        output = tmp_path / f"{moment}.parquet"

        def killed(at: int = moment, output: Path = output) -> None:
            os.fsync = Killer(at)
            run(texts, output)

        code = in_a_copy(killed)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        if output.exists():  # killed between the last two steps: what is left can go
            assert output.read_bytes() == whole.read_bytes()
            continue
        assert in_a_copy(killed) in (0, -signal.SIGKILL)  # and once more, further on
        if not output.exists():
            run(texts, output)
            assert not folder_of(output).exists()
        assert output.read_bytes() == whole.read_bytes()
    # job, parts, output and the folders that they are in
    assert moment > 2 * (len(NUMBERS) + 1)


@pytest.mark.parametrize("what", ["save", "write_table"])
def test_a_full_disk_leaves_what_is_there(
    what: str, texts: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, calls = tmp_path / "vectors.parquet", 0
    owner = np if what == "save" else pq.ParquetWriter
    real = getattr(owner, what)

    def full(*arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(28, "No space left on device")
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, what, full)
        with pytest.raises(OSError, match="No space left on device"):
            run(texts, output)
    assert not output.exists()
    assert len(list(folder_of(output).glob("*.npy"))) == (2 if what == "save" else len(NUMBERS))
    assert run(texts, output) == ([12, 16, 20, 23] if what == "save" else [])
    check(output)
