"""JSON and text files of a run folder."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from bitmaps.errors import InputError
from bitmaps.runs.files import read_json, replace_text, write_json


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"a": 1})
    with path.open() as reader:
        write_json(path, {"a": 2})
        assert json.load(reader) == {"a": 1}
    assert read_json(path) == {"a": 2}
    assert list(tmp_path.iterdir()) == [path]


def test_text_is_in_utf_8(tmp_path: Path) -> None:
    replace_text(tmp_path / "a", "naïve ±\n")
    assert (tmp_path / "a").read_bytes() == "naïve ±\n".encode()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_is_not_written(tmp_path: Path, bad: float) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": [bad]})
    assert read_json(path) == {"a": 1}


@pytest.mark.parametrize("value", [None, [], {"a": [1, 0.5, "naïve", None, True]}])
def test_what_is_written_is_read(tmp_path: Path, value: Any) -> None:
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


def test_a_file_that_is_missing_is_named_with_its_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_json(tmp_path / "run" / "rows.json")
    assert str(caught.value) == f"{tmp_path / 'run'} holds no results: it has no rows.json"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"{'a': 1}", b"[" * 100_000])
def test_what_is_not_json_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{path} is not JSON: ")
