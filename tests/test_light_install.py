"""``pip install bitmaps`` without an extra: what serving needs works, and a command names its extra."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from conftest import Pack

from bitmaps.__main__ import COMMANDS
from bitmaps.bert import Bert
from bitmaps.quantize.convert import binarize_naive
from bitmaps.vocabulary import PLUS_MINUS_ONE, Scale, Scope

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SERVING = """if True:
    import bitmaps, sys
    model = bitmaps.load(sys.argv[1])
    assert len(bitmaps.fill(model, "the [MASK] sat")[0]) == 5
    batch = model.tokenizer(["the cat", "a dog ran"], padding=True, return_tensors="pt")
    assert model(batch["input_ids"], batch["attention_mask"]).shape[0] == 2
    assert callable(bitmaps.embed)
    wrapped = bitmaps.to_transformers(model)
    assert wrapped(batch["input_ids"]).logits.isfinite().all()
    print("served")
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


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with links to what is installed for the package alone."""
    folder = tmp_path_factory.mktemp("site")
    for name in closure(PROJECT["dependencies"]):
        found = distribution(name)
        tops = {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "bin")}
        for top in tops - {"__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(found.locate_file(top))))
    return folder


def run(site: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A Python that sees what is in a folder, and the package."""
    return subprocess.run(
        [sys.executable, "-S", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}"},
        cwd=site,
        capture_output=True,
        text=True,
        check=False,
    )


def test_nothing_of_training_is_there(site: Path) -> None:
    names = {path.name for path in site.iterdir()}
    assert {"torch", "transformers", "safetensors", "numpy", "tokenizers"} <= names
    assert not {"hydra", "lightning", "datasets", "torchmetrics", "wandb", "altair"} & names


def test_a_packed_model_is_served(site: Path, tiny: Bert, pack: Pack) -> None:
    folder = pack(binarize_naive(tiny, ("ffnn",), PLUS_MINUS_ONE, Scale.row, Scope.matrices))
    done = run(site, "-c", SERVING, folder)
    assert (done.stdout, done.returncode) == ("served\n", 0), done.stderr


def test_the_kernels_are_listed(site: Path) -> None:
    done = run(site, "-m", "bitmaps", "info")
    assert done.returncode == 0, done.stderr
    assert "in use" in done.stdout


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "info"])
def test_a_command_names_the_extra_that_it_needs(command: str, site: Path) -> None:
    done = run(site, "-m", "bitmaps", command)
    assert done.returncode == 2, done.stderr
    extra = COMMANDS[command].extra
    assert re.fullmatch(
        rf"error: bitmaps {command} needs the extra {extra}: pip install 'bitmaps\[{extra}\]'\n",
        done.stderr,
    )
    assert extra in PROJECT["optional-dependencies"]


def test_the_extras_that_run_commands_bring_what_training_needs() -> None:
    for extra in ("offline", "bench", "show", "launchers", "ray"):
        assert "bitmaps[train]" in PROJECT["optional-dependencies"][extra], extra
