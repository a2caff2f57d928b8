"""The size of files and the memory of processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitmaps.bench import footprint
from bitmaps.bench.deployments import CONTENDERS, FUSED, PEERS, file_bytes
from bitmaps.bert import Bert, BertConfig
from bitmaps.errors import InputError

linux = pytest.mark.skipif(not footprint.STATUS.is_file(), reason="only Linux has /proc")
CONFIG = BertConfig(
    vocab_size=30_000, hidden_size=256, num_hidden_layers=1, num_attention_heads=4,
    intermediate_size=512,
)  # fmt: skip


def test_the_system_must_show_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "STATUS", Path("absent"))
    with pytest.raises(InputError, match="only Linux"):
        footprint.check()


def test_what_is_done_starts_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "output_of", lambda *arguments: pytest.fail("a process"))
    prepared = iter([("Tiny", PEERS[0], tmp_path, 60)])
    done = {("", footprint.BASE), ("Tiny", PEERS[0].name)}
    assert list(footprint.footprints(prepared, done)) == []


@linux
@pytest.mark.slow  # three processes that import PyTorch
def test_a_model_adds_its_weights_to_the_memory_of_a_process(tmp_path: Path) -> None:
    model = Bert(CONFIG)
    (fused,) = (peer for peer in PEERS if peer.name == FUSED)
    chosen = (CONTENDERS[1], fused)
    folders = [one.prepare(model, tmp_path, []) for one in chosen]
    prepared = [("Small", one, path, 30_000) for one, path in zip(chosen, folders, strict=True)]
    base, one_bit, floats = footprint.footprints(iter(prepared), frozenset())
    assert (base.model, base.deployment, base.file_bytes) == ("", "import torch", 0)
    assert 50 * 2**20 < base.resident_bytes <= base.peak_bytes < 2**30
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert floats.file_bytes == file_bytes(folders[1]) > weights
    assert one_bit.file_bytes < floats.file_bytes / 3
    for one in (one_bit, floats):
        assert one.resident_bytes <= one.peak_bytes < 2**31
        assert one.resident_bytes > base.resident_bytes
    assert floats.resident_bytes - base.resident_bytes > weights
    assert one_bit.resident_bytes < floats.resident_bytes
