"""Tokenizers that are missing, damaged, foreign, or do not fit their model."""

from __future__ import annotations

import builtins
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bert.folders import write_roberta
from command.commands import PIECES, write_model
from transformers import BertTokenizer

from bitmaps.data.tokenizing import check_fit, tokenizer_of
from bitmaps.errors import InputError
from bitmaps.packed.__main__ import main

JSON, WORDS, SETTINGS = "tokenizer.json", "vocab.txt", "tokenizer_config.json"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 231508\n"
Edit = Callable[[Path], Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small tokenizer, without a model."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / WORDS).write_text("\n".join(PIECES), encoding="utf-8")
    BertTokenizer(str(folder / WORDS)).save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    return folder


def test_the_tokenizer_is_that_of_the_architecture(tmp_path: Path) -> None:
    write_roberta(tmp_path, ["a cat saw a dog", "the dog slept"])
    tokenizer = tokenizer_of(str(tmp_path))
    first, *pieces, last = tokenizer("a cat")["input_ids"]
    assert (tokenizer.cls_token, tokenizer.mask_token) == ("<s>", "<mask>")
    assert (first, last) == (0, 2)
    assert tokenizer.decode(pieces) == "a cat"


def without(*names: str) -> Edit:
    return lambda folder: [(folder / name).unlink() for name in names]


def only(name: str, content: bytes) -> Edit:
    """This file, and no other of the tokenizer."""

    def edit(folder: Path) -> None:
        without(JSON, WORDS, SETTINGS)(folder)
        (folder / name).write_bytes(content)

    return edit


def content(name: str, text: bytes) -> Edit:
    return lambda folder: (folder / name).write_bytes(text)


def values(name: str, **changes: Any) -> Edit:
    """A JSON file with other values. Those of a key ``a__b`` are inside ``a``."""

    def edit(folder: Path) -> None:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
        for key, value in changes.items():
            *parents, last = key.split("__")
            part = found
            for parent in parents:
                part = part[parent]
            part[last] = value
        (folder / name).write_text(json.dumps(found), encoding="utf-8")

    return edit


def both(*edits: Edit) -> Edit:
    return lambda folder: [edit(folder) for edit in edits]


def lines(*pieces: str) -> bytes:
    return "\n".join(pieces).encode()


NUMBERED = {piece: number for number, piece in enumerate(PIECES)}
LATER = {piece: number for piece, number in NUMBERED.items() if piece != "[MASK]"}
GENERIC = values(SETTINGS, tokenizer_class="PreTrainedTokenizerFast")
REFUSED: dict[str, tuple[Edit, str]] = {
    "no files": (without(JSON, WORDS, SETTINGS), "holds no tokenizer"),
    "settings alone": (without(JSON, WORDS), "holds no tokenizer"),
    "an empty vocabulary": (only(WORDS, b""), "holds no tokenizer"),
    "a pointer for a vocabulary": (only(WORDS, POINTER), "vocab.txt is a pointer of Git LFS"),
    "a pointer for all": (content(JSON, POINTER), "tokenizer.json is a pointer of Git LFS"),
    "another encoding": (only(WORDS, lines(*PIECES) + b"\ncaf\xe9"), "does not open: "),
    "a newer version": (values(JSON, version="2.0"), "version '2.0'"),
    "an empty object": (content(JSON, b"{}"), "does not open: "),
    "a list": (content(SETTINGS, b"[]"), "tokenizer_config.json holds no JSON object"),
    "half a file": (content(SETTINGS, b"{"), "does not open: "),
    "deep": (content(SETTINGS, b"[" * 100_000), "does not open: RecursionError"),
    "a class that needs packages": (
        values(SETTINGS, tokenizer_class="BertJapaneseTokenizer", word_tokenizer_type="mecab"),
        "does not open: ModuleNotFoundError: You need to install",
    ),
    "the same in the model's file": (
        both(
            without(JSON),
            values("config.json", tokenizer_class="BertJapaneseTokenizer"),
            values(SETTINGS, tokenizer_class=None, word_tokenizer_type="mecab"),
        ),
        "does not open: ModuleNotFoundError: You need to install",
    ),
    "the class of another model": (values(SETTINGS, tokenizer_class="T5Tokenizer"), "not open: "),
    "a class that is a number": (values(SETTINGS, tokenizer_class=3), "does not open: "),
    "no special tokens around a sentence": (
        both(GENERIC, values(JSON, post_processor=None)),
        "does not put [CLS] and [SEP] around a sentence",
    ),
    "no unknown token": (
        only(WORDS, lines(*(piece for piece in PIECES if piece != "[UNK]"))),
        "has no unk token",
    ),
    "no mask token": (
        both(values(JSON, added_tokens=[], model__vocab=LATER), GENERIC),
        "has no mask token",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("edit", "named"), REFUSED.values(), ids=REFUSED)
def test_a_tokenizer_that_does_not_do_its_work_is_named(
    tmp_path: Path, whole: Path, edit: Edit, named: str
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(whole, folder)
    edit(folder)
    with pytest.raises(InputError) as error:
        tokenizer_of(str(folder))
    said = str(error.value)
    assert named in said
    assert str(folder) in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    "edit",
    [
        content("config.json", b"{}"),  # no model_type
        both(content("config.json", b"{}"), only(WORDS, lines(*PIECES))),
        without("config.json"),
        without(WORDS),
        values(SETTINGS, tokenizer_class="BertTokenizerFast"),
        values(SETTINGS, tokenizer_class="OfALaterVersion"),
    ],
)
def test_a_tokenizer_opens_as_a_berts_whatever_else_is_there(
    tmp_path: Path, whole: Path, edit: Edit
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    edit(folder)
    tokenizer = tokenizer_of(str(folder))
    assert tokenizer("the cat \u2603 [MASK]")["input_ids"] == [2, 5, 7, 1, 4, 3]
    check_fit(tokenizer, folder, len(PIECES))


@pytest.mark.parametrize(
    "auto_map", [{"AutoTokenizer": ["evil.Evil", None]}, ["evil.Evil", None], 3]
)
@pytest.mark.parametrize("files", [(), (JSON,)])
def test_code_in_a_folder_is_neither_run_nor_asked_for(
    tmp_path: Path,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    auto_map: Any,
    files: tuple[str, ...],
) -> None:
    def asked(*words: Any) -> str:
        pytest.fail(f"asked: {words}")

    monkeypatch.setattr(builtins, "input", asked)
    folder, harm = tmp_path / "model", tmp_path / "harm"
    shutil.copytree(whole, folder)
    without(*files)(folder)
    values(SETTINGS, tokenizer_class="Evil", auto_map=auto_map)(folder)
    evil = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(evil), encoding="utf-8")
    (folder / "evil.py").write_text(f"open({str(harm)!r}, 'w')\nclass Evil: pass", encoding="utf-8")
    with pytest.raises(InputError, match="the tokenizer in"):
        tokenizer_of(str(folder))
    assert not harm.exists()


def test_pieces_beyond_the_models_are_refused(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "gap"
    shutil.copytree(whole, folder)
    values(JSON, model__vocab=NUMBERED | {"##far": 1000})(folder)
    with pytest.raises(InputError, match="has 1001 pieces, but the model only 28"):
        check_fit(tokenizer_of(str(folder)), folder, 28)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (without(JSON, WORDS, SETTINGS), "holds no tokenizer"),
        (values(JSON, model__vocab=NUMBERED | {"##far": 28}), "29 pieces, but the model only 28"),
    ],
)
def test_no_packed_folder_is_written_without_its_tokenizer(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    edit: Edit,
    named: str,
) -> None:
    folder, to = tmp_path / "model", tmp_path / "packed"
    folder.mkdir()
    write_model(folder)
    edit(folder)
    monkeypatch.setattr("sys.argv", ["bitmaps.packed", str(folder), str(to)])
    with pytest.raises(SystemExit, match="2"):
        main()
    *_, line = capsys.readouterr().err.splitlines()
    assert named in line
    assert not to.exists()
