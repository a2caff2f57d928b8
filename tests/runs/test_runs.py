"""A run folder's life, and what is written in it."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bitmaps.errors import InputError
from bitmaps.runs.folder import (
    IN_AN_ANALYSIS,
    Row,
    RunFolder,
    commit,
    perplexity,
    read_analyses,
    read_metrics,
    read_rows,
    versions,
    write_json,
)

FACTS: Row = {"model": "minilm", "components": "ffnn", "seed": 0}
SCORED: Row = {"cross_entropy": 4.5, "accuracy": 0.5, "mrr": 0.25, "memory_mib": 1.5}
ROWS: list[Row] = [
    {**FACTS, **SCORED, "row": "unbinarized"},
    {**FACTS, **SCORED, "row": "naive", "accuracy": 0.25},
]
SENTENCES = {
    "unbinarized": torch.rand(3, 4, dtype=torch.float64),
    "naive": torch.zeros(3, 4, dtype=torch.float64),
}
ANALYSES: dict[str, Any] = {"naive": dict.fromkeys(IN_AN_ANALYSIS) | {"verdict": "collapsed"}}


def claimed(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.claim("seed: 0\n", FACTS)
    return folder


def test_a_claimed_folder_says_that_it_is_running(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"
    claimed(folder)
    assert (folder / "config.yaml").read_text() == "seed: 0\n"
    assert read_metrics(folder) == {"format": 1, "status": "running", "error": None, **FACTS}


def test_a_finished_run_has_its_last_row_as_its_own(tmp_path: Path) -> None:
    claimed(tmp_path).finish(ROWS, SENTENCES, ANALYSES)
    assert read_rows(tmp_path) == ROWS
    assert read_metrics(tmp_path) == {"format": 1, "status": "ok", "error": None, **ROWS[-1]}


def test_a_finished_run_has_what_the_sentences_of_each_row_came_to(tmp_path: Path) -> None:
    claimed(tmp_path).finish(ROWS, SENTENCES, ANALYSES)
    with np.load(tmp_path / "sentences.npz", allow_pickle=False) as found:
        assert set(found) == {"unbinarized", "naive"}
        for name, sums in SENTENCES.items():
            assert found[name].dtype == np.float64
            np.testing.assert_array_equal(found[name], sums)


def test_a_finished_run_has_what_each_row_predicts(tmp_path: Path) -> None:
    claimed(tmp_path).finish(ROWS, SENTENCES, ANALYSES)
    assert read_analyses(tmp_path) == ANALYSES


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no analysis.json there"), ("{", "analysis.json is not JSON")]
)
def test_an_analysis_that_cannot_be_read_is_named(
    tmp_path: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "analysis.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_analyses(tmp_path)


@pytest.mark.parametrize("content", ["{}", "[]", '"rows"', "null"])
def test_rows_that_are_none_are_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "rows.json").write_text(content)
    with pytest.raises(InputError, match=r"rows\.json is no list of rows"):
        read_rows(tmp_path)


@pytest.mark.parametrize("name", ["row", "cross_entropy", "accuracy", "mrr", "memory_mib"])
def test_what_a_row_lacks_is_named(tmp_path: Path, name: str) -> None:
    write_json(tmp_path / "rows.json", [ROWS[0], {k: v for k, v in ROWS[1].items() if k != name}])
    with pytest.raises(
        InputError, match=rf"rows\.json is damaged or of another version: there is no {name}$"
    ):
        read_rows(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "read"),
    [
        ("metrics.json", {"format": 1}, read_metrics),
        ("rows.json", [1], read_rows),
        ("analysis.json", [], read_analyses),
        ("analysis.json", {"naive": 1}, read_analyses),
        ("analysis.json", {"naive": {"verdict": "collapsed"}}, read_analyses),
    ],
)
def test_what_is_of_another_version_is_named(
    tmp_path: Path, file: str, content: Any, read: Callable[[Path], Any]
) -> None:
    write_json(tmp_path / file, content)
    with pytest.raises(InputError, match=f"{file} is damaged or of another version"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (InputError("limit=0 is too small"), "limit=0 is too small"),
        (RuntimeError("out of memory"), "RuntimeError: out of memory"),
        (KeyboardInterrupt(), "KeyboardInterrupt: "),
    ],
)
def test_a_failed_run_says_why_beside_what_was_to_be_run(
    tmp_path: Path, error: BaseException, message: str
) -> None:
    claimed(tmp_path).fail(error, FACTS)
    assert read_metrics(tmp_path) == {"format": 1, "status": "failed", "error": message, **FACTS}
    assert not (tmp_path / "rows.json").exists()
    assert not (tmp_path / "sentences.npz").exists()


def test_nothing_is_left_beside_the_files_of_a_run(tmp_path: Path) -> None:
    claimed(tmp_path).finish(ROWS, SENTENCES, ANALYSES)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.yaml", "metrics.json", "rows.json", "sentences.npz", "analysis.json", ".lock",
    }  # fmt: skip


@pytest.mark.parametrize("file", ["config.yaml", "metrics.json"])
def test_a_folder_that_holds_a_run_is_refused_and_left_as_it_is(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_text("as it was")
    folder = RunFolder(tmp_path)
    with pytest.raises(InputError) as caught:
        folder.claim("new", FACTS)
    assert str(tmp_path) in str(caught.value)
    folder.fail(caught.value, FACTS)
    folder.finish(ROWS, SENTENCES, ANALYSES)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(file, "as it was")]


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_in_which_another_run_is_at_work_is_refused_until_it_ends(
    tmp_path: Path, resume: bool
) -> None:
    first = claimed(tmp_path)
    for file in ("config.yaml", "metrics.json"):
        (tmp_path / file).rename(
            tmp_path / f"{file}.aside"
        )  # else it is refused for the run that it holds
    other = RunFolder(tmp_path)
    with pytest.raises(InputError, match=f"{tmp_path} is being worked on by another process"):
        other.claim("seed: 1\n", FACTS, resume)
    assert not other.claimed
    assert not (tmp_path / "config.yaml").exists()
    first.fail(RuntimeError("stopped"), FACTS)
    other.claim("seed: 1\n", FACTS, resume=True)
    assert (tmp_path / "config.yaml").read_text() == "seed: 1\n"


def test_a_folder_with_other_files_may_be_claimed(tmp_path: Path) -> None:
    (tmp_path / "train.log").touch()
    claimed(tmp_path)
    assert read_metrics(tmp_path)["status"] == "running"


def test_a_run_may_be_resumed(tmp_path: Path) -> None:
    claimed(tmp_path).fail(RuntimeError("power cut"), FACTS)
    RunFolder(tmp_path).claim("seed: 1\n", FACTS, resume=True)
    assert read_metrics(tmp_path)["status"] == "running"
    assert (tmp_path / "config.yaml").read_text() == "seed: 1\n"


def test_a_process_that_does_not_write_leaves_no_trace(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", writes=False)
    folder.claim("seed: 0\n", FACTS)
    folder.finish(ROWS, SENTENCES, ANALYSES)
    folder.fail(RuntimeError(), FACTS)
    assert not folder.claimed
    assert not list(tmp_path.iterdir())


def test_a_process_that_does_not_write_minds_no_run_of_the_first(tmp_path: Path) -> None:
    claimed(tmp_path)
    RunFolder(tmp_path, writes=False).claim("seed: 0\n", FACTS)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_is_never_written(tmp_path: Path, bad: float) -> None:
    folder = claimed(tmp_path)
    with pytest.raises(ValueError, match="JSON compliant"):
        folder.finish([ROWS[0], ROWS[1] | {"known": {"accuracy": bad}}], SENTENCES, ANALYSES)
    assert read_metrics(tmp_path)["status"] == "running"
    assert not (tmp_path / "rows.json").exists()
    assert not (tmp_path / "sentences.npz").exists()


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"a": 1})
    with path.open() as reader:
        write_json(path, {"a": 2})
        assert json.load(reader) == {"a": 1}
    assert json.loads(path.read_text()) == {"a": 2}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no results: no metrics.json there"),
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b'{"format": 2}', "is not of format 1"),
        (b"{}", "is not of format 1"),
        (b"[]", "is not of format 1"),
    ],
)
def test_metrics_that_cannot_be_read_are_named(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "metrics.json").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_metrics(tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_perplexity_is_null_where_fp64_overflows() -> None:
    assert perplexity(262.0) == pytest.approx(10 ** (262 / math.log(10)))
    assert perplexity(709.0) is not None
    assert perplexity(710.0) is None
    assert json.dumps(perplexity(1000.0)) == "null"


def test_versions_name_what_the_numbers_depend_on() -> None:
    assert {"python", "torch", "transformers", "bitmaps"} <= set(versions())
    assert all(isinstance(version, str) and version for version in versions().values())


def test_the_commit_is_that_of_the_checkout() -> None:
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        assert commit() is None
        return
    head = subprocess.run(
        ["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout
    assert commit() in (head.strip(), f"{head.strip()}-dirty")
