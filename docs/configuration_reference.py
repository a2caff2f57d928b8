"""A Sphinx extension that appends the configuration reference to docs/configuration.md.

The reference comes from the schema (``bitmaps/command/schema.py`` and ``parts.py``), from the
comments in ``conf/``, and from the configurations that Hydra composes.
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
    int: "integer",
    float: "number",
    bool: "`true`, `false`",
    NoneType: "`null`",
    Any: "any",
}


@dataclass
class Key:
    """A key of the schema.

    Attributes:
        name: with the names of the parts that it is in, such as ``trainer.max_steps``.
        valid: its values, in words.
        defaults: its default as YAML, for each command that has the key.
        says: its comment, for each command: from the file of the command, else from the schema,
            else from a file of the key's group.
    """

    name: str
    valid: str
    defaults: dict[str, str]
    says: dict[str, str]


def leaves(schema: type, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """The keys of a dataclass and of those nested in it: name, type, and comment of the field."""
    source = "".join(inspect.getsource(c) for c in schema.__mro__[-2::-1])
    beside = dict(re.findall(r"^    (\w+):.*?  # (.*)$", source, re.M))
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
    """The comments beside keys in the files of the groups. The first file with a comment counts."""
    found: dict[str, str] = {}
    for path in sorted(conf.glob("*/*.yaml")):
        # an experiment comments on its choices, not on the keys
        if path.parent.name in ("experiment", "debug"):
            continue
        is_global = "# @package _global_" in path.read_text(encoding="utf-8")
        for key, comment in comments(path).items():
            found.setdefault(key if is_global else f"{path.parent.name}.{key}", comment)
    return found


def keys() -> dict[str, Key]:
    """Every key of both commands, except parts such as ``optimizer``, whose keys are the arguments
    of another library."""
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
                written = yaml.safe_dump(value, default_flow_style=True, width=1000)
                key.defaults[command] = written.splitlines()[0]
                key.says[command] = own.get(name) or beside or of_groups.get(name, "")
    return found


def each(texts: dict[str, str], quote: str = "") -> str:
    """The text of both commands if they share it, else the text of each."""
    if len(set(texts.values())) == 1:
        return f"{quote}{next(iter(texts.values()))}{quote}"
    return "; ".join(f"{quote}{text}{quote} ({command}.py)" for command, text in texts.items())


def table(rows: list[Key]) -> list[str]:
    lines = ["| key | values | default | meaning |", "|---|---|---|---|"]
    for key in rows:
        only = "" if len(key.defaults) == 2 else f" ({next(iter(key.defaults))}.py only)"
        cells = (f"`{key.name}`{only}", key.valid, each(key.defaults, "`"), each(key.says))
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return lines


def of_group(group: Group, commands: list[str], rows: list[Key], conf: Path) -> list[str]:
    """The section of a group: its purpose, its options and its keys."""
    purpose = f"{group.purpose[0].upper()}{group.purpose[1:]}"
    used_by = ", ".join(f"{command}.py" for command in commands)
    lines = [f"## `{group.name}`", "", f"{purpose} ({used_by}).", ""]
    for option in group.options:
        said = " ".join(
            f"`{words}`" if is_command else words for words, is_command in option.opening
        )
        lines += [f"`{group.name}={option.name}`", f": {said}", ""]
        content = (conf / group.name / f"{option.name}.yaml").read_text(encoding="utf-8")
        if "_target_" in content:  # arguments of a library, which are not in the schema
            body = re.sub(r"\A(#.*\n)+", "", content).splitlines()
            lines += ["  ```yaml", *(f"  {line}".rstrip() for line in body), "  ```", ""]
    return [*lines, *(table(rows) if rows else []), ""]


def reference() -> str:
    """The reference as Markdown: the keys outside groups, then one section per group."""
    conf, every = conf_dir(), keys()
    of_command = {
        command: {group.name: group for group in groups(conf, command)} for command in COMMANDS
    }
    found: dict[str, Group] = {}
    for own in of_command.values():
        for name, group in own.items():
            known = found.get(name)
            both = [*(known.options if known else []), *group.options]
            options = sorted({o.name: o for o in both}.values(), key=lambda o: o.name)
            found[name] = Group(name, group.purpose, group.default, options)
    outside = [key for name, key in every.items() if name.split(".")[0] not in found]
    lines = ["## Keys outside groups", "", *table(outside), ""]
    for name, group in found.items():
        rows = [key for key in every.values() if key.name.split(".")[0] == name]
        commands = [command for command in COMMANDS if name in of_command[command]]
        lines += of_group(group, commands, rows, conf)
    return "\n".join(lines)


def fill_in(app: Sphinx, page: str, source: list[str]) -> None:
    if page == "configuration":
        source[0] += f"\n{reference()}"


def setup(app: Sphinx) -> None:
    app.connect("source-read", fill_in)
