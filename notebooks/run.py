"""Run notebooks from top to bottom, each in a fresh kernel, and store what comes out.

python notebooks/run.py                                  # all of them, in place
python notebooks/run.py notebooks/01_*.ipynb --to out    # one, into another folder

(`jupyter execute --inplace` does the same, but stores the time of every cell.)
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent


def run(path: Path, to: Path, budget_s: float) -> None:
    """Raises:
    CellExecutionError: when a cell does.
    CellTimeoutError: when the whole notebook is not done within ``budget_s``.
    """
    notebook = nbformat.read(path, as_version=4)
    start = time.monotonic()
    client = NotebookClient(
        notebook,
        kernel_name="python3",  # of the Python that runs this
        timeout_func=lambda _: max(1, int(start + budget_s - time.monotonic())),
        record_timing=False,
        coalesce_streams=True,  # prints that came as several messages
        resources={"metadata": {"path": FOLDER}},
    )
    client.execute()
    notebook.metadata["language_info"] = {
        "name": "python"
    }  # without the version that it was run by
    nbformat.write(notebook, to / path.name)
    print(
        f"{path.name}: {time.monotonic() - start:.0f} s, {(to / path.name).stat().st_size / 1000:.0f} kB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="*", type=Path, default=sorted(FOLDER.glob("*.ipynb")))
    parser.add_argument("--to", type=Path, default=FOLDER)
    parser.add_argument("--budget", type=float, default=300, help="seconds that each may take")
    arguments = parser.parse_args()
    for path in arguments.notebooks:
        run(path, arguments.to, arguments.budget)


if __name__ == "__main__":
    main()
