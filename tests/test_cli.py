import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import transformers
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

import bitmaps
from bitmaps import cli

WORDS = "the a cat dog bird sat ran flew on under over mat log sky and then it was very big small red blue".split()  # noqa: SIM905
FIELDS = {
    "format", "status", "error", "row", "cross_entropy", "perplexity", "accuracy", "mrr", "masked_tokens", "inference_ms",
    "inference_masked_ms", "memory_mib", "resident_mib", "model", "data", "split", "limit", "components", "values", "scale",
    "scope", "recipe", "embeddings", "activations", "steps", "seed", "mask_seed", "device", "threads", "dtype", "versions",
    "commit", "command",
}  # fmt: skip


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
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
    )
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    generator = torch.Generator().manual_seed(0)
    for name, count in (("train", 200), ("validation", 60), ("test", 30)):
        ids = torch.randint(len(WORDS), (count, 12), generator=generator).tolist()
        (folder / f"{name}.txt").write_text("\n".join(" ".join(WORDS[i] for i in row) for row in ids), encoding="utf-8")
    return folder


@pytest.fixture
def command(model_folder, text_folder, tmp_path, monkeypatch, capsys):
    """Runs a command in an empty folder; gives its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    small = [
        "model=hub", f"model.source={model_folder}", "data=text", f"data.dir={text_folder}", "data.eval_batch_size=16",
        "measure.batch_size=2", "measure.length=8", "measure.repeats=1",
    ]  # fmt: skip

    def run(name, *overrides, defaults=small):
        given = {o.split("=")[0] for o in overrides}
        argv = [f"{name}.py", *overrides, *(d for d in defaults if d.split("=")[0] not in given)]
        monkeypatch.setattr(sys, "argv", argv)
        GlobalHydra.instance().clear()
        try:
            getattr(cli, name)()
            code = 0
        except SystemExit as exit:
            code = exit.code
            if isinstance(code, str):
                print(code, file=sys.stderr)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


SHORT = ("trainer.max_steps=4", "trainer.val_check_interval=2", "data.batch_size=8", "schedule=constant")


def metrics(folder):
    return json.loads((Path(folder) / "metrics.json").read_text(encoding="utf-8"))


def test_evaluate_writes_every_field_and_the_config(command):
    code, out, _ = command("evaluate", "binarize=layers", "values=01", "hydra.run.dir=r")
    assert code == 0
    row = metrics("r")
    assert set(row) >= FIELDS
    assert (row["status"], row["row"], row["components"], row["values"]) == ("ok", "naive", "layers", "01")
    assert (row["scale"], row["scope"], row["recipe"], row["steps"]) == ("none", "all", None, 0)
    assert row["command"].startswith("python evaluate.py binarize=layers values=01")
    assert row["masked_tokens"] > row["known"]["masked_tokens"] * 0.9
    assert OmegaConf.load("r/config.yaml")["values"] == "01"
    assert "layers" in out


def test_a_run_folder_is_never_overwritten(command):
    assert command("evaluate", "hydra.run.dir=r")[0] == 0
    before = {path: path.read_bytes() for path in Path("r").rglob("*.json")}
    code, _, err = command("evaluate", "hydra.run.dir=r", "binarize=all")
    assert code == 2
    assert "already holds a run" in err
    assert before == {path: path.read_bytes() for path in Path("r").rglob("*.json")}


def test_a_sweep_ends_with_nine_rows_in_the_order_of_the_blog_post(command):
    groups = "layers,layers_except_ffnn,none,all,layers_except_attention"
    code, out, _ = command(
        "evaluate", "-m", f"binarize={groups}", "values=pm1,01", "hydra.sweep.dir=s", "measure=none", "limit=20"
    )
    assert code == 0
    lines = Path("s/results.md").read_text(encoding="utf-8").splitlines()[2:]
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in lines]
    ordered = ("all", "layers", "layers_except_attention", "layers_except_ffnn")
    assert rows == [["none", ""], *([group, values] for group in ordered for values in ("{0,1}", "{-1,1}"))]
    assert Path("s/results.png").stat().st_size > 0
    assert len(Path("s/results.csv").read_text(encoding="utf-8").splitlines()) == 10
    assert metrics("s/4")["cross_entropy"] == metrics("s/5")["cross_entropy"]
    assert "layers_except_ffnn" in out


def test_a_failing_job_is_a_row_and_the_others_stay(command, model_folder, tmp_path):
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


def test_training_writes_a_run_folder_that_transformers_opens(command):
    assert command("train", "binarize=ffnn", "values=01", "hydra.run.dir=r", *SHORT)[0] == 0
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
    assert (section["components"], section["values"], section["scale"], section["recipe"]) == (
        "ffnn",
        "01",
        "row",
        "bitmaps",
    )
    ours, theirs = bitmaps.load("r"), transformers.AutoModelForMaskedLM.from_pretrained("r/model").eval()
    ids = torch.tensor([[2, 7, 4, 9, 3]])
    torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-5, rtol=0)
    for layer in ours.encoder.layers:
        for weight in (layer.ffnn.expand.weight, layer.ffnn.contract.weight):
            assert all(len(values.unique()) <= 2 and values.min() == 0 for values in weight)
    assert transformers.AutoTokenizer.from_pretrained("r/model").tokenize("the cat") == ["the", "cat"]


def test_a_trained_run_scores_the_same_when_it_is_evaluated(command):
    assert command("train", "binarize=layers", "hydra.run.dir=r", *SHORT)[0] == 0
    code, _, err = command("evaluate", "checkpoint=r", "hydra.run.dir=e", defaults=["measure=none"])
    assert code == 0, err
    trained, again = (json.loads(Path(f, "rows.json").read_text(encoding="utf-8")) for f in ("r", "e"))
    assert [row["row"] for row in again] == ["unbinarized", "naive", "trained"]
    for name in ("cross_entropy", "accuracy", "mrr", "components", "values", "scale", "recipe", "steps", "memory_mib"):
        assert [row[name] for row in trained] == pytest.approx([row[name] for row in again]), name


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(command):
    steps = ("binarize=layers_except_ffnn", *SHORT)
    assert command("train", "hydra.run.dir=whole", *steps, "measure=none")[0] == 0
    assert (
        command("train", "hydra.run.dir=parts", *steps[:1], "trainer.max_steps=2", *SHORT[1:], "measure=none")[0] == 0
    )
    code, _, err = command("train", "resume=parts", "trainer.max_steps=4", defaults=())
    assert code == 0, err
    assert metrics("parts")["steps"] == 4
    whole, parts = (
        torch.load(f"{f}/checkpoints/last.ckpt", weights_only=True)["state_dict"] for f in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert metrics("whole")["cross_entropy"] == metrics("parts")["cross_entropy"]


def test_training_with_nothing_binarized_is_plain_finetuning(command):
    assert command("train", "binarize=none", "hydra.run.dir=r", *SHORT, "measure=none")[0] == 0
    rows = json.loads(Path("r/rows.json").read_text(encoding="utf-8"))
    assert [row["row"] for row in rows] == ["unbinarized", "trained"]
    assert rows[1]["values"] is None


@pytest.mark.parametrize("components", ["all", "ffnn"])
def test_bf16_accumulation_and_early_stopping_train_binary_layers(command, components):
    options = ("trainer.precision=bf16-mixed", "trainer.accumulate_grad_batches=2", "callbacks=early_stopping")
    code, _, err = command("train", f"binarize={components}", "hydra.run.dir=r", *options, *SHORT, "measure=none")
    assert code == 0, err
    assert (metrics("r")["steps"], metrics("r")["dtype"]) == (4, "bf16-mixed")
    weight = bitmaps.load("r").encoder.layers[0].ffnn.expand.weight
    assert weight.dtype == torch.float32
    assert all(len(row.unique()) == 2 for row in weight)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch.compile does things that torch itself warns of
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, and there is no g++")
def test_compiled_training_gives_what_eager_training_gives(command):
    for folder, compiled in (("eager", "false"), ("compiled", "true")):
        precise = "trainer.precision=bf16-mixed"
        options = ("binarize=all", precise, f"trainer.compile={compiled}", f"hydra.run.dir={folder}", "measure=none")
        code, _, err = command("train", *options, *SHORT)
        assert code == 0, err
    assert metrics("compiled")["cross_entropy"] == pytest.approx(metrics("eager")["cross_entropy"], abs=5e-2)


def test_random_weights_need_no_checkpoint(command, model_folder):
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
        ("evaluate", ["model.source=/no/such/model"], "/no/such/model"),
        ("evaluate", ["model.adapter=nosuch"], "nosuch"),
        ("evaluate", ["trainer.precision=64"], "bf16-mixed"),
        ("evaluate", ["trainer.accelerator=abacus"], "abacus"),
        ("evaluate", ["data.length=65"], "64 positions"),
        ("evaluate", ["checkpoint=nowhere"], "nowhere"),
        ("train", ["binarize.scope=all"], "matrices"),
        ("train", ["trainer.max_steps=0"], "max_steps=0"),
        ("train", ["trainer.max_steps=250"], "250"),
        ("train", ["optimizer.lr=-1"], "-1"),
        ("train", ["optimizer._target_=torch.optim.Adamw"], "Adamw"),
        ("train", ["recipe=best"], "bitmaps"),
        ("train", ["resume=nowhere"], "nowhere"),
        ("train", ["-m", "trainer.devices=2", "seed=0,1"], "multirun"),
        ("train", ["-m", "trainer=ddp", "trainer.accelerator=cpu", "seed=0,1"], "multirun"),
    ],
)
def test_bad_input_ends_in_one_clear_error(command, name, overrides, message):
    code, out, err = command(name, *overrides)
    assert code not in (0, None)
    assert message in out + err
    assert "Traceback" not in out + err
    assert len((out + err).splitlines()) < 30
    assert not list(Path().rglob("metrics.json"))


def test_a_damaged_checkpoint_is_refused_before_anything_is_written(command, model_folder):
    code, _, err = command("evaluate", f"model.sha256={'0' * 64}")
    assert code == 2
    assert "SHA-256" in err
    assert str(model_folder) in err


def test_a_resumed_run_stays_the_run_that_it_was(command):
    assert command("train", "hydra.run.dir=r", *SHORT, "measure=none")[0] == 0
    code, _, err = command("train", "resume=r", "values=01", defaults=())
    assert code == 2
    assert "values cannot change" in err
    assert metrics("r")["status"] == "ok"


def test_resuming_on_other_devices_keeps_the_number_of_steps(command):
    assert command("train", "hydra.run.dir=r", *SHORT, "measure=none")[0] == 0
    code, _, err = command("train", "resume=r", "trainer=cpu", defaults=())
    assert code == 0, err
    assert OmegaConf.load("r/config.yaml").trainer.max_steps == 4


def test_a_run_is_resumed_in_its_own_folder_alone(command):
    assert command("train", "hydra.run.dir=r", *SHORT, "measure=none")[0] == 0
    assert command("train", "hydra.run.dir=other", *SHORT, "seed=1", "measure=none")[0] == 0
    before = Path("other/metrics.json").read_bytes()
    code, _, err = command("train", "resume=r", "hydra.run.dir=other", defaults=())
    assert code == 2
    assert "its own folder" in err
    assert Path("other/metrics.json").read_bytes() == before


def test_a_sweep_is_never_written_over_another(command):
    sweep = ("-m", "binarize=none,all", "hydra.sweep.dir=s", "measure=none", "limit=20")
    assert command("evaluate", *sweep)[0] == 0
    before = {path: path.read_bytes() for path in Path("s").rglob("*.json")}
    code, _, err = command("evaluate", *sweep)
    assert code != 0
    assert "already holds a sweep" in err
    assert before == {path: path.read_bytes() for path in Path("s").rglob("*.json")}


def test_every_trained_run_of_a_sweep_has_a_row(command):
    code, out, err = command("train", "-m", "optimizer.lr=1e-3,5e-4", "hydra.sweep.dir=s", *SHORT, "measure=none")
    assert code == 0, err
    assert out.count("trained") == 2
    assert out.count("unbinarized") == 1


def test_a_checkpoint_is_scored_on_its_own_text_also_on_another_split(command, text_folder):
    assert command("train", "hydra.run.dir=r", *SHORT, "measure=none")[0] == 0
    code, _, err = command("evaluate", "checkpoint=r", "data.split=test", "hydra.run.dir=e", defaults=["measure=none"])
    assert code == 0, err
    assert (metrics("e")["data"], metrics("e")["split"]) == ("text", "test")
    assert metrics("e")["masked_tokens"] < metrics("r")["masked_tokens"]


def test_a_checkpoint_decides_what_is_binarized(command):
    assert command("train", "hydra.run.dir=r", *SHORT, "measure=none")[0] == 0
    code, _, err = command("evaluate", "checkpoint=r", "binarize=all", defaults=())
    assert code == 2
    assert "leave it out" in err
