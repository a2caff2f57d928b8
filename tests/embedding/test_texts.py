"""Files of texts: what is read is what was written, and every mistake is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitmaps.embedding import texts as reading
from bitmaps.embedding.texts import Texts, survey
from bitmaps.errors import InputError

# any text that fits in a line; splitlines would also split at U+2028 and others
LINE = st.text(st.characters(codec="utf-8", exclude_characters="\n\r\ufeff"), max_size=12)


def write_parquet(path: Path, columns: dict[str, Any], rows: int = 3) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=rows)
    return path


def write_jsonl(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(LINE, min_size=1, max_size=40),
    read=st.integers(1, 9),
    group=st.integers(1, 9),
    part=st.integers(1, 50),
    ascii_only=st.booleans(),
)
def test_every_format_gives_the_texts_in_order_in_parts_of_one_size(
    lines: list[str],
    read: int,
    group: int,
    part: int,
    ascii_only: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    home = tmp_path_factory.mktemp("texts")
    objects = [
        json.dumps({"id": i, "text": t}, ensure_ascii=ascii_only) for i, t in enumerate(lines)
    ]
    files = [
        write_parquet(home / "a.parquet", {"id": range(len(lines)), "text": lines}, group),
        write_parquet(
            home / "b.parquet", {"text": pa.array(lines).dictionary_encode()}, group
        ),
        written(home / "c.jsonl", "\n\n".join(objects)),  # blank lines are no rows
        written(home / "d.txt", "\n".join(lines) + "\n"),
        written(home / "e.txt", b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n"),
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "ROWS", read)
        for file in files:
            found = survey(Texts(file))
            assert found.rows == len(lines)
            parts = list(Texts(file).parts(part, found.schema))
            assert [text for part in parts for text in part] == lines, file
            assert {len(one) for one in parts[:-1]} <= {part}


def test_a_last_line_needs_no_end_and_an_empty_line_is_a_text(tmp_path: Path) -> None:
    for content in ("a\n\nb", "a\n\nb\n"):
        texts = Texts(written(tmp_path / "a.txt", content))
        assert list(texts.parts(9, survey(texts).schema)) == [["a", "", "b"]]


def test_other_columns_come_along(tmp_path: Path) -> None:
    columns = {"id": [7, None, 9], "text": ["a", "b", "c"], "tags": [["x"], [], None]}
    parquet = write_parquet(tmp_path / "a.parquet", columns, 2)
    jsonl = write_jsonl(
        tmp_path / "a.jsonl",
        [{"id": 7, "text": "a", "tags": ["x"]}, {"text": "b", "tags": []}, {"id": 9, "text": "c"}],
    )
    for file in (parquet, jsonl):
        texts = Texts(file, keep=("tags", "id"))
        schema = survey(texts).schema
        assert schema.field("id").type == pa.int64()
        table = pa.concat_tables(texts.tables(2, schema))
        assert table.column_names == ["text", "tags", "id"]
        assert table.to_pydict() == columns


def test_the_text_itself_may_be_kept(tmp_path: Path) -> None:
    texts = Texts(written(tmp_path / "a.txt", "a\nb\n"), keep=("text",))
    (table,) = texts.tables(9, survey(texts).schema)
    assert table.to_pydict() == {"text": ["a", "b"]}


@pytest.mark.parametrize(
    ("values", "kind"),
    [([1, None, 2.5], "double"), ([None, None, "x"], "string"), ([None, None, None], "null")],
)
def test_a_column_of_json_lines_has_the_type_that_fits_all_of_them(
    values: list[Any], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "ROWS", 1)
    lines = [{"id": value, "text": "a"} for value in values]
    texts = Texts(write_jsonl(tmp_path / "a.jsonl", lines), keep=("id",))
    schema = survey(texts).schema
    assert str(schema.field("id").type) == kind
    assert pa.concat_tables(texts.tables(1, schema))["id"].to_pylist() == values


@pytest.mark.parametrize("rows", [1, 100])
def test_a_column_of_two_types_is_refused_before_anything_is_computed(
    rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "ROWS", rows)
    lines = [{"id": value, "text": "a"} for value in (1, "x")]
    with pytest.raises(InputError, match=r"a\.jsonl.* hold.* type"):
        survey(Texts(write_jsonl(tmp_path / "a.jsonl", lines), keep=("id",)))


COLUMNS = {"id": [1, 2], "body": ["a", "b"]}


def refused(texts: Texts, named: str) -> None:
    with pytest.raises(InputError) as error:
        survey(texts)
    assert named in str(error.value)
    assert str(texts.path) in str(error.value)


def test_a_missing_column_names_those_that_there_are(tmp_path: Path) -> None:
    parquet = write_parquet(tmp_path / "a.parquet", COLUMNS)
    jsonl = write_jsonl(tmp_path / "a.jsonl", [{"id": 1, "body": "a"}])
    for file in (parquet, jsonl):
        refused(Texts(file), "has no column 'text'; it has id, body")
        refused(Texts(file, "body", ("url",)), "has no column 'url'; it has id, body")
        assert survey(Texts(file, "body", ("id",))).rows
    refused(Texts(parquet, "id"), "the column 'id' holds int64; valid is string")
    twice = pa.table([["a"], ["b"]], names=["text", "text"])
    pq.write_table(twice, tmp_path / "b.parquet")
    refused(Texts(tmp_path / "b.parquet"), "has several columns 'text'; it has text, text")


def test_a_null_is_named_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "ROWS", 2)
    given = ["a", "b", "c", None, "e"]
    refused(
        Texts(write_parquet(tmp_path / "a.parquet", {"text": given})),
        "row 3, counted from 0, has no text: its text is null",
    )
    lines = [{"text": text} for text in given]
    refused(
        Texts(write_jsonl(tmp_path / "a.jsonl", lines)), "line 4 has the text null; valid is text"
    )


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('{"text": "b"', "line 4 is no JSON object: Expecting"),
        ("b", "line 4 is no JSON object: Expecting value"),
        ('["b"]', 'line 4 is no JSON object: ["b"]; valid is a line such as {"text": "..."}'),
        ("[" * 100_000, "line 4 is no JSON object"),
        ('{"body": "b"}', "line 4 has no 'text'"),
        ('{"text": 3}', "line 4 has the text 3; valid is text"),
        ('{"text": "\\ud800"}', "valid is text without unpaired surrogates"),
        (b'{"text": "\xff"}', "line 4 is not UTF-8 text"),
    ],
)
def test_a_bad_line_of_json_is_named_with_its_number(
    line: str | bytes, named: str, tmp_path: Path
) -> None:
    line = line if isinstance(line, bytes) else line.encode()
    content = b'{"text": "a"}\n\n{"text": "a"}\n' + line + b'\n{"text": "c"}\n'
    refused(Texts(written(tmp_path / "a.jsonl", content)), named)


def test_a_line_that_is_no_text_is_named_with_its_number(tmp_path: Path) -> None:
    refused(Texts(written(tmp_path / "a.txt", b"a\nb\n\xfe\n")), "line 3 is not UTF-8 text")


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", b""), ("a.jsonl", b""), ("a.jsonl", b"\n \n"), ("a.parquet", None)],
)
def test_an_empty_file_is_refused(name: str, content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / name
    if content is None:
        write_parquet(file, {"text": pa.array([], pa.string())})
    else:
        written(file, content)
    refused(Texts(file), "holds no texts")


def test_what_is_no_file_of_texts_is_refused(tmp_path: Path) -> None:
    valid = "valid is a file that ends with .parquet, .jsonl, .txt"
    refused(Texts(tmp_path), f"is a folder; {valid}")
    (tmp_path / "a.parquet").mkdir()
    refused(Texts(tmp_path / "a.parquet"), f"is a folder; {valid}")
    refused(Texts(tmp_path / "nowhere.txt"), "there is no file")
    refused(Texts(written(tmp_path / "a.csv", "a")), "ends with '.csv'; valid are .parquet, .jsonl")
    refused(Texts(written(tmp_path / "b.parquet", "a")), "cannot be read")
    refused(Texts(written(tmp_path / "c.parquet", b"")), "cannot be read")


def test_a_damaged_parquet_is_refused(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", {"text": ["some words"] * 50}, 50)
    content = bytearray(file.read_bytes())
    content[10:40] = bytes(30)
    refused(Texts(written(file, bytes(content))), "cannot be read")


def test_lines_have_no_columns(tmp_path: Path) -> None:
    file = written(tmp_path / "a.txt", "a\n")
    refused(Texts(file, "body"), "has one text a line, and no column 'body'")
    refused(Texts(file, keep=("id",)), "has one text a line, and no column 'id'")


@pytest.mark.parametrize("name", ["row", "vector"])
def test_a_column_that_the_output_has_is_not_kept(name: str, tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", {"text": ["a"], name: [1]})
    with pytest.raises(InputError, match=f"its own column '{name}': rename that of the file"):
        survey(Texts(file, keep=(name,)))


def test_a_row_group_is_not_held_in_memory(tmp_path: Path) -> None:
    """One of a million texts, read a thousand at a time."""
    file = tmp_path / "a.parquet"
    values = pa.array([f"{number:064}" for number in range(200_000)])
    pq.write_table(
        pa.table({"text": values}), file, row_group_size=200_000, use_dictionary=False,
        compression="none",
    )  # fmt: skip
    whole = file.stat().st_size
    before, most = pa.total_allocated_bytes(), 0
    for batch in Texts(file).batches():
        most = max(most, pa.total_allocated_bytes() - before)
        del batch
    assert most < whole / 3
