"""Builds the kernels in C: what does not compile is left out, and the reason is kept.

An instruction set is the files ``<architecture>/<name>.c`` and ``<name>_*.c``. If one of them does
not compile, the set is left out and all others are built. ``_kernels.json`` beside the library maps
what was left out to the compiler's reason. ``python -m bitmaps.packed info`` shows it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from itertools import groupby
from pathlib import Path
from typing import Any

from setuptools import Extension
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, ExecError, LinkError

LIBRARY, PYTHON, LOG = "library", "python", "_kernels.json"
LAST = ("amx", LIBRARY)  # they refer to other parts, which may be left out


def part_of(source: str) -> str:
    """The instruction set of a file; ``python`` for the call from Python; else ``library``."""
    path = Path(source)
    if path.parent.name != "native":
        return path.stem.split("_")[0]
    return PYTHON if path.stem == PYTHON else LIBRARY


def place(source: str) -> tuple[int, str]:
    part = part_of(source)
    return LAST.index(part) + 1 if part in LAST else 0, part


class FailedError(ExecError, OSError):
    """A compiler failed. Older setuptools catch the first class, newer ones the second."""


def run(command: list[str], **_: Any) -> None:
    """Run a compiler; its first error becomes the message."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise FailedError(f"no C compiler: {command[0]}: {error.strerror}") from error
    said = f"{done.stdout}{done.stderr}".strip()
    if said:
        print(said)
    if done.returncode:
        lines = [line for line in said.splitlines() if "error" in line.lower()]
        what = lines or said.splitlines() or ["it says nothing"]
        raise FailedError(f"{command[0]} failed ({done.returncode}): {what[0].strip()}")


class BuildKernels(build_ext):
    """``build_ext`` for the one library of this package."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        self.compiler.spawn = self.compiler.call = run  # the earlier and the later name
        left_out: dict[str, str] = {}
        try:
            objects = self.compile_sets(ext, left_out)
            libraries = ["m", "pthread"] if os.name == "posix" else []
            self.compiler.link_shared_object(objects, str(target), libraries=libraries)
        except (CompileError, LinkError) as error:
            left_out = {LIBRARY: str(error)}  # for the same reason, mostly
            raise
        finally:
            log = json.dumps(left_out, indent=2, sort_keys=True) + "\n"
            target.with_name(LOG).write_text(log, encoding="utf-8")

    def compile_sets(self, ext: Extension, left_out: dict[str, str]) -> list[str]:
        """The objects of all parts that compile. The others are added to ``left_out``."""
        objects: list[str] = []
        for part, sources in groupby(sorted(ext.sources, key=place), part_of):
            absent = [(f"NO_{name.upper()}", "1") for name in left_out]
            try:
                objects += self.compiler.compile(
                    list(sources),
                    output_dir=self.build_temp,
                    macros=absent,
                    include_dirs=self.include_dirs,
                    extra_postargs=ext.extra_compile_args,
                )
            except CompileError as error:
                if part == LIBRARY:
                    raise
                left_out[part] = str(error)
        return objects

    def copy_extensions_to_source(self) -> None:
        """What an editable installation does next; no older library stays beside a newer log."""
        for ext in self.extensions:
            built = Path(self.build_lib, self.get_ext_filename(ext.name))
            build_py = self.get_finalized_command("build_py")
            folder = Path(build_py.get_package_dir(ext.name.rpartition(".")[0]))
            (folder / built.name).unlink(missing_ok=True)
            shutil.copy(built.with_name(LOG), folder)
        super().copy_extensions_to_source()
