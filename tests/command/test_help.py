"""The text of ``--help``, shell completion, and the reading of comments in ``conf/``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bitmaps.command.help import command_lines, comments, groups, help_text, read_option
from bitmaps.command.schema import conf_dir

ROOT = Path(__file__).parents[2]
CONF = conf_dir()
COMMANDS = ("train", "evaluate")


def typed(*command: str, **environment: str) -> str:
    """What a Python command prints in the checkout."""
    done = ran([sys.executable, *command], environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def ran(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


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
        assert [name.lstrip("*") for name in offered] == [o.name for o in group.options]
        starred = [name for name in offered if name.startswith("*")]
        assert starred == ([] if group.default is None else [f"*{group.default}"])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_opens_with_what_the_command_does_and_three_examples(command: str) -> None:
    text, examples = help_text(CONF, command).split("Choose an option")[0].strip().split("\n\n")
    assert text.endswith(".")
    typed_lines = examples.replace("\\\n", "").splitlines()
    assert [line.startswith(f"  python {command}.py ") for line in typed_lines] == [True] * 3


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_at_most_a_hundred_columns_wide(command: str) -> None:
    assert max(map(len, help_text(CONF, command).replace("$$", "$").splitlines())) <= 100


def test_a_shell_joins_the_lines_of_a_long_command() -> None:
    words = ["echo", *(f"key{number}=value,other" for number in range(30))]
    lines = command_lines(" ".join(words))
    assert len(lines) > 3
    assert max(map(len, lines)) <= 100
    said = subprocess.run(
        ["sh", "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == words[1:]
    assert command_lines("python x.py") == ["  python x.py"]


def test_help_imports_nothing_that_takes_time() -> None:
    probe = (
        "import atexit, sys; atexit.register(lambda: print(*sys.modules));"
        "from bitmaps.cli import train; train()"
    )
    modules = typed("-c", probe, "--help").splitlines()[-1].split()
    assert "hydra" in modules
    assert not {"torch", "transformers", "lightning", "datasets"} & set(modules)


def test_an_experiment_is_an_option_of_its_own_command() -> None:
    options = {
        c: [o.name for g in groups(CONF, c) if g.name == "experiment" for o in g.options]
        for c in COMMANDS
    }
    assert options == {
        "train": ["blog_post_trained", "ptb", "ptb_long", "ptb_short"],
        "evaluate": ["blog_post"],
    }


def test_completion_offers_groups_options_and_keys() -> None:
    assert "binarize=" in completions("python train.py bin")
    assert completions("python train.py values=") == ["values=01", "values=pm1"]
    assert completions("bitmaps-train binarize=layers_") == [
        "binarize=layers_except_attention", "binarize=layers_except_ffnn"
    ]  # fmt: skip
    assert "trainer.max_steps=" in completions("python train.py binarize=ffnn trainer.")


def test_completion_is_installed_by_a_line_of_shell() -> None:
    script = typed("train.py", "-sc", "install=bash")
    asked = (
        'COMP_LINE="python train.py values=p"; COMP_POINT=24; COMP_CWORD=2; '
        'hydra_bash_completion; echo "${COMPREPLY[@]}"'
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = ran(["bash", "-c", f"{script}\n{asked}"], {"PATH": path})
    assert done.stdout.strip() == "values=pm1", done.stderr


def test_an_opening_is_text_and_commands_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(
        "# @package _global_\n# What it is,\n# in two lines.  python train.py a=1\n"
        "# Without it:  python train.py a=2\n#   python evaluate.py a=3  # why\n"
        "# `python -m x` stays text.\nkey: 1\n# not part of the opening\n",
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
        'a: 1 # of a\nb: # of b\n  c: "x # y" # of c\n  d: [1, 2]\n# on its own\n'
        "e: null   # of e, # twice\nf: x#y\n",
        encoding="utf-8",
    )
    assert comments(path) == {"a": "of a", "b": "of b", "b.c": "of c", "e": "of e, # twice"}
