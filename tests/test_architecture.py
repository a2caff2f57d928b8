"""The rooms of the package: every one is on the page, and imports go one way."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bitmaps"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
# the rows of the table of rooms, from the bottom of the house to the top
ROOMS = re.findall(r"^\| `(\w+)/` \|", PAGE, re.M)
SHARED = ["__init__", "vocabulary", "errors", "calling", "metrics"]


def imports_of(path: Path) -> set[str]:
    """What a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative imports are not checked"
            found |= {f"{node.module}.{name.name}" for name in node.names}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return found


def imports_of_package(path: Path) -> set[str]:
    return {name for name in imports_of(path) if name.split(".")[0] == "bitmaps"}


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def test_the_page_lists_every_room() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == set(ROOMS)
    assert len(ROOMS) == len(set(ROOMS))


def test_the_package_is_built_with_every_room() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    built = set(project["tool"]["setuptools"]["packages"])
    assert built == {"bitmaps", "bitmaps.conf", *(f"bitmaps.{room}" for room in ROOMS)}


def test_the_page_names_every_module_beside_the_rooms() -> None:
    beside = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    named = {name for name in beside if f"`{name}.py`" in PAGE}
    assert named == beside
    assert beside >= {*SHARED} - {"__init__"}


def test_tests_are_in_the_rooms_of_what_they_test() -> None:
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert folders - {"long"} <= set(ROOMS)  # which has campaigns of random cases


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_below_it(room: str) -> None:
    below = {*ROOMS[: ROOMS.index(room) + 1], *SHARED, "ADAPTERS", "__version__"}
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (PACKAGE / room).rglob("*.py")
        if path.name != "__main__.py"  # a command, which may use the whole house
        for name in imports_of_package(path)
        if room_of(name) not in below
    }
    assert not wrong


def test_training_never_sees_a_configuration() -> None:
    imported = {name for path in (PACKAGE / "training").glob("*.py") for name in imports_of(path)}
    packages = {".".join(name.split(".")[:2]) for name in imported}
    assert not packages & {"bitmaps.command", "bitmaps.jobs"}
    assert not {name.split(".")[0] for name in imported} & {"hydra", "omegaconf"}


def test_shared_modules_import_no_room() -> None:
    for module in SHARED[1:]:
        rooms = {room_of(name) for name in imports_of_package(PACKAGE / f"{module}.py")}
        assert rooms <= set(SHARED)


def test_every_room_says_what_lives_in_it() -> None:
    for room in ROOMS:
        says = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text()))
        assert says, room
        assert "import" in says.lower(), room


def test_the_shared_words_import_nothing_heavy() -> None:
    code = (
        "import sys, bitmaps, bitmaps.vocabulary, bitmaps.errors;"
        "assert not {'torch', 'numpy', 'hydra', 'pydantic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
