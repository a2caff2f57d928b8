"""What ``--help`` and shell completion offer, and how the comments in ``conf/`` are read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bitmaps.command.help import comments, groups, help_text, read_option
from bitmaps.command.schema import conf_dir

ROOT = Path(__file__).parents[2]
CONF = conf_dir()
COMMANDS = ("train", "evaluate")


def typed(*command: str, **environment: str) -> str:
    """What a command prints that is typed in the checkout."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def completions(line: str) -> list[str]:
    return typed("train.py", "-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line))).split()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_what_is_printed(command: str) -> None:
    assert typed(f"{command}.py", "--help").rstrip() == help_text(CONF, command).replace("$$", "$")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_group_its_purpose_and_its_options(command: str) -> None:
    text = help_text(CONF, command)
    for group in groups(CONF, command):
        line = rf"^  {group.name} +{re.escape(group.purpose)}$"
        assert group.purpose
        assert re.search(line, text, re.M)
        below = re.split(line, text, flags=re.M)[1].split("\n  ", 1)[1]
        offered = re.split(r"\n(?:  \w|\n)", below)[0].split()
        assert offered == [
            f"*{o.name}" if o.name == group.default else o.name for o in group.options
        ]
        assert group.default is None or f"*{group.default}" in offered


@pytest.mark.parametrize("command", COMMANDS)
def test_help_opens_with_what_the_command_does_and_three_examples(command: str) -> None:
    opening = help_text(CONF, command).split("Choose by")[0].strip().splitlines()
    assert opening[0].endswith(".")
    assert [line.startswith(f"  python {command}.py ") for line in opening[2:]] == [True] * 3


def test_help_imports_nothing_that_takes_time() -> None:
    probe = "import atexit, sys; atexit.register(lambda: print(*sys.modules)); from bitmaps.cli import train; train()"
    modules = typed("-c", probe, "--help").splitlines()[-1].split()
    assert "hydra" in modules
    assert not {"torch", "transformers", "lightning", "datasets"} & set(modules)


def test_an_experiment_is_an_option_of_its_own_command() -> None:
    options = {
        c: [o.name for g in groups(CONF, c) if g.name == "experiment" for o in g.options]
        for c in COMMANDS
    }
    assert options == {"train": ["ptb", "ptb_long", "ptb_short"], "evaluate": ["blog_post"]}


def test_completion_offers_groups_options_and_keys() -> None:
    assert "binarize=" in completions("python train.py bin")
    assert completions("python train.py values=") == ["values=01", "values=pm1"]
    assert completions("bitmaps-train binarize=layers_") == [
        "binarize=layers_except_attention", "binarize=layers_except_ffnn"
    ]  # fmt: skip
    assert "trainer.max_steps=" in completions("python train.py binarize=ffnn trainer.")


def test_completion_is_installed_by_a_line_of_shell() -> None:
    script = typed("train.py", "-sc", "install=bash")
    asked = 'COMP_LINE="python train.py values=p"; COMP_POINT=24; COMP_CWORD=2; hydra_bash_completion; echo "${COMPREPLY[@]}"'
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", f"{script}\n{asked}"],
        cwd=ROOT, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "values=pm1", done.stderr


def test_an_opening_is_text_and_commands_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(
        "# @package _global_\n# What it is,\n# in two lines.  python train.py a=1\n# Without it:  python train.py a=2\n"
        "#   python evaluate.py a=3  # why\n# `python -m x` stays text.\nkey: 1\n# not of the opening\n",
        encoding="utf-8",
    )
    option = read_option(path)
    assert option.name == "one"
    assert option.opening == [
        ("What it is, in two lines.", False),
        ("python train.py a=1", True),
        ("Without it:", False),
        ("python train.py a=2", True),
        ("python evaluate.py a=3  # why", True),
        ("`python -m x` stays text.", False),
    ]
    assert option.text == "What it is, in two lines. Without it: `python -m x` stays text."
    assert option.commands == [
        "python train.py a=1",
        "python train.py a=2",
        "python evaluate.py a=3  # why",
    ]


def test_comments_are_those_beside_keys(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(
        'a: 1 # of a\nb: # of b\n  c: "x # y" # of c\n  d: [1, 2]\n# on its own\ne: null   # of e, # twice\nf: x#y\n',
        encoding="utf-8",
    )
    assert comments(path) == {"a": "of a", "b": "of b", "b.c": "of c", "e": "of e, # twice"}
