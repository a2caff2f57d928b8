"""The ``config.yaml`` of a folder. Others may have written it: it is data, and runs no code.

Its values may refer to each other, as ``${trainer.max_steps}`` does. Resolvers such as
``${oc.env:HOME}`` are refused, because they read from outside the file. Classes that a resumed run
would make are those that the framework offers. The command line is the user's own and may name
anything.
"""

from __future__ import annotations

import copy
import inspect
import pkgutil
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bitmaps.command.mistakes import found_in, one_line
from bitmaps.command.schema import Evaluate, Train
from bitmaps.errors import InputError
from bitmaps.runs.records import RENAMED

FILE = "config.yaml"
REFERENCE = re.compile(r"\$\{[\w.\[\]]+\}")  # to a key of the same file
RESOLVER = re.compile(r"\$\{\s*([\w.]+)\s*:")
OFFERING = ("bitmaps", "lightning.pytorch.callbacks", "lightning.pytorch.loggers", "torch.optim")
SCHEDULE = re.compile(r"transformers\.(optimization\.)?get_\w+")
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)

Key = tuple[Any, ...]


def read_config(run: Path, unread: Collection[str]) -> DictConfig:
    """The configuration in a run folder, with the present names of classes.

    Args:
        unread: dotted keys that are left out, because they come from elsewhere or are not needed.

    Raises:
        InputError: when it cannot be read, or uses a resolver.
    """
    path = run / FILE
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException, RecursionError) as error:
        raise InputError(f"{path} is no configuration: {one_line(error)}") from error
    if not isinstance(loaded, dict) or not isinstance(loaded.get("model"), dict):
        raise InputError(f"{path} is no configuration: it has no model")
    for key in unread:
        remove(loaded, key)
    check_values(loaded, path)
    callbacks = loaded.get("callbacks")
    for callback in callbacks.values() if isinstance(callbacks, dict) else ():
        if isinstance(callback, dict) and isinstance(name := callback.get("_target_"), str):
            callback["_target_"] = RENAMED.get(name, name)
    return OmegaConf.create(loaded)


def remove(values: dict[Any, Any], key: str) -> None:
    """Leave out a dotted key, if it is there."""
    *parents, name = key.split(".")
    part: Any = values
    for parent in parents:
        part = part.get(parent) if isinstance(part, dict) else None
    if isinstance(part, dict):
        part.pop(name, None)


def check_values(values: dict[Any, Any], path: Path) -> None:
    """Raises:
    InputError: for a value with a resolver in it."""
    for key, value in leaves(values):
        if uses_resolver(value):
            named = RESOLVER.search(value)
            raise InputError(
                f"{path}: {dotted(key)} uses {f'the resolver {named[1]}' if named else value}, and "
                "a folder's configuration may not; valid are values, and references to its keys "
                "such as ${trainer.max_steps}"
            )


def load_config(
    run: Path, schema: type[Train | Evaluate], unread: Collection[str] = ("logger",)
) -> DictConfig:
    """The same as one of the two configurations.

    Raises:
        InputError: as ``read_config`` does, or when the configuration is of another version.
    """
    saved = read_config(run, unread)
    with found_in(run / FILE):
        return cast(DictConfig, OmegaConf.merge(OmegaConf.structured(schema), saved))


def resolved(saved: DictConfig, path: Path) -> dict[str, Any]:
    """The values of a configuration, with those that its references name.

    Raises:
        InputError: for a reference to nothing, or to itself; or when several values together make
            what would be resolved again.
    """
    try:
        plain = OmegaConf.to_container(saved, resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        raise InputError(f"{path} does not resolve: {one_line(error)}") from error
    for key, value in leaves(plain):
        if isinstance(value, str) and "${" in value:
            raise InputError(f"{path}: {dotted(key)} resolves to {value!r}, which is no value")
    return cast(dict[str, Any], plain)


def check_offered(saved: DictConfig, typed: Collection[str], path: Path) -> None:
    """Check that a configuration from a folder makes only what the framework offers.

    Args:
        typed: dotted keys that the command line sets. What is below them is not checked.

    Raises:
        InputError: naming the class and how to allow it.
    """
    own = [tuple(key.split(".")) for key in typed]
    for key, target in targets(resolved(saved, path)):
        if any(key[: len(one)] == one for one in own) or is_offered(target):
            continue
        raise InputError(
            f"{path}: {dotted(key)}={target} is code from outside; valid are callbacks and loggers "
            "of lightning, optimizers and schedules of torch and transformers, and classes of "
            f"bitmaps. If you trust it, repeat it: '++{dotted(key)}={target}'"
        )


def targets(value: Any, key: Key = (), inside: bool = False) -> Iterator[tuple[Key, Any]]:
    """Every class that a value names, at any depth, and every other object among the arguments of
    one: a class may make something of it."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from targets(item, (*key, number), inside)
    if not isinstance(value, dict):
        return
    if "_target_" in value:
        yield (*key, "_target_"), value["_target_"]
    elif inside:
        yield key, value
    for name, item in value.items():
        yield from targets(item, (*key, name), inside or "_target_" in value)


def is_offered(name: Any) -> bool:
    """Whether a target is a class or a schedule of the framework. It is imported only if its name
    lies in one of the packages that offer some.

    >>> is_offered("torch.optim.AdamW"), is_offered("torch.load")
    (True, False)
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        return False
    packages = [package for package in OFFERING if name.startswith(f"{package}.")]
    if not packages and not SCHEDULE.fullmatch(name):
        return False
    # these take seconds, and most commands check no target
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.loggers import Logger
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    if not packages:
        return inspect.isfunction(found) and found.__module__ == "transformers.optimization"
    made = isinstance(found, type) and issubclass(
        found, Callback | Logger | Optimizer | LRScheduler
    )
    return made and found.__module__.startswith(f"{packages[0]}.")


def without_resolvers(cfg: DictConfig) -> DictConfig:
    """A configuration as a run folder keeps it: references stay, and a resolver gives way to its
    value, so that the folder opens elsewhere. The logger keeps its resolvers, which may stand for
    secrets."""
    kept = copy.deepcopy(cfg)
    for key, value in leaves(OmegaConf.to_container(cfg)):
        if key[0] != "logger" and uses_resolver(value):
            original, part = cfg, kept
            for name in key[:-1]:
                original, part = original[name], part[name]
            part[key[-1]] = original[key[-1]]
    return kept


def uses_resolver(value: Any) -> bool:
    """Whether a value has more than plain references in it."""
    return isinstance(value, str) and "${" in REFERENCE.sub("", value)


def leaves(value: Any, key: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Every value of nested dictionaries and lists, with its key."""
    if not isinstance(value, dict | list):
        yield key, value
        return
    for name, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from leaves(item, (*key, name))


def dotted(key: Key) -> str:
    return ".".join(map(str, key))
