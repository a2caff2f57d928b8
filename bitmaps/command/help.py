"""What can be chosen on the command line, as the comments in ``conf/`` say it: the text of ``--help``, and what the documentation's
reference is made of. Nothing here is typed twice, and nothing is imported that takes time.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import yaml

COMMAND = re.compile(
    r"(?:^|  )(python \S.*)$"
)  # in a comment: at the start of a line, or after two spaces
KEY = re.compile(r"# ?(.*)$")


@dataclass(frozen=True)
class Option:
    """A file of ``conf/``.

    Attributes:
        name: what stands behind ``<group>=``.
        opening: the comment at the top of the file, in its order: text, and (``True``) commands.
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
        purpose: the comment beside it in the defaults list of ``train.yaml``, which has every group.
        default: the option that counts if none is named, or ``None``.
    """

    name: str
    purpose: str
    default: str | None
    options: list[Option]


def read_option(path: Path) -> Option:
    """What a file opens with. Its line ``# @package _global_`` is Hydra's, and left out."""
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
    """The comments beside the keys of a YAML file: ``a.b`` -> what stands behind ``#`` on its line."""
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


def groups(conf: Path, command: str) -> list[Group]:
    """The groups that ``conf/<command>.yaml`` composes, in its order. An experiment is an option of the command that it names."""
    purposes = dict(
        re.findall(
            r"^  - (\w+): \w+ # (.*)$", (conf / "train.yaml").read_text(encoding="utf-8"), re.M
        )
    )
    found = []
    for default in yaml.safe_load((conf / f"{command}.yaml").read_text(encoding="utf-8"))[
        "defaults"
    ]:
        for name, chosen in (
            default.items() if isinstance(default, dict) else ()
        ):  # not the schema, nor _self_
            options = [read_option(path) for path in sorted((conf / name).glob("*.yaml"))]
            if name == "experiment":
                options = [
                    o for o in options if any(f"python {command}.py" in line for line in o.commands)
                ]
            found.append(Group(name, purposes[name], chosen, options))
    return found


def help_text(conf: Path, command: str) -> str:
    """What ``python <command>.py --help`` prints. Hydra puts it through ``string.Template``, for which ``$`` is doubled."""
    own, found = read_option(conf / f"{command}.yaml"), groups(conf, command)
    width = max(len(group.name) for group in found) + 4
    lines = [
        own.text,
        "",
        *(f"  {example}" for example in own.commands),
        "",
        "Choose by <group>=<option>; * is the default:",
        "",
    ]
    for group in found:
        names = "  ".join(
            f"*{o.name}" if o.name == group.default else o.name for o in group.options
        )
        lines.append(f"  {group.name:<{width - 2}}{group.purpose}")
        lines += textwrap.wrap(
            names,
            110,
            initial_indent=" " * width,
            subsequent_indent=" " * width,
            break_on_hyphens=False,
        )
    lines += [
        "",
        "Set any key by <key>=<value>, as in data.length=32, and see them all by --cfg job; `make docs` says what each is for.",
        "Several values and -m make a sweep. What Hydra itself can do: --hydra-help.",
        f'Shell completion: eval "$(python {command}.py -sc install=bash)"',
    ]
    return "\n".join(lines).replace("$", "$$")
