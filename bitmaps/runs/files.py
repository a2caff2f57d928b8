"""JSON and text files that are replaced in one step, and read with clear errors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bitmaps.errors import InputError


def replace_text(path: Path, text: str) -> None:
    """Write a file in one step: a reader sees the old content or the new one, never a part."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one step.

    Raises:
        ValueError: for NaN or infinity, which JSON does not have.
    """
    replace_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Raises:
    InputError: when the file is missing or not JSON."""
    if not path.is_file():
        raise InputError(f"{path.parent} holds no results: it has no {path.name}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # the second for what is nested too deeply
        raise InputError(f"{path} is not JSON: {error}") from error


def read_config(path: Path) -> DictConfig:
    """Raises:
    InputError: when the file is missing, not YAML, or no mapping."""
    try:
        value = OmegaConf.load(path)
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        said = " ".join(str(error).split())
        raise InputError(f"{path} is missing or no configuration: {said}") from error
    if not isinstance(value, DictConfig):
        raise InputError(f"{path} holds a list; valid are keys with values")
    return value
