"""A run folder's life, and what is written in it."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs.records import ANALYSIS, NAIVE, UNBINARIZED

from bitmaps.errors import InputError
from bitmaps.runs.files import draft_of, write_json
from bitmaps.runs.folder import (
    RunFolder,
    ScoredRow,
    read_analyses,
    read_rows,
    read_scored,
    read_sentences,
    read_state,
)
from bitmaps.runs.records import Facts, parse
from bitmaps.vocabulary import RowKind, Split, Status, ValueSet

FACTS = Facts("python train.py", model="minilm", values=ValueSet("01"), split=Split.test, seed=0)
SCORED = [
    ScoredRow(UNBINARIZED, np.random.RandomState(0).random_sample((3, 4)), ANALYSIS),
    ScoredRow(NAIVE, np.zeros((3, 4)), replace(ANALYSIS, verdict="fine")),
]


def claimed(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.claim("seed: 0\n", FACTS)
    return folder


def finished(path: Path) -> Path:
    claimed(path).finish(SCORED)
    return path


def stored(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "metrics.json").read_text())
    return found


def test_a_claimed_folder_says_that_it_is_running(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"
    claimed(folder)
    assert (folder / "config.yaml").read_text() == "seed: 0\n"
    state = read_state(folder)
    assert (state.status, state.error, state.facts, state.row) == (
        Status.running, None, FACTS, None,
    )  # fmt: skip
    head = {"format": 1, "status": "running", "error": None}
    assert stored(folder).items() >= (head | {"seed": 0, "values": "01", "row": None}).items()


def test_a_finished_run_has_its_last_row_as_its_own(tmp_path: Path) -> None:
    finished(tmp_path)
    state = read_state(tmp_path)
    assert (state.status, state.error) == (Status.ok, None)
    assert (state.row, state.facts) == (NAIVE, NAIVE.facts)
    assert read_rows(tmp_path) == [UNBINARIZED, NAIVE]
    assert stored(tmp_path) == {
        "format": 1, "status": "ok", "error": None, **json.loads(json.dumps(NAIVE.flat())),
    }  # fmt: skip


def test_a_finished_run_has_the_sums_of_each_sentence(tmp_path: Path) -> None:
    with np.load(finished(tmp_path) / "sentences.npz", allow_pickle=False) as found:
        assert set(found) == {"unbinarized", "naive"}
        assert all(array.dtype == np.float64 for array in found.values())
    for one in SCORED:
        np.testing.assert_array_equal(read_sentences(tmp_path)[one.row.kind], one.sentence_sums)


def test_a_finished_run_has_what_each_row_predicts(tmp_path: Path) -> None:
    analyses = read_analyses(finished(tmp_path))
    assert analyses == {one.row.kind: one.analysis for one in SCORED}


def test_a_finished_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = read_scored(finished(tmp_path))
    assert [one.row for one in found] == [one.row for one in SCORED]
    assert [one.analysis for one in found] == [one.analysis for one in SCORED]
    for one, other in zip(found, SCORED, strict=True):
        np.testing.assert_array_equal(one.sentence_sums, other.sentence_sums)


def test_what_fails_after_a_run_has_ended_changes_nothing(tmp_path: Path) -> None:
    folder = claimed(tmp_path)
    folder.finish(SCORED)
    before = stored(tmp_path)
    folder.fail(BrokenPipeError("nobody reads"), FACTS)
    assert stored(tmp_path) == before
    assert read_state(tmp_path).status is Status.ok


def test_sentences_are_not_written_through_a_link(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("mine", encoding="utf-8")
    folder = claimed(tmp_path)
    (tmp_path / "sentences.npz").symlink_to(other)
    folder.finish(SCORED)
    assert other.read_text(encoding="utf-8") == "mine"
    assert read_sentences(tmp_path)


@pytest.mark.parametrize("file", ["analysis.json", "sentences.npz"])
def test_a_row_without_all_that_it_is_made_of_is_named(tmp_path: Path, file: str) -> None:
    claimed(tmp_path / "one").finish(SCORED[:1])
    (tmp_path / "one" / file).replace(finished(tmp_path / "two") / file)
    with pytest.raises(InputError, match=r"is damaged: it has no analysis of its row naive$"):
        read_scored(tmp_path / "two")


Read = Callable[[Path], object]


@pytest.mark.parametrize(
    ("file", "read"),
    [("metrics.json", read_state), ("rows.json", read_rows), ("analysis.json", read_analyses)],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, file: str, read: Read) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path)
    assert str(caught.value) == f"{tmp_path} holds no results: it has no {file}"
    for content in (b"{", b"\xff\xfe"):
        (tmp_path / file).write_bytes(content)
        with pytest.raises(InputError) as caught:
            read(tmp_path)
        assert str(caught.value).startswith(f"{tmp_path / file} is not JSON")


@pytest.mark.parametrize("content", [{"format": 2}, {}, [], None, {"status": "ok"}])
def test_metrics_of_another_format_are_named(tmp_path: Path, content: Any) -> None:
    write_json(tmp_path / "metrics.json", content)
    with pytest.raises(InputError) as caught:
        read_state(tmp_path)
    assert str(caught.value) == f"{tmp_path / 'metrics.json'} is not of format 1"


@pytest.mark.parametrize("content", [{}, [], "rows", None])
def test_rows_that_are_none_are_named(tmp_path: Path, content: Any) -> None:
    write_json(tmp_path / "rows.json", content)
    with pytest.raises(InputError, match=r"rows\.json is no list of rows$"):
        read_rows(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "read", "message"),
    [
        ("metrics.json", {"format": 1}, read_state, "status is None"),
        ("metrics.json", {"format": 1, "status": "done"}, read_state, "status is 'done'"),
        ("metrics.json", {"format": 1, "status": "ok"}, read_state, "there is no memory_mib"),
        (
            "metrics.json", {"format": 1, "status": "failed", "seed": "0"}, read_state,
            "seed is '0'",
        ),
        ("rows.json", [1], read_rows, "it is 1: Input should be an object"),
        ("rows.json", [NAIVE.flat(), NAIVE.flat() | {"row": "best"}], read_rows, "row is 'best'"),
        ("rows.json", [NAIVE.flat() | {"mrr": "0.5"}], read_rows, "mrr is '0.5'"),
        ("analysis.json", [], read_analyses, r"it is \[\]"),
        ("analysis.json", {"best": {}}, read_analyses, "best"),
        ("analysis.json", {"naive": 1}, read_analyses, "naive is 1"),
        ("analysis.json", {"naive": {"verdict": ""}}, read_analyses, "no naive.predicted"),
    ],
)  # fmt: skip
def test_a_file_of_another_version_is_named_with_the_key(
    tmp_path: Path, file: str, content: Any, read: Read, message: str
) -> None:
    write_json(tmp_path / file, content)
    with pytest.raises(InputError, match=f"{file} is damaged or of another version: .*{message}"):
        read(tmp_path)


def test_sums_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = tmp_path / "sentences.npz"
    with pytest.raises(InputError, match=r"sentences\.npz is missing or damaged"):
        read_sentences(tmp_path)
    whole = finished(tmp_path).joinpath("sentences.npz").read_bytes()
    garbled = bytearray(whole)
    garbled[len(whole) // 3] ^= 0xFF
    for content in (b"", b"numbers", whole[: len(whole) // 2], bytes(garbled)):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"sentences\.npz is missing or damaged"):
            read_sentences(tmp_path)
    np.savez(path, best=np.zeros((3, 4)))
    with pytest.raises(InputError, match=r"sentences\.npz is missing or damaged.*best"):
        read_sentences(tmp_path)


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
    state = read_state(tmp_path)
    assert (state.status, state.error, state.facts, state.row) == (
        Status.failed, message, FACTS, None,
    )  # fmt: skip
    assert not (tmp_path / "rows.json").exists()
    assert not (tmp_path / "sentences.npz").exists()


def test_nothing_is_left_beside_the_files_of_a_run(tmp_path: Path) -> None:
    assert {path.name for path in finished(tmp_path).iterdir()} == {
        "config.yaml", "metrics.json", "rows.json", "sentences.npz", "analysis.json", ".lock",
    }  # fmt: skip


@pytest.mark.parametrize("file", ["config.yaml", "metrics.json"])
def test_a_folder_that_holds_a_run_is_refused_and_left_as_it_is(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_text("as it was")
    folder = RunFolder(tmp_path)
    with pytest.raises(InputError) as caught:
        folder.claim("new", FACTS)
    assert str(caught.value) == (
        f"{tmp_path} already holds a run: choose another folder, "
        f"or go on with it by resume={tmp_path}"
    )
    folder.fail(caught.value, FACTS)
    folder.finish(SCORED)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(file, "as it was")]


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_in_use_is_refused_until_its_run_ends(tmp_path: Path, resume: bool) -> None:
    first = claimed(tmp_path)
    for file in ("config.yaml", "metrics.json"):
        # else it is refused for the run that it holds
        (tmp_path / file).rename(tmp_path / f"{file}.aside")
    other = RunFolder(tmp_path)
    with pytest.raises(InputError, match=f"^{tmp_path} is in use by another process$"):
        other.claim("seed: 1\n", FACTS, resume)
    assert not other.claimed
    assert not (tmp_path / "config.yaml").exists()
    first.fail(RuntimeError("stopped"), FACTS)
    other.claim("seed: 1\n", FACTS, resume=True)
    assert (tmp_path / "config.yaml").read_text() == "seed: 1\n"


def test_a_finished_run_keeps_its_outcome_until_the_next_one_is_there(tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in finished(tmp_path).iterdir()}
    for end in ("killed", "failed", "finished"):
        folder = RunFolder(tmp_path)
        folder.claim("seed: 1\n", FACTS, resume=True)
        if end == "failed":
            folder.fail(RuntimeError("out of memory"), FACTS)
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
        assert read_scored(tmp_path)[-1].row == NAIVE
        if end == "killed":
            folder.release()  # as the system does
    folder.finish(SCORED[:1])
    assert read_state(tmp_path).row == UNBINARIZED
    assert (tmp_path / "config.yaml").read_text() == "seed: 1\n"


@pytest.mark.parametrize("event", range(1, 20))
def test_a_folder_that_a_killed_process_leaves_is_whole_or_says_that_it_is_not(
    tmp_path: Path, event: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends before one of the times that something is on the disk."""
    (finished(tmp_path) / "model").mkdir()
    (tmp_path / "model" / "steps").write_text("old")
    folder, done = RunFolder(tmp_path), itertools.count(1)
    folder.claim("seed: 1\n", FACTS, resume=True)
    draft_of(tmp_path / "model").mkdir()
    (draft_of(tmp_path / "model") / "steps").write_text("new")

    def killed(_: int) -> None:
        if next(done) == event:
            raise SystemExit

    monkeypatch.setattr(os, "fsync", killed)
    with contextlib.suppress(SystemExit):
        folder.finish(SCORED[:1])
    state = read_state(tmp_path)
    if state.status is Status.ok:
        old = state.row == NAIVE
        assert (tmp_path / "model" / "steps").read_text() == ("old" if old else "new")
        assert read_scored(tmp_path)[-1].row == state.row
        assert ((tmp_path / "config.yaml").read_text() == "seed: 0\n") is old
    else:
        assert (state.status, state.row) == (Status.running, None)
    assert (state.status is Status.ok) is (event == 1 or event > 13)


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    for name in (".metrics.json.7.draft", "checkpoints/.last.ckpt.7.draft"):
        (tmp_path / name).touch()
    (tmp_path / ".model.draft" / "more").mkdir(parents=True)
    claimed(tmp_path)
    names = {path.name for path in tmp_path.rglob("*")}
    assert names == {"config.yaml", "metrics.json", ".lock", "checkpoints"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.ENOENT])
def test_a_disk_that_takes_nothing_more_leaves_what_is_there(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = claimed(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        folder.finish(SCORED)
    folder.fail(caught.value, FACTS)  # cannot be written either
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_with_other_files_may_be_claimed(tmp_path: Path) -> None:
    (tmp_path / "train.log").touch()
    claimed(tmp_path)
    assert read_state(tmp_path).status is Status.running


def test_a_run_may_be_resumed(tmp_path: Path) -> None:
    claimed(tmp_path).fail(RuntimeError("power cut"), FACTS)
    RunFolder(tmp_path).claim("seed: 1\n", FACTS, resume=True)
    assert (read_state(tmp_path).status, read_state(tmp_path).error) == (Status.running, None)
    assert (tmp_path / "config.yaml").read_text() == "seed: 1\n"


def test_a_process_that_does_not_write_leaves_no_trace(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", writes=False)
    folder.claim("seed: 0\n", FACTS)
    folder.finish(SCORED)
    folder.fail(RuntimeError(), FACTS)
    assert not folder.claimed
    assert not list(tmp_path.iterdir())


def test_a_process_that_does_not_write_minds_no_run_of_the_first(tmp_path: Path) -> None:
    claimed(tmp_path)
    RunFolder(tmp_path, writes=False).claim("seed: 0\n", FACTS)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_is_never_written(tmp_path: Path, bad: float) -> None:
    folder = claimed(tmp_path)
    row = replace(NAIVE, known=replace(NAIVE.known, accuracy=bad))
    with pytest.raises(ValueError, match="JSON compliant"):
        folder.finish([SCORED[0], replace(SCORED[1], row=row)])
    assert read_state(tmp_path).status is Status.running
    assert not (tmp_path / "rows.json").exists()
    assert not (tmp_path / "sentences.npz").exists()


def test_a_run_of_an_older_version_opens(tmp_path: Path) -> None:
    """Rows had fewer keys, or others."""
    old = {
        "command": "python train.py", "versions": {"python": "3.10"}, "row": "trained",
        "components": "ffnn", "values": "pm1", "gone": {"a": 1},
        "settings": {"callbacks.signs._target_": "bitmaps.diagnostics.SignWatch"},
        "cross_entropy": 5, "accuracy": 0.25, "mrr": 0.5, "memory_mib": 60.5,
    }  # fmt: skip
    write_json(tmp_path / "metrics.json", {"format": 1, "status": "ok", "error": None, **old})
    write_json(tmp_path / "rows.json", [old])
    row = read_state(tmp_path).row
    assert row is not None
    assert read_rows(tmp_path) == [row]
    assert (row.kind, row.scores.cross_entropy, row.known.mrr) == (RowKind.trained, 5.0, None)
    assert row.facts == parse(Facts, old)
    assert row.facts.settings["callbacks.signs._target_"] == (
        "bitmaps.training.sign_watch.SignWatch"
    )
