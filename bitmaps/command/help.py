"""The choices on the command line, from the comments in ``conf/``.

``--help`` and the configuration reference both come from here. Every text is written once, beside
what it describes. This module imports nothing slow, so that ``--help`` prints at once.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import yaml

from bitmaps.calling import as_called

# a command in a comment, at the start of a line or after two spaces
COMMAND = re.compile(r"(?:^|  )(python \S.*)$")
KEY = re.compile(r"# ?(.*)$")
WIDTH = 100


@dataclass(frozen=True)
class Option:
    """A file of ``conf/``.

    Attributes:
        name: the option, as in ``<group>=<name>``.
        opening: the comment at the top of the file, as pieces in their order. A piece is a text and
            ``False``, or a command and ``True``.
    """

    name: str
    opening: list[tuple[str, bool]]

    @property
    def text(self) -> str:
        return " ".join(words for words, is_command in self.opening if not is_command)

    @property
    def commands(self) -> list[str]:
        return [words for words, is_command in self.opening if is_command]


@dataclass(frozen=True)
class Group:
    """A folder of ``conf/``, as one command uses it.

    Attributes:
        name: the group, as in ``<name>=<option>``.
        purpose: the comment beside the group in the defaults list of ``train.yaml``, which has
            every group.
        default: the option that applies if the user names none, or ``None``.
        options: every file of the folder that the command can use.
    """

    name: str
    purpose: str
    default: str | None
    options: list[Option]

    @property
    def names(self) -> list[str]:
        """The options, with a star before the default."""
        return [f"*{o.name}" if o.name == self.default else o.name for o in self.options]


def read_option(path: Path) -> Option:
    """The comment at the top of a file, without Hydra's line ``# @package _global_``."""
    lines = takewhile(
        lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines()
    )
    opening: list[tuple[str, bool]] = []
    for line in (line.lstrip("# ") for line in lines if "@package" not in line):
        command = COMMAND.search(line)
        text = line[: command.start()] if command else line
        if text and opening and not opening[-1][1]:
            opening[-1] = (f"{opening[-1][0]} {text}", False)
        elif text:
            opening.append((text, False))
        if command:
            opening.append((command[1], True))
    return Option(path.stem, opening)


def comments(path: Path) -> dict[str, str]:
    """The comments beside the keys of a YAML file, by key: ``a.b`` for ``b`` inside ``a``."""
    source = path.read_text(encoding="utf-8")
    lines, found = source.splitlines(), {}

    def visit(node: yaml.Node | None, prefix: str) -> None:
        if not isinstance(node, yaml.MappingNode):
            return
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            nested = value.start_mark.line > key.end_mark.line
            mark = key.end_mark if nested else value.end_mark
            if comment := KEY.search(lines[mark.line], mark.column):
                found[name] = comment[1]
            visit(value, f"{name}.")

    visit(yaml.compose(source, yaml.SafeLoader), "")
    return found


OF_ANOTHER = re.compile(r"\$\{(\w+)\}")
"""A choice that is the one of another group."""


def groups(conf: Path, command: str) -> list[Group]:
    """The groups in the defaults list of ``conf/<command>.yaml``, in its order.

    An experiment is an option of the command that its opening names.
    """
    text = (conf / "train.yaml").read_text(encoding="utf-8")
    purposes = dict(re.findall(r"^  - (\w+): \S+ # (.*)$", text, re.M))
    own = yaml.safe_load((conf / f"{command}.yaml").read_text(encoding="utf-8"))
    found: list[Group] = []
    for default in own["defaults"]:
        if not isinstance(default, dict):  # the schema, or _self_
            continue
        for name, chosen in default.items():
            if isinstance(chosen, str) and (other := OF_ANOTHER.fullmatch(chosen)):
                chosen = next(group.default for group in found if group.name == other[1])
            options = [read_option(path) for path in sorted((conf / name).glob("*.yaml"))]
            if name == "experiment":
                options = [
                    o for o in options if any(f"python {command}.py" in line for line in o.commands)
                ]
            found.append(Group(name, purposes[name], chosen, options))
    return found


def help_text(conf: Path, command: str) -> str:
    """The text of ``python <command>.py --help``, at most 100 columns wide.

    Hydra passes it through ``string.Template``, so every ``$`` is doubled.
    """
    own, found = read_option(conf / f"{command}.yaml"), groups(conf, command)
    indent = max(len(group.name) for group in found) + 4
    lines = [
        *wrapped(own.text),
        "",
        *(line for example in own.commands for line in command_lines(example)),
        "",
        *wrapped("Choose an option with <group>=<option>. A star marks the default of a group:"),
        "",
    ]
    for group in found:
        lines += wrapped(group.purpose, f"  {group.name:<{indent - 2}}", indent)
        lines += wrapped("  ".join(group.names), " " * indent, indent)
    lines += [
        "",
        *wrapped(
            "Set any key with <key>=<value>, for example data.length=32. --cfg job prints every "
            "key with its value; `make docs` builds a page that explains them."
        ),
        *wrapped(
            "With -m, several values of a group or key run a sweep: one job for each combination. "
            "--hydra-help lists what Hydra itself offers."
        ),
        f'Shell completion: eval "$(python {command}.py -sc install=bash)"',
    ]
    return as_called("\n".join(lines), "train", "evaluate").replace("$", "$$")


def wrapped(text: str, first: str = "", indent: int = 0) -> list[str]:
    """A text as lines, of which the first starts with ``first`` and the others are indented."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
        break_long_words=False,
    )


def command_lines(command: str) -> list[str]:
    """A command as indented lines that a shell joins."""
    lines = textwrap.wrap(
        command,
        WIDTH - 2,  # room for the backslash
        initial_indent="  ",
        subsequent_indent=" " * 6,
        break_on_hyphens=False,
        break_long_words=False,
    )
    return [*(f"{line} \\" for line in lines[:-1]), lines[-1]]
