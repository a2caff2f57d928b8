"""Run notebooks from top to bottom, each in a fresh kernel, and store their outputs.

    python notebooks/run.py                                  # all notebooks, in place
    python notebooks/run.py notebooks/01_*.ipynb --to out    # one, into another folder

`jupyter execute --inplace` does the same, but also stores the time of every cell.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent


def run(path: Path, to: Path, budget_s: float) -> None:
    """Run the notebook ``path`` and write it, with its outputs, to the folder ``to``.

    Raises:
        CellExecutionError: when a cell raises.
        CellTimeoutError: when the notebook takes longer than ``budget_s`` seconds in all.
    """
    notebook = nbformat.read(path, as_version=4)
    start = time.monotonic()
    client = NotebookClient(
        notebook,
        kernel_name="python3",  # the Python that runs this script
        timeout_func=lambda _: max(1, int(start + budget_s - time.monotonic())),
        record_timing=False,
        coalesce_streams=True,  # the number of messages per print varies from run to run
        resources={"metadata": {"path": FOLDER}},
    )
    client.execute()
    notebook.metadata["language_info"] = {"name": "python"}  # without the version of Python
    nbformat.write(notebook, to / path.name)
    seconds, kilobytes = time.monotonic() - start, (to / path.name).stat().st_size / 1000
    print(f"{path.name}: {seconds:.0f} s, {kilobytes:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    every = sorted(FOLDER.glob("*.ipynb"))
    add("notebooks", nargs="*", type=Path, default=every, help="files to run (default: all)")
    add("--to", type=Path, default=FOLDER, help="folder to write to (default: in place)")
    add("--budget", type=float, default=300, help="seconds for each notebook (default: 300)")
    arguments = parser.parse_args()
    for path in arguments.notebooks:
        run(path, arguments.to, arguments.budget)


if __name__ == "__main__":
    main()
