"""``bitmaps <command> …``, and what it completes in a shell."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import bitmaps
from bitmaps.__main__ import COMMANDS, main
from bitmaps.calling import as_called, called, from_here
from bitmaps.command.completion import path_matches
from bitmaps.command.overrides import PATHS

PROGRAM = "/somewhere/bin/bitmaps"


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of ``bitmaps`` with these words."""
    monkeypatch.setattr(sys, "argv", [PROGRAM, *words])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_help_names_every_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for words in ([], ["--help"], ["-h"]):
        assert run(monkeypatch, *words) == 0
        texts.append(capsys.readouterr().out)
    assert len(set(texts)) == 1
    for name, command in COMMANDS.items():
        assert f"  {name} " in texts[0]
        assert command.purpose in texts[0]
        assert callable(getattr(import_module(command.module), command.function))


def test_a_command_that_does_not_exist_is_refused_with_the_one_that_was_meant(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "trian", "binarize=ffnn") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: there is no command trian; probably train is meant; valid are")
    assert run(monkeypatch, "binarize=ffnn") == 2
    assert "valid are train, evaluate" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--version"], ["train", "--version"]])
def test_the_version_is_ours(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *words) == 0
    assert capsys.readouterr().out == f"bitmaps {bitmaps.__version__}\n"


@pytest.mark.parametrize("command", ["report", "show", "pack", "bench", "dashboard"])
def test_help_names_the_command_that_was_called(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, command, "--help") == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: bitmaps {command} ")
    assert "python -m" not in text


@pytest.mark.parametrize(
    ("program", "train", "report"),
    [
        ("train.py", "python train.py", "python -m bitmaps.report"),
        (PROGRAM, "bitmaps train", "bitmaps report"),
        ("/bin/bitmaps-train", "bitmaps train", "bitmaps report"),
        (str(Path(bitmaps.__file__).parent / "__main__.py"), "bitmaps train", "bitmaps report"),
        ("/other/__main__.py", "python train.py", "python -m bitmaps.report"),
    ],
)
def test_a_message_says_what_its_reader_types(
    program: str, train: str, report: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [program])
    assert called("train", "resume=a b") == f"{train} 'resume=a b'"
    assert as_called("python train.py a=1", "train") == f"{train} a=1"
    assert called("report") == report


def printed(*words: str, line: str = "") -> str:
    """What ``python -m bitmaps`` prints, and nothing else."""
    done = subprocess.run(
        [sys.executable, "-m", "bitmaps", *words],
        env=os.environ | {"COMP_LINE": line, "COMP_POINT": str(len(line))},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_hydra_reads_what_follows_train() -> None:
    help_text = printed("train", "--help")
    assert "bitmaps train binarize=ffnn values=pm1" in help_text
    assert "python train.py" not in help_text


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("bitmaps ", list(COMMANDS)),
        ("bitmaps tr", ["train"]),
        ("bitmaps train values=", ["values=01", "values=pm1"]),
        ("bitmaps report ", []),
    ],
)
def test_a_shell_completes_commands_and_what_follows(line: str, words: list[str]) -> None:
    assert printed("-sc", "query=bash", line=line).split() == words


def test_a_path_is_completed_where_a_key_takes_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/train/a", "runs/train/b c", "runs/.hidden"):
        Path(folder).mkdir(parents=True)
    Path("rules.csv").touch()
    found = {
        "train.py resume=r": ["resume=rules.csv", "resume=runs/"],
        "train.py resume=": ["resume=rules.csv", "resume=runs/"],
        "train.py binarize=all resume=runs/": ["resume=runs/train/"],
        "train.py resume=runs/.": ["resume=runs/.hidden/"],
        "train.py resume=runs/train/": ["resume=runs/train/a/"],  # a space would need quotes
        f"train.py +data.dir={tmp_path}/ru": [
            f"+data.dir={tmp_path}/rules.csv", f"+data.dir={tmp_path}/runs/"
        ],
        "evaluate.py hydra.run.dir=runs/t": ["hydra.run.dir=runs/train/"],
        "evaluate.py checkpoint=nowhere/x": [],
    }  # fmt: skip
    for line, words in found.items():
        assert path_matches(line) == words, line
    for line in ("train.py ", "train.py resume", "train.py values=r", "train.py resume=r x"):
        assert path_matches(line) is None, line


@pytest.mark.parametrize("key", PATHS)
def test_every_key_that_takes_a_path_is_completed(key: str) -> None:
    assert path_matches(f"train.py {key}=") is not None


def test_a_line_of_shell_installs_it(tmp_path: Path) -> None:
    """As a user has it: the program is called by its name, and bash by its own rules."""
    program = tmp_path / "bitmaps"
    program.write_text(f"#!{sys.executable}\nfrom bitmaps.__main__ import main\nmain()\n")
    program.chmod(0o755)
    (tmp_path / "runs").mkdir()
    asked = (
        'eval "$(bitmaps -sc install=bash)"; complete -p bitmaps; COMP_LINE="bitmaps evaluate '
        'checkpoint=ru"; COMP_POINT=30; COMP_CWORD=2; hydra_bash_completion; echo "${COMPREPLY[@]}"'
    )
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", asked],
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == "checkpoint=runs/", done.stderr


def test_a_path_below_the_current_folder_is_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert from_here(tmp_path / "runs" / "r") == "runs/r"
    assert from_here(Path("runs/r")) == "runs/r"
    assert from_here(tmp_path.parent) == str(tmp_path.parent)
