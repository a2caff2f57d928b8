"""Report runs and sweeps together, and compare rows with intervals.

    python -m bitmaps.report <run or sweep> [<run or sweep> ...] [--output <folder>]
    python -m bitmaps.report <run or sweep> [...] --against <row> [--against <row>] [--json <file>]
    python -m bitmaps.report <file of --json> [--line <pattern> ...] [--sizes <picture>]

Writes results.html, results.csv, results.md and results.png to the first folder, or to --output.
--against prints the differences of every row from the named ones as Markdown, with 95 % intervals
of a paired bootstrap over sentences. The last form shows the lines of such a file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bitmaps.calling import as_called, called
from bitmaps.errors import InputError, refuse
from bitmaps.report import intervals
from bitmaps.report.comparison import Comparison, compare
from bitmaps.report.entries import run_folders
from bitmaps.report.files import write_results
from bitmaps.report.page import write_page
from bitmaps.report.terminal import (
    escape_missing_characters,
    print_finding,
    print_table,
    say,
)


def main() -> None:
    parser = arguments_parser()
    given = parser.parse_args()
    stored = [path for path in given.sources if path.suffix == ".json"]
    if stored and (len(given.sources) > 1 or given.output or given.against or given.json):
        parser.error("a JSON file is shown alone: only --line and --sizes go with it")
    escape_missing_characters()
    try:
        if stored:
            show(intervals.select(intervals.read(stored[0]), given.line), given.sizes)
            return
        comparison = report(given.sources, given.output)
        if given.against or given.json or given.sizes:
            results = intervals.compare_with(comparison, given.against)
            results = intervals.select(results, given.line)
            if given.json:
                intervals.write(results, given.json)
            show(results, given.sizes)
    except (InputError, OSError) as error:
        refuse(error)


def arguments_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=called("report"),
        description=as_called(str(__doc__), "report"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "sources", nargs="+", type=Path, help="runs, folders that hold runs, or one file of --json"
    )
    parser.add_argument("--output", type=Path, help="where to write (default: the first folder)")
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="ROW",
        help="a row to compare with: its label, or the name of its run folder; may be repeated",
    )
    parser.add_argument("--json", type=Path, help="where to write scores and differences")
    parser.add_argument(
        "--line",
        action="append",
        default=[],
        metavar="PATTERN",
        help="compare only rows with such labels, as in a shell; may be repeated",
    )
    parser.add_argument(
        "--sizes",
        type=Path,
        metavar="NAME.png",
        help="where to draw size against quality; NAME-dark.png is the same for dark pages",
    )
    return parser


def report(folders: Sequence[Path], output: Path | None) -> Comparison:
    """Write and print the report of these folders."""
    comparison = compare(runs_in(folders))
    output = output or folders[0]
    output.mkdir(parents=True, exist_ok=True)
    written = write_results(comparison, output)
    write_page(comparison, output / "results.html")
    print_table(comparison)
    print_finding(comparison)
    say(f"{output}: results.html, {', '.join(written)}")
    return comparison


def show(results: intervals.Results, picture: Path | None) -> None:
    for line in intervals.tables(results).splitlines():
        say(line)
    if picture is not None:
        intervals.draw_sizes(results, picture)


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
