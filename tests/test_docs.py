"""The documents: what is generated is complete, and what is referred to is there. ``make docs``
builds the site strictly."""

from __future__ import annotations

import dataclasses
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import pytest
import yaml

import bitmaps
from bitmaps.command.schema import Evaluate, Train, conf_dir

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def generator() -> Iterator[ModuleType]:
    pytest.importorskip("sphinx", reason="the documents need the extra `docs`")
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import configuration_reference

        yield configuration_reference
    finally:
        sys.path.remove(str(ROOT / "docs"))


def keys_of(schema: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, kind in get_type_hints(schema).items():
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            yield from keys_of(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", kind


@pytest.mark.parametrize("schema", [Train, Evaluate])
def test_every_key_of_the_schema_is_in_the_reference_and_described(
    generator: ModuleType, schema: type
) -> None:
    rows = dict(
        re.findall(
            r"^\| `([\w.]+)`.*\| ([^|]*) \|$", generator.reference().replace(r"\|", "/"), re.M
        )
    )
    instantiated = {"optimizer", "schedule", "callbacks", "logger"}
    wanted = {name for name, _ in keys_of(schema)}
    assert wanted - rows.keys() == wanted & instantiated
    assert [name for name in wanted & rows.keys() if not rows[name].strip()] == []


def test_every_group_and_option_is_in_the_reference(generator: ModuleType) -> None:
    text = generator.reference()
    for path in conf_dir().glob("*/*.yaml"):
        assert f"\n## `{path.parent.name}`\n" in text
        assert f"\n`{path.parent.name}={path.stem}`\n: " in text


def test_defaults_are_those_that_are_composed(generator: ModuleType) -> None:
    keys = generator.keys()
    assert keys["binarize.components"].defaults == {"train": "[ffnn]", "evaluate": "[]"}
    assert keys["trainer.max_steps"].defaults == {"train": "240"}
    assert keys["values"].defaults == {"train": "pm1", "evaluate": "pm1"}
    assert keys["scale"].valid == "`none`, `tensor`, `row`, `rank_one`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        assert (page.parent / file).exists(), target
        if anchor:
            headings = re.findall(
                r"^#+ (.*)$", (page.parent / file).read_text(encoding="utf-8"), re.M
            )
            assert anchor in {
                re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings
            }


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150


def test_commands_of_the_documents_name_keys_and_options_that_there_are() -> None:
    keys = {name for schema in (Train, Evaluate) for name, _ in keys_of(schema)}
    options: dict[str, set[str]] = {}
    for path in conf_dir().glob("*/*.yaml"):
        options.setdefault(path.parent.name, set()).add(path.stem)
    of_a_library = ("optimizer.", "schedule.", "callbacks.", "logger.", "hydra")
    examples = {
        "queries_keys",
        "bireal",
        "tickets",
    }  # of the how-to pages, which say how to add them
    found = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"python (?:train|evaluate)\.py (?!-sc)([^\n`]*)", text):
            for key, value in re.findall(
                r"(?:^|[\s'])\+?([a-z_]+(?:[./][a-z_]+)*)=([^\s']*)", line.split("  #")[0]
            ):
                found += 1
                if key in options:
                    valid = options[key] | examples
                    assert set(value.split(",")) <= valid or value.startswith("<"), (
                        f"{page.name}: {key}={value}"
                    )
                else:
                    assert key in keys or key.startswith(of_a_library), f"{page.name}: {key}"
    assert found > 100


def test_the_version_is_said_once_and_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert PROJECT["version"] == bitmaps.__version__ == citation["version"]
    assert citation["license"] == PROJECT["license"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in changelog
    assert bitmaps.__version__ in changelog


def test_the_hooks_are_what_make_lint_runs_and_need_no_network() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [repository["repo"] for repository in hooks] == ["local"]
    assert {hook["entry"].split()[0] for hook in hooks[0]["hooks"]} == {"ruff", "mypy"}
    assert {hook["language"] for hook in hooks[0]["hooks"]} == {"system"}
    assert "pre-commit run --all-files" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^make docs$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.M)


def test_what_is_installed_is_at_a_version_that_was_tested() -> None:
    pinned = {
        re.sub(r"[-_.]+", "-", line.split("==")[0]).lower()
        for file in ("constraints.txt", "constraints-ray.txt")
        for line in (ROOT / file).read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    asked = [
        *PROJECT["dependencies"],
        *(
            requirement
            for extra in PROJECT["optional-dependencies"].values()
            for requirement in extra
        ),
    ]
    names = {
        re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=;]", requirement)[0]).lower()
        for requirement in asked
    }
    assert names - pinned == {"bitmaps"}


def test_every_promise_names_a_test_that_there_is() -> None:
    page = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", page)
    assert len(named) > 15
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), test
