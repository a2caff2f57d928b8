"""The size of a packed model on disk and in memory."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Pack
from packed.packed_files import LAYERS

from bitmaps.bert import Bert, BertConfig
from bitmaps.packed import kernels as native
from bitmaps.packed.format import FILE
from bitmaps.quantize.convert import binarize_naive
from bitmaps.vocabulary import Act


@pytest.fixture(scope="module")
def base() -> Bert:
    """Of the shape of ``bert-base-uncased``, with its layers in one bit."""
    model = Bert(BertConfig()).randomize(torch.Generator().manual_seed(0))
    return binarize_naive(model, LAYERS, "pm1", "row", "matrices").eval()


def part_of_fp32(model: Bert, pack: Pack, **options: Any) -> float:
    whole = 4 * sum(parameter.numel() for parameter in model.parameters())
    return whole / (pack(model, **options) / FILE).stat().st_size


@pytest.mark.slow
def test_the_size_of_a_file_of_bert_base(base: Bert, pack: Pack) -> None:
    assert part_of_fp32(base, pack, embeddings="int8") >= 11.5
    assert part_of_fp32(base, pack, embeddings="int8", head="int8") >= 12
    words_too = binarize_naive(copy.deepcopy(base), ("embeddings",), "pm1", "row", "matrices")
    assert part_of_fp32(words_too, pack) >= 25
    assert part_of_fp32(words_too, pack, head="int8") >= 28


MEMORY = """
import json, re, resource, sys
from pathlib import Path
import bitmaps
import bitmaps.loading

def status():
    found = dict(re.findall(r"(\\w+):\\s+(\\d+) kB", Path("/proc/self/status").read_text()))
    return {name: 1024 * int(found[name]) for name in ("VmRSS", "RssAnon", "VmHWM")}

first = bitmaps.load(sys.argv[1])  # what is imported and made but once
before = status()
Path("/proc/self/clear_refs").write_text("5")  # the peak is what it is now
model = bitmaps.load(sys.argv[2])
print(json.dumps([before, status()]))
"""


def memory(*arguments: object) -> tuple[dict[str, int], dict[str, int]]:
    """What a process of its own holds, after it has opened one model and then another."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    before, after = json.loads(done.stdout)
    return before, after


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").is_file(), reason="there is no /proc to read it from"
)
@pytest.mark.parametrize("tables", [None, "fp16", "int8"])
def test_a_model_that_is_opened_takes_what_its_file_does(
    base: Bert, pack: Pack, tables: Any
) -> None:
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    tiny = Bert(BertConfig(**sizes)).randomize(torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    folder, first = (
        pack(base, tables, tables),
        pack(binarize_naive(tiny, LAYERS, "pm1", "row", "matrices").eval()),
    )
    size, slack = (folder / FILE).stat().st_size, 16 * 2**20
    before, after = memory(first, folder)
    assert after["VmRSS"] - before["VmRSS"] <= 1.3 * size + slack
    assert after["VmHWM"] - before["VmRSS"] <= 1.3 * size + slack
    # the weights stay in the file's pages, which every process that opens it has in common; bits in
    # tiles are the process's own
    found = native.kernels()
    tiled = found is not None and found.reads_tiles(Act.a8)
    own = sum(weight.numel() for weight in base.encoder.parameters()) / 8 if tiled else 0
    assert after["RssAnon"] - before["RssAnon"] <= 0.25 * size + own
