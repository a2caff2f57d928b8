from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
import wandb
from conftest import Recorded
from huggingface_hub import ModelCard
from hydra.core.global_hydra import GlobalHydra
from lightning.pytorch.loggers import WandbLogger
from numpy.typing import NDArray
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import bitmaps
from bitmaps import cli
from bitmaps.bert import Bert
from bitmaps.dashboard import CURVES, MEASURES
from bitmaps.data.evaluation import masked
from bitmaps.data.sources import Source
from bitmaps.packed.__main__ import main as packed_main
from bitmaps.quantize.rotate import rotate_heads
from bitmaps.quantize.rounding import signs
from bitmaps.report.page import read_curves
from bitmaps.runs.folder import Row

WORDS = "the a cat dog bird sat ran flew on under over mat log sky and then it was very big small red blue".split()  # noqa: SIM905
FIELDS = {
    "format", "status", "error", "row", "cross_entropy", "perplexity", "accuracy", "mrr", "masked_tokens", "inference_ms",
    "inference_masked_ms", "memory_mib", "resident_mib", "model", "data", "split", "limit", "components", "values", "scale",
    "scope", "recipe", "loss", "embeddings", "activations", "steps", "seed", "mask_seed", "mask_sets", "device", "threads",
    "dtype", "versions", "commit", "command", "known", "weights", "inference_repeats",
}  # fmt: skip


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(pieces), encoding="utf-8")
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(pieces),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,  # ten times BERT's: predictions far from uniform, which rounding moves
    )
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    generator = torch.Generator().manual_seed(0)
    for name, count in (("train", 200), ("validation", 60), ("test", 30)):
        ids = torch.randint(len(WORDS), (count, 12), generator=generator).tolist()
        (folder / f"{name}.txt").write_text(
            "\n".join(" ".join(WORDS[i] for i in row) for row in ids), encoding="utf-8"
        )
    return folder


class Command(Protocol):
    def __call__(
        self, name: str, *overrides: str, defaults: Sequence[str] = ...
    ) -> tuple[Any, str, str]: ...


@pytest.fixture
def command(
    model_folder: Path,
    text_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    """Runs a command in an empty folder; gives its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    small = [
        "model=hub", f"model.source={model_folder}", "data=text", f"data.dir={text_folder}", "data.eval_batch_size=16",
        "measure.batch_size=2", "measure.length=8", "measure.repeats=1",
    ]  # fmt: skip

    def run(name: str, *overrides: str, defaults: Sequence[str] = small) -> tuple[Any, str, str]:
        given = {o.split("=")[0] for o in overrides}
        argv = [f"{name}.py", *overrides, *(d for d in defaults if d.split("=")[0] not in given)]
        monkeypatch.setattr(sys, "argv", argv)
        GlobalHydra.instance().clear()
        code: Any = 0
        try:
            getattr(cli, name)()
        except SystemExit as exit:
            code = exit.code
            if isinstance(code, str):
                print(code, file=sys.stderr)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


LEVEL = ("loss.more_masked_at_end=null",)  # else a step depends on how many there are in all
SHORT = (
    "trainer.max_steps=4",
    "trainer.val_check_interval=2",
    "data.batch_size=8",
    "schedule=constant",
)


def metrics(folder: str) -> Row:
    found: Row = json.loads((Path(folder) / "metrics.json").read_text(encoding="utf-8"))
    return found


def rows_of(folder: str) -> dict[str, Row]:
    """The rows of a run by their kinds."""
    return {
        row["row"]: row
        for row in json.loads((Path(folder) / "rows.json").read_text(encoding="utf-8"))
    }


def sums_of(folder: str) -> dict[str, NDArray[np.float64]]:
    """What the sentences of each row came to."""
    with np.load(Path(folder) / "sentences.npz", allow_pickle=False) as found:
        return dict(found)


def assert_sums_give(sums: NDArray[np.float64], row: Row) -> None:
    count, *totals = sums.sum(0)
    assert count == row["masked_tokens"]
    assert [total / count for total in totals] == pytest.approx(
        [row[name] for name in SCORES], rel=1e-9
    )


SCORES = ("cross_entropy", "accuracy", "mrr")


def test_evaluate_writes_every_field_and_the_config(command: Command) -> None:
    code, out, _ = command("evaluate", "binarize=layers", "values=01", "hydra.run.dir=r")
    assert code == 0
    row = metrics("r")
    assert set(row) >= FIELDS
    assert (row["status"], row["row"], row["components"], row["values"]) == (
        "ok",
        "naive",
        "layers",
        "01",
    )
    assert (row["scale"], row["scope"], row["recipe"], row["steps"]) == ("none", "all", None, 0)
    assert row["command"].startswith("python evaluate.py binarize=layers values=01")
    assert row["masked_tokens"] > row["known"]["masked_tokens"] * 0.9
    assert OmegaConf.select(OmegaConf.load("r/config.yaml"), "values") == "01"
    assert "layers" in out


def test_a_run_folder_is_never_overwritten(command: Command) -> None:
    assert command("evaluate", "hydra.run.dir=r")[0] == 0
    before = {path: path.read_bytes() for path in Path("r").rglob("*.json")}
    code, _, err = command("evaluate", "hydra.run.dir=r", "binarize=all")
    assert code == 2
    assert "already holds a run" in err
    assert before == {path: path.read_bytes() for path in Path("r").rglob("*.json")}


def test_a_sweep_ends_with_nine_rows_in_the_order_of_the_blog_post(command: Command) -> None:
    groups = "layers,layers_except_ffnn,none,all,layers_except_attention"
    code, out, _ = command(
        "evaluate",
        "-m",
        f"binarize={groups}",
        "values=pm1,01",
        "hydra.sweep.dir=s",
        "measure=none",
        "limit=20",
    )
    assert code == 0
    lines = Path("s/results.md").read_text(encoding="utf-8").splitlines()[2:]
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in lines]
    ordered = ("all", "layers", "layers_except_attention", "layers_except_ffnn")
    assert rows == [
        ["none", ""],
        *([group, values] for group in ordered for values in ("{0,1}", "{-1,1}")),
    ]
    assert Path("s/results.png").stat().st_size > 0
    assert len(Path("s/results.csv").read_text(encoding="utf-8").splitlines()) == 10
    assert metrics("s/4")["cross_entropy"] == metrics("s/5")["cross_entropy"]
    assert "layers_except_ffnn" in out


def test_a_failing_job_is_a_row_and_the_others_stay(
    command: Command, model_folder: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in model_folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    tensors = load_file(broken / "model.safetensors")
    tensors["bert.encoder.layer.1.intermediate.dense.weight"][0, 0] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    code, out, _ = command(
        "evaluate",
        "-m",
        f"model.source={model_folder},{broken},{tmp_path / 'nowhere'}",
        "hydra.sweep.dir=s",
        "measure=none",
    )
    assert code == 1
    assert [metrics(f"s/{i}")["status"] for i in range(3)] == ["ok", "failed", "failed"]
    assert "encoder.layers.1.ffnn.expand" in metrics("s/1")["error"]
    assert "nowhere" in metrics("s/2")["error"]
    assert "failed" in out


def test_training_writes_a_run_folder_that_transformers_opens(command: Command) -> None:
    assert (
        command("train", "binarize=ffnn", "values=01", "scale=row", "hydra.run.dir=r", *SHORT)[0]
        == 0
    )
    row = metrics("r")
    assert set(row) >= FIELDS
    assert (row["row"], row["steps"], row["recipe"], row["scale"], row["scope"]) == (
        "trained",
        4,
        "bitmaps",
        "row",
        "matrices",
    )
    rows = json.loads(Path("r/rows.json").read_text(encoding="utf-8"))
    assert [r["row"] for r in rows] == ["unbinarized", "naive", "trained"]
    assert rows[2]["memory_mib"] < rows[0]["memory_mib"]
    assert {p.name for p in Path("r/checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert Path("r/logs/version_0/metrics.csv").is_file()

    section = json.loads(Path("r/model/config.json").read_text(encoding="utf-8"))["bitmaps"]
    names = ("components", "values", "scale", "recipe", "loss", "embeddings", "activations")
    assert [section[name] for name in names] == [
        "ffnn",
        "01",
        "row",
        "bitmaps",
        "common",
        "fp32",
        "float",
    ]
    ours, theirs = (
        bitmaps.load("r"),
        transformers.AutoModelForMaskedLM.from_pretrained("r/model").eval(),
    )
    ids = torch.tensor([[2, 7, 4, 9, 3]])
    torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-5, rtol=0)
    for name, weight in ours.encoder.named_parameters():
        if name.endswith(("ffnn.expand.weight", "ffnn.contract.weight")):
            assert all(len(values.unique()) <= 2 and values.min() == 0 for values in weight)
    assert transformers.AutoTokenizer.from_pretrained("r/model").tokenize("the cat") == [
        "the",
        "cat",
    ]


def test_a_trained_run_scores_the_same_when_it_is_evaluated(command: Command) -> None:
    assert command("train", "binarize=layers", "hydra.run.dir=r", *SHORT)[0] == 0
    code, _, err = command("evaluate", "checkpoint=r", "hydra.run.dir=e", defaults=["measure=none"])
    assert code == 0, err
    trained, again = (
        json.loads(Path(f, "rows.json").read_text(encoding="utf-8")) for f in ("r", "e")
    )
    assert [row["row"] for row in again] == ["unbinarized", "naive", "trained"]
    for kind, sums in sums_of("r").items():
        np.testing.assert_allclose(sums, sums_of("e")[kind], rtol=1e-5, atol=1e-6)
    for name in (
        "cross_entropy",
        "accuracy",
        "mrr",
        "components",
        "values",
        "scale",
        "recipe",
        "loss",
        "steps",
        "memory_mib",
    ):
        assert [row[name] for row in trained] == pytest.approx([row[name] for row in again]), name


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(command: Command) -> None:
    options = ("binarize=layers_except_ffnn", *LEVEL, *SHORT[1:], "measure=none")
    for folder, steps in (("whole", 4), ("parts", 2)):
        assert (
            command("train", f"hydra.run.dir={folder}", *options, f"trainer.max_steps={steps}")[0]
            == 0
        )
    code, _, err = command("train", "resume=parts", "trainer.max_steps=4", defaults=())
    assert code == 0, err
    assert metrics("parts")["steps"] == 4
    whole, parts = (
        torch.load(f"{f}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for f in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert metrics("whole")["cross_entropy"] == metrics("parts")["cross_entropy"]


def test_training_with_nothing_binarized_is_plain_finetuning(command: Command) -> None:
    assert command("train", "binarize=none", "hydra.run.dir=r", *SHORT, "measure=none")[0] == 0
    rows = json.loads(Path("r/rows.json").read_text(encoding="utf-8"))
    assert [row["row"] for row in rows] == ["unbinarized", "trained"]
    assert rows[1]["values"] is None


@pytest.mark.parametrize("components", ["all", "ffnn"])
def test_bf16_accumulation_and_early_stopping_train_binary_layers(
    command: Command, components: str
) -> None:
    precise = ("trainer.precision=bf16-mixed", "trainer.accumulate_grad_batches=2")
    options = (*precise, "callbacks=early_stopping", "scale=row")
    code, _, err = command(
        "train", f"binarize={components}", "hydra.run.dir=r", *options, *SHORT, "measure=none"
    )
    assert code == 0, err
    assert (metrics("r")["steps"], metrics("r")["dtype"]) == (4, "bf16-mixed")
    weight = bitmaps.load("r").get_parameter("encoder.layers.0.ffnn.expand.weight")
    assert weight.dtype == torch.float32
    assert all(len(row.unique()) == 2 for row in weight)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch.compile does things that torch itself warns of
@pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, and there is no g++"
)
def test_compiled_training_gives_what_eager_training_gives(command: Command) -> None:
    for folder, compiled in (("eager", "false"), ("compiled", "true")):
        precise = "trainer.precision=bf16-mixed"
        options = (
            "binarize=all",
            precise,
            f"trainer.compile={compiled}",
            f"hydra.run.dir={folder}",
            "measure=none",
        )
        code, _, err = command("train", *options, *SHORT)
        assert code == 0, err
    assert metrics("compiled")["cross_entropy"] == pytest.approx(
        metrics("eager")["cross_entropy"], abs=5e-2
    )


def test_random_weights_need_no_checkpoint(command: Command, model_folder: Path) -> None:
    shape = "{vocab_size:29,hidden_size:16,num_hidden_layers:1,num_attention_heads:2,intermediate_size:32}"
    given = (
        "model.weights=random",
        f"model.shape={shape}",
        f"model.random_tokenizer={model_folder}",
        "model.source=null",
    )
    code, _, err = command("evaluate", *given, "binarize=all", "hydra.run.dir=r", "measure=none")
    assert code == 0, err
    assert metrics("r")["memory_mib"] < metrics("r")["resident_mib"] / 30
    assert metrics("r")["weights"] == "random"


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("evaluate", ["binarize=fnn"], "layers_except_attention"),
        ("evaluate", ["binarize.components=[fnn]"], "embeddings, attention, ffnn, head"),
        ("evaluate", ["values=02"], "pm1"),
        ("evaluate", ["data=ptbb"], "wiki"),
        ("evaluate", ["seed=abc"], "abc"),
        ("evaluate", ["seed=-1"], "seed=-1"),
        ("evaluate", ["limit=0"], "limit=0"),
        ("evaluate", ["data.dir=/no/such/folder"], "/no/such/folder"),
        (
            "evaluate",
            ["data=wiki", "data.dir=/no/such/folder"],
            "only data=text and data=ptb read it",
        ),
        ("evaluate", ["data.path=me/text"], "only data=hub reads it"),
        ("evaluate", ["binarize=[embeddings,ffnn]"], "'binarize.components=[embeddings,ffnn]'"),
        ("train", ["loss=[common,bwn]"], "several options where one is valid"),
        ("train", ["callbacks.signs=null"], "~callbacks.signs"),
        ("evaluate", ["model.source=/no/such/model"], "/no/such/model"),
        ("evaluate", ["model.adapter=nosuch"], "nosuch"),
        ("evaluate", ["trainer.precision=64"], "bf16-mixed"),
        ("evaluate", ["trainer.accelerator=abacus"], "abacus"),
        ("evaluate", ["data.length=65"], "64 positions"),
        ("evaluate", ["checkpoint=nowhere"], "nowhere"),
        ("evaluate", ["embeddings=int7"], "fp32, fp16, int8, int4, bit"),
        (
            "evaluate",
            ["embeddings=fp16", "binarize=all"],
            "embeddings=fp16 contradicts binarize=all",
        ),
        ("evaluate", ["activations=int4"], "int8"),
        (
            "train",
            ["activations=bit"],
            "one_bit_inputs=query is of attention, which is not binarized",
        ),
        (
            "train",
            ["activations=bit", "binarize=layers", "one_bit_inputs=[]"],
            "query, key, value, output, expand, contract",
        ),
        ("evaluate", ["activations=bit", "binarize=none"], "binarize=none"),
        ("evaluate", ["calibrate=9", "binarize=layers", "scale=row"], "binarize.scope=all"),
        ("evaluate", ["calibrate=9", "binarize=layers", "binarize.scope=matrices"], "scale=none"),
        ("evaluate", ["calibrate=9", "binarize=none"], "binarize=none"),
        ("train", ["calibrate=9", "recipe.center=row"], "recipe.center=row"),
        ("train", ["calibrate=9", "recipe=bwn"], "recipe.scaling=computed"),
        ("evaluate", ["mask_sets=0"], "mask_sets=0"),
        ("evaluate", ["mask_seed=4294967295", "mask_sets=2"], "mask_se"),
        ("train", ["embeddings=int4", "binarize=all"], "embeddings=int4 contradicts binarize=all"),
        ("train", ["loss=best"], "common"),
        ("train", ["loss=tokens", "loss.cross_entropy=0"], "all parts of loss weigh 0"),
        ("train", ["recipe.center=true"], "row"),
        ("train", ["recipe.loss.hidden=1"], "loss"),
        ("train", ["binarize.scope=all"], "matrices"),
        ("train", ["trainer.max_steps=0"], "max_steps=0"),
        ("train", ["trainer.max_steps=250"], "250"),
        ("train", ["optimizer.lr=-1"], "-1"),
        ("train", ["optimizer._target_=torch.optim.Adamw"], "Adamw"),
        ("train", ["recipe=best"], "bitmaps"),
        ("train", ["resume=nowhere"], "nowhere"),
        (
            "train",
            ["trainer.strategy=ddp_spawn", "trainer.devices=2"],
            "trainer.strategy=ddp_spawn is not supported",
        ),
        ("evaluate", ["trainer.strategy=ddp_fork", "trainer.devices=2"], "valid are auto, ddp"),
        ("train", ["-m", "trainer.devices=2", "seed=0,1"], "multirun"),
        ("train", ["-m", "trainer=ddp", "trainer.accelerator=cpu", "seed=0,1"], "multirun"),
    ],
)
def test_bad_input_ends_in_one_clear_error(
    command: Command, name: str, overrides: list[str], message: str
) -> None:
    code, out, err = command(name, *overrides)
    assert code not in (0, None)
    assert message in out + err
    assert "Traceback" not in out + err
    assert len((out + err).splitlines()) < 30
    assert not list(Path().rglob("metrics.json"))


def test_a_damaged_checkpoint_is_refused_before_anything_is_written(
    command: Command, model_folder: Path
) -> None:
    code, _, err = command("evaluate", f"model.sha256={'0' * 64}")
    assert code == 2
    assert "SHA-256" in err
    assert str(model_folder) in err


def test_a_resumed_run_stays_the_run_that_it_was(command: Command) -> None:
    assert command("train", "hydra.run.dir=r", *SHORT, "measure=none")[0] == 0
    for override in (
        "values=01",
        "loss=tokens",
        "loss.hidden=3",
        "embeddings=int8",
        "mask_sets=2",
        "references=false",
    ):
        code, _, err = command("train", "resume=r", override, defaults=())
        assert code == 2
        assert f"{override.split('=')[0]} cannot change" in err
    assert metrics("r")["status"] == "ok"


@pytest.mark.parametrize("copied", [False, True])
def test_a_run_that_was_moved_keeps_its_best_model(command: Command, copied: bool) -> None:
    assert (
        command("train", "hydra.run.dir=old", "trainer.max_steps=2", *SHORT[1:], "measure=none")[0]
        == 0
    )
    last = Path("old/checkpoints/last.ckpt")
    checkpoint = torch.load(last, weights_only=True)
    for state in checkpoint["callbacks"].values():
        if state.get("monitor"):  # so good that no later validation is better
            best = torch.tensor(0.0)
            state |= {
                "best_model_score": best,
                "kth_value": best,
                "best_k_models": {state["best_model_path"]: best},
            }
    torch.save(checkpoint, last)
    if copied:
        shutil.copytree("old", "new")
        Path("old/checkpoints/best.ckpt").write_bytes(b"another model by now")
    else:
        shutil.move("old", "new")
    best_model = Path("new/checkpoints/best.ckpt").read_bytes()
    code, _, err = command("train", "resume=new", "trainer.max_steps=4", defaults=())
    assert code == 0, err
    assert (metrics("new")["steps"], metrics("new")["best_step"]) == (4, 2)
    assert Path("new/checkpoints/best.ckpt").read_bytes() == best_model
    assert torch.load("new/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4


def test_a_run_may_be_resumed_without_one_of_its_callbacks(command: Command) -> None:
    assert (
        command("train", "hydra.run.dir=r", "trainer.max_steps=2", *SHORT[1:], "measure=none")[0]
        == 0
    )
    code, _, err = command(
        "train", "resume=r", "trainer.max_steps=4", "~callbacks.signs", defaults=()
    )
    assert code == 0, err
    assert "signs" not in OmegaConf.load("r/config.yaml").callbacks
    assert metrics("r")["steps"] == 4


def test_a_logger_that_does_not_start_costs_a_finished_run_nothing(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("train", "hydra.run.dir=r", *SHORT, "measure=none")[0] == 0
    before = {file: file.read_bytes() for file in (Path("r/metrics.json"), Path("r/config.yaml"))}

    def nobody(*arguments: Any, **options: Any) -> None:
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(WandbLogger, "log_hyperparams", nobody)
    code, _, err = command("train", "resume=r", "trainer.max_steps=8", "logger=wandb", defaults=())
    assert code == 2
    assert "logger: No API key configured." in err
    assert "choose logger=wandb_offline" in err
    assert {file: file.read_bytes() for file in before} == before


def test_the_best_checkpoint_may_have_another_name(command: Command) -> None:
    code, _, err = command(
        "train", "hydra.run.dir=r", *SHORT, "measure=none", "callbacks.best.filename=mine"
    )
    assert code == 0, err
    assert Path("r/checkpoints/mine.ckpt").is_file()
    code, _, err = command("train", "hydra.run.dir=s", *SHORT, "measure=none", "~callbacks.best")
    assert code == 2
    assert "one ModelCheckpoint with a monitor keeps the best model; there are 0" in err
    assert not Path("s/config.yaml").exists()


def test_resuming_on_other_devices_keeps_the_number_of_steps(command: Command) -> None:
    assert command("train", "hydra.run.dir=r", *SHORT, "measure=none")[0] == 0
    began = metrics("r")["command"]
    code, _, err = command("train", "resume=r", "trainer=cpu", defaults=())
    assert code == 0, err
    assert OmegaConf.load("r/config.yaml").trainer.max_steps == 4
    assert began.startswith("python train.py ")
    assert metrics("r")["command"] == f"{began} trainer=cpu"  # which makes the same run
    assert command("train", "resume=r", "trainer=cpu", defaults=())[0] == 0
    assert metrics("r")["command"] == f"{began} trainer=cpu"  # and may be typed: no group twice


def test_a_run_is_resumed_in_its_own_folder_alone(command: Command) -> None:
    assert command("train", "hydra.run.dir=r", *SHORT, "measure=none")[0] == 0
    assert command("train", "hydra.run.dir=other", *SHORT, "seed=1", "measure=none")[0] == 0
    before = Path("other/metrics.json").read_bytes()
    code, _, err = command("train", "resume=r", "hydra.run.dir=other", defaults=())
    assert code == 2
    assert "its own folder" in err
    assert Path("other/metrics.json").read_bytes() == before


def test_a_sweep_is_never_written_over_another(command: Command) -> None:
    sweep = ("-m", "binarize=none,all", "hydra.sweep.dir=s", "measure=none", "limit=20")
    assert command("evaluate", *sweep)[0] == 0
    before = {path: path.read_bytes() for path in Path("s").rglob("*.json")}
    code, _, err = command("evaluate", *sweep)
    assert code != 0
    assert "already holds a sweep" in err
    assert before == {path: path.read_bytes() for path in Path("s").rglob("*.json")}


def test_every_trained_run_of_a_sweep_has_a_row(command: Command) -> None:
    code, out, err = command(
        "train", "-m", "optimizer.lr=1e-3,5e-4", "hydra.sweep.dir=s", *SHORT, "measure=none"
    )
    assert code == 0, err
    assert out.count("trained") == 2
    assert out.count("unbinarized") == 1


def test_a_checkpoint_is_scored_on_its_own_text_also_on_another_split(
    command: Command, text_folder: Path
) -> None:
    assert command("train", "hydra.run.dir=r", *SHORT, "measure=none")[0] == 0
    code, _, err = command(
        "evaluate", "checkpoint=r", "data.split=test", "hydra.run.dir=e", defaults=["measure=none"]
    )
    assert code == 0, err
    assert (metrics("e")["data"], metrics("e")["split"]) == (str(text_folder), "test")
    assert metrics("e")["masked_tokens"] < metrics("r")["masked_tokens"]


def test_a_checkpoint_decides_what_is_binarized(command: Command) -> None:
    assert command("train", "hydra.run.dir=r", *SHORT, "measure=none")[0] == 0
    for override in ("binarize=all", "values=01", "scale=row", "calibrate=9", "binarize.scope=all"):
        code, _, err = command("evaluate", "checkpoint=r", override, defaults=())
        assert code == 2
        assert f"{override.split('=')[0]} is what" in err
        assert "leave it out" in err


# What is new in a row: sets of masks, sentences, references, and how the word table and what enters a matrix are stored


def loss_of(model: Bert, model_folder: Path, text_folder: Path, mask_seed: int = 481) -> float:
    """Cross entropy on the validation split, sentence by sentence."""
    source, losses = Source("text", dir=str(text_folder)), []
    for _, ids, labels in masked(source, "validation", str(model_folder), 64, None, mask_seed):
        kept = torch.from_numpy(labels != -100)
        with torch.no_grad():
            logits = model(torch.from_numpy(ids)[None])[0, kept]
        losses.append(
            F.cross_entropy(logits.double(), torch.from_numpy(labels)[kept], reduction="none")
        )
    return torch.cat(losses).mean().item()


def whole_numbers(x: Tensor, largest: int) -> Tensor:
    """Each row to the nearest whole multiple of its own magnitude over ``largest``. In fp32: of two that are as near, or nearly
    so, other precisions take the other one, and a loss that follows from it differs as much as by rounding at all."""
    step = np.abs(x.numpy()).max(-1, keepdims=True) / np.float32(largest)
    return torch.from_numpy(np.rint(x.numpy() / np.where(step > 0, step, np.float32(1))) * step)


def with_words(model: Bert, words: Tensor) -> Bert:
    """The model with another word table and decoder."""
    with torch.no_grad():
        model.get_parameter("embeddings.word.weight").copy_(words)
    return model


def with_int8_inputs(model: Bert, *blocks: str) -> Bert:
    """The model with the inputs of the linear layers of these blocks rounded to int8, token by token."""
    for name, layer in model.encoder.named_modules():
        if isinstance(layer, nn.Linear) and any(f".{block}." in f".{name}." for block in blocks):
            layer.register_forward_pre_hook(lambda _, inputs: (whole_numbers(inputs[0], 127),))
    return model


WORDS_AND_SPECIAL = len(WORDS) + 5
BITS = {  # of a word table of rows of 32 numbers
    "fp32": 32 * 32 * WORDS_AND_SPECIAL,
    "fp16": 16 * 32 * WORDS_AND_SPECIAL,
    "int8": (8 * 32 + 32) * WORDS_AND_SPECIAL,
    "int4": (4 * 32 + 32) * WORDS_AND_SPECIAL,
    "bit": (32 + 32) * WORDS_AND_SPECIAL,
}


@pytest.mark.parametrize(
    ("name", "overrides", "kinds"),
    [
        ("evaluate", ["binarize=none"], {"unbinarized"}),
        ("evaluate", ["binarize=all", "mask_sets=2"], {"naive"}),
        ("train", ["binarize=ffnn", *SHORT, "mask_sets=3"], {"unbinarized", "naive", "trained"}),
        ("train", ["binarize=none", *SHORT], {"unbinarized", "trained"}),
    ],
)
def test_the_sentences_of_a_run_give_the_scores_of_each_of_its_rows(
    command: Command, name: str, overrides: list[str], kinds: set[str]
) -> None:
    code, _, err = command(name, *overrides, "hydra.run.dir=r", "measure=none")
    assert code == 0, err
    rows, sums = rows_of("r"), sums_of("r")
    assert set(sums) == set(rows) == kinds
    for kind, row in rows.items():
        assert sums[kind].shape == (60, 4)
        assert sums[kind].dtype == np.float64
        assert_sums_give(sums[kind], row)
    counts = [found[:, 0].tolist() for found in sums.values()]
    assert all(
        count == counts[0] for count in counts
    )  # so that rows can be compared sentence by sentence


def test_what_a_sentence_comes_to_does_not_depend_on_the_batches(command: Command) -> None:
    for folder, size in (("a", 7), ("b", 64)):
        options = ("binarize=layers", f"data.eval_batch_size={size}", "mask_sets=2", "measure=none")
        assert command("evaluate", *options, f"hydra.run.dir={folder}")[0] == 0
    np.testing.assert_allclose(sums_of("a")["naive"], sums_of("b")["naive"], rtol=1e-4)


def test_sets_of_masks_are_scored_together(command: Command) -> None:
    assert (
        command("evaluate", "mask_sets=3", "mask_seed=5", "hydra.run.dir=r", "measure=none")[0] == 0
    )
    for seed in (5, 6, 7):
        assert (
            command("evaluate", f"mask_seed={seed}", f"hydra.run.dir={seed}", "measure=none")[0]
            == 0
        )
    together, singly = metrics("r"), [metrics(str(seed)) for seed in (5, 6, 7)]
    assert (together["mask_sets"], singly[0]["mask_sets"]) == (3, 1)
    counts = [row["masked_tokens"] for row in singly]
    assert together["masked_tokens"] == sum(counts)
    for name in SCORES:
        mean = np.average([row[name] for row in singly], weights=counts)
        assert together[name] == pytest.approx(mean, rel=1e-6)
    sums = sum(sums_of(str(seed))["unbinarized"] for seed in (5, 6, 7))
    np.testing.assert_allclose(sums_of("r")["unbinarized"], sums, rtol=1e-5)


def curve(folder: str, name: str) -> list[float]:
    with (Path(folder) / "logs" / "version_0" / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def test_validation_while_fitting_takes_the_first_set_of_masks_alone(command: Command) -> None:
    for folder, sets in (("one", 1), ("three", 3)):
        options = (
            "references=false",
            f"mask_sets={sets}",
            f"hydra.run.dir={folder}",
            "measure=none",
        )
        assert command("train", *options, *SHORT)[0] == 0
    assert curve("three", "val/cross_entropy") == curve("one", "val/cross_entropy")
    assert set(curve("three", "val/masked_tokens")) == {metrics("one")["masked_tokens"]}
    assert metrics("three")["masked_tokens"] > 2 * metrics("one")["masked_tokens"]


@pytest.mark.parametrize(
    ("words", "known"), [("the cat sat", 1), ("xyzzy plugh", 0), ("the plugh", None)]
)
def test_known_scores_leave_out_what_the_tokenizer_does_not_know(
    command: Command, tmp_path: Path, words: str, known: int | None
) -> None:
    text = "\n".join([" ".join([words] * 3)] * 40)
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.txt").write_text(text, encoding="utf-8")
    code, _, err = command("evaluate", f"data.dir={tmp_path}", "hydra.run.dir=r", "measure=none")
    assert code == 0, err
    assert "UserWarning" not in err
    row = metrics("r")
    if known is None:
        assert 0 < row["known"]["masked_tokens"] < row["masked_tokens"]
        assert row["known"]["cross_entropy"] != row["cross_entropy"]
    else:
        assert row["known"]["masked_tokens"] == known * row["masked_tokens"]
        assert [row["known"][name] for name in SCORES] == (
            [row[name] for name in SCORES] if known else [None] * 3
        )


def test_without_references_a_run_has_its_own_row_alone(command: Command) -> None:
    alone = ("references=false", "measure=none")
    assert command("train", "binarize=ffnn", "hydra.run.dir=whole", *SHORT, "measure=none")[0] == 0
    assert command("train", "binarize=ffnn", "hydra.run.dir=r", *SHORT, *alone)[0] == 0
    code, _, err = command("evaluate", "checkpoint=r", "hydra.run.dir=e", defaults=alone)
    assert code == 0, err
    options = ("calibrate=8", "binarize=layers", "binarize.scope=matrices", "scale=row")
    assert command("evaluate", *options, "hydra.run.dir=c", *alone)[0] == 0
    for folder, kind in (("r", "trained"), ("e", "trained"), ("c", "calibrated")):
        assert list(rows_of(folder)) == list(sums_of(folder)) == [kind]
    for folder in ("r", "e"):
        assert [metrics(folder)[name] for name in SCORES] == pytest.approx(
            [metrics("whole")[name] for name in SCORES]
        )


@pytest.mark.parametrize("stored", BITS)
def test_a_word_table_is_stored_as_asked(
    command: Command, model_folder: Path, text_folder: Path, stored: str
) -> None:
    for folder, embeddings in (("plain", "null"), ("r", stored)):
        code, _, err = command(
            "evaluate", f"embeddings={embeddings}", f"hydra.run.dir={folder}", "measure=none"
        )
        assert code == 0, err
    plain, row = metrics("plain"), metrics("r")
    assert (plain["embeddings"], row["embeddings"], row["components"]) == ("fp32", stored, "none")
    saved = (plain["memory_mib"] - row["memory_mib"]) * 8 * 2**20
    assert saved == pytest.approx(BITS["fp32"] - BITS[stored], abs=1e-6)
    assert row["resident_mib"] == plain["resident_mib"]
    if stored in ("int8", "int4"):
        model = bitmaps.load(model_folder)
        words = model.get_parameter("embeddings.word.weight").detach()
        model = with_words(model, whole_numbers(words, {"int8": 127, "int4": 7}[stored]))
        assert row["cross_entropy"] == pytest.approx(
            loss_of(model, model_folder, text_folder), rel=1e-5
        )
    assert (row["cross_entropy"] == plain["cross_entropy"]) is (stored == "fp32")


def test_a_word_table_is_stored_beside_layers_that_are_binarized(command: Command) -> None:
    layers = ("binarize=layers", "measure=none")
    assert command("evaluate", *layers, "hydra.run.dir=plain")[0] == 0
    assert command("evaluate", *layers, "embeddings=int8", "hydra.run.dir=r")[0] == 0
    plain, row = metrics("plain"), metrics("r")
    assert (row["row"], row["components"], row["embeddings"]) == ("naive", "layers", "int8")
    assert (plain["memory_mib"] - row["memory_mib"]) * 8 * 2**20 == pytest.approx(
        BITS["fp32"] - BITS["int8"], abs=1e-6
    )


def test_a_word_table_in_bits_has_rows_of_two_values_when_it_is_trained(command: Command) -> None:
    options = ("embeddings=bit", "scale=row", "binarize=ffnn", "references=false", "measure=none")
    assert command("train", *options, "hydra.run.dir=r", *SHORT)[0] == 0
    assert metrics("r")["embeddings"] == "bit"
    table = bitmaps.load("r").get_parameter("embeddings.word.weight")
    assert all(len(row.unique()) == 2 for row in table)


def test_signs_of_rank_one_are_what_is_trained_by_default(command: Command) -> None:
    assert (
        command(
            "train", "binarize=ffnn", "hydra.run.dir=r", *SHORT, "references=false", "measure=none"
        )[0]
        == 0
    )
    assert metrics("r")["scale"] == "rank_one"
    for name, weight in bitmaps.load("r").encoder.named_parameters():
        if name.endswith(("ffnn.expand.weight", "ffnn.contract.weight")):
            profile = weight.abs() / weight.abs().mean(1, keepdim=True)
            torch.testing.assert_close(profile, profile[:1].expand_as(profile))
            assert profile[0].std() > 1e-3
            assert 0.2 < (weight > 0).float().mean() < 0.8


def test_zeros_and_ones_may_have_scales_of_rank_one(command: Command) -> None:
    options = (
        "binarize=layers",
        "binarize.scope=matrices",
        "scale=rank_one",
        "values=01",
        "measure=none",
    )
    code, _, err = command("evaluate", *options, "hydra.run.dir=r")
    assert code == 0, err
    assert (metrics("r")["scale"], metrics("r")["values"]) == ("rank_one", "01")


@pytest.fixture
def trained(command: Command) -> Command:
    """A run of which the layers are in one bit, in the folder ``r``."""
    code, _, err = command(
        "train", "binarize=layers", "hydra.run.dir=r", *SHORT, "references=false", "measure=none"
    )
    assert code == 0, err
    return command


def test_a_run_is_scored_alone_without_the_model_that_it_came_from(
    trained: Command, model_folder: Path, tmp_path: Path
) -> None:
    config = OmegaConf.load("r/config.yaml")
    config.model.source = str(tmp_path / "not here")
    OmegaConf.save(config, "r/config.yaml")
    code, _, err = trained(
        "evaluate", "checkpoint=r", "hydra.run.dir=with", defaults=["measure=none"]
    )
    assert code == 2
    assert "not here holds no model" in err
    alone = ("references=false", "measure=none")
    code, _, err = trained("evaluate", "checkpoint=r", "hydra.run.dir=alone", defaults=alone)
    assert code == 0, err
    assert [metrics("alone")[name] for name in SCORES] == pytest.approx(
        [metrics("r")[name] for name in SCORES]
    )
    assert metrics("alone")["model"] == str(tmp_path / "not here")


@pytest.mark.parametrize(
    ("binarize", "activations", "message"),
    [
        ("ffnn", "bit", "one_bit_inputs=query is of attention, which is not binarized"),
        (
            "none",
            "int8",
            "activations=int8 rounds what enters binarized matrices: binarize=none has none",
        ),
    ],
)
def test_activations_that_enter_no_binarized_matrix_are_not_said_to_be_rounded(
    command: Command, binarize: str, activations: str, message: str
) -> None:
    options = (
        f"binarize={binarize}",
        "hydra.run.dir=r",
        *SHORT,
        "references=false",
        "measure=none",
    )
    assert command("train", *options)[0] == 0
    code, _, err = command(
        "evaluate", "checkpoint=r", f"activations={activations}", "hydra.run.dir=e", defaults=()
    )
    assert code == 2
    assert message in err
    assert not Path("e/metrics.json").exists()


def test_the_word_table_of_a_trained_run_is_stored_in_int8_afterwards(
    trained: Command, model_folder: Path, text_folder: Path
) -> None:
    code, _, err = trained(
        "evaluate", "checkpoint=r", "embeddings=int8", "hydra.run.dir=e", defaults=["measure=none"]
    )
    assert code == 0, err
    rows, before = rows_of("e"), metrics("r")
    assert {kind: row["embeddings"] for kind, row in rows.items()} == {
        "unbinarized": "fp32", "naive": "fp32", "trained": "int8"
    }  # fmt: skip
    after = metrics("e")
    assert (after["recipe"], after["loss"], after["steps"], after["activations"]) == (
        "bitmaps",
        "common",
        4,
        "float",
    )
    saved = (before["memory_mib"] - after["memory_mib"]) * 8 * 2**20
    assert saved == pytest.approx(BITS["fp32"] - BITS["int8"], abs=1e-6)
    model = bitmaps.load("r")
    model = with_words(
        model, whole_numbers(model.get_parameter("embeddings.word.weight").detach(), 127)
    )
    assert after["cross_entropy"] == pytest.approx(
        loss_of(model, model_folder, text_folder), rel=1e-5
    )
    assert after["cross_entropy"] != before["cross_entropy"]


def test_what_enters_the_matrices_of_a_trained_run_is_rounded_afterwards(
    trained: Command, model_folder: Path, text_folder: Path
) -> None:
    options = ("activations=int8", "embeddings=int4", "hydra.run.dir=e")
    code, _, err = trained("evaluate", "checkpoint=r", *options, defaults=["measure=none"])
    assert code == 0, err
    assert [(row["row"], row["activations"], row["embeddings"]) for row in rows_of("e").values()] == [
        ("unbinarized", "float", "fp32"), ("naive", "float", "fp32"), ("trained", "int8", "int4")
    ]  # fmt: skip
    model = bitmaps.load("r")
    model = with_words(
        model, whole_numbers(model.get_parameter("embeddings.word.weight").detach(), 7)
    )
    unrounded = loss_of(model, model_folder, text_folder)
    expected = loss_of(with_int8_inputs(model, "attention", "ffnn"), model_folder, text_folder)
    assert abs(expected - unrounded) > 1e-5
    assert metrics("e")["cross_entropy"] == pytest.approx(
        expected, abs=0.1 * abs(expected - unrounded)
    )
    plain = loss_of(bitmaps.load(model_folder), model_folder, text_folder)
    assert rows_of("e")["unbinarized"]["cross_entropy"] == pytest.approx(plain, rel=1e-6)


def test_a_run_may_be_trained_with_rounded_inputs(
    command: Command, model_folder: Path, text_folder: Path
) -> None:
    options = ("binarize=ffnn", "activations=int8", "hydra.run.dir=r", "measure=none")
    code, _, err = command("train", *options, *SHORT)
    assert code == 0, err
    rows = rows_of("r")
    assert {kind: row["activations"] for kind, row in rows.items()} == {
        "unbinarized": "float", "naive": "float", "trained": "int8"
    }  # fmt: skip
    unrounded = loss_of(bitmaps.load("r"), model_folder, text_folder)
    expected = loss_of(with_int8_inputs(bitmaps.load("r"), "ffnn"), model_folder, text_folder)
    assert rows["trained"]["cross_entropy"] == pytest.approx(
        expected, abs=0.1 * abs(expected - unrounded)
    )

    code, _, err = command("evaluate", "checkpoint=r", "hydra.run.dir=e", defaults=["measure=none"])
    assert code == 0, err
    assert metrics("e")["activations"] == "int8"
    assert [metrics("e")[name] for name in SCORES] == pytest.approx(
        [rows["trained"][name] for name in SCORES]
    )
    code, _, err = command("evaluate", "checkpoint=r", "activations=float", defaults=())
    assert code == 2
    assert "activations is int8 in checkpoint=r" in err


def test_a_run_may_be_trained_on_the_signs_of_its_inputs(
    command: Command, model_folder: Path, text_folder: Path
) -> None:
    options = (
        "binarize=layers",
        "activations=bit",
        "one_bit_inputs=[query,key,value,contract]",
        "measure=none",
    )
    # with scales a column the packed model would round what it has multiplied with them, and other signs would come of it
    code, _, err = command("train", *options, "scale=row", "hydra.run.dir=r", *SHORT)
    assert code == 0, err
    rows = rows_of("r")
    assert [(row["activations"], row["one_bit_inputs"]) for row in rows.values()] == [
        ("float", None), ("float", None), ("bit", "query+key+value+contract")
    ]  # fmt: skip
    trained = rows["trained"]["cross_entropy"]
    # what is loaded rounds to signs; that the other inputs are int8 changes little
    found = loss_of(bitmaps.load("r"), model_folder, text_folder)
    without = loss_of(bitmaps.bert.checkpoint.load("r"), model_folder, text_folder)
    assert abs(found - trained) < 0.2 * abs(without - trained)

    code, _, err = command("evaluate", "checkpoint=r", "hydra.run.dir=e", defaults=["measure=none"])
    assert code == 0, err
    assert metrics("e")["cross_entropy"] == pytest.approx(trained, rel=1e-5)
    code, _, err = command(
        "evaluate", "checkpoint=r/packed", "hydra.run.dir=p", defaults=["measure=none"]
    )
    assert code == 0, err
    packed = rows_of("p")
    assert packed["trained"]["cross_entropy"] == pytest.approx(trained, rel=1e-5)
    assert packed["packed"]["cross_entropy"] == pytest.approx(trained, rel=1e-5)
    assert abs(packed["packed"]["cross_entropy"] - trained) < 0.2 * abs(without - trained)
    assert [(row["activations"], row["one_bit_inputs"]) for row in packed.values()][2:] == [
        ("bit", "query+key+value+contract")
    ] * 2
    ids, exact = torch.tensor([[2, 7, 4, 9, 3]]), bitmaps.bert.checkpoint.load("r")
    for name, layer in exact.encoder.named_modules():
        if name.endswith(("query", "key", "value", "contract")):
            layer.register_forward_pre_hook(lambda _, inputs: (signs(inputs[0]),))
    torch.testing.assert_close(
        bitmaps.load("r/packed", act="f32")(ids), exact(ids), atol=1e-3, rtol=0
    )
    for name in ("train", "evaluate"):  # one cannot start from it
        code, _, err = command(name, "model.source=r", f"hydra.run.dir=new_{name}")
        assert code == 2
        assert "model.source=r was trained with activations=bit" in err
    for checkpoint, message in (
        ("r", "activations is bit in checkpoint=r"),
        ("r/packed", "valid are float, int8"),
    ):
        code, _, err = command(
            "evaluate", f"checkpoint={checkpoint}", "activations=bit", defaults=()
        )
        assert code == 2
        assert message in err


def test_a_run_may_be_trained_with_a_word_table_in_int8(command: Command) -> None:
    options = (
        "binarize=ffnn",
        "embeddings=int8",
        "hydra.run.dir=r",
        "references=false",
        "measure=none",
    )
    code, _, err = command("train", *options, *SHORT)
    assert code == 0, err
    table = bitmaps.load("r").get_parameter("embeddings.word.weight").detach()
    torch.testing.assert_close(whole_numbers(table, 127), table, rtol=1e-6, atol=1e-8)
    assert all(len(row.unique()) > 2 for row in table[1:])
    assert metrics("r")["embeddings"] == "int8"
    code, _, err = command(
        "evaluate", "checkpoint=r", "references=false", "hydra.run.dir=e", defaults=["measure=none"]
    )
    assert code == 0, err
    for name in (*SCORES, "embeddings", "memory_mib"):
        assert metrics("e")[name] == pytest.approx(metrics("r")[name]), name
    code, _, err = command("evaluate", "checkpoint=r", "embeddings=fp16", defaults=())
    assert code == 2
    assert "embeddings is int8 in checkpoint=r" in err


def test_a_run_with_its_word_table_in_one_bit_cannot_get_another_afterwards(
    command: Command,
) -> None:
    assert (
        command(
            "train", "binarize=all", "hydra.run.dir=r", *SHORT, "references=false", "measure=none"
        )[0]
        == 0
    )
    code, _, err = command("evaluate", "checkpoint=r", "embeddings=int8", defaults=())
    assert code == 2
    assert "embeddings is bit in checkpoint=r" in err


def test_a_checkpoint_may_be_scored_on_more_masks(trained: Command) -> None:
    code, _, err = trained(
        "evaluate", "checkpoint=r", "mask_sets=4", "hydra.run.dir=e", defaults=["measure=none"]
    )
    assert code == 0, err
    assert metrics("e")["mask_sets"] == 4
    assert metrics("e")["masked_tokens"] > 3 * metrics("r")["masked_tokens"]


@pytest.mark.parametrize("scale", ["row", "rank_one"])
def test_calibration_has_a_row_beside_its_references(command: Command, scale: str) -> None:
    options = ("binarize=layers", "binarize.scope=matrices", f"scale={scale}", "measure=none")
    code, _, err = command(
        "evaluate", "calibrate=8", "data.batch_size=8", *options, "hydra.run.dir=r"
    )
    assert code == 0, err
    rows = rows_of("r")
    assert list(rows) == list(sums_of("r")) == ["unbinarized", "naive", "calibrated"]
    assert [row["calibrated_on"] for row in rows.values()] == [0, 0, 8]
    assert [(row["components"], row["scale"], row["scope"]) for row in rows.values()] == [
        ("none", None, None),
        ("layers", "none", "all"),
        ("layers", scale, "matrices"),
    ]
    assert metrics("r")["row"] == "calibrated"
    assert metrics("r")["steps"] == 0
    for kind, row in rows.items():
        assert_sums_give(sums_of("r")[kind], row)
    assert command("evaluate", *options, "hydra.run.dir=scaled")[0] == 0
    scaled, calibrated = metrics("scaled"), rows["calibrated"]
    assert (scaled["row"], scaled["calibrated_on"], scaled["scope"]) == ("naive", 0, "matrices")
    assert calibrated["cross_entropy"] != scaled["cross_entropy"] != rows["naive"]["cross_entropy"]
    assert calibrated["memory_mib"] < rows["unbinarized"]["memory_mib"]
    assert command("evaluate", "binarize=layers", "measure=none", "hydra.run.dir=naive")[0] == 0
    assert (
        rows["naive"]["cross_entropy"] == metrics("naive")["cross_entropy"]
    )  # of the model as it came


@pytest.mark.parametrize(
    ("components", "values", "scale", "rotated"),
    [
        ("layers", "pm1", "row", True),
        ("attention", "pm1", "rank_one", True),
        ("ffnn", "pm1", "row", False),
        ("layers", "01", "row", False),
    ],
)
def test_calibration_is_of_rotated_heads_where_attention_has_two_opposite_values(
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    components: str,
    values: str,
    scale: str,
    rotated: bool,
) -> None:
    found: list[tuple[object, ...]] = []

    def rotate(model: Bert, *how: object) -> None:
        rotate_heads(model, *how)  # type: ignore[arg-type]
        found.append(how)

    monkeypatch.setattr("bitmaps.jobs.jobs.rotate_heads", rotate)
    options = (
        f"binarize={components}",
        f"values={values}",
        "binarize.scope=matrices",
        f"scale={scale}",
    )
    options += ("references=false", "measure=none")
    assert command("evaluate", *options, "hydra.run.dir=scaled")[0] == 0
    assert not found
    code, _, err = command("evaluate", "calibrate=8", *options, "hydra.run.dir=r")
    assert code == 0, err
    assert found == [(scale,)] * 2 * rotated  # what is binarized, and what it is fitted to


def test_more_sentences_than_there_are_to_calibrate_on_are_all_of_them(command: Command) -> None:
    options = (
        "binarize=ffnn",
        "binarize.scope=matrices",
        "scale=row",
        "references=false",
        "measure=none",
    )
    for asked, found in (
        (9, 16),
        (1000, 200),
    ):  # whole batches, of the 200 sentences that there are
        code, _, err = command(
            "evaluate",
            f"calibrate={asked}",
            "data.batch_size=8",
            *options,
            f"hydra.run.dir={asked}",
        )
        assert code == 0, err
        assert metrics(str(asked))["calibrated_on"] == found
    assert metrics("9")["cross_entropy"] != metrics("1000")["cross_entropy"]


CALIBRATED = ("calibrate=8", "binarize=layers", "measure=none")


def test_a_training_may_begin_where_calibration_ends(command: Command) -> None:
    still = ("optimizer.lr=0", "optimizer.weight_decay=0")
    for folder, options in (("plain", CALIBRATED[1:]), ("r", CALIBRATED)):
        code, _, err = command("train", *options, *SHORT, *still, f"hydra.run.dir={folder}")
        assert code == 0, err
    rows = rows_of("r")
    assert {kind: row["calibrated_on"] for kind, row in rows.items()} == {
        "unbinarized": 0,
        "naive": 0,
        "trained": 8,
    }
    assert metrics("plain")["calibrated_on"] == 0
    assert (rows["trained"]["steps"], rows["trained"]["recipe"]) == (4, "bitmaps")
    scored = (
        "calibrate=8",
        "binarize=layers",
        "binarize.scope=matrices",
        "scale=rank_one",
        "data.batch_size=8",
    )
    assert (
        command("evaluate", *scored, "references=false", "measure=none", "hydra.run.dir=e")[0] == 0
    )
    assert metrics("r")["cross_entropy"] == pytest.approx(metrics("e")["cross_entropy"], rel=1e-5)
    assert metrics("r")["cross_entropy"] != pytest.approx(
        metrics("plain")["cross_entropy"], rel=1e-3
    )


def test_a_calibrated_training_is_resumed_without_calibrating_again(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("train", *CALIBRATED, *LEVEL, *SHORT, "hydra.run.dir=whole")[0] == 0
    assert (
        command(
            "train", *CALIBRATED, *LEVEL, "trainer.max_steps=2", *SHORT[1:], "hydra.run.dir=parts"
        )[0]
        == 0
    )
    monkeypatch.setattr("bitmaps.jobs.jobs.calibrate", lambda *_: pytest.fail("calibrated again"))
    code, _, err = command("train", "resume=parts", "trainer.max_steps=4", defaults=())
    assert code == 0, err
    assert (metrics("parts")["steps"], metrics("parts")["calibrated_on"]) == (4, 8)
    assert metrics("parts")["cross_entropy"] == metrics("whole")["cross_entropy"]
    code, _, err = command("train", "resume=parts", "calibrate=0", defaults=())
    assert code == 2
    assert "calibrate cannot change" in err


def test_every_part_of_the_loss_has_a_curve(command: Command) -> None:
    parts = ("cross_entropy", "logits", "hidden", "directions", "attention", "relations")
    options = [f"loss.{part}=0.5" for part in parts]
    code, _, err = command(
        "train", *options, "binarize=layers", "trainer.precision=bf16-mixed", "trainer.log_every_n_steps=1", *SHORT,
        "references=false", "hydra.run.dir=r", "measure=none",
    )  # fmt: skip
    assert code == 0, err
    curves = {part: curve("r", f"train/{part}") for part in parts}
    assert all(len(found) == 4 and min(found) > 0 for found in curves.values())
    np.testing.assert_allclose(
        curve("r", "train/loss"), 0.5 * np.sum(list(curves.values()), 0), rtol=1e-4
    )


def test_jobs_of_a_sweep_that_share_their_row_share_its_sentences(command: Command) -> None:
    assert (
        command(
            "evaluate", "-m", "binarize=none", "values=01,pm1", "hydra.sweep.dir=s", "measure=none"
        )[0]
        == 0
    )
    assert metrics("s/0")["cross_entropy"] == metrics("s/1")["cross_entropy"]
    for job in ("s/0", "s/1"):
        assert_sums_give(sums_of(job)["unbinarized"], metrics(job))


def test_a_word_table_in_one_bit_has_a_row_for_each_value_set_of_a_sweep(command: Command) -> None:
    sweep = (
        "-m",
        "binarize=none",
        "embeddings=bit",
        "values=01,pm1",
        "hydra.sweep.dir=s",
        "measure=none",
    )
    assert command("evaluate", *sweep)[0] == 0
    alone = ("binarize=none", "embeddings=bit", "values=pm1", "measure=none")
    assert command("evaluate", *alone, "hydra.run.dir=r")[0] == 0
    assert metrics("s/1")["cross_entropy"] == metrics("r")["cross_entropy"]
    assert metrics("s/0")["cross_entropy"] != metrics("s/1")["cross_entropy"]


# Packed models

SCORED = ("measure=none",)


def test_training_writes_the_model_in_real_bits_too(trained: Command) -> None:
    ids = torch.tensor([[2, 7, 4, 9, 3]])
    packed, plain = bitmaps.load("r/packed", act="f32"), bitmaps.load("r")
    torch.testing.assert_close(packed(ids), plain(ids), atol=1e-4, rtol=0)
    assert packed.config == plain.config
    assert packed.config.bitmaps is not None
    assert packed.config.bitmaps["embeddings"] == "fp32"
    assert (
        Path("r/packed/model.safetensors").stat().st_size
        < Path("r/model/model.safetensors").stat().st_size / 2
    )
    assert transformers.AutoTokenizer.from_pretrained("r/packed").tokenize("the cat") == [
        "the",
        "cat",
    ]
    assert not [path.name for path in Path("r").iterdir() if "draft" in path.name]


@pytest.mark.parametrize("options", [["binarize=ffnn", "packed=false"], ["binarize=none"]])
def test_training_writes_no_real_bits_where_there_are_none_or_none_are_wanted(
    command: Command, options: list[str]
) -> None:
    code, _, err = command(
        "train", *options, "hydra.run.dir=r", *SHORT, "references=false", "measure=none"
    )
    assert code == 0, err
    assert Path("r/model/config.json").is_file()
    assert not Path("r/packed").exists()


def test_a_word_table_alone_is_a_reason_for_real_bits(command: Command) -> None:
    options = (
        "binarize=none",
        "embeddings=int8",
        "hydra.run.dir=r",
        "references=false",
        "measure=none",
    )
    code, _, err = command("train", *options, *SHORT)
    assert code == 0, err
    assert {name for name in load_file("r/packed/model.safetensors") if "word" in name} == {
        "bert.embeddings.word_embeddings.weight.int8", "bert.embeddings.word_embeddings.weight.scale"
    }  # fmt: skip


def test_a_run_that_is_resumed_has_the_later_model_in_real_bits(command: Command) -> None:
    short = ("binarize=ffnn", "hydra.run.dir=r", "references=false", "measure=none")
    assert command("train", *short, "trainer.max_steps=2", *SHORT[1:])[0] == 0
    before = Path("r/packed/model.safetensors").read_bytes()
    code, _, err = command("train", "resume=r", "trainer.max_steps=4", defaults=())
    assert code == 0, err
    assert Path("r/packed/model.safetensors").read_bytes() != before
    assert bitmaps.load("r/packed").config.bitmaps["steps"] == 4  # type: ignore[index]
    ids = torch.tensor([[2, 7, 4, 9, 3]])
    torch.testing.assert_close(
        bitmaps.load("r/packed", act="f32")(ids), bitmaps.load("r")(ids), atol=1e-4, rtol=0
    )


def test_a_packed_model_is_nothing_to_start_from(trained: Command) -> None:
    for name in ("train", "evaluate"):
        code, _, err = trained(name, "model.source=r/packed", f"hydra.run.dir={name}")
        assert code == 2
        assert "model.source=r/packed is packed: score it with evaluate.py checkpoint=" in err
        assert not Path(name, "config.yaml").exists()


def test_a_packed_model_is_scored_beside_what_it_was_made_of(
    trained: Command, model_folder: Path, text_folder: Path
) -> None:
    code, out, err = trained("evaluate", "checkpoint=r/packed", "hydra.run.dir=e", defaults=SCORED)
    assert code == 0, err
    rows, before = rows_of("e"), metrics("r")
    assert list(rows) == list(sums_of("e")) == ["unbinarized", "naive", "trained", "packed"]
    assert "packed" in out
    assert [row["activations"] for row in rows.values()] == ["float", "float", "float", "int8"]
    assert metrics("e")["row"] == "packed"
    assert [rows["trained"][name] for name in SCORES] == pytest.approx(
        [before[name] for name in SCORES], rel=1e-4
    )
    for name in ("recipe", "loss", "steps", "components", "values", "scale", "scope", "embeddings"):
        assert rows["packed"][name] == rows["trained"][name] == before[name], name
    plain = loss_of(bitmaps.load(model_folder), model_folder, text_folder)
    assert rows["unbinarized"]["cross_entropy"] == pytest.approx(plain, rel=1e-5)
    packed = loss_of(bitmaps.load("r/packed"), model_folder, text_folder)
    assert rows["packed"]["cross_entropy"] == pytest.approx(packed, rel=1e-3)
    assert 0 < abs(rows["packed"]["cross_entropy"] - rows["trained"]["cross_entropy"]) < 0.05
    assert rows["packed"]["memory_mib"] == pytest.approx(rows["trained"]["memory_mib"], rel=1e-6)
    assert rows["packed"]["resident_mib"] < rows["trained"]["resident_mib"] / 2
    for kind, row in rows.items():
        assert_sums_give(sums_of("e")[kind], row)


def test_a_packed_model_may_be_scored_alone_and_without_rounding(trained: Command) -> None:
    options = ("references=false", "activations=float", "hydra.run.dir=e")
    code, _, err = trained("evaluate", "checkpoint=r/packed", *options, defaults=SCORED)
    assert code == 0, err
    assert list(rows_of("e")) == ["packed"]
    assert metrics("e")["activations"] == "float"
    before = metrics("r")
    assert [metrics("e")[name] for name in SCORES] == pytest.approx(
        [before[name] for name in SCORES], rel=1e-4
    )


def test_a_packed_model_is_timed_and_may_be_scored_on_other_text(
    trained: Command, text_folder: Path
) -> None:
    timed = ("measure.batch_size=2", "measure.length=8", "measure.repeats=1", "references=false")
    options = ("data.split=test", "limit=20", "hydra.run.dir=e")
    code, _, err = trained("evaluate", "checkpoint=r/packed", *options, *timed, defaults=())
    assert code == 0, err
    assert metrics("e")["inference_ms"] > 0
    assert (metrics("e")["split"], metrics("e")["limit"]) == ("test", 20)


def test_a_packed_model_that_was_taken_elsewhere_is_scored_alone(
    trained: Command, text_folder: Path
) -> None:
    assert trained("evaluate", "checkpoint=r/packed", "hydra.run.dir=here", defaults=SCORED)[0] == 0
    shutil.move("r/packed", "elsewhere")
    text = ("data=text", f"data.dir={text_folder}", "data.eval_batch_size=16")
    code, _, err = trained(
        "evaluate", "checkpoint=elsewhere", *text, "hydra.run.dir=e", defaults=SCORED
    )
    assert code == 0, err
    assert list(rows_of("e")) == ["packed"]
    here = metrics("here")
    for name in (
        *SCORES,
        "components",
        "values",
        "scale",
        "recipe",
        "steps",
        "embeddings",
        "activations",
        "memory_mib",
    ):
        assert metrics("e")[name] == pytest.approx(here[name]), name


def test_a_packed_model_with_rounded_tables_says_so(
    trained: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["bitmaps.packed", "r", "r/small", "--embeddings", "int8", "--head", "int8"]
    )
    packed_main()
    code, _, err = trained("evaluate", "checkpoint=r/small", "hydra.run.dir=e", defaults=SCORED)
    assert code == 0, err
    rows = rows_of("e")
    assert {kind: row["embeddings"] for kind, row in rows.items()} == {
        "unbinarized": "fp32", "naive": "fp32", "trained": "int8", "packed": "int8"
    }  # fmt: skip
    assert rows["packed"]["memory_mib"] < metrics("r")["memory_mib"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("embeddings=int8", "embeddings is what checkpoint=r/packed was packed with: leave it out"),
        ("binarize=all", "binarize is what"),
        ("values=01", "values is what"),
        ("calibrate=9", "calibrate is what"),
        ("model=minilm", "model is what"),
    ],
)
def test_a_packed_model_decides_what_it_is(trained: Command, override: str, message: str) -> None:
    code, _, err = trained(
        "evaluate", "checkpoint=r/packed", override, "hydra.run.dir=e", defaults=SCORED
    )
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1
    assert not Path("e/metrics.json").exists()


def test_a_damaged_packed_model_ends_in_one_clear_error(trained: Command) -> None:
    path = Path("r/packed/model.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    code, _, err = trained("evaluate", "checkpoint=r/packed", "hydra.run.dir=e", defaults=SCORED)
    assert code == 2
    assert "r/packed/model.safetensors is damaged" in err
    assert "Traceback" not in err


# W&B


def test_a_training_is_recorded_with_all_that_the_dashboard_shows(
    command: Command, recorded: Callable[[Path], Recorded]
) -> None:
    often = "trainer.log_every_n_steps=1"
    code, _, err = command(
        "train", "binarize=ffnn", "hydra.run.dir=r", "logger=wandb_offline", often, *SHORT
    )
    assert code == 0, err
    found, row = recorded(Path("r")), metrics("r")
    assert found.run["exit_code"] == 0
    assert {name: found.summary[name] for name in MEASURES} == {
        name: row[name] for name in MEASURES
    }
    before = rows_of("r")["unbinarized"]
    assert found.summary["unbinarized/cross_entropy"] == before["cross_entropy"]
    assert set(CURVES) <= set(found.curves)
    assert {"val/cross_entropy", "train/loss"} <= set(
        read_curves({"row": "trained", "run": "r"})
    )  # for the report
    assert found.config["optimizer.lr"] == 4e-4
    assert {
        name: found.config[name] for name in ("row", "components", "values", "steps", "scale")
    } == {name: row[name] for name in ("row", "components", "values", "steps", "scale")}
    columns, lines = found.tables["predictions"]
    assert {"unbinarized", "naive", "trained"} <= set(columns)
    assert lines
    analyses = json.loads(Path("r/analysis.json").read_text(encoding="utf-8"))
    assert found.summary["verdict"] == analyses["trained"]["verdict"]
    assert sum(found.summary["confidence"]["values"]) == row["masked_tokens"]
    assert len([name for name in found.summary if name.startswith("scales/")]) == 4
    (artifact,) = (one for one in found.artifacts.values() if one["type"] == "model")
    packed = {path.name for path in Path("r/packed").iterdir()}
    assert {file["path"] for file in artifact["manifest"]["contents"]} == packed
    assert {"README.md", "config.json", "model.safetensors"} <= packed
    card = ModelCard.load("r/packed/README.md")
    assert {result.metric_type: result.metric_value for result in card.data.eval_results or []} == {
        name: row[name] for name in SCORES
    }


def test_a_run_that_is_packed_again_gets_a_card_of_its_own(
    trained: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["bitmaps.packed", "r", "small", "--embeddings", "int8"])
    packed_main()
    first, second = (
        Path(folder, "README.md").read_text(encoding="utf-8") for folder in ("r/packed", "small")
    )
    assert "word table: fp32" in first
    assert "word table: int8" in second


# Error analysis


def analyses_of(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(folder) / "analysis.json").read_text(encoding="utf-8"))
    return found


def assert_analysis_fits(analysis: dict[str, Any], row: Row) -> None:
    count = row["masked_tokens"]
    assert analysis["masked_tokens"] == sum(analysis["confidence"]["histogram"]) == count
    for splits in (analysis["by_input"].values(), analysis["by_frequency"]):
        hits = sum(split["masked_tokens"] * (split["accuracy"] or 0) for split in splits)
        assert hits / count == pytest.approx(row["accuracy"])
    assert analysis["predicted"][0]["token"] in analysis["verdict"]
    assert len(analysis["sentences"]) == 8


def test_every_row_has_its_analysis(trained: Command) -> None:
    assert set(analyses_of("r")) == {"trained"}
    calibrated = ("binarize=layers", "binarize.scope=matrices", "scale=row", "calibrate=16")
    assert trained("evaluate", *calibrated, "hydra.run.dir=c", "measure=none")[0] == 0
    assert trained("evaluate", "checkpoint=r", "hydra.run.dir=e", defaults=["measure=none"])[0] == 0
    code, _, err = trained(
        "evaluate", "checkpoint=r/packed", "hydra.run.dir=p", defaults=["measure=none"]
    )
    assert code == 0, err
    for folder in ("r", "c", "e", "p"):
        rows, analyses = rows_of(folder), analyses_of(folder)
        assert list(analyses) == list(rows)
        for kind, row in rows.items():
            assert_analysis_fits(analyses[kind], row)
    assert [len(analyses_of(folder)) for folder in ("c", "e", "p")] == [3, 3, 4]
    shown = [
        [sentence["text"] for sentence in analyses_of("p")[kind]["sentences"]]
        for kind in ("trained", "packed")
    ]
    assert shown[0] == shown[1]


def test_analysis_and_text_are_printed(command: Command) -> None:
    naive = ("binarize=all", "values=01", "measure=none")
    own = "text='the [MASK] sat on the [MASK]'"
    code, out, err = command("evaluate", *naive, "analysis=true", own, "hydra.run.dir=a")
    assert code == 0, err
    analysis = analyses_of("a")["naive"]
    assert f"naive: {analysis['verdict']}" in out
    assert analysis["sentences"][0]["text"] == "the [MASK] sat on the [MASK]"
    assert len(analysis["sentences"]) == 9
    assert all(sentence["text"][:40] in out for sentence in analysis["sentences"])
    first = analysis["sentences"][0]["masked"][0]
    assert (first["position"], first["true"]) == (1, None)
    assert f"{first['predictions'][0]['token']} {first['predictions'][0]['probability']:.2f}" in out
    code, out, _ = command("evaluate", *naive, own, "hydra.run.dir=b")
    assert "the [MASK] sat on the [MASK]" in out
    assert analysis["verdict"] not in out
    assert analysis["sentences"][1]["text"][:40] not in out
    assert analyses_of("b") == {"naive": analysis}
    code, out, _ = command("evaluate", *naive, "hydra.run.dir=c")
    assert "[MASK]" not in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("''", "is empty"),
        ("'the cat sat'", "put [MASK] where"),
        (f"'{'the ' * 70}[MASK]'", "the model's 64 positions"),
    ],
)
@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_a_sentence_that_cannot_be_filled_ends_before_anything_is_written(
    command: Command, name: str, text: str, message: str
) -> None:
    code, _, err = command(name, f"text={text}", "hydra.run.dir=r")
    assert code == 2
    assert err.startswith("error: text=")
    assert message in err
    assert not Path("r/metrics.json").exists()


def test_a_sweep_leaves_a_page_with_the_analysis_of_every_row(command: Command) -> None:
    code, out, err = command(
        "evaluate", "-m", "binarize=none,all", "values=pm1,01", "hydra.sweep.dir=s", "measure=none"
    )
    assert code == 0, err
    page = Path("s/results.html").read_text(encoding="utf-8")
    assert "s: results.html, results.csv, results.md, results.png" in out
    for job in range(4):
        (analysis,) = analyses_of(f"s/{job}").values()
        assert analysis["verdict"].replace("'", "&#39;") in page
    assert analyses_of("s/0") == analyses_of("s/1")  # the unbinarized one is scored once


def test_what_makes_the_page_is_not_imported_before_it_is_made() -> None:
    code = "import sys, bitmaps.cli, bitmaps.jobs.jobs, bitmaps.report.table; assert not {'altair', 'vl_convert'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
