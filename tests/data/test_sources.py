"""Where sentences come from, and what is said when they cannot be had."""

import importlib.util
import os
from pathlib import Path

import datasets
import pytest
from datasets.exceptions import DatasetGenerationError
from huggingface_hub.utils import httpx

from bitmaps.data.sources import Source
from bitmaps.errors import InputError


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.txt").write_text(
            f"A {split} line.\n\n  Another one, é.  \r\n \nA third.", encoding="utf-8"
        )
    return tmp_path


def lines(split):
    return [f"A {split} line.", "Another one, é.", "A third."]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_text_is_a_sentence_a_line_without_blank_ones(folder, split):
    assert Source("text", dir=str(folder)).sentences(split, "[UNK]") == lines(split)


@pytest.mark.parametrize("stem", ["validation", "valid", "val", "dev"])
def test_the_validation_file_has_several_names(folder, stem):
    (folder / "validation.txt").rename(folder / f"{stem}.txt")
    source = Source("text", dir=str(folder))
    source.check("train", "validation")
    assert source.sentences("validation", "[UNK]") == lines("validation")


def test_limit_is_a_number_of_sentences(folder):
    source = Source("text", dir=str(folder))
    assert source.sentences("train", "[UNK]", limit=2) == lines("train")[:2]
    assert source.sentences("train", "[UNK]", limit=99) == lines("train")


def test_home_may_be_a_tilde(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert Source("text", dir=f"~/{folder.name}").sentences("train", "[UNK]") == lines("train")


def refusal(source, *splits):
    with pytest.raises(InputError) as caught:
        source.check(*splits)
    return str(caught.value)


def test_an_unknown_source_is_told_the_valid_ones():
    message = refusal(Source("wikipedia"))
    assert "'wikipedia'" in message
    assert all(name in message for name in ("wiki", "ptb", "text", "hub"))


@pytest.mark.parametrize(("name", "setting"), [("text", "data.dir"), ("hub", "data.path")])
def test_a_missing_setting_is_named(name, setting):
    assert setting in refusal(Source(name))


@pytest.mark.parametrize("name", ["text", "ptb"])
def test_a_missing_folder_is_named(tmp_path, name):
    missing = str(tmp_path / "nowhere")
    assert missing in refusal(Source(name, dir=missing), "train")


@pytest.mark.parametrize(("name", "file"), [("text", "train.txt"), ("ptb", "ptb.train.txt")])
def test_an_empty_folder_is_called_empty(tmp_path, name, file):
    message = refusal(Source(name, dir=str(tmp_path)), "train")
    assert file in message
    assert "empty" in message


def test_a_missing_split_is_named_with_what_is_there(folder):
    (folder / "validation.txt").unlink()
    source = Source("text", dir=str(folder))
    source.check("train", "test")
    message = refusal(source, "train", "validation")
    assert "validation.txt" in message
    assert "dev.txt" in message
    assert "test.txt, train.txt" in message


@pytest.mark.parametrize("content", ["", " \n\n \t\r\n"])
def test_an_empty_file_is_named(folder, content):
    (folder / "train.txt").write_text(content)
    assert str(folder / "train.txt") in refusal(Source("text", dir=str(folder)), "train")


def test_text_that_is_not_utf8_is_refused_with_the_byte(folder):
    (folder / "train.txt").write_bytes(b"Caf\xe9 au lait.\n")
    message = refusal(Source("text", dir=str(folder)), "train")
    assert str(folder / "train.txt") in message
    assert "byte 3" in message
    assert "0xe9" in message


def test_wiki_without_gensim_says_what_to_install(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "gensim" else find(name, *a)
    )
    assert "pip install -c constraints.txt -e '.[offline]'" in refusal(Source("wiki"))


def test_treebank_text_is_detokenized(tmp_path):
    (tmp_path / "ptb.valid.txt").write_text(
        " the <unk> did n't bark \n `` why , '' asked mr. <unk> \n", encoding="utf-8"
    )
    source = Source("ptb", dir=str(tmp_path))
    source.check("validation")
    assert source.sentences("validation", "[UNK]") == [
        "the [UNK] didn't bark",
        '"why," asked mr. [UNK]',
    ]
    assert source.sentences("validation", "[UNK]", limit=1) == ["the [UNK] didn't bark"]


def test_the_real_treebank_has_mikolovs_sizes():
    if "BITMAPS_PTB" not in os.environ:
        pytest.skip(
            "BITMAPS_PTB is not set: a folder with ptb.train.txt, ptb.valid.txt and ptb.test.txt"
        )
    source = Source("ptb", dir=os.environ["BITMAPS_PTB"])
    texts = {split: source.sentences(split, "[UNK]") for split in ("train", "validation", "test")}
    assert {split: len(text) for split, text in texts.items()} == {
        "train": 42_068,
        "validation": 3_370,
        "test": 3_761,
    }
    marks = ("<unk>", "-lrb-", "``", " n't", " 's ", " , ", "$ ")
    assert not any(
        mark in sentence for text in texts.values() for sentence in text for mark in marks
    )
    unknown = Path(source.dir, "ptb.valid.txt").read_text(encoding="utf-8").split().count("<unk>")
    assert sum(sentence.count("[UNK]") for sentence in texts["validation"]) == unknown > 1000


@pytest.fixture
def hub(monkeypatch):
    """Stands in for the Hub: gives ``rows``, or raises it, and records what it was asked for."""

    def serve(rows):
        asked = []

        def load_dataset(path, **options):
            asked.append({"path": path, **options})
            if isinstance(rows, Exception):
                raise rows
            return rows

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return asked

    return serve


def test_a_hub_data_set_is_asked_for_as_configured(hub):
    asked = hub(
        datasets.Dataset.from_dict({"body": [" One. ", "", "Two.", "Three."], "n": [1, 2, 3, 4]})
    )
    source = Source(
        "hub", path="someone/something", configuration="small", column="body", streaming=True
    )
    source.check("train", "validation")
    assert source.sentences("test", "[UNK]") == ["One.", "Two.", "Three."]
    assert asked == [
        {"path": "someone/something", "split": "test", "name": "small", "streaming": True}
    ]


def test_a_stream_is_read_no_further_than_needed(hub):
    def rows():
        yield from ({"text": "One."}, {"text": "Two."})
        raise AssertionError("read on")

    hub(datasets.IterableDataset.from_generator(rows))
    assert Source("hub", path="x/y", streaming=True).sentences("train", "[UNK]", limit=2) == [
        "One.",
        "Two.",
    ]


def test_blank_rows_of_the_hub_do_not_count_towards_the_limit(hub):
    hub(datasets.Dataset.from_dict({"text": ["", "", "One.", "", "Two.", "Three."]}))
    assert Source("hub", path="x/y").sentences("train", "[UNK]", limit=2) == ["One.", "Two."]


def test_the_treebank_of_the_hub_is_detokenized(hub):
    asked = hub(datasets.Dataset.from_dict({"sentence": ["it is n't <unk> ."]}))
    assert Source("ptb").sentences("validation", "[UNK]") == ["it isn't [UNK]."]
    (files,) = asked[0]["data_files"].items()
    assert files[0] == "validation"
    assert "ptb_text_only" in files[1]
    assert "validation" in files[1]


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
@pytest.mark.parametrize("source", [Source("ptb"), Source("hub", path="x/y")], ids=["ptb", "hub"])
def test_without_the_hub_an_offline_choice_is_named(hub, source, error):
    hub(error)
    with pytest.raises(InputError) as caught:
        source.sentences("train", "[UNK]")
    message = str(caught.value)
    assert str(error) in message
    assert "data=wiki" in message
    assert "data=text data.dir=" in message
    assert ("ptb_text_only" if source.name == "ptb" else "x/y") in message


def test_an_unknown_column_is_told_the_valid_ones(hub):
    hub(datasets.Dataset.from_dict({"body": ["One."], "title": ["T"]}))
    with pytest.raises(InputError, match=r"x/y has no column 'text'; valid are body, title"):
        Source("hub", path="x/y").sentences("train", "[UNK]")


def test_a_stream_that_does_not_tell_its_columns_is_looked_at_row_by_row(hub):
    rows = datasets.IterableDataset.from_generator(lambda: iter([{"body": "One.", "title": "T"}]))
    assert rows.column_names is None
    hub(rows)
    with pytest.raises(InputError, match=r"x/y has no column 'text'; valid are body, title"):
        Source("hub", path="x/y", streaming=True).sentences("train", "[UNK]")
