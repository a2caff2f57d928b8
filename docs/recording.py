r"""Record a command as a picture of a terminal: what was typed, and what it printed.

    python docs/recording.py <picture.svg> <command> [--skip <pattern>] ...

The README's shows the demo's model, trained with hydra.run.dir=runs/demo:

    TTY_COMPATIBLE=1 TTY_INTERACTIVE=0 COLUMNS=118 python docs/recording.py docs/images/fill.svg \
        "python evaluate.py checkpoint=runs/demo/packed limit=100 measure=none 'text=\"<text>\"'"

The command runs here and now, and its output is that of no terminal: a line of progress every
twenty seconds instead of a bar. Of lines that match a pattern, the first two in a row are shown,
and one with dots for the others. The time that it took is the last line.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

SHOWN = 2  # lines in a row that match a pattern
FONTS = re.compile(r"\s*@font-face \{.*?\}", re.DOTALL)  # rich would fetch them from the network


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("picture", type=Path)
    parser.add_argument("command")
    parser.add_argument("--skip", action="append", default=[], metavar="PATTERN")
    given = parser.parse_args()
    start = time.monotonic()
    lines = list(shortened(printed(given.command), given.skip))
    seconds = time.monotonic() - start
    took = f"# {seconds // 60:.0f} min {seconds % 60:.0f} s on {os.cpu_count()} cores"
    draw([f"$ {given.command}", *lines, took], given.picture)


def printed(command: str) -> Iterator[str]:
    """The lines of a command while it runs.

    Raises:
        subprocess.CalledProcessError: when it fails.
    """
    with subprocess.Popen(
        shlex.split(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            yield line.rstrip()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def shortened(lines: Iterable[str], patterns: list[str]) -> Iterator[str]:
    """The lines, with dots for those that repeat a pattern."""
    before, count = None, 0
    for line in lines:
        found = next((pattern for pattern in patterns if re.search(pattern, line)), None)
        count = count + 1 if found is not None and found == before else 0
        before = found
        if count < SHOWN:
            yield line
        elif count == SHOWN:
            yield "..."


def draw(lines: list[str], picture: Path) -> None:
    """Draw a terminal that is as wide as the widest of the lines."""
    texts = [Text.from_ansi(line) for line in lines]
    width = max(text.cell_len for text in texts)
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    for text in texts:
        console.print(text, highlight=False)
    picture.write_text(FONTS.sub("", console.export_svg(title="bitmaps")), encoding="utf-8")


if __name__ == "__main__":
    main()
