"""``pip install bitmaps`` without an extra: what serving needs works, and a command names its extra."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

import pytest
from conftest import Pack

from bitmaps.__main__ import COMMANDS
from bitmaps.bert import Bert
from bitmaps.quantize.convert import binarize_naive
from bitmaps.vocabulary import PLUS_MINUS_ONE, Scale, Scope

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BLOCKED = """if True:
    import json, sys, runpy
    from importlib.abc import MetaPathFinder

    class Absent(MetaPathFinder):
        names = set(json.loads(sys.argv.pop(1)))

        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in self.names:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Absent())
"""
SERVING = """
    import bitmaps, torch
    folder = sys.argv[1]
    model = bitmaps.load(folder)
    assert len(bitmaps.fill(model, "the [MASK] sat")[0]) == 5
    batch = model.tokenizer(["the cat", "a dog ran"], padding=True, return_tensors="pt")
    assert model(batch["input_ids"], batch["attention_mask"]).shape[0] == 2
    floats = bitmaps.to_transformers(model)
    assert floats(batch["input_ids"]).logits.isfinite().all()
    print("served")
"""
COMMAND = """
    from bitmaps.__main__ import main
    sys.argv[0] = "bitmaps"
    main()
"""


def name_of(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def closure(requirements: list[str]) -> set[str]:
    """The distributions that are installed for these requirements."""
    found: set[str] = set()
    left = [name_of(one) for one in requirements]
    while left:
        name = left.pop()
        if name in found:
            continue
        try:
            needed = distribution(name).requires or []
        except PackageNotFoundError:  # of another platform
            continue
        found.add(name)
        left += [name_of(one) for one in needed if "extra ==" not in one]
    return found


def absent() -> str:
    """The modules of everything that is installed here and would not be there, as JSON."""
    kept = closure(PROJECT["dependencies"]) | {"bitmaps"}
    modules = packages_distributions().items()
    return json.dumps(
        [
            module
            for module, distributions in modules
            if not {name.lower().replace("_", "-") for name in distributions} & kept
        ]
    )


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCKED + code, absent(), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_everything_of_training_is_absent_here() -> None:
    blocked = set(json.loads(absent()))
    assert {"hydra", "lightning", "datasets", "torchmetrics", "wandb", "altair"} <= blocked
    assert not {"torch", "transformers", "safetensors", "numpy", "tokenizers"} & blocked


def test_a_packed_model_is_served(tiny: Bert, pack: Pack) -> None:
    folder = pack(binarize_naive(tiny, ("ffnn",), PLUS_MINUS_ONE, Scale.row, Scope.matrices))
    done = run(SERVING, folder)
    assert (done.stdout, done.returncode) == ("served\n", 0), done.stderr


def test_the_kernels_are_listed() -> None:
    done = run(COMMAND, "info")
    assert done.returncode == 0, done.stderr
    assert "in use" in done.stdout


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "info"])
def test_a_command_names_the_extra_that_it_needs(command: str) -> None:
    done = run(COMMAND, command)
    assert done.returncode == 2, done.stderr
    extra = COMMANDS[command].extra
    assert re.fullmatch(
        rf"error: bitmaps {command} needs \w+, which is not installed: "
        rf"pip install 'bitmaps\[{extra}\]'\n",
        done.stderr,
    )
    assert extra in PROJECT["optional-dependencies"]


def test_the_extras_that_run_commands_bring_what_training_needs() -> None:
    for extra in ("offline", "bench", "launchers", "ray"):
        assert "bitmaps[train]" in PROJECT["optional-dependencies"][extra], extra
