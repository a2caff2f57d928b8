"""Scores of deployments, on the same sentences and masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerBase

from bitmaps.bench import __main__ as command
from bitmaps.bench import quality
from bitmaps.bench.deployments import FUSED, PEERS
from bitmaps.bench.quality import Asked
from bitmaps.bench.results import read_file
from bitmaps.bert import Bert
from bitmaps.bert.checkpoint import save
from bitmaps.errors import InputError
from bitmaps.vocabulary import IGNORE, Storage

Pack = Callable[..., Path]
LINES = ["the cat sat on the mat", "a dog ran under the log", "the bird flew", "it was a red sky"]


@pytest.fixture
def ptb(tmp_path: Path) -> Path:
    folder = tmp_path / "ptb"
    folder.mkdir()
    for split in ("train", "valid"):
        (folder / f"ptb.{split}.txt").write_text("\n".join(LINES * 5), encoding="utf-8")
    return folder


@pytest.fixture
def asked(
    tiny: Bert, pack: Pack, tmp_path: Path, ptb: Path, monkeypatch: pytest.MonkeyPatch
) -> Asked:
    """A teacher, and itself with its tables in int8 in the place of a student."""
    monkeypatch.setattr(quality, "PEERS", tuple(peer for peer in PEERS if peer.name == FUSED))
    save(tiny, tmp_path / "teacher")
    return Asked.check(pack(tiny, Storage.int8), tmp_path / "teacher", ptb, None)


def test_every_deployment_scores_the_same_masks(asked: Asked, tiny: Bert, tmp_path: Path) -> None:
    rows = list(quality.qualities(asked, tmp_path / "files"))
    names = ["one bit, a6", "one bit, a8", "one bit, a11", FUSED]
    assert [row.deployment for row in rows] == names
    assert {row.text for row in rows} == {"PTB validation"}
    assert [row.source for row in rows] == [str(asked.packed)] * 3 + [str(asked.teacher)]
    assert rows[0].file_bytes < rows[-1].file_bytes
    losses, hits = [], []
    with torch.inference_mode():
        for _, ids, labels in asked.examples():
            logits = tiny(torch.from_numpy(ids)[None])[0][labels != IGNORE]
            targets = torch.from_numpy(labels[labels != IGNORE])
            losses.append(F.cross_entropy(logits, targets, reduction="none"))
            hits.append(logits.argmax(-1) == targets)
    full = rows[-1]
    assert full.masked_tokens == len(torch.cat(losses)) == rows[0].masked_tokens
    assert full.cross_entropy == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)
    assert full.accuracy == pytest.approx(torch.cat(hits).double().mean().item())
    assert full.accuracy <= full.mrr <= 1
    assert rows[0].cross_entropy == pytest.approx(full.cross_entropy, rel=0.05)
    assert list(quality.qualities(asked, tmp_path / "none", {row.key for row in rows})) == []


def test_calibration_reads_the_training_text(asked: Asked, ptb: Path) -> None:
    (ptb / "ptb.train.txt").write_text("the big cat\n" * 400, encoding="utf-8")
    batches = asked.calibration()
    assert {batch.shape for batch in batches} == {(1, 5)}
    assert len(batches) == quality.CALIBRATION


def test_rows_are_written_and_not_measured_again(
    asked: Asked,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "bench.json"
    arguments = {
        "--checkpoint": asked.packed, "--teacher": asked.teacher, "--ptb": asked.ptb,
        "--limit": 8, "--output": output, "--threads": torch.get_num_threads(),
    }  # fmt: skip
    words = [str(word) for pair in arguments.items() for word in pair]
    monkeypatch.setattr("sys.argv", ["bench", "quality", *words])
    command.main()
    first = capsys.readouterr()
    assert "one bit, a11: accuracy" in first.err
    assert FUSED in first.out
    assert {row.text for row in read_file(output).qualities} == {"PTB validation, 8 sentences"}
    written = output.read_bytes()
    command.main()
    assert "accuracy" not in capsys.readouterr().err
    assert output.read_bytes() == written


def test_a_run_folder_stands_for_its_packed_model(asked: Asked, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(InputError, match="no packed model: valid is"):
        Asked.check(run, asked.teacher, asked.ptb, None)
    asked.packed.rename(run / "packed")
    assert Asked.check(run, asked.teacher, asked.ptb, None).packed == run / "packed"


def test_mistakes_are_found_before_anything_is_scored(asked: Asked, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--limit 0 is too small"):
        Asked.check(asked.packed, asked.teacher, asked.ptb, 0)
    with pytest.raises(InputError, match=r"--ptb .* is not a folder"):
        Asked.check(asked.packed, asked.teacher, tmp_path / "absent", None)
    with pytest.raises(InputError, match="absent holds no model"):
        Asked.check(asked.packed, tmp_path / "absent", asked.ptb, None)
    (asked.ptb / "ptb.valid.txt").unlink()
    with pytest.raises(InputError, match=r"has no ptb.valid.txt"):
        Asked.check(asked.packed, asked.teacher, asked.ptb, None)


def test_another_vocabulary_is_refused(
    asked: Asked, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    small = Bert(replace(asked.load_teacher().config, vocab_size=20))
    save(small, tmp_path / "small")
    assert len(tokenizer) > 20
    other = Asked(asked.packed, tmp_path / "small", asked.ptb)
    with pytest.raises(InputError, match="pieces, but the model only 20"):
        other.load_teacher()
