"""``python -m bitmaps.embedding``: with processes of its own, stopped, killed and resumed."""

from __future__ import annotations

import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Pack
from embedding.examples import encoder, pack, texts

import bitmaps
from bitmaps.bert import Bert
from bitmaps.embedding import __main__ as command
from bitmaps.embedding import parts as making
from bitmaps.embedding.parts import PART
from bitmaps.scoring import display

FEW, MANY = 2 * PART + 5, 12 * PART + 5
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A packed model, another one, few texts as a table and as lines, and many."""
    home = tmp_path_factory.mktemp("home")
    pack(encoder(), tokenizer, home / "packed")
    pack(encoder(seed=1), tokenizer, home / "other")
    given = texts(FEW)
    (home / "texts.txt").write_text("\n".join(given), encoding="utf-8")
    (home / "many.txt").write_text("\n".join(texts(MANY)), encoding="utf-8")
    columns = {"id": [f"n{number}" for number in range(FEW)], "text": given, "body": given}
    pq.write_table(pa.table(columns), home / "texts.parquet", row_group_size=1000)
    return home


@pytest.fixture(scope="module")
def whole(home: Path) -> Path:
    """What a command makes that nobody stops."""
    output = home / "whole.parquet"
    done = started(home, output).communicate(timeout=300)
    assert output.is_file(), done
    return output


@pytest.fixture
def embed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs the command in this process; gives its exit code and what it printed."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["python -m bitmaps.embedding", *map(str, arguments)])
        code: Any = 0
        try:
            command.main()
        except SystemExit as exit:
            code = exit.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    log = logging.getLogger(display.__name__)
    before = log.level
    yield run
    log.setLevel(before)


def line_of(home: Path, output: Path, texts: str = "texts.txt") -> list[str]:
    files = [str(home / texts), str(output), "--model", str(home / "packed")]
    return [*files, "--workers", "2"]


def started(home: Path, output: Path, **options: Any) -> subprocess.Popen[str]:
    """The command on many texts, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "bitmaps.embedding", *line_of(home, output, "many.txt")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def until_parts(output: Path, count: int, process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Wait for so many parts. Returns the processes that make them."""
    folder = making.folder_of(output)
    while len(list(folder.glob("*.npy"))) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return psutil.Process(process.pid).children(recursive=True)


def refused(found: tuple[int, str, str], named: str) -> None:
    """It ends in one line."""
    code, out, err = found
    assert code == 2
    assert not out
    assert named in err
    assert [line for line in err.splitlines() if "error: " in line] == err.splitlines()[-1:]


def test_vectors_of_a_table_come_in_its_order_with_the_columns_that_are_asked_for(
    embed: Run, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(display.Lines, "every_s", 0.0)
    output = tmp_path / "vectors.parquet"
    files = [home / "texts.parquet", output, "--model", home / "packed"]
    code, out, err = embed(*files, "--column", "body", "--keep", "id", "--workers", "2")
    assert (code, err) == (0, "")
    assert out == f"{output}: {FEW} vectors of 16 numbers\n"
    table = pq.read_table(output)
    assert table.column_names == ["row", "id", "vector"]
    assert table["row"].to_pylist() == list(range(FEW))
    assert table["id"].to_pylist() == [f"n{number}" for number in range(FEW)]
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 16)
    found = table["vector"].combine_chunks().flatten().to_numpy().reshape(-1, 16)
    expected = bitmaps.embed(bitmaps.load(home / "packed"), texts(FEW))
    cosines = (found * expected).sum(1)  # batches differ, and so do roundings to int8
    assert cosines.min() > 0.99
    assert np.abs(found - expected).mean() < 1e-4
    assert {path.name for path in tmp_path.iterdir()} == {"vectors.parquet"}
    lines = [record.getMessage() for record in caplog.records if record.name == display.__name__]
    assert len(lines) == 3
    assert lines[0].startswith(f"embedding: text {PART} of {FEW}, ")
    assert lines[-1].startswith(f"embedding: text {FEW} of {FEW}, ")


def test_vectors_are_exact_with_exact_activations(embed: Run, home: Path, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("\n".join(texts(50)), encoding="utf-8")
    output = tmp_path / "vectors.parquet"
    files = [tmp_path / "few.txt", output, "--model", home / "packed"]
    assert embed(*files, "--act", "f32", "--batch-size", "7", "--workers", "1")[0] == 0
    expected = bitmaps.embed(bitmaps.load(home / "packed", act="f32"), texts(50), batch_size=1)
    found = np.array(pq.read_table(output)["vector"].to_pylist(), np.float32)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_what_is_complete_is_left(
    embed: Run, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = tmp_path / "vectors.parquet"
    assert embed(*line_of(home, whole))[0] == 0
    before = whole.read_bytes()
    monkeypatch.setattr(making, "embed_parts", None)  # nothing is made
    assert embed(*line_of(home, whole)) == (0, f"{whole} is complete already\n", "")
    for options in (["--act", "f32"], ["--batch-size", "7"], ["--keep", "text"]):
        refused(
            embed(*line_of(home, whole), *options),
            f"error: {whole} exists already, with other vectors: choose another file",
        )
    (tmp_path / "mine.parquet").write_text("mine")
    refused(
        embed(*line_of(home, tmp_path / "mine.parquet")),
        f"error: {tmp_path / 'mine.parquet'} exists already: choose another file",
    )
    assert whole.read_bytes() == before
    assert (tmp_path / "mine.parquet").read_text() == "mine"
    assert not making.folder_of(whole).exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--model", "other"], "was begun with model "),
        (["--act", "f32"], "was begun with act a8, and this command has f32"),
        (["--batch-size", "7"], "was begun with batch_size 32, and this command has 7"),
        (["--column", "body"], "was begun with column text, and this command has body"),
        (["texts.txt"], "was begun with input "),
    ],
)
def test_another_job_does_not_go_on(
    options: list[str], named: str, embed: Run, home: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def stop(*arguments: object) -> Iterator[Any]:
        raise OSError(28, "No space left on device")
        yield

    monkeypatch.setattr(making, "embed_parts", stop)
    monkeypatch.chdir(home)
    output = tmp_path / "vectors.parquet"
    begun = ["texts.parquet", output, "--model", "packed"]
    code, out, err = embed(*begun)
    assert (code, out) == (1, "")
    assert err == (
        "error: [Errno 28] No space left on device; to go on: python -m bitmaps.embedding "
        f"texts.parquet {output} --model packed\n"
    )
    other = [*options, *begun[1:]] if len(options) == 1 else [*begun, *options]
    refused(embed(*other), f"error: {output}.parts {named}")
    assert embed(*begun)[0] == 1  # it still goes on
    (tmp_path / "again.parquet").write_bytes((home / "texts.parquet").read_bytes())
    assert embed(tmp_path / "again.parquet", *begun[1:], "--workers", "1")[0] == 1  # the same texts


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--workers", "0"], "--workers 0 is too small; valid is 1 or more"),
        (["--batch-size", "-1"], "--batch-size -1 is too small; valid is 1 or more"),
        (["--act", "a9"], "invalid choice: 'a9'"),
        (["--model", "/no/such/model"], "/no/such/model holds no model"),
        (["--column", "body"], "has one text a line, and no column 'body'"),
        (["--more"], "unrecognized arguments: --more"),
    ],
)
def test_bad_arguments_end_in_one_clear_error(
    options: list[str], named: str, embed: Run, home: Path, tmp_path: Path
) -> None:
    refused(embed(*line_of(home, tmp_path / "vectors.parquet"), *options), named)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["vectors.csv", "vectors", "nowhere/vectors.parquet"])
def test_an_output_that_cannot_be_written_is_refused(
    name: str, embed: Run, home: Path, tmp_path: Path
) -> None:
    valid = "cannot be written; valid is a .parquet file in a folder"
    refused(embed(*line_of(home, tmp_path / name)), f"error: {tmp_path / name} {valid}")


def test_mistakes_in_the_texts_are_refused(embed: Run, home: Path, tmp_path: Path) -> None:
    output = tmp_path / "vectors.parquet"
    (tmp_path / "empty.txt").touch()
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text": null}\n')
    for file, named in {
        home / "texts.parquet": "has no column 'words'; it has id, text, body",
        tmp_path / "empty.txt": "has one text a line, and no column 'words'",
        tmp_path / "bad.jsonl": "has no column 'words'; it has text",
        tmp_path: "is a folder; valid is a file that ends with",
    }.items():
        refused(embed(file, output, "--column", "words", "--model", home / "packed"), named)
    refused(embed(tmp_path / "empty.txt", output), "holds no texts")
    refused(embed(tmp_path / "bad.jsonl", output), "line 2 has the text null; valid is text")


def test_a_model_of_another_task_or_in_floats_with_act_is_refused(
    embed: Run, home: Path, tiny: Bert, pack: Pack, tmp_path: Path
) -> None:
    refused(
        embed(home / "texts.txt", tmp_path / "v.parquet", "--model", pack(tiny)),
        "this model is for masked_lm, and makes no vectors of texts",
    )
    assert not (tmp_path / "v.parquet.parts").exists()


def test_help_says_what_to_type(embed: Run) -> None:
    code, out, _ = embed("--help")
    assert code == 0
    assert "python -m bitmaps.embedding <texts> <vectors.parquet>" in out


@pytest.mark.slow
def test_a_command_that_is_killed_goes_on_and_leaves_no_process(
    home: Path, whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "vectors.parquet"
    for count in (1, 5):
        process = started(home, output)
        helpers = until_parts(output, count, process)
        assert len(helpers) >= 2
        process.kill()
        process.communicate()
        _, alive = psutil.wait_procs(helpers, timeout=30)
        assert not alive
        assert not output.exists()
    done = len(list(making.folder_of(output).glob("*.npy")))
    out, err = started(home, output).communicate(timeout=300)
    assert err == ""
    assert f"{done * PART} of {MANY} texts are done already" in out
    assert output.read_bytes() == whole.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"vectors.parquet"}


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_with_the_command_that_goes_on(
    number: signal.Signals, code: int, home: Path, whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "vectors.parquet"
    process = started(home, output, start_new_session=True)
    helpers = until_parts(output, 2, process)
    os.killpg(process.pid, number)  # as a terminal and a scheduler do
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (code, "")
    words = " ".join(line_of(home, output, "many.txt"))
    assert out.splitlines()[-1] == (
        f"stopped by {number.name}; to go on: python -m bitmaps.embedding {words}"
    )
    assert not psutil.wait_procs(helpers, timeout=30)[1]
    out, err = started(home, output).communicate(timeout=300)
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_a_disk_that_takes_nothing_more_ends_it_with_the_command_that_goes_on(
    home: Path, whole: Path, tmp_path: Path
) -> None:
    """No file may be larger than a part is. So the parts can be written, but not the output."""
    output, most = tmp_path / "vectors.parquet", 100_000
    assert PART * 16 * 4 < most < whole.stat().st_size

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    process = started(home, output, preexec_fn=limited)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert err.startswith("error: ")
    assert "File too large" in err
    assert "; to go on: python -m bitmaps.embedding " in err
    assert not output.exists()
    out, err = started(home, output).communicate(timeout=300)
    assert (err, out.splitlines()[0]) == ("", f"{MANY} of {MANY} texts are done already")
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_a_process_that_is_killed_ends_it_with_the_command_that_goes_on(
    home: Path, whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "vectors.parquet"
    process = started(home, output)
    helpers = until_parts(output, 2, process)
    for helper in helpers:
        if not helper.children() and "forkserver" in " ".join(helper.cmdline()):
            helper.kill()  # as a system does that runs out of memory
            break
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith("error: a process that made vectors has ended; with fewer --workers")
    assert "; to go on: python -m bitmaps.embedding " in err
    assert not psutil.wait_procs(helpers, timeout=30)[1]
    started(home, output).communicate(timeout=300)
    assert output.read_bytes() == whole.read_bytes()
