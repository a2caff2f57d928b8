"""Command lines that a random edit may have made wrong: they run, or end in a few clear lines."""

from __future__ import annotations

import contextlib
import gc
import random
import shutil
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import huggingface_hub.constants
import pytest
from command.commands import ALONE, HALF, Commands, composed
from command.conftest import command, commands, trained  # noqa: F401 (fixtures)
from omegaconf import OmegaConf

from bitmaps.command.schema import conf_dir
from bitmaps.jobs.evaluate import Evaluation
from bitmaps.jobs.train import Training

NUMBERS = (
    "0", "1", "2", "3", "-1", "0.5", "1.5", "-0.0", "1e-9", "1e9", "1e308", "-1e308", "1e309", "inf",
    "-inf", "nan", "99999999999999999999", "4294967296", "1_000", "0x10", "01", "--1", "1e", "1.2.3",
)  # fmt: skip
WORDS = (
    "", "''", '""', "' '", "true", "null", "None", "???", "~", "~/nope", "~nobody/x", ".", "..", "/nope", "nope", "a/b",
    "é𝔘", "'a b'", "a b", "a:b", "a=b", "x" * 400, "'\t'", "'a\nb'", "'\x1b[31mred'", "a.b.C", "torch.nope", "torch.load",
    "os.path.join", "lightning.pytorch.callbacks.Timer", "[/b]", "%s", "$HOME", "\\", "\\\\'", "<b>", "@", "#", "*",
)  # fmt: skip
NESTED = (
    "[]", "{}", "[1]", "[a,b]", "[a,[b,{c:d}]]", "{a:1}", "{a:{b:{c:1}}}", "{a:[1,2]}", "[null]",
    "{_target_:1}", "{_target_:torch.nope}", "{_target_:torch.nn.Linear}", "{'':1}", "{1:2}", "[inf,nan]",
    "[" * 40 + "]" * 40, "[" * 300 + "]" * 300, "[query,nope]", "[ffnn,ffnn]", "{a:1,a:2}",
)  # fmt: skip
BROKEN = (
    "[",
    "]",
    "{",
    "}",
    "[1,2",
    "{a:",
    "{a}",
    "'",
    '"',
    "'a\"",
    "(",
    ")",
    ",",
    "a,",
    ",a",
    "[,]",
    ":",
)
REFERENCES = (
    "${nope}", "${seed}", "${trainer.max_steps}", "${data}", "${.}", "${..}", "${...}", "${", "${}", "$", "${seed", "${seed}}",
    "${oc.env:NOPE}", "${oc.env:HOME}", "${nope:1}", "${now:%Y}", "${now:}", "${job_folder:1}", "${run_folder:1,2}",
    "${oc.decode:'['}", "${oc.create:[1]}", "${oc.select:nope}", "${oc.select:nope,3}", "${hydra:nope}", "${hydra:job.name}",
    "${${seed}}", "${seed}x", "a${nope}", "${help_text:nope}", "${oc.deprecated:nope}", "${python_version:}",
)  # fmt: skip
CALLS = (
    "choice(1,2)", "range(3)", "interval(0,1)", "glob(*)", "int(x)", "int(3)", "str(1)", "float(inf)", "bool(x)", "nope(1)",
    "sort(3,1)", "shuffle(1)", "tag(a,1)", "extend_list(1)", "json_str({a:1})", "1,2", "a,b", "0,1,nope",
)  # fmt: skip
VALUES: tuple[tuple[str, ...], ...] = (*[NUMBERS, WORDS, NESTED, REFERENCES] * 3, BROKEN, CALLS)
FORMS = (
    *["{key}={value}"] * 40, "+{key}={value}", "++{key}={value}", "~{key}", "~{key}={value}", "{key}", "{key}=", "={value}",
    "{key}=={value}", "{key}.nope={value}", "+{key}.nope={value}", "++{key}.nope={value}", "{key}:{value}", "{key}@{other}={value}",
    "{other}={value} {key}={value}", "{key}[0]={value}", "{key}/x={value}", " {key}={value}", "{KEY}={value}",
)  # fmt: skip
FLAGS = (
    "-m",
    "--cfg=job",
    "--cfg=nope",
    "--info",
    "--nope",
    "--config-name=nope",
    "--config-dir=nope",
    "--resolve",
)
HYDRA = (
    "hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.mode", "hydra.verbose", "hydra.job.chdir",
    "hydra.job.name", "hydra.output_subdir", "hydra/launcher", "hydra/sweeper", "hydra/job_logging", "hydra.nope",
    "hydra.sweeper.params", "hydra.callbacks", "hydra.searchpath", "hydra.job.env_set", "hydra.job_logging.root.level",
)  # fmt: skip
# arguments of the classes that conf/ names
ARGUMENTS = (
    "+optimizer.betas", "+optimizer.eps", "+optimizer.fused", "+optimizer.foreach", "+schedule.last_epoch", "+schedule.num_cycles",
    *(f"+callbacks.{name}.{key}" for name in ("best", "last") for key in (
        "save_top_k", "every_n_train_steps", "every_n_epochs", "save_last", "monitor", "mode", "train_time_interval", "verbose",
        "save_weights_only", "auto_insert_metric_name",
    )),
    "+callbacks.learning_rate.logging_interval", "+callbacks.learning_rate.log_momentum", "+callbacks.mine", "+callbacks.mine._target_",
    "+logger.version", "+logger.prefix", "+logger.flush_logs_every_n_steps", "+model.shape", "+data.nope", "+optimizer._partial_",
)  # fmt: skip
# keys of which a large value is valid and takes long
EXPENSIVE = (
    "max_steps",
    "val_check_interval",
    "accumulate",
    "mask_sets",
    "measure",
    "calibrate",
    "compile",
    "devices",
    "strategy",
)
# groups and keys that ask for what is not here: W&B, the Hub
ONLINE = ("wandb", "wandb_offline")


def flattened(value: Any, prefix: str = "") -> dict[str, Any]:
    """Every key of a configuration, inner ones too."""
    found = {}
    for key, inner in value.items() if isinstance(value, dict) else ():
        found |= {f"{prefix}{key}": inner} | flattened(inner, f"{prefix}{key}.")
    return found


@cache
def choices(name: str) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """The keys of a command with their values, and the groups of conf/ with their options."""
    keys = flattened(OmegaConf.to_container(composed(name), resolve=False, enum_to_str=True))
    groups: dict[str, list[str]] = {}
    for path in sorted(conf_dir().glob("*/*.yaml")):
        if path.stem not in ONLINE:
            groups.setdefault(path.parent.name, []).append(path.stem)
    return keys, groups


def like(own: Any) -> tuple[str, ...]:
    """Values that Hydra accepts where ``own`` is, so that they reach the checks behind it."""
    if isinstance(own, bool):
        return "true", "false", "null"
    if isinstance(own, int | float):
        return NUMBERS
    if isinstance(own, list | dict):
        return NESTED
    return *NUMBERS, *WORDS, "null"


def a_value(draw: random.Random, keys: dict[str, Any], own: Any) -> str:
    kind = draw.random()
    if kind < 0.1:  # one that is valid somewhere
        return str(draw.choice([own, *keys.values()])).replace("'", "")
    value = draw.choice(like(own) if kind < 0.6 else draw.choice(VALUES))
    # in quotes, what Hydra's grammar refuses reaches us
    return f"'{value}'" if draw.random() < 0.3 and "'" not in value else value


def an_override(draw: random.Random, name: str) -> list[str]:
    """An override of a key or a group, of which a form, a value or a character may be wrong."""
    keys, groups = choices(name)
    kind = draw.random()
    if kind < 0.2:
        key = draw.choice(sorted(groups))
        value = draw.choice(groups[key]) if draw.random() < 0.5 else a_value(draw, keys, key)
    elif kind < 0.27:
        key = draw.choice(HYDRA)
        value = a_value(draw, keys, key)
    elif kind < 0.4 and name == "train":
        key = draw.choice(ARGUMENTS)
        value = a_value(draw, keys, draw.choice([1, "a", True, []]))
    else:
        key = draw.choice(sorted(keys))
        value = a_value(draw, keys, keys[key])
    form = draw.choice(FORMS)
    text = form.format(key=key, value=value, other=draw.choice(sorted(keys)), KEY=key.upper())
    if draw.random() < 0.1:
        at = draw.randrange(len(text) + 1)
        text = text[:at] + draw.choice(["", *"='\"[]{}$,.~+@é\\ "]) + text[at + draw.randrange(2) :]
    return text.split(" ") if form.startswith("{other}") else [text]


def a_command(draw: random.Random) -> tuple[str, list[str]]:
    """A command and one to three overrides, some on top of a trained run."""
    name = draw.choice(["train", "train", "evaluate"])
    given = [one for _ in range(draw.choice([1, 1, 2, 3])) for one in an_override(draw, name)]
    if draw.random() < 0.08:
        given.insert(0, draw.choice(FLAGS))
    if draw.random() < 0.2:
        given.append("resume=r" if name == "train" else "checkpoint=r")
    return name, given


def passed(*_: Any) -> None:
    """Ends a command whose configuration passed all checks."""
    raise SystemExit(0)


def wrong(given: list[str], code: Any, out: str, err: str) -> str | None:
    """What is wrong with how a command ended, if anything is."""
    lines = err.splitlines()
    if "Traceback" in out + err:
        return "a traceback"
    if code in (0, None):
        return None
    jobs_failed = code == 1 and ("-m" in given or "hydra.mode" in str(given))
    if code != 2 and not jobs_failed:
        return f"exit code {code}"
    if not jobs_failed and len(lines) > 3:
        return f"{len(lines)} lines"
    if not all(line.startswith("error: ") and len(line) < 1100 for line in lines):
        return "another line than an error"
    return None


def run_case(runner: Commands, draw: random.Random, runs: bool) -> str | None:
    """One case in the current folder; returns how it ended if that is wrong.

    Args:
        runs: whether what passes all checks really runs.
    """
    name, given = a_command(draw)
    keys = {one.split("=")[0] for one in given}
    usual = [] if keys & {"resume", "checkpoint"} else [ALONE, "limit=40"]
    usual += HALF if name == "train" and "resume" not in keys else ()
    folders = (
        {"hydra.sweep.dir": "out"}
        if "resume" in keys
        else {"hydra.run.dir": "out", "hydra.sweep.dir": "out"}
    )
    usual += [f"{key}={folder}" for key, folder in folders.items()]
    runs = runs and not any(word in one for one in given for word in EXPENSIVE)
    with contextlib.ExitStack() as stubs:
        for job in () if runs else (Training, Evaluation):
            stubs.enter_context(patch.object(job, "run", passed))
        code, out, err = runner(
            name, *given, *(one for one in usual if one.split("=")[0] not in keys)
        )
    found = wrong(given, code, out, err)
    written = {path.name for path in Path().iterdir()} - {
        "model",
        "text",
        "kept",
        "r",
        "out",
        "runs",
    }
    if found is None and written and "hydra." not in str(given):
        found = f"it wrote {written}"
    return found and f"{name} {given}: {found}:\n{out[-1000:]}\n{err[-2000:]}"


@pytest.mark.slow
# Python opens a log file before it finds that a level is unknown, and leaves it open
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_mutated_overrides(
    cases: Any,
    trained: Commands,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("r").rename("kept")
    for number, draw in cases(total=1_000, sample=25):
        shutil.copytree("kept", "r")
        found = run_case(trained, draw, runs=number % 10 == 0)
        assert found is None, found
        for path in Path().iterdir():
            if path.name not in ("model", "text", "kept"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    gc.collect()
