"""Damaged packed folders: each is refused in one line, or computes what the whole one does."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from long.conftest import Cases
from packed.golden_models import GOLDEN, MODELS, some_ids
from torch import Tensor

import bitmaps
from bitmaps.errors import InputError
from bitmaps.packed.format import FILE

CONFIG = "config.json"
FOLDERS = [(version, name) for version in ("1", "2") for name in MODELS]
Files = dict[str, bytes]  # the two files of a folder that are read
ODD: list[Any] = [
    0, 1, 2, 3, -1, 7, 10**9, 2**63, 10**400, 1.5, 1e-300, 1e300, float("nan"), float("inf"),
    "", "x", "gelu_new", "relu", "1", "2", "3", True, False, None, [], [1], {}, {"a": 1}, [[[]]],
]  # fmt: skip
SECONDS, BYTES = 10.0, 2**29  # far more than any case takes


@cache
def whole(version: str, name: str) -> tuple[Files, Tensor]:
    folder = GOLDEN / version / name
    files = {file: (folder / file).read_bytes() for file in (CONFIG, FILE)}
    return files, bitmaps.load(folder)(some_ids())


def flip_bits(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 8))):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def cut(content: bytes, random: Random) -> bytes:
    start = random.choice((0, 0, 0, random.randrange(len(content))))
    return content[start : random.randrange(len(content))]


def extend(content: bytes, random: Random) -> bytes:
    more = random.randbytes(random.choice((1, 8, 1000)))
    return random.choice((content + more, more + content, content + content))


def overwrite(content: bytes, random: Random) -> bytes:
    start, size = random.randrange(len(content)), random.choice((1, 4, 64, 4096))
    filling = random.choice((bytes(size), b"\xff" * size, random.randbytes(size)))
    return content[:start] + filling + content[start + size :]


def parts_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    start = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:start]), content[start:]


def joined(header: Any, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def swap_tensors(content: bytes, random: Random) -> bytes:
    """Exchange the names of two tensors."""
    header, data = parts_of(content)
    one, other = random.sample(sorted(header.keys() - {"__metadata__"}), 2)
    header[one], header[other] = header[other], header[one]
    return joined(header, data)


def edit_object(values: Any, random: Random) -> None:
    """Change, remove, rename or add one entry at any depth."""
    while True:
        key = random.choice(sorted(values)) if isinstance(values, dict) else None
        key = random.randrange(len(values)) if isinstance(values, list) else key
        if not (isinstance(values[key], dict | list) and values[key] and random.random() < 0.8):
            break
        values = values[key]
    what = random.randrange(5)
    if what == 0:
        del values[key]
    elif what == 1 and isinstance(values, dict):
        values[f"{key}x"] = values.pop(key)
    elif what == 2 and isinstance(values, dict):
        values[random.choice(("more", "__metadata__", "is_decoder", "bitmaps"))] = values[key]
    else:
        values[key] = random.choice(ODD)


def edit_header(content: bytes, random: Random) -> bytes:
    header, data = parts_of(content)
    edit_object(header, random)
    return joined(header, data)


def edit_metadata(content: bytes, random: Random) -> bytes:
    """Change one of the JSON texts in the metadata, or any of its words."""
    header, data = parts_of(content)
    metadata = header["__metadata__"]
    key = random.choice(sorted(metadata))
    if metadata[key].startswith("{") and random.random() < 0.7:
        values = json.loads(metadata[key])
        edit_object(values, random)
        metadata[key] = json.dumps(values)
    else:
        text = random.choice(("", "{}", "[" * 10**5, "1", "x", "9" * 5000))
        metadata[key] = random.choice((text, metadata[key][1:], metadata[key].upper()))
    return joined(header, data)


def edit_config(content: bytes, random: Random) -> bytes:
    values = json.loads(content)
    for _ in range(random.choice((1, 1, 1, 3))):
        edit_object(values, random)
    return json.dumps(values).encode()


ANY = (flip_bits, flip_bits, cut, extend, overwrite)
MUTATIONS: dict[str, tuple[Callable[[bytes, Random], bytes], ...]] = {
    FILE: (*ANY, swap_tensors, edit_header, edit_header, edit_metadata, edit_metadata),
    CONFIG: (*ANY, edit_config, edit_config, edit_config, edit_config),
}


def outcome(folder: Path) -> Tensor | str:
    """The logits, or the error's message."""
    try:
        return bitmaps.load(folder)(some_ids())
    except InputError as error:
        return str(error)


@pytest.mark.slow
def test_a_damaged_folder_is_refused_or_computes_the_same(cases: Cases, tmp_path: Path) -> None:
    for version, name in FOLDERS:
        whole(version, name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number, random in cases(total=10_000, sample=60):
        version, name = random.choice(FOLDERS)
        files, expected = whole(version, name)
        file = random.choice((FILE, FILE, CONFIG))
        mutate = random.choice(MUTATIONS[file])
        folder = tmp_path / str(number)
        folder.mkdir()
        for each, content in (files | {file: mutate(files[file], random)}).items():
            (folder / each).write_bytes(content)
        start = time.process_time()
        found = outcome(folder)
        assert time.process_time() - start < SECONDS
        if isinstance(found, str):
            assert found
            assert "\n" not in found
        elif version == "2" or file == FILE:  # version 1 knows nothing of config.json but its sizes
            assert torch.equal(found, expected), mutate.__name__
        for each in files:
            (folder / each).unlink()
        folder.rmdir()
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < BYTES
