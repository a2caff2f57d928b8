"""Report runs and sweeps together, as a page, a table and a picture.

    python -m bitmaps.report <run or sweep> [<run or sweep> ...] [--output <folder>]

Writes results.html, results.csv, results.md and results.png to the first folder, or to --output.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bitmaps.errors import InputError
from bitmaps.report.comparison import compare, run_folders
from bitmaps.report.files import write_results
from bitmaps.report.page import write_page
from bitmaps.report.terminal import print_table


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bitmaps.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="+", type=Path, help="runs, or folders that hold runs")
    parser.add_argument("--output", type=Path, help="where to write (default: the first folder)")
    arguments = parser.parse_args()
    try:
        comparison = compare(runs_in(arguments.folders))
        output: Path = arguments.output or arguments.folders[0]
        output.mkdir(parents=True, exist_ok=True)
        written = write_results(comparison, output)
        write_page(comparison, output / "results.html")
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    print_table(comparison)
    print(f"{output}: results.html, {', '.join(written)}")


def runs_in(folders: Sequence[Path]) -> list[Path]:
    """The runs of all these folders. A folder without runs is skipped as long as another has some.

    Raises:
        InputError: when none holds a run, or one does not exist.
    """
    found = []
    for folder in folders:
        try:
            found += run_folders(folder)
        except InputError as error:
            if len(folders) == 1 or not folder.is_dir():
                raise
            print(f"skipped: {error}", file=sys.stderr)
    if not found:
        raise InputError(f"none of {len(folders)} folders holds results")
    return found


if __name__ == "__main__":
    main()
