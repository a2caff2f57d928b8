"""Sentence vectors and classes by the commands that a person types, on a tiny random model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bert.folders import write_roberta
from command.commands import PIECES, WORDS, contents, rows_of, write_model, write_text
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertTokenizer

from bitmaps.bert import Bert, BertConfig
from bitmaps.bert.checkpoint import load, save
from bitmaps.bert.pooling import Pooling
from bitmaps.vocabulary import Task

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
FEW = (
    "measure=none", "trainer.max_steps=2", "trainer.val_check_interval=2", "data.batch_size=8",
    "binarize=layers", "model=hub",
)  # fmt: skip


def run(*command: object, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stderr if code else done.stdout


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked-language model."""
    folder = tmp_path_factory.mktemp("words")
    write_model(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, words: Path) -> Path:
    """A sentence encoder."""
    folder = tmp_path_factory.mktemp("encoder") / "model"
    config = BertConfig(
        vocab_size=len(PIECES), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.2, task=Task.sentence_embedding, pooling=Pooling(length=64),
    )  # fmt: skip
    save(Bert(config).randomize(torch.Generator().manual_seed(0)), folder)
    BertTokenizer.from_pretrained(words).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    write_text(folder)
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of sentences, judged by how many words they share."""
    generator, lines = np.random.default_rng(0), ["sentence1,sentence2,score"]
    for _ in range(30):
        first = generator.choice(WORDS, 6)
        second = np.where(
            generator.random(6) < generator.random(), first, generator.choice(WORDS, 6)
        )
        lines.append(f"{' '.join(first)},{' '.join(second)},{(first == second).sum()}")
    file = tmp_path_factory.mktemp("pairs") / "pairs.csv"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences that are about a cat or a dog."""
    folder, generator = tmp_path_factory.mktemp("labels"), np.random.default_rng(0)
    others = [word for word in WORDS if word not in ("cat", "dog")]
    for split, count in (("train", 64), ("validation", 20), ("test", 20)):
        lines = ["sentence\tlabel"]
        for number in range(count):
            name = ("dog", "cat")[number % 2]
            sentence = [*generator.choice(others, 5), name]
            lines.append(f"{' '.join(generator.permutation(sentence))}\t{name}")
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def encoded(source: Path, text: Path) -> tuple[str, ...]:
    return (
        "task=sentence_embedding", *FEW, f"model.source={source}", "data=text", f"data.dir={text}",
    )  # fmt: skip


def scores(row: dict[str, Any], *names: str) -> list[float]:
    return [row[name] for name in names]


def test_a_sentence_encoder_is_trained_and_its_bits_are_scored(
    encoder: Path, text: Path, pairs: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    run(
        "train.py", *encoded(encoder, text), "packed_embeddings=fp32", f"similarity={pairs}",
        f"hydra.run.dir={folder}",
    )  # fmt: skip
    table = rows_of(folder)
    assert set(table) == {"unbinarized", "naive", "packed", "trained"}
    assert scores(table["unbinarized"], "cosine", "recall_at_10") == pytest.approx([1, 1])
    assert table["unbinarized"]["spearman"] > 30  # sentences that share words are alike
    assert table["trained"]["cosine"] < 1
    assert {row["task"] for row in table.values()} == {"sentence_embedding"}
    assert {row["sentences"] for row in table.values()} == {60}
    assert {row["guessing"] for row in table.values()} == {0.0}  # Spearman's correlation

    beside, alone = tmp_path / "beside", tmp_path / "alone"
    run(
        "evaluate.py", f"checkpoint={folder}/packed", "activations=float", f"similarity={pairs}", "measure=none",
        f"hydra.run.dir={beside}",
    )  # fmt: skip
    found = rows_of(beside)["packed"]
    # two of 30 pairs that change places are worth 0.04 in Spearman's correlation
    near = {"cosine": 2e-3, "recall_at_10": 2e-3, "spearman": 0.2, "pearson": 0.02}
    for name, tolerance in near.items():
        assert found[name] == pytest.approx(table["trained"][name], abs=tolerance), name

    shutil.move(folder / "packed", tmp_path / "moved")
    lone = (
        "evaluate.py",
        f"checkpoint={tmp_path}/moved",
        "data=text",
        f"data.dir={text}",
        "measure=none",
    )
    run(*lone, "activations=float", f"similarity={pairs}", f"hydra.run.dir={alone}")
    (row,) = rows_of(alone).values()
    assert row["spearman"] == pytest.approx(found["spearman"], abs=1e-3)
    assert row.get("cosine") is None  # there is no original to compare with
    refused = run(*lone, f"hydra.run.dir={tmp_path}/refused", code=2)
    assert "valid is similarity=" in refused

    refused = run(
        "train.py", "task=masked_lm", *FEW, f"model.source={folder}", "data=text", f"data.dir={text}",
        f"hydra.run.dir={tmp_path}/other", code=2,
    )  # fmt: skip
    assert "was made for task=sentence_embedding, not for task=masked_lm" in refused


def test_the_bits_of_an_encoder_that_was_a_masked_language_model_are_scored(
    words: Path, text: Path, tmp_path: Path
) -> None:
    """Its folder says nothing of how to pool."""
    folder = tmp_path / "run"
    run("train.py", *encoded(words, text), "references=false", f"hydra.run.dir={folder}")
    run(
        "evaluate.py", f"checkpoint={folder}/packed", "references=false", "measure=none",
        f"hydra.run.dir={tmp_path}/packed",
    )  # fmt: skip
    packed, trained = rows_of(tmp_path / "packed")["packed"], rows_of(folder)["trained"]
    assert packed["cosine"] == pytest.approx(trained["cosine"], abs=0.02)
    assert trained["guessing"] == 10 / 59  # 10 of the 59 other sentences


def test_jobs_of_a_classification_share_their_teacher(
    words: Path, labels: Path, text: Path, tmp_path: Path
) -> None:
    teachers, first, second = (tmp_path / name for name in ("teachers", "first", "second"))
    classes = (
        "train.py", "task=classification", *FEW, f"model.source={words}", "data=labeled", f"data.dir={labels}",
        f"fine_tuning.folder={teachers}", "fine_tuning.max_steps=2",
    )  # fmt: skip
    run(*classes, f"hydra.run.dir={first}")
    (teacher,) = (path for path in teachers.iterdir() if path.is_dir())
    before = contents(teacher)
    run(*classes, "recipe=bwn", "seed=1", "references=false", f"hydra.run.dir={second}")
    assert [path for path in teachers.iterdir() if path.is_dir()] == [teacher]
    assert contents(teacher) == before

    table, original = rows_of(first), rows_of(teacher)["trained"]
    assert set(table) == {"unbinarized", "naive", "packed", "trained"}
    assert table["unbinarized"]["accuracy"] == original["accuracy"]
    assert {row["sentences"] for row in table.values()} == {20}
    assert {row["guessing"] for row in table.values()} == {0.5}  # half of them are about cats
    config = json.loads((first / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["id2label"] == {"0": "cat", "1": "dog"}

    scored = tmp_path / "scored"
    run("evaluate.py", f"checkpoint={first}", "measure=none", f"hydra.run.dir={scored}")
    again = rows_of(scored)
    for name in ("unbinarized", "trained"):
        for score in ("accuracy", "f1", "matthews", "cross_entropy"):
            assert again[name][score] == pytest.approx(table[name][score], abs=1e-5)

    refused = run(
        "train.py", *encoded(first, text), f"hydra.run.dir={tmp_path}/other", code=2
    )  # fmt: skip
    assert "was made for task=classification, not for task=sentence_embedding" in refused
    refused = run(
        *classes, f"teacher={words}", f"hydra.run.dir={tmp_path}/untaught", code=2
    )  # fmt: skip
    assert "is no classifier; valid is a run of" in refused


@pytest.mark.parametrize("task", ["sentence_embedding", "classification"])
def test_two_processes_that_were_stopped_train_a_task_as_one(
    task: str, encoder: Path, words: Path, text: Path, labels: Path, tmp_path: Path
) -> None:
    few = ("measure=none", "references=false", "data.batch_size=8", "binarize=layers", "model=hub",
           "trainer.val_check_interval=2")  # fmt: skip
    if task == "sentence_embedding":
        of = ("task=sentence_embedding", f"model.source={encoder}", "data=text", f"data.dir={text}")
    else:
        of = (
            "task=classification", f"model.source={words}", "data=labeled", f"data.dir={labels}",
            f"fine_tuning.folder={tmp_path}/teachers", "fine_tuning.max_steps=2",
        )  # fmt: skip
    two = (
        "trainer=ddp",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
        "trainer.precision=32-true",
    )
    one, both = tmp_path / "one", tmp_path / "both"
    run("train.py", *of, *few, "trainer.max_steps=4", "trainer.accumulate_grad_batches=2",
        f"hydra.run.dir={one}")  # fmt: skip
    run("train.py", *of, *few, *two, "trainer.max_steps=2", f"hydra.run.dir={both}")
    run("train.py", f"resume={both}", "trainer.max_steps=4")
    expected, found = (rows_of(folder)["trained"] for folder in (one, both))
    names = ("cosine", "recall_at_10", "accuracy", "f1", "cross_entropy", "sentences", "steps")
    measured = [name for name in names if expected.get(name) is not None]
    assert len(measured) >= 4
    assert scores(found, *measured) == pytest.approx(scores(expected, *measured), rel=1e-4)
    states = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (one, both)
    )
    for weight, other in zip(*(state.values() for state in states), strict=True):
        torch.testing.assert_close(weight, other, atol=1e-5, rtol=0)


def test_a_roberta_is_trained_and_opens_as_one(text: Path, tmp_path: Path) -> None:
    source, folder = tmp_path / "roberta", tmp_path / "run"
    source.mkdir()
    write_roberta(source, (text / "train.txt").read_text(encoding="utf-8").splitlines())
    run(
        "train.py", *FEW, f"model.source={source}", "data=text", f"data.dir={text}",
        f"hydra.run.dir={folder}",
    )  # fmt: skip
    run("evaluate.py", f"checkpoint={folder}/packed", "activations=float", "measure=none",
        f"hydra.run.dir={tmp_path}/packed")  # fmt: skip
    trained, packed = (
        rows_of(f)[r] for f, r in ((folder, "trained"), (tmp_path / "packed", "packed"))
    )
    assert packed["cross_entropy"] == pytest.approx(trained["cross_entropy"], abs=2e-3)
    model, tokenizer = (
        opener.from_pretrained(folder / "model") for opener in (AutoModelForMaskedLM, AutoTokenizer)
    )
    assert type(model).__name__ == "RobertaForMaskedLM"
    ours = load(folder / "model")
    batch = tokenizer("a cat saw a dog", return_tensors="pt")
    with torch.no_grad():
        expected = model.eval()(**batch).logits
        torch.testing.assert_close(ours(**batch), expected, atol=1e-5, rtol=0)
