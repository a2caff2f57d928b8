from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor
from transformers import BertTokenizer, PreTrainedTokenizerBase

from bitmaps.bert import Bert, BertConfig
from bitmaps.packed import format as folder
from bitmaps.vocabulary import Storage

if TYPE_CHECKING:
    from playwright.sync_api import Browser

Pack = Callable[..., Path]

WORDS = "the a cat dog bird sat ran flew on under over mat log sky and then it was very big small red blue".split()  # noqa: SIM905


@pytest.fixture
def tiny() -> Bert:
    """A two-layer BERT in evaluation mode of which no tensor is two-valued."""
    config = BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=12, initializer_range=0.3,
    )  # fmt: skip
    return Bert(config).randomize(torch.Generator().manual_seed(0)).eval()


@pytest.fixture
def ids() -> Tensor:
    """Three sequences of seven tokens for ``tiny``."""
    return torch.randint(60, (3, 7), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """Fewer word pieces than ``tiny`` has."""
    vocabulary = tmp_path_factory.mktemp("tokenizer") / "vocab.txt"
    vocabulary.write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]), encoding="utf-8"
    )
    return BertTokenizer(str(vocabulary))


@pytest.fixture
def pack(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> Pack:
    """Writes a model as a packed folder, a new one each time."""

    def write(model: Bert, embeddings: Storage | None = None, head: Storage | None = None) -> Path:
        target = tmp_path / f"packed{len(list(tmp_path.glob('packed*')))}"
        folder.save(model, target, tokenizer, embeddings, head)
        return target

    return write


def chromium() -> str | None:
    names = [os.environ.get("BITMAPS_CHROME"), "chromium", "chromium-browser", "google-chrome"]
    return next((found for name in names if name and (found := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium()
    if path is None:
        pytest.skip("no Chromium on PATH, nor named by BITMAPS_CHROME")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@dataclass
class Recorded:
    """What a run of W&B wrote offline.

    Attributes:
        run: name, group, tags and what else W&B knows of it, config and summary apart.
        config, summary: as they stood at its end.
        curves: the name of a metric -> its values.
        artifacts: by their names.
        tables: the key of a table -> its columns and lines.
    """

    run: dict[str, Any]
    config: dict[str, Any]
    summary: dict[str, Any]
    curves: dict[str, list[Any]] = field(default_factory=dict)
    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)
    tables: dict[str, tuple[list[str], list[list[Any]]]] = field(default_factory=dict)


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Recorded]:
    """Reads the one offline run in a run folder by W&B's own ``wandb leet inspect``. W&B keeps what it would keep in the user's
    home below ``tmp_path`` meanwhile."""
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / f".wandb_{name.lower()}"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_MODE", raising=False)

    def inspect(folder: Path, *options: str) -> str:
        command = [
            sys.executable,
            "-m",
            "wandb",
            "leet",
            "inspect",
            "--json",
            *options,
            str(folder),
        ]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def read(folder: Path) -> Recorded:
        (run,) = (folder / "wandb").glob("offline-run-*")
        found = json.loads(inspect(run, "--summary"))
        recorded = Recorded(found, found.pop("config"), found.pop("summary"))
        for record in map(json.loads, inspect(run).splitlines()):
            if record["type"] == "run":
                recorded.run |= record["run"]
            elif record["type"] == "history":
                for name, value in record["history"]["item"].items():
                    recorded.curves.setdefault(name, []).append(value)
            elif record["type"] == "artifact":
                recorded.artifacts[record["artifact"]["name"]] = record["artifact"]
        for key, value in recorded.summary.items():
            if isinstance(value, dict) and value.get("_type") == "table-file":
                table = json.loads((run / "files" / value["path"]).read_text(encoding="utf-8"))
                recorded.tables[key] = (table["columns"], table["data"])
        return recorded

    return read
