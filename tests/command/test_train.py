"""``train.py``: what a training leaves, and what can be chosen about it."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from command.commands import (
    ALONE,
    ONE_BIT,
    SCORES,
    SHORT,
    Commands,
    curve,
    loss_of,
    metrics,
    read,
    rows_of,
    scores,
    whole_numbers,
    with_int8_inputs,
)
from safetensors.torch import load_file

import bitmaps
from bitmaps.bert import checkpoint
from bitmaps.quantize.rounding import rounded_inputs
from bitmaps.vocabulary import Act

IDS = torch.tensor([[2, 7, 4, 9, 3]])


def test_it_writes_a_run_folder_that_transformers_opens(command: Commands) -> None:
    command.made("r", "train", "binarize=ffnn", "values=01", "scale=row", *SHORT)
    row, rows = metrics("r"), rows_of("r")
    assert list(rows) == ["unbinarized", "naive", "packed", "trained"]
    names = ("row", "steps", "recipe", "scale", "scope")
    assert [row[name] for name in names] == ["trained", 4, "bitmaps", "row", "matrices"]
    assert rows["trained"]["memory_mib"] < rows["unbinarized"]["memory_mib"]
    assert {p.name for p in Path("r/checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert Path("r/logs/version_0/metrics.csv").is_file()

    section = read("r/model", "config")["bitmaps"]
    names = ("components", "values", "scale", "recipe", "loss", "embeddings", "activations")
    found = [section[name] for name in names]
    assert found == ["ffnn", "01", "row", "bitmaps", "common", "fp32", "float"]
    ours = bitmaps.load("r")
    theirs = transformers.AutoModelForMaskedLM.from_pretrained("r/model").eval()
    torch.testing.assert_close(ours(IDS), theirs(IDS).logits, atol=1e-5, rtol=0)
    for name, weight in ours.encoder.named_parameters():
        if name.endswith(("ffnn.expand.weight", "ffnn.contract.weight")):
            assert all(len(values.unique()) <= 2 and values.min() == 0 for values in weight)
    tokenizer = transformers.AutoTokenizer.from_pretrained("r/model")
    assert tokenizer.tokenize("the cat") == ["the", "cat"]


@pytest.mark.parametrize("page", [False, True])
def test_it_ends_with_what_to_type_next(
    page: bool, command: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec("shlex") if page else None
    monkeypatch.setattr("bitmaps.launch.find_spec", lambda name: found)
    out = command.ok("train", "binarize=ffnn", ALONE, *SHORT, "hydra.run.dir=some runs/r")
    ask, report = (line.partition(": ")[2] for line in out.splitlines()[-2:])
    assert report == "python -m bitmaps.report 'some runs'/* --output report"
    if page:
        assert ask == "python -m bitmaps.show 'some runs/r'"
        return
    program, script, *overrides = shlex.split(ask)
    assert (program, script) == ("python", "evaluate.py")
    out = command.ok("evaluate", *overrides, ALONE, "measure=none", "hydra.run.dir=e")
    assert metrics("e")["row"] == "packed"
    assert "the [MASK]" in out


def test_with_nothing_binarized_it_is_plain_finetuning(command: Commands) -> None:
    command.made("r", "train", "binarize=none", *SHORT)
    assert list(rows_of("r")) == ["unbinarized", "trained"]
    assert metrics("r")["values"] is None
    assert Path("r/model/config.json").is_file()
    assert not Path("r/packed").exists()


@pytest.mark.parametrize("components", ["all", "ffnn"])
def test_bf16_accumulation_and_early_stopping_train_binary_layers(
    command: Commands, components: str
) -> None:
    precise = ("trainer.precision=bf16-mixed", "trainer.accumulate_grad_batches=2")
    options = (*precise, "callbacks=early_stopping", "scale=row", ALONE)
    command.ok("train", f"binarize={components}", "hydra.run.dir=r", *options, *SHORT)
    assert (metrics("r")["steps"], metrics("r")["dtype"]) == (4, "bf16-mixed")
    weight = bitmaps.load("r").get_parameter("encoder.layers.0.ffnn.expand.weight")
    assert weight.dtype == torch.float32
    assert all(len(row.unique()) == 2 for row in weight)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch.compile does things that torch itself warns of
@pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, and there is no g++"
)
def test_compiled_training_gives_what_eager_training_gives(command: Commands) -> None:
    options = ("binarize=all", "trainer.precision=bf16-mixed", ALONE, *SHORT)
    for folder, compiled in (("eager", "false"), ("compiled", "true")):
        command.ok("train", *options, f"trainer.compile={compiled}", f"hydra.run.dir={folder}")
    eager = metrics("eager")["cross_entropy"]
    assert metrics("compiled")["cross_entropy"] == pytest.approx(eager, abs=5e-2)


def test_the_best_checkpoint_may_have_another_name(command: Commands) -> None:
    command.ok("train", "hydra.run.dir=r", *SHORT, ALONE, "callbacks.best.filename=mine")
    assert Path("r/checkpoints/mine.ckpt").is_file()
    err = command.refused("train", "hydra.run.dir=s", *SHORT, "~callbacks.best")
    assert "one ModelCheckpoint with a monitor keeps the best model; there are 0" in err
    assert not Path("s/config.yaml").exists()


def test_validation_while_fitting_takes_the_first_set_of_masks_alone(command: Commands) -> None:
    command.made("one", "train", *ONE_BIT)
    command.ok("train", *ONE_BIT, "mask_sets=3", "hydra.run.dir=three")
    assert curve("three", "val/cross_entropy") == curve("one", "val/cross_entropy")
    assert set(curve("three", "val/masked_tokens")) == {metrics("one")["masked_tokens"]}
    assert metrics("three")["masked_tokens"] > 2 * metrics("one")["masked_tokens"]


def test_every_part_of_the_loss_has_a_curve(command: Commands) -> None:
    parts = ("cross_entropy", "logits", "hidden", "directions", "attention", "relations")
    options = [f"loss.{part}=0.5" for part in parts]
    often = ("trainer.precision=bf16-mixed", "trainer.log_every_n_steps=1")
    command.ok("train", *options, *often, *ONE_BIT, "hydra.run.dir=r")
    curves = {part: curve("r", f"train/{part}") for part in parts}
    assert all(len(found) == 4 and min(found) > 0 for found in curves.values())
    total = 0.5 * np.sum(list(curves.values()), 0)
    np.testing.assert_allclose(curve("r", "train/loss"), total, rtol=1e-4)


def test_a_word_table_in_bits_has_rows_of_two_values(command: Commands) -> None:
    options = ("embeddings=bit", "scale=row", "binarize=ffnn", ALONE)
    command.ok("train", *options, "hydra.run.dir=r", *SHORT)
    assert metrics("r")["embeddings"] == "bit"
    table = bitmaps.load("r").get_parameter("embeddings.word.weight")
    assert all(len(row.unique()) == 2 for row in table)


def test_signs_of_rank_one_are_trained_by_default(trained: Commands) -> None:
    assert metrics("r")["scale"] == "rank_one"
    for name, weight in bitmaps.load("r").encoder.named_parameters():
        if name.endswith(("ffnn.expand.weight", "ffnn.contract.weight")):
            profile = weight.abs() / weight.abs().mean(1, keepdim=True)
            torch.testing.assert_close(profile, profile[:1].expand_as(profile))
            assert profile[0].std() > 1e-3
            assert 0.2 < (weight > 0).float().mean() < 0.8


def test_a_word_table_may_be_trained_in_int8(command: Commands) -> None:
    command.ok("train", "binarize=ffnn", "embeddings=int8", ALONE, *SHORT, "hydra.run.dir=r")
    table = bitmaps.load("r").get_parameter("embeddings.word.weight").detach()
    torch.testing.assert_close(whole_numbers(table, 127), table, rtol=1e-6, atol=1e-8)
    assert all(len(row.unique()) > 2 for row in table[1:])
    assert metrics("r")["embeddings"] == "int8"
    command.ok("evaluate", "checkpoint=r", ALONE, "hydra.run.dir=e")
    for name in (*SCORES, "embeddings", "memory_mib"):
        assert metrics("e")[name] == pytest.approx(metrics("r")[name]), name
    err = command.refused("evaluate", "checkpoint=r", "embeddings=fp16")
    assert "embeddings is int8 in checkpoint=r" in err


def test_inputs_may_be_rounded_to_int8_in_training(command: Commands) -> None:
    command.ok("train", "binarize=ffnn", "activations=int8", "hydra.run.dir=r", *SHORT)
    rows = rows_of("r")
    rounded = {kind: row["activations"] for kind, row in rows.items()}
    expected_of = {"unbinarized": "float", "naive": "float", "trained": "int8", "packed": "int8"}
    assert rounded == expected_of
    unrounded = loss_of(bitmaps.load("r"))
    expected = loss_of(with_int8_inputs(bitmaps.load("r"), "ffnn"))
    near = pytest.approx(expected, abs=0.1 * abs(expected - unrounded))
    assert rows["trained"]["cross_entropy"] == near

    command.ok("evaluate", "checkpoint=r", "hydra.run.dir=e")
    assert metrics("e")["activations"] == "int8"
    assert scores(metrics("e")) == pytest.approx(scores(rows["trained"]))
    err = command.refused("evaluate", "checkpoint=r", "activations=float")
    assert "activations is int8 in checkpoint=r" in err


EXACT = "packed_embeddings=fp32"
INT6 = ("binarize=layers", "activations=int6", "activations_from=0.5", ALONE, EXACT, *SHORT)
slow = pytest.mark.slow


@pytest.mark.parametrize(
    "choice",
    [
        (),
        pytest.param(("values=01",), marks=slow),
        pytest.param(("scale=row", "trainer.precision=bf16-mixed"), marks=slow),
    ],
)
def test_int6_is_scored_as_it_is_trained_packed_or_not(
    command: Commands, choice: tuple[str, ...]
) -> None:
    command.ok("train", *INT6, *choice, "hydra.run.dir=r")
    trained = metrics("r")
    assert trained["activations"] == "int6"
    command.ok("evaluate", "checkpoint=r", ALONE, "hydra.run.dir=e")
    assert (metrics("e")["activations"], scores(metrics("e"))) == ("int6", scores(trained))
    floats, packed = bitmaps.load("r"), bitmaps.load("r/packed")
    torch.testing.assert_close(packed(IDS), floats(IDS), atol=1e-4, rtol=0)
    assert torch.equal(bitmaps.load("r/packed", act="a6")(IDS), packed(IDS))
    off = (bitmaps.load("r/packed", act="f32")(IDS) - packed(IDS)).abs().max()
    assert off > 1e-3  # rounding is seen

    command.ok("evaluate", "checkpoint=r/packed", "hydra.run.dir=p")
    rows = rows_of("p")
    assert [row["activations"] for row in rows.values()] == ["float", "float", "int6", "int6"]
    for kind in ("trained", "packed"):
        assert rows[kind]["cross_entropy"] == pytest.approx(trained["cross_entropy"], abs=1e-4)
    command.ok("evaluate", "checkpoint=r/packed", ALONE, "activations=int8", "hydra.run.dir=p8")
    assert metrics("p8")["activations"] == "int8"
    assert metrics("p8")["cross_entropy"] != rows["packed"]["cross_entropy"]
    err = command.refused("evaluate", "checkpoint=r", "activations=int8")
    assert "activations is int6 in checkpoint=r" in err


ON_SIGNS = "one_bit_inputs=[query,key,value,contract]"
SIGNS = ("binarize=layers", "activations=bit", ON_SIGNS, EXACT, *SHORT)


def test_the_signs_of_inputs_may_be_all_that_is_trained_on(command: Commands) -> None:
    command.made("r", "train", *SIGNS)
    found = [(row["activations"], row["one_bit_inputs"]) for row in rows_of("r").values()]
    signs = ("bit", "query+key+value+contract")
    assert found == [("float", None), ("float", None), signs, signs]
    trained = metrics("r")["cross_entropy"]
    # the loaded model rounds to signs; that the other inputs are int8 changes little
    loaded, without = loss_of(bitmaps.load("r")), loss_of(checkpoint.load("r"))
    assert abs(loaded - trained) < 0.2 * abs(without - trained)
    exact = checkpoint.load("r")
    for name, layer in exact.encoder.named_modules():
        if name.endswith(("query", "key", "value", "contract")):
            layer.register_forward_pre_hook(lambda _, inputs: (rounded_inputs(inputs[0], Act.a1),))
    packed = bitmaps.load("r/packed", act="f32")
    torch.testing.assert_close(packed(IDS), exact(IDS), atol=1e-3, rtol=0)


def test_a_model_of_signs_is_scored_on_signs_packed_or_not(command: Commands) -> None:
    command.made("r", "train", *SIGNS)
    trained = metrics("r")["cross_entropy"]
    command.ok("evaluate", "checkpoint=r", "hydra.run.dir=e")
    assert metrics("e")["cross_entropy"] == pytest.approx(trained, rel=1e-5)
    command.ok("evaluate", "checkpoint=r/packed", "hydra.run.dir=p")
    rows = rows_of("p")
    for kind in ("trained", "packed"):
        assert rows[kind]["cross_entropy"] == pytest.approx(trained, rel=1e-5)
        assert rows[kind]["activations"] == "bit"
        assert rows[kind]["one_bit_inputs"] == "query+key+value+contract"


def test_a_model_of_signs_is_nothing_to_start_from_or_to_round_again(command: Commands) -> None:
    command.made("r", "train", *SIGNS)
    for name in ("train", "evaluate"):
        err = command.refused(name, "model.source=r", f"hydra.run.dir=new_{name}")
        assert "model.source=r was trained with activations=bit" in err
    for folder, message in (
        ("r", "activations is bit in checkpoint=r"),
        ("r/packed", "valid are float, int8, int6"),
    ):
        assert message in command.refused("evaluate", f"checkpoint={folder}", "activations=bit")


# Real bits


def test_it_writes_the_model_in_real_bits_too(command: Commands) -> None:
    command.made("r", "train", *ONE_BIT, EXACT)
    packed, plain = bitmaps.load("r/packed", act="f32"), bitmaps.load("r")
    torch.testing.assert_close(packed(IDS), plain(IDS), atol=1e-4, rtol=0)
    assert packed.config == plain.config
    assert packed.config.bitmaps is not None
    assert packed.config.bitmaps["embeddings"] == "fp32"
    small, large = (Path(f"r/{name}/model.safetensors") for name in ("packed", "model"))
    assert small.stat().st_size < large.stat().st_size / 2
    tokenizer = transformers.AutoTokenizer.from_pretrained("r/packed")
    assert tokenizer.tokenize("the cat") == ["the", "cat"]
    assert not [path.name for path in Path("r").iterdir() if "draft" in path.name]


def test_it_writes_no_real_bits_where_none_are_wanted(command: Commands) -> None:
    command.ok("train", *ONE_BIT, "packed=false", "hydra.run.dir=r")
    assert Path("r/model/config.json").is_file()
    assert not Path("r/packed").exists()


def test_a_word_table_alone_is_a_reason_for_real_bits(command: Commands) -> None:
    command.ok("train", "binarize=none", "embeddings=int8", "hydra.run.dir=r", ALONE, *SHORT)
    table = {name for name in load_file("r/packed/model.safetensors") if "word" in name}
    weight = "bert.embeddings.word_embeddings.weight"
    assert table == {f"{weight}.int8", f"{weight}.scale"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+callbacks.best.save_top_k=0", "callbacks.best.save_top_k=0 keeps no model"),
        ("+callbacks.best.every_n_train_steps=99", "callbacks.best.every_n_train_steps is not"),
        ("+callbacks.last.every_n_train_steps=1", "callbacks.last.every_n_train_steps is not"),
        ("callbacks.best.monitor=val/loss", "callbacks.best.monitor=val/loss is not scored; valid"),
        ("callbacks.best.monitor=val/mrr", "callbacks.best.mode=min prefers the worst val/mrr"),
    ],
)
def test_checkpoints_that_would_leave_no_best_model_are_refused(
    command: Commands, override: str, message: str
) -> None:
    assert message in command.refused("train", override, *SHORT, "hydra.run.dir=r")
    assert not Path("r/checkpoints").exists()


@pytest.mark.slow
def test_a_training_always_leaves_its_last_model(command: Commands) -> None:
    bar = "+callbacks.bar._target_=lightning.pytorch.callbacks.TQDMProgressBar"
    command.ok("train", ALONE, "~callbacks.last", bar, *SHORT, "hydra.run.dir=r")
    assert torch.load("r/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4
    command.ok("train", "resume=r", "trainer.max_steps=6")
    assert metrics("r")["steps"] == 6
