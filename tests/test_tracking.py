"""The logger of a run."""

import csv
import os
import struct

import pytest
import yaml
from wandb.proto.wandb_internal_pb2 import Record

from bitmaps.tracking import tracking

FACTS = {
    "components": "ffnn",
    "values": "01",
    "scale": None,
    "seed": 0,
    "versions": {"python": "3.11"},
}
CSV = {"_target_": "lightning.pytorch.loggers.CSVLogger", "name": "logs", "version": ""}
WANDB = {"_target_": "lightning.pytorch.loggers.WandbLogger", "project": "x", "offline": True}


def test_csv_has_the_curve_the_final_row_and_the_facts(tmp_path):
    with tracking(CSV, tmp_path, FACTS, group=None) as track:
        track.logger.log_metrics({"train/loss": 2.5}, step=7)
        track.summarize({"accuracy": 0.25, "steps": 9, "row": "trained", "mrr": None, "ok": True, "known": {"mrr": 1}})
    with (tmp_path / "logs" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = {(name, float(value)) for row in rows for name, value in row.items() if name != "step" and value}
    assert found == {("train/loss", 2.5), ("final/accuracy", 0.25), ("final/steps", 9.0)}
    assert next(row["step"] for row in rows if row["train/loss"]) == "7"
    facts = yaml.safe_load((tmp_path / "logs" / "hparams.yaml").read_text())
    assert facts == {"components": "ffnn", "values": "01", "scale": None, "seed": 0, "python": "3.11"}


def fail(config, folder):
    with tracking(config, folder, FACTS, group="a sweep") as track:
        track.logger.log_metrics({"train/loss": 2.5}, step=7)
        raise ZeroDivisionError


def test_curves_are_written_though_the_run_fails(tmp_path):
    with pytest.raises(ZeroDivisionError):
        fail(CSV, tmp_path)
    assert "2.5" in (tmp_path / "logs" / "metrics.csv").read_text()


def records(folder):
    """What W&B wrote offline: a LevelDB log (blocks of 32 KiB; chunks with checksum, length and kind) of its protobufs.
    W&B's own reader is no longer in its Python package."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, at, message = path.read_bytes(), 7, b""
    while at < len(data):
        if 2**15 - at % 2**15 < 7:  # the rest of a block, too short for a chunk's head
            at += 2**15 - at % 2**15
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        message += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(message)
            message = b""


def summary(folder):
    run, config, exit_code, history = None, {}, None, {}
    for record in records(folder):
        match record.WhichOneof("record_type"):
            case "run":
                run = record.run
                config |= {item.key: item.value_json for item in run.config.update}
            case "config":
                config |= {item.key: item.value_json for item in record.config.update}
            case "history":
                history |= {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
            case "exit":
                exit_code = record.exit.exit_code
    return run, config, exit_code, history


@pytest.mark.parametrize("mode", [None, "online"])
def test_the_jobs_of_a_sweep_are_wandb_runs_of_their_own(tmp_path, monkeypatch, mode):
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if mode:
        monkeypatch.setenv("WANDB_MODE", mode)
    jobs = {"0": FACTS, "1": FACTS | {"components": "none", "values": None}}
    for number, facts in jobs.items():
        (tmp_path / number).mkdir()
        with tracking(WANDB, tmp_path / number, facts, group="a sweep") as track:
            track.logger.log_metrics({"train/loss": 2.5}, step=1)
            track.summarize({"accuracy": float(number)})
        assert os.environ.get("WANDB_MODE") == mode
    (tmp_path / "2").mkdir()
    with pytest.raises(ZeroDivisionError):
        fail(WANDB, tmp_path / "2")
    assert os.environ.get("WANDB_MODE") == mode

    summaries = [summary(tmp_path / number) for number in "012"]
    runs = [run for run, *_ in summaries]
    assert len({run.run_id for run in runs}) == 3
    assert {(run.run_group, run.project) for run in runs} == {("a sweep", "x")}
    assert [run.display_name for run in runs] == ["ffnn-01", "none", "ffnn-01"]
    assert [list(run.tags) for run in runs] == [["ffnn", "01"], ["none"], ["ffnn", "01"]]
    configs = [config for _, config, *_ in summaries]
    assert [config["components"] for config in configs] == ['"ffnn"', '"none"', '"ffnn"']
    assert [config["values"] for config in configs] == ['"01"', "null", '"01"']
    assert [code for _, _, code, _ in summaries] == [0, 0, 1]
    assert [float(history["final/accuracy"]) for *_, history in summaries[:2]] == [0.0, 1.0]
    assert all(float(history["train/loss"]) == 2.5 for *_, history in summaries)
