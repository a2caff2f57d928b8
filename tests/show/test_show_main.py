"""``bitmaps show`` and ``python -m bitmaps.show`` up to the page."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from show.examples import tiny_run
from transformers import PreTrainedTokenizerBase

from bitmaps.errors import InputError
from bitmaps.show import __main__ as command
from bitmaps.show import server


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would be served. The commands run in this process."""
    found: list[Any] = []
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(command, "check_installed", lambda: None)
    monkeypatch.setattr(
        command, "serve", lambda groups, port, browser: found.append((groups, port, browser))
    )
    return found


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["/bin/bitmaps", *map(str, words)])
    try:
        command.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_models_are_open_before_the_page_is(
    served: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = tiny_run(tmp_path / "first", tokenizer)
    second = tiny_run(tmp_path / "second", tokenizer, bits=False)
    assert run(monkeypatch, first, second, first, "--port", 0, "--no-browser") == 0
    ((groups, port, browser),) = served
    assert [group.name for group in groups] == [str(first), str(second)]
    assert (port, browser) == (0, False)
    assert capsys.readouterr().out.splitlines() == [
        f"{first}: fp32, naive, trained, packed",
        f"{second}: fp32, naive, trained",
    ]
    assert os.environ["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{run}", "/nowhere"], "/nowhere is no folder"),
        (["{run}", "--port", "65536"], "--port 65536 is no port; valid are"),
        (["{run}", "--port", "-1"], "--port -1 is no port"),
    ],
)
def test_a_mistake_ends_before_the_page(
    words: list[str],
    said: str,
    served: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tiny_run(tmp_path / "run", tokenizer)
    assert run(monkeypatch, *(word.format(run=folder) for word in words)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}")
    assert error.count("\n") == 1
    assert served == []


def test_a_port_in_use_is_refused() -> None:
    with socket.socket() as other:
        other.bind((server.HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"--port {port} cannot be used: Address already"):
            server.check_port(port)
    server.check_port(0)


@pytest.mark.parametrize("missing", ["lightning", "streamlit"])
def test_a_missing_extra_is_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == missing else object()
    )
    with pytest.raises(InputError, match=r"needs the extra show: pip install 'bitmaps\[show\]'"):
        server.check_installed()


def test_an_older_streamlit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    older = SimpleNamespace(__version__="1.30.0")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: older)
    monkeypatch.setitem(sys.modules, "streamlit", older)
    with pytest.raises(InputError, match=r"newer Streamlit than 1.30.0: pip install"):
        server.check_installed()


def test_python_m_is_the_command_and_reads_its_arguments_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from bitmaps.show.__main__ import arguments_parser;"
        "arguments_parser().parse_args(['folder']);"
        "assert not {'torch', 'streamlit'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    done = subprocess.run(
        [sys.executable, "-m", "bitmaps.show", str(tmp_path / "nowhere"), "--no-browser"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
