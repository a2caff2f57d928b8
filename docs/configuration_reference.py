"""The configuration reference, made of the schema (``bitmaps/config.py``), the comments in ``conf/``, and what Hydra composes.

A Sphinx extension, which puts it behind the introduction of docs/configuration.md when the site is built.
"""

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import reduce
from operator import getitem
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from sphinx.application import Sphinx

from bitmaps.command.help import Group, comments, groups
from bitmaps.command.schema import Evaluate, Train, conf_dir

COMMANDS = {"train": Train, "evaluate": Evaluate}
NAMES = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "`true`, `false`",
    NoneType: "`null`",
    Any: "any",
}


@dataclass
class Key:
    """A key of the schema.

    Attributes:
        valid: its values, in words.
        defaults: of each command that has it, what stands there if nothing is chosen, as YAML.
        says: of each command, the comment beside it: in the command's own file, in the schema, or in a file of its group.
    """

    name: str
    valid: str
    defaults: dict[str, str]
    says: dict[str, str]


def leaves(schema: type, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """The keys of a dataclass, those of dataclasses in it too: name, type, and the comment beside the field."""
    beside = dict(
        re.findall(
            r"^    (\w+):.*?  # (.*)$",
            "".join(inspect.getsource(c) for c in schema.__mro__[-2::-1]),
            re.M,
        )
    )
    hints = get_type_hints(schema)
    for field in fields(schema):
        name, kind = f"{prefix}{field.name}", hints[field.name]
        if is_dataclass(kind) and isinstance(kind, type):
            yield from leaves(kind, f"{name}.")
        else:
            yield name, kind, beside.get(field.name, "")


def in_words(kind: Any) -> str:
    """The valid values of a type."""
    if isinstance(kind, UnionType):
        return ", ".join(in_words(part) for part in get_args(kind))
    if get_origin(kind) is list:
        return f"a list of {in_words(get_args(kind)[0])}"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(f"`{member.name}`" for member in kind)
    return NAMES[kind]


def in_groups(conf: Path) -> dict[str, str]:
    """The comments beside keys in the files of the groups, the first of each key."""
    found: dict[str, str] = {}
    for path in sorted(conf.glob("*/*.yaml")):
        if path.parent.name in (
            "experiment",
            "debug",
        ):  # their comments say why they choose what they choose
            continue
        is_global = "# @package _global_" in path.read_text(encoding="utf-8")
        for key, comment in comments(path).items():
            found.setdefault(key if is_global else f"{path.parent.name}.{key}", comment)
    return found


def keys() -> dict[str, Key]:
    """Every key of both commands that holds a value of its own; ``optimizer`` and the like hold another library's arguments."""
    conf, found = conf_dir(), {}
    of_groups = in_groups(conf)
    with initialize_config_dir(version_base="1.3", config_dir=str(conf)):
        for command, schema in COMMANDS.items():
            composed = OmegaConf.to_container(compose(command), enum_to_str=True)
            own = comments(conf / f"{command}.yaml")
            for name, kind, beside in leaves(schema):
                if get_origin(kind) is dict:
                    continue
                value = reduce(getitem, name.split("."), composed)
                key = found.setdefault(name, Key(name, in_words(kind), {}, {}))
                key.defaults[command] = yaml.safe_dump(
                    value, default_flow_style=True, width=1000
                ).splitlines()[0]
                key.says[command] = own.get(name) or beside or of_groups.get(name, "")
    return found


def each(told: dict[str, str], quote: str = "") -> str:
    """What holds for both commands once, or else what holds for each."""
    if len(set(told.values())) == 1:
        return f"{quote}{next(iter(told.values()))}{quote}"
    return "; ".join(f"{quote}{text}{quote} ({command}.py)" for command, text in told.items())


def table(rows: list[Key]) -> list[str]:
    lines = ["| key | values | default | what |", "|---|---|---|---|"]
    for key in rows:
        only = "" if len(key.defaults) == 2 else f" ({next(iter(key.defaults))}.py only)"
        cells = (f"`{key.name}`{only}", key.valid, each(key.defaults, "`"), each(key.says))
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return lines


def of_group(group: Group, commands: list[str], rows: list[Key], conf: Path) -> list[str]:
    """A group's section: what it is for, its options, and its keys."""
    lines = [
        f"## `{group.name}`",
        "",
        f"{group.purpose[0].upper()}{group.purpose[1:]} ({', '.join(f'{c}.py' for c in commands)}).",
        "",
    ]
    for option in group.options:
        said = " ".join(
            f"`{words}`" if is_command else words for words, is_command in option.opening
        )
        lines += [f"`{group.name}={option.name}`", f": {said}", ""]
        content = (conf / group.name / f"{option.name}.yaml").read_text(encoding="utf-8")
        if "_target_" in content:  # a library's own arguments, which the schema leaves to it
            body = re.sub(r"\A(#.*\n)+", "", content)
            lines += [
                "  ```yaml",
                *(f"  {line}".rstrip() for line in body.splitlines()),
                "  ```",
                "",
            ]
    return [*lines, *(table(rows) if rows else []), ""]


def reference() -> str:
    """The reference as Markdown: the keys that belong to no group, then group by group."""
    conf, every = conf_dir(), keys()
    of_command = {
        command: {group.name: group for group in groups(conf, command)} for command in COMMANDS
    }
    found: dict[str, Group] = {}
    for own in of_command.values():
        for name, group in own.items():
            known = found.get(name)
            options = {
                option.name: option
                for option in [*(known.options if known else []), *group.options]
            }
            found[name] = Group(
                name, group.purpose, group.default, sorted(options.values(), key=lambda o: o.name)
            )
    loose = [key for name, key in every.items() if name.split(".")[0] not in found]
    lines = ["## Keys of no group", "", *table(loose), ""]
    for name, group in found.items():
        rows = [key for key in every.values() if key.name.split(".")[0] == name]
        lines += of_group(
            group, [command for command in COMMANDS if name in of_command[command]], rows, conf
        )
    return "\n".join(lines)


def fill_in(app: Sphinx, page: str, source: list[str]) -> None:
    if page == "configuration":
        source[0] += f"\n{reference()}"


def setup(app: Sphinx) -> None:
    app.connect("source-read", fill_in)
