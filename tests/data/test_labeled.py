"""Labeled sentences: what is read from files and from GLUE, and what is said about bad ones."""

import csv
import json
import os
import re
from pathlib import Path

import datasets
import pytest
from datasets.exceptions import DatasetGenerationError
from huggingface_hub.utils import httpx
from hypothesis import given
from hypothesis import strategies as st

from bitmaps.data.labeled import GLUE_TEXTS, LabeledSource, class_numbers, label_names
from bitmaps.data.tables import Columns, Examples, read_examples
from bitmaps.errors import InputError


@pytest.fixture
def write(tmp_path):
    """Writes a file of text or bytes, and gives its path."""

    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def refuses(call, *parts):
    """``call`` raises an InputError of one line, in which ``parts`` stand in this order."""
    with pytest.raises(InputError, match=".*".join(map(re.escape, parts))) as caught:
        call()
    assert "\n" not in str(caught.value)


# what a file of text can hold: any character but halves of a surrogate pair and the NUL
ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
# TSV has no way to write its own separators
PLAIN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\t\r\n"), max_size=8)
LABEL = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=4)
SCORE = st.floats(allow_nan=False, allow_infinity=False)
END = st.sampled_from(["\n", "\r\n"])
BOM = st.sampled_from([b"", b"\xef\xbb\xbf"])


def rows_of(text):
    pairs = st.tuples(text, text)
    return st.one_of(
        st.lists(st.tuples(texts, target), min_size=1, max_size=5)
        for texts in (st.tuples(text), pairs)
        for target in (LABEL, SCORE)
    )


def expected(rows):
    texts, targets = [texts for texts, _ in rows], [target for _, target in rows]
    scored = isinstance(targets[0], float)
    return Examples(
        first=[text[0] for text in texts],
        second=[text[1] for text in texts] if len(texts[0]) == 2 else None,
        labels=None if scored else targets,
        scores=targets if scored else None,
    )


def header(rows):
    """The columns of the rows, with one more in the middle that nobody reads."""
    texts, target = rows[0]
    texts = ["sentence1", "sentence2"] if len(texts) == 2 else ["sentence"]
    return [*texts, "index", "score" if isinstance(target, float) else "label"]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """A folder for properties, whose examples overwrite each other's file."""
    return tmp_path_factory.mktemp("labeled")


@given(rows=rows_of(ANY), end=END, bom=BOM)
def test_csv_is_read_as_the_csv_module_writes_it(scratch, rows, end, bom):
    path = scratch / "train.csv"
    with path.open("w", encoding="utf-8-sig" if bom else "utf-8", newline="") as file:
        # a lone \r would end a line where nothing is quoted
        writer = csv.writer(file, lineterminator=end, quoting=csv.QUOTE_ALL)
        writer.writerows([header(rows), *([*texts, "", target] for texts, target in rows)])
    assert read_examples(path) == expected(rows)


@given(rows=rows_of(PLAIN), end=END, bom=BOM)
def test_tsv_is_split_at_tabs_and_nothing_is_a_quote(scratch, rows, end, bom):
    path = scratch / "train.tsv"
    lines = [header(rows), *([*texts, "", str(target)] for texts, target in rows)]
    path.write_bytes(bom + "".join("\t".join(line) + end for line in lines).encode())
    assert read_examples(path) == expected(rows)


@given(rows=rows_of(ANY), end=END, bom=BOM, ascii=st.booleans())
def test_jsonl_is_an_object_a_line(scratch, rows, end, bom, ascii):
    path = scratch / "train.jsonl"
    names = header(rows)
    lines = [
        json.dumps(dict(zip(names, (*texts, None, target), strict=True)), ensure_ascii=ascii)
        for texts, target in rows
    ]
    path.write_bytes(bom + end.join(lines).encode())
    assert read_examples(path) == expected(rows)


def test_whole_numbers_in_jsonl_become_decimal_text_and_whole_scores_floats(write):
    lines = ['{"text": "a", "label": 10, "score": 3}', '{"text": "b", "label": -2, "score": 4}']
    path = write("a.jsonl", "\n\n".join(lines))
    assert read_examples(path) == Examples(["a", "b"], None, ["10", "-2"], None)
    scored = read_examples(path, Columns(score="score"))
    assert scored == Examples(["a", "b"], None, None, [3.0, 4.0])
    assert all(type(score) is float for score in scored.scores)


def test_labels_lose_the_white_space_around_them_and_texts_keep_it(write):
    path = write("a.csv", "text,label\n one , good \n")
    assert read_examples(path) == Examples([" one "], None, ["good"], None)


@pytest.mark.parametrize(("name", "between"), [("a.csv", ","), ("a.tsv", "\t")])
def test_an_empty_text_is_a_text_and_an_empty_line_is_no_row(write, name, between):
    path = write(name, f"text{between}label\n\n{between}x\r\n\r\na{between}y")
    assert read_examples(path) == Examples(["", "a"], None, ["x", "y"], None)


# which columns


@pytest.mark.parametrize(
    ("header", "columns", "read"),
    [
        ("text,sentence,label", {}, "bc"),
        ("sentence,text,label", {"sentence": "text"}, "bc"),
        ("sentence,sentence2,sentence1,label", {}, "cbd"),
        ("sentence,sentence2,sentence1,label", {"sentence": "sentence"}, "ad"),
        ("question,sentence,label", {"sentence1": "question", "sentence2": "sentence"}, "abc"),
        ("question,sentence2,label", {"sentence1": "question"}, "abc"),
        ("sentence1,text,label", {}, "bc"),
        ("text,class,label", {"label": "class"}, "ab"),
        ("text,,,label", {}, "ad"),
    ],
)
def test_the_columns_that_are_read(write, header, columns, read):
    path = write("a.csv", f"{header}\n{','.join('abcdef'[: header.count(',') + 1])}\n")
    *texts, label = read
    found = read_examples(path, Columns(**columns))
    assert (found.first, found.second) == ([texts[0]], [texts[1]] if len(texts) == 2 else None)
    assert found.labels == [label]


def test_a_label_is_preferred_to_a_score_unless_the_score_is_named(write):
    path = write("a.csv", "sentence1,sentence2,label,score\na,b,1,2.5\n")
    assert read_examples(path).labels == ["1"]
    assert read_examples(path, Columns(score="score")).scores == [2.5]
    assert read_examples(path, scored_pairs=True) == Examples(["a"], ["b"], None, [2.5])


SCORED = "valid are sentence1, sentence2, score"


@pytest.mark.parametrize(
    "names", ["sentence1, sentence2, label", "sentence, score", "sentence1, score"]
)
def test_scored_pairs_need_two_sentences_and_a_score(write, names):
    header = names.replace(" ", "")
    path = write("a.csv", f"{header}\n{'1,' * header.count(',')}1\n")
    refuses(
        lambda: read_examples(path, scored_pairs=True), f"{path} has the columns {names};", SCORED
    )


@pytest.mark.parametrize("role", ["label", "sentence"])
def test_scored_pairs_read_no_other_column(write, role):
    path = write("a.csv", f"sentence1,sentence2,score,{role}\na,b,1,c\n")
    assert read_examples(path, scored_pairs=True).scores == [1.0]
    columns = Columns(**{role: role})
    refuses(
        lambda: read_examples(path, columns, scored_pairs=True), f"columns.{role}={role}", SCORED
    )


def test_scored_pairs_may_have_columns_of_other_names(write):
    path = write("b.tsv", "a\tb\tsimilarity\nx\ty\t1\n")
    named = Columns(sentence1="a", sentence2="b", score="similarity")
    assert read_examples(path, named, scored_pairs=True) == Examples(["x"], ["y"], None, [1.0])


@pytest.mark.parametrize(
    "columns",
    [
        {"sentence": "a", "sentence1": "b"},
        {"sentence": "a", "sentence2": "b"},
        {"label": "a", "score": "b"},
    ],
)
def test_columns_that_exclude_each_other_are_named(write, columns):
    one, other = columns
    valid = "valid are sentence1, sentence2, label or sentence1, sentence2, score or sentence, label or sentence, score"
    parts = (f"columns.{one}=a", f"columns.{other}=b", valid)
    refuses(lambda: read_examples(write("a.csv", "a,b\n1,2\n"), Columns(**columns)), *parts)
    source = LabeledSource("labeled", dir="somewhere", columns=Columns(**columns))
    refuses(source.check, *parts)


@pytest.mark.parametrize("role", ["sentence", "sentence1", "sentence2", "label", "score"])
def test_a_named_column_that_is_missing_is_told_with_those_that_are_there(write, role):
    path = write("a.tsv", "sentence1\tsentence2\tsentence\tlabel\na\tb\tc\td\n")
    refuses(
        lambda: read_examples(path, Columns(**{role: "nowhere"})),
        f"{path} has no column 'nowhere'", "sentence1, sentence2, sentence, label",
    )  # fmt: skip


@pytest.mark.parametrize(
    "header", ["body,label", "sentence1,label", "text,class", "text;label", "a,b"]
)
def test_a_file_without_the_columns_is_told_what_it_has(write, header):
    path = write("a.csv", f"{header}\n{re.sub('[a-z0-9]+', 'x', header)}\n")
    refuses(
        lambda: read_examples(path),
        f"{path} has the columns {header.replace(',', ', ')};", "valid are", "sentence, label",
    )  # fmt: skip


def test_a_long_line_instead_of_a_header_is_cut(write):
    path = write("a.tsv", "\t".join(["word " * 100] * 30) + "\n" + "\t" * 29 + "\n")
    with pytest.raises(InputError, match="and 18 more") as caught:
        read_examples(path)
    assert len(str(caught.value)) < 1200


@pytest.mark.parametrize("header", ["text,label,label", "text,text,label"])
def test_a_column_that_is_there_twice_is_ambiguous(write, header):
    twice = "label" if header.endswith("label,label") else "text"
    path = write("a.csv", f"{header}\na,b,c\n")
    refuses(lambda: read_examples(path), f"{path} has several columns '{twice}'")


# bad files and rows


@pytest.mark.parametrize("name", ["a.txt", "a", "a.json", "a.csv.gz"])
def test_an_unknown_ending_is_told_the_valid_ones(write, name):
    path = write(name, "text,label\na,b\n")
    refuses(
        lambda: read_examples(path), str(path), repr(path.suffix), "valid are .csv, .tsv, .jsonl"
    )


def test_a_missing_file_is_named(tmp_path):
    path = tmp_path / "a.csv"
    refuses(lambda: read_examples(path), f"cannot read {path}: No such file")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,label\n"),
        ("a.tsv", "text\tlabel"),
        ("a.csv", ""),
        ("a.tsv", "\n\n"),
        ("a.jsonl", ""),
        ("a.jsonl", "\r\n \n"),
        ("a.csv", b"\xef\xbb\xbf"),
    ],
)
def test_a_file_without_rows_is_named(write, name, content):
    path = write(name, content)
    refuses(lambda: read_examples(path), f"{path} holds no rows")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_text_that_is_not_utf8_or_has_a_nul_is_refused(write, name):
    path = write(name, b"\xef\xbb\xbfcaf\xe9")
    refuses(lambda: read_examples(path), str(path), "not UTF-8", "byte 6 is 0xe9")
    path = write(name, b"text,label\na,b\nc\0,d\n")
    refuses(lambda: read_examples(path), str(path), "line 3 has a NUL")
    path = write(name, "text,label\na,b\n".encode("utf-16"))
    refuses(lambda: read_examples(path), str(path), "not UTF-8", "byte 0 is 0xff")


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ('text,label\na,b\n"c,d\ne,f\n', "row 2"),
        ('text,label\n"a"b,c\n', "row 1"),
        ('"text,label\na,b\n', "the header"),
        (f"text,label\n{'a' * 200_000},b\n", "row 1"),
    ],
    ids=["open", "after", "header", "long"],
)
def test_a_broken_quote_is_told_with_the_row_where_it_opens(write, content, where):
    path = write("a.csv", content)
    refuses(lambda: read_examples(path), f"{path}: {where} is not CSV", "double quotes")


@pytest.mark.parametrize(
    ("name", "row", "count"),
    [
        ("a.csv", "a,b,c", 3),
        ("a.csv", "a", 1),
        ("a.csv", "a;b", 1),
        ("a.tsv", "a\tb\tc", 3),
        ("a.tsv", "a b", 1),
    ],
)
def test_a_wrong_number_of_fields_is_told_with_the_row(write, name, row, count):
    between = "," if name == "a.csv" else "\t"
    path = write(name, f"text{between}label\nfirst{between}1\n{row}\n")
    refuses(
        lambda: read_examples(path),
        f"{path}: row 2 has {count} fields", "valid are the 2 of the header", "text, label",
    )  # fmt: skip


@pytest.mark.parametrize("label", ["", "  ", "\u00a0"])
def test_an_empty_label_is_told_with_the_row(write, label):
    path = write("a.csv", f"text,label\na,1\nb,{label}\n")
    refuses(lambda: read_examples(path), f"{path}: row 2 has the label {label!r}", "not empty")


@pytest.mark.parametrize(
    "score", ["", "high", "nan", "inf", "-Infinity", "1e999", "1,5", "1_5", "0x1"]
)
def test_a_score_that_is_no_finite_number_is_told_with_the_row(write, score):
    path = write("a.tsv", f"text\tscore\na\t1\nb\t{score}\n")
    refuses(
        lambda: read_examples(path),
        f"{path}: row 2 has the score {score!r}", "valid is a finite number",
    )  # fmt: skip


WRONG = [
    *(("text", value, "text") for value in ("null", "true", "3", "[]", '["a"]', "{}", '"\\ud83d"')),
    *(("label", value, "a whole number") for value in ("null", "true", "1.0", "[]", "{}", '""', "NaN")),
    ("label", '"\\udc00"', "surrogates"),
    *(("score", value, "a finite number") for value in ("null", "false", "[]", "NaN", "-Infinity", "1e999", "9" * 400, '"x"')),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "valid"), WRONG)
def test_a_value_of_a_wrong_type_is_told_with_the_row(write, name, value, valid):
    other = {"text": '"label": 1', "label": '"text": "a"', "score": '"text": "a"'}[name]
    good = '"a"' if name == "text" else "1"
    path = write("a.jsonl", f'{{"{name}": {good}, {other}}}\n{{"{name}": {value}, {other}}}\n')
    refuses(lambda: read_examples(path), f"{path}: row 2 has the {name} ", "valid is", valid)


@pytest.mark.parametrize("line", ["[1, 2]", '"text"', "3", "null", "{", "text,label", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"], ids=lambda line: line[:10])  # fmt: skip
def test_a_line_that_is_no_object_is_told_with_the_row(write, line):
    path = write("a.jsonl", '{"text": "a", "label": 1}\n\n' + line)
    refuses(
        lambda: read_examples(path), f"{path}: row 2 is no JSON object", "valid is a line such as"
    )


def test_a_row_without_a_column_is_told(write):
    path = write("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n')
    refuses(lambda: read_examples(path), f"{path}: row 2 has no 'label'")


# classes


def of(*labels, names=None):
    return Examples(["a"] * len(labels), None, list(labels), None, names)


def test_classes_are_whole_numbers_by_size_or_sorted_text_or_as_the_data_set_has_them():
    assert label_names(of("10", "9", "-1", "9")) == ("-1", "9", "10")
    assert label_names(of("10", "9", "x")) == ("10", "9", "x")
    assert label_names(of("1.5", "-0.5")) == ("-0.5", "1.5")
    assert label_names(of("9" * 5000, "1")) == ("1", "9" * 5000)
    assert label_names(of("b", names=("c", "b", "a"))) == ("c", "b", "a")


@given(st.lists(LABEL | st.integers().map(str), min_size=1))
def test_the_number_of_a_label_is_its_place_among_the_names(labels):
    examples = of(*labels)
    names = label_names(examples)
    assert len(set(names)) == len(names)
    assert [names[number] for number in class_numbers(examples, names, "here")] == labels


def test_an_unseen_label_is_told_with_its_row_and_the_known_ones():
    refuses(
        lambda: class_numbers(of("good", "so-so"), ("bad", "good"), "validation.csv"),
        "validation.csv: row 2 has the label 'so-so'", "valid are bad, good",
    )  # fmt: skip
    refuses(
        lambda: class_numbers(of("x"), [str(n) for n in range(100)], "here"), "10, 11 and 88 more"
    )


def test_scores_have_no_classes():
    scores = Examples(["a"], ["b"], None, [1.0])
    refuses(lambda: label_names(scores), "pairs of sentences with a score", "valid are")
    refuses(
        lambda: class_numbers(scores, ("a",), "here"), "here holds pairs of sentences with a score"
    )


# a folder


@pytest.fixture
def folder(write, tmp_path):
    write("train.csv", "text,label\na,1\nb,0\nc,1\n")
    write("valid.tsv", "text\tlabel\nd\t1\n")
    write("test.jsonl", '{"text": "e", "label": 0}\n{"text": "f", "label": 1}\n')
    return tmp_path


def test_each_split_has_its_own_format(folder):
    source = LabeledSource("labeled", dir=str(folder))
    source.check("train", "validation", "test")
    assert source.read("train") == Examples(["a", "b", "c"], None, ["1", "0", "1"], None)
    assert source.read("validation") == Examples(["d"], None, ["1"], None)
    assert source.read("test") == Examples(["e", "f"], None, ["0", "1"], None)
    assert source.place("validation") == str(folder / "valid.tsv")


def test_limit_is_a_number_of_examples(folder, write):
    source = LabeledSource("labeled", dir=str(folder))
    assert source.read("train", 2) == Examples(["a", "b"], None, ["1", "0"], None)
    assert source.read("train", 99) == source.read("train")
    write("train.csv", "sentence1,sentence2,score\na,b,1\nc,d,2\n")
    assert source.read("train", 1) == Examples(["a"], ["b"], None, [1.0])


def test_the_columns_of_a_source_are_read(folder, write):
    write("train.csv", "review,text,label\na,b,c\n")
    source = LabeledSource("labeled", dir=str(folder), columns=Columns(sentence="review"))
    assert source.read("train").first == ["a"]
    refuses(lambda: source.check("validation"), str(folder / "valid.tsv"), "no column 'review'")


def test_home_may_be_a_tilde(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert LabeledSource("labeled", dir=f"~/{folder.name}").read("validation").first == ["d"]


@pytest.mark.parametrize("other", ["validation.csv", "val.jsonl", "dev.tsv", "valid.csv"])
def test_two_files_for_a_split_are_both_named(folder, write, other):
    write(other, "")
    source = LabeledSource("labeled", dir=str(folder))
    source.check("train", "test")
    with pytest.raises(InputError, match="for the validation split") as caught:
        source.check("validation")
    assert "valid.tsv" in str(caught.value)
    assert other in str(caught.value)


def test_a_missing_file_or_folder_is_told_with_what_is_there(folder):
    source = LabeledSource("labeled", dir=str(folder))
    (folder / "train.csv").rename(folder / "train.txt")
    refuses(
        lambda: source.check("train"),
        f"data.dir={folder} has no train.csv or train.tsv or train.jsonl",
        "found: test.jsonl, train.txt, valid.tsv",
    )
    (folder / "valid.tsv").unlink()
    refuses(
        lambda: source.check("validation"), "validation.csv", "valid.tsv", "val.csv", "dev.jsonl"
    )
    (folder / "empty").mkdir()
    empty = LabeledSource("labeled", dir=str(folder / "empty"))
    refuses(lambda: empty.check("test"), "test.jsonl (found: it is empty)")
    nowhere = LabeledSource("labeled", dir=str(folder / "nowhere"))
    refuses(lambda: nowhere.check("test"), f"data.dir={folder / 'nowhere'} is not a folder")


def test_splits_hold_the_same_kind_of_examples(folder, write):
    write("test.jsonl", '{"sentence1": "a", "sentence2": "b", "score": 1}')
    refuses(
        lambda: LabeledSource("labeled", dir=str(folder)).check("train", "test"),
        "test.jsonl holds pairs of sentences with a score", "train.csv holds sentences with a label",
    )  # fmt: skip


def test_a_label_that_training_has_not_seen_is_found_before_anything_is_loaded(folder, write):
    write("valid.tsv", "text\tlabel\na\t0\nb\t2\n")
    source = LabeledSource("labeled", dir=str(folder))
    source.check("validation")
    refuses(
        lambda: source.check("train", "validation"),
        "valid.tsv: row 2 has the label '2'",
        "valid are 0, 1",
    )


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        (LabeledSource("glu"), ("unknown data set 'glu'", "labeled, glue")),
        (LabeledSource("labeled"), ("data=labeled needs data.dir=",)),
        (LabeledSource("labeled", dir="a", configuration="sst2"), ("data.configuration=sst2 has no effect with data=labeled", "only data=glue")),
        (LabeledSource("glue"), ("data.configuration=None", "valid are cola, sst2, mrpc, stsb")),
        (LabeledSource("glue", configuration="sst-2"), ("data.configuration=sst-2", "sst2")),
        (LabeledSource("glue", configuration="sst2", dir="a"), ("data.dir=a has no effect with data=glue", "only data=labeled")),
        (LabeledSource("glue", configuration="sst2", columns=Columns(label="x")), ("data.columns.label=x has no effect with data=glue", "only data=labeled")),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_told(source, parts):
    refuses(source.check, *parts)
    refuses(lambda: source.read("train"), *parts)


# GLUE


@pytest.fixture
def hub(monkeypatch):
    """Stands in for the Hub: gives ``data``, or raises it, and records what it was asked for."""

    def serve(data):
        asked = []

        def load_dataset(path, **options):
            asked.append({"path": path, **options})
            if isinstance(data, Exception):
                raise data
            return data

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return asked

    return serve


def task(columns, labels, names=("no", "maybe", "yes")):
    """A data set as GLUE's are: texts, classes or scores, and the index of a row."""
    label = datasets.ClassLabel(names=list(names)) if names else datasets.Value("float32")
    text = {name: datasets.Value("string") for name in columns}
    features = datasets.Features({**text, "label": label, "idx": datasets.Value("int32")})
    rows = {name: [f"{name} {row}" for row in range(len(labels))] for name in columns}
    rows |= {"label": labels, "idx": list(range(len(labels)))}
    return datasets.Dataset.from_dict(rows, features)


@pytest.mark.parametrize("name", [name for name in GLUE_TEXTS if name != "stsb"])
def test_a_task_of_glue_has_its_columns_and_the_names_of_its_classes(hub, name):
    columns = {
        "cola": ["sentence"], "sst2": ["sentence"], "mrpc": ["sentence1", "sentence2"],
        "qqp": ["question1", "question2"], "mnli": ["premise", "hypothesis"],
        "qnli": ["question", "sentence"], "rte": ["sentence1", "sentence2"],
        "wnli": ["sentence1", "sentence2"],
    }[name]  # fmt: skip
    asked = hub(task(columns, [2, 0, 2]))
    source = LabeledSource("glue", configuration=name)
    source.check("train", "validation")
    assert not asked
    examples = source.read("validation")
    split = "validation_matched" if name == "mnli" else "validation"
    assert asked == [{"path": "nyu-mll/glue", "name": name, "split": split}]
    second = [f"{columns[1]} {row}" for row in range(3)] if len(columns) == 2 else None
    first = [f"{columns[0]} {row}" for row in range(3)]
    assert examples == Examples(first, second, ["yes", "no", "yes"], None, ("no", "maybe", "yes"))
    assert class_numbers(examples, label_names(examples), source.place("validation")) == [2, 0, 2]


def test_training_on_mnli_has_one_split_and_its_test_the_matched_one(hub):
    asked = hub(task(["premise", "hypothesis"], [1]))
    LabeledSource("glue", configuration="mnli").read("train")
    LabeledSource("glue", configuration="mnli").read("test")
    assert [options["split"] for options in asked] == ["train", "test_matched"]


def test_the_label_of_stsb_is_a_score(hub):
    hub(task(["sentence1", "sentence2"], [2.5, 0.0, 5.0], names=None))
    examples = LabeledSource("glue", configuration="stsb").read("train", limit=2)
    first, second = ["sentence1 0", "sentence1 1"], ["sentence2 0", "sentence2 1"]
    assert examples == Examples(first, second, None, [2.5, 0.0])


def test_the_place_in_glue_names_the_task():
    source = LabeledSource("glue", configuration="sst2")
    assert source.place("validation") == "the validation split of data=glue (sst2)"


@pytest.mark.parametrize(("name", "labels", "classes"), [("rte", [-1, -1], ("yes", "no")), ("stsb", [-1.0, -1.0], None)])  # fmt: skip
def test_a_test_split_without_labels_is_told_the_valid_one(hub, name, labels, classes):
    hub(task(["sentence1", "sentence2"], labels, classes))
    refuses(
        lambda: LabeledSource("glue", configuration=name).read("test"),
        "the test split of GLUE has no labels: valid is data.split=validation",
    )


def test_a_task_that_the_hub_has_in_another_form_is_told(hub):
    hub(task(["text"], [1]))
    source = LabeledSource("glue", configuration="sst2")
    refuses(lambda: source.read("train"), "nyu-mll/glue (sst2) has no sentence", "text, label, idx")
    hub(task(["sentence"], [1.0], names=None))
    refuses(lambda: source.read("train"), "the labels of nyu-mll/glue (sst2)", "float32", "classes")


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("no route"),
        FileNotFoundError("no such thing"),
        ValueError("bad split"),
        httpx.ConnectError("no name"),
        RuntimeError("scripts are no longer supported"),
        DatasetGenerationError("a damaged file"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_without_the_hub_an_offline_choice_is_named(hub, error):
    hub(error)
    refuses(
        lambda: LabeledSource("glue", configuration="sst2").read("train"),
        "nyu-mll/glue", "sst2", str(error), "data=labeled data.dir=",
    )  # fmt: skip


# real data


@pytest.mark.parametrize(
    ("name", "sizes", "pairs"),
    [("sst2", (60_614, 6_735, 872), False), ("mrpc", (3_576, 500, 1_725), True), ("stsb", (5_749, 1_500, 1_379), True)],
)  # fmt: skip
def test_real_data_has_its_published_sizes(name, sizes, pairs):
    if "BITMAPS_DATA" not in os.environ:
        pytest.skip("BITMAPS_DATA is not set: a folder with the folders sst2, mrpc and stsb")
    source = LabeledSource("labeled", dir=str(Path(os.environ["BITMAPS_DATA"], name)))
    splits = ("train", "validation", "test")
    source.check(*splits)
    read = [source.read(split) for split in splits]
    assert tuple(len(examples.first) for examples in read) == sizes
    assert all((examples.second is not None) == pairs for examples in read)
    if name == "stsb":
        assert all(0 <= score <= 5 for examples in read for score in examples.scores)
        scored = [read_examples(source.file(split), scored_pairs=True) for split in splits]
        assert scored == read
    else:
        assert all(label_names(examples) == ("0", "1") for examples in read)
    if name == "mrpc":  # some texts have one double quote, which a reader of CSV would stumble over
        assert any(text.count('"') % 2 for text in read[0].first)
