"""The runs in a folder, however deep they lie."""

from __future__ import annotations

from pathlib import Path

# `hydra.sweep.subdir` may have slashes, and so may the value of an override in a name
LEVELS = 16
OF_A_RUN = ("checkpoints", "logs", "model", "packed", "wandb")  # folders that a run itself writes


def runs_below(folder: Path) -> list[Path]:
    """The runs at most ``LEVELS`` folders below a folder, in the order of their names.

    A folder beside a run that holds neither a run nor a report is a job that never started. A
    folder that is not there has none.
    """
    return search(folder, LEVELS, {folder.resolve()}) if folder.is_dir() else []


def search(folder: Path, levels: int, seen: set[Path]) -> list[Path]:
    """
    Args:
        seen: folders that were searched, which are not searched again.
    """
    inner = subfolders(folder, seen) if levels else []
    beside_run = any(map(is_run, inner))
    found = []
    for one in inner:
        nested = search(one, levels - 1, seen)
        never_started = beside_run and not nested and not (one / "results.html").is_file()
        if is_run(one) or never_started:
            found.append(one)
        found += nested
    return found


def subfolders(folder: Path, seen: set[Path]) -> list[Path]:
    """Short names first, so that job 10 comes after job 9. A link to a folder that was searched
    leads nowhere new."""
    found = []
    for one in sorted(folder.iterdir(), key=lambda one: (len(one.name), one.name)):
        of_run = one.name in OF_A_RUN and is_run(folder)
        if one.name.startswith(".") or of_run or not one.is_dir() or one.resolve() in seen:
            continue
        seen.add(one.resolve())
        found.append(one)
    return found


def is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("metrics.json", "config.yaml"))
