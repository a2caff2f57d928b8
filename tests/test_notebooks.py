from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

CHECKOUT = Path(__file__).parents[1]
FOLDER = CHECKOUT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 300_000  # bytes, of a file that code hosts still show
SHOWN = ("text/plain", "text/markdown", "text/html")
PATH_OF_A_MACHINE = re.compile(
    r"(?<![\w.<])(/(home|root|tmp|usr|opt|var|work|Users|private|mnt)/|[A-Z]:\\\w)"
)

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem[:2])


def check_outputs(notebook: NotebookNode) -> None:
    """Every cell was run, once, in order, and put out nothing that a reader should not see."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs
    # what goes to stderr is a warning, a log line or a progress bar
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}
    assert "error" not in {output.output_type for output in outputs}
    text = "\n".join(
        output.get("text", "") or "\n".join(output.data.get(kind, "") for kind in SHOWN)
        for output in outputs
    )
    assert not PATH_OF_A_MACHINE.search(text)
    assert "Warning" not in text


def test_there_are_four() -> None:
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04"]


@each
def test_stored_outputs_are_complete_and_clean(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    check_outputs(notebook)
    assert path.stat().st_size < LARGEST
    # nothing that differs from run to run and says nothing: times of cells, widgets, the Python
    # that ran it
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert not any(cell.metadata for cell in notebook.cells)


@each
def test_links_lead_somewhere(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)#:]+)\)", cell.source):
                assert (FOLDER / target).exists(), target


@each
def test_everything_that_is_imported_is_there(path: Path) -> None:
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    imported = [
        (node.module, name.name)
        for cell in cells
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("bitmaps")
        for name in node.names
    ]
    assert imported
    for module, name in imported:
        found = importlib.import_module(str(module))
        if not hasattr(found, name):
            importlib.import_module(f"{module}.{name}")


@pytest.mark.slow
@each
def test_runs_from_top_to_bottom_in_its_budget(path: Path, tmp_path: Path) -> None:
    before = left_in_checkout()
    ran = subprocess.run(
        [sys.executable, FOLDER / "run.py", path, "--to", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    check_outputs(nbformat.read(tmp_path / path.name, as_version=4))
    assert left_in_checkout() == before


def left_in_checkout() -> set[Path]:
    return {path for folder in (CHECKOUT, FOLDER) for path in folder.iterdir()}
