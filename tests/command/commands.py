"""Runs the two commands in this process on a tiny model, and reads what they write."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

import bitmaps
from bitmaps import cli
from bitmaps.bert import Bert
from bitmaps.command.schema import conf_dir
from bitmaps.data.evaluation import masked
from bitmaps.data.sources import Source

WORDS = "the a cat dog bird sat ran flew on under over mat log sky and then it was very big small red blue".split()  # noqa: SIM905
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
SCORES = ("cross_entropy", "accuracy", "mrr")

SMALL = (
    "model=hub", "model.source=model", "data=text", "data.dir=text", "data.eval_batch_size=16",
    "measure=none",
)  # fmt: skip
TIMED = ("measure=default", "measure.batch_size=2", "measure.length=8", "measure.repeats=1")
STEPS = ("trainer.val_check_interval=2", "data.batch_size=8", "schedule=constant")
SHORT = ("trainer.max_steps=4", *STEPS)
HALF = ("trainer.max_steps=2", *STEPS)
LEVEL = "loss.more_masked_at_end=null"  # otherwise a step depends on the number of steps
ALONE = "references=false"
ONE_BIT = ("binarize=layers", ALONE, *SHORT)  # of a training with its layers in one bit

Row = dict[str, Any]


def write_model(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join(PIECES), encoding="utf-8")
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(PIECES),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,  # ten times BERT's: predictions far from uniform, sensitive to rounding
    )
    transformers.BertForMaskedLM(config).save_pretrained(folder)


def write_text(folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, count in (("train", 200), ("validation", 60), ("test", 30)):
        ids = torch.randint(len(WORDS), (count, 12), generator=generator).tolist()
        lines = "\n".join(" ".join(WORDS[i] for i in row) for row in ids)
        (folder / f"{name}.txt").write_text(lines, encoding="utf-8")


def composed(command: str, *overrides: str) -> DictConfig:
    """What ``conf/<command>.yaml`` and these overrides give."""
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return compose(command, overrides=list(overrides))


def config(command: str, *overrides: str) -> Any:
    """The same, as a ``Train`` or an ``Evaluate``."""
    return OmegaConf.to_object(composed(command, *overrides))


class Commands:
    """The two commands, run in the current folder, where ``model`` and ``text`` are.

    Args:
        shared: a folder for runs that several tests start from.
    """

    def __init__(self, shared: Path) -> None:
        self.shared, self.found = shared, dict[tuple[str, ...], Path]()

    def __call__(self, name: str, *overrides: str) -> tuple[Any, str, str]:
        """Run a command; returns its exit code and what it printed, to stdout and to stderr. The
        model and the text are the small ones, unless another run decides them."""
        given = {one.split("=")[0] for one in overrides}
        usual = () if given & {"checkpoint", "resume"} else SMALL
        if "checkpoint" in given:
            usual = ("measure=none",)
        usual = tuple(one for one in usual if one.split("=")[0] not in given)
        GlobalHydra.instance().clear()
        out, err, code = io.StringIO(), io.StringIO(), 0
        with (
            patch.object(sys, "argv", [f"{name}.py", *overrides, *usual]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                getattr(cli, name)()
            except SystemExit as stop:
                code = stop.code
                if isinstance(code, str):
                    err.write(code)
            except Exception:  # what Python does with it
                traceback.print_exc(file=err)
                code = 1
        return code, out.getvalue(), err.getvalue()

    def ok(self, name: str, *overrides: str) -> str:
        """Run a command that must succeed; returns what it printed."""
        code, out, err = self(name, *overrides)
        assert code == 0, out + err
        return out

    def refused(self, name: str, *overrides: str) -> str:
        """Run a command that must end with 2, in one line; returns that line."""
        code, out, err = self(name, *overrides)
        assert code == 2, out + err
        assert err.startswith("error: "), err
        assert len(err.splitlines()) == 1, err
        return err

    def made(self, to: str, name: str, *overrides: str) -> None:
        """The folder ``to`` as this command leaves it. The command runs once in a session, and the
        folder is a copy."""
        key = (name, *overrides)
        if key not in self.found:
            folder = f"run{len(self.found)}"
            with contextlib.chdir(self.shared):
                self.ok(name, *overrides, f"hydra.{kind_of(overrides)}.dir={folder}")
            self.found[key] = self.shared / folder
        shutil.copytree(self.found[key], to)


def kind_of(overrides: tuple[str, ...]) -> str:
    return "sweep" if "-m" in overrides else "run"


def read(folder: str | Path, name: str) -> Any:
    return json.loads((Path(folder) / f"{name}.json").read_text(encoding="utf-8"))


def metrics(folder: str | Path) -> Row:
    found: Row = read(folder, "metrics")
    return found


def rows_of(folder: str | Path) -> dict[str, Row]:
    """The rows of a run by their kinds."""
    return {row["row"]: row for row in read(folder, "rows")}


def analyses_of(folder: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = read(folder, "analysis")
    return found


def sums_of(folder: str | Path) -> dict[str, NDArray[np.float64]]:
    """The sums of each sentence, for each row."""
    with np.load(Path(folder) / "sentences.npz", allow_pickle=False) as found:
        return dict(found)


def scores(row: Row) -> list[float]:
    return [row[name] for name in SCORES]


def assert_sums_give(sums: NDArray[np.float64], row: Row) -> None:
    count, *totals = sums.sum(0)
    assert count == row["masked_tokens"]
    assert [total / count for total in totals] == pytest.approx(scores(row), rel=1e-9)


def curve(folder: str, name: str) -> list[float]:
    with (Path(folder) / "logs" / "version_0" / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def contents(folder: str | Path) -> dict[Path, tuple[bytes, int]]:
    """Every file below a folder, and when it was written."""
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


def loss_of(model: Bert, mask_seed: int = 481) -> float:
    """Cross entropy on the validation split of ``text``, sentence by sentence."""
    source, losses = Source("text", dir="text"), []
    for _, ids, labels in masked(source, "validation", "model", 64, None, mask_seed):
        kept = torch.from_numpy(labels != -100)
        with torch.no_grad():
            logits = model(torch.from_numpy(ids)[None])[0, kept]
        targets = torch.from_numpy(labels)[kept]
        losses.append(F.cross_entropy(logits.double(), targets, reduction="none"))
    return torch.cat(losses).mean().item()


def original() -> Bert:
    return bitmaps.load("model")


def whole_numbers(x: Tensor, largest: int) -> Tensor:
    """Each row to the nearest multiple of its own magnitude over ``largest``, in fp32: another
    precision would break ties differently, which moves a loss as much as rounding does."""
    step = np.abs(x.numpy()).max(-1, keepdims=True) / np.float32(largest)
    return torch.from_numpy(np.rint(x.numpy() / np.where(step > 0, step, np.float32(1))) * step)


def with_words(model: Bert, largest: int) -> Bert:
    """The model with its word table and decoder in whole numbers."""
    with torch.no_grad():
        words = model.get_parameter("embeddings.word.weight")
        words.copy_(whole_numbers(words.detach(), largest))
    return model


BITS = {  # of a word table of rows of 32 numbers
    "fp32": 32 * 32 * len(PIECES),
    "fp16": 16 * 32 * len(PIECES),
    "int8": (8 * 32 + 32) * len(PIECES),
    "int4": (4 * 32 + 32) * len(PIECES),
    "bit": (32 + 32) * len(PIECES),
}


def saved_bits(before: Row, after: Row) -> float:
    """Bits by which the pseudo size is smaller."""
    return (before["memory_mib"] - after["memory_mib"]) * 8 * 2**20


def in_int8(x: Tensor, weight: Tensor) -> Tensor:
    """Each token in int8, multiplied by the column scales of a matrix of rank-one magnitudes
    meanwhile."""
    column = weight.detach().abs().mean(0).numpy()
    scaled = x.numpy() * column
    most = np.abs(scaled).max(-1, keepdims=True)
    q = np.rint(scaled * (np.float32(127) / most))
    return torch.from_numpy(q * (most / np.float32(127)) / column)


def with_int8_inputs(model: Bert, *blocks: str) -> Bert:
    """The model of {-1,1} with the inputs of the linear layers of these blocks in int8."""
    for name, layer in model.encoder.named_modules():
        if isinstance(layer, nn.Linear) and any(f".{block}." in f".{name}." for block in blocks):
            layer.register_forward_pre_hook(lambda one, x: (in_int8(x[0], one.weight),))
    return model
