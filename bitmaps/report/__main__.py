"""Put the runs in these folders, or a sweep's, together as a page, a table and a picture.

    python -m bitmaps.report <run or sweep> [<run or sweep> ...] [--output <folder>]

Writes results.html, results.csv, results.md and results.png to the folder, which is the first one unless given.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bitmaps.errors import InputError
from bitmaps.report import table
from bitmaps.report.page import write_page


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bitmaps.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="+", type=Path, help="runs, or folders with runs in them")
    parser.add_argument("--output", type=Path, help="where to write; the first folder unless given")
    arguments = parser.parse_args()
    try:
        folders = []
        for folder in arguments.folders:
            try:
                folders += table.run_folders(folder)
            except InputError as error:
                if len(arguments.folders) == 1 or not folder.is_dir():
                    raise
                print(f"passed over: {error}", file=sys.stderr)
        if not folders:
            raise InputError(f"none of {len(arguments.folders)} folders holds results")
        rows = table.collect(folders)
        output = arguments.output or arguments.folders[0]
        output.mkdir(parents=True, exist_ok=True)
        written = table.write(rows, output)
        write_page(rows, output / "results.html")
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    table.print_table(rows)
    print(f"{output}: results.html, {', '.join(written)}")


if __name__ == "__main__":
    main()
