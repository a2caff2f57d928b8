"""Where runs lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitmaps.runs.search import LEVELS, runs_below


def made(*paths: Path) -> list[Path]:
    for path in paths:
        path.mkdir(parents=True)
        (path / "metrics.json").touch()
    return list(paths)


@pytest.mark.parametrize(
    "names",
    [
        ["binarize=all/seed=0", "binarize=all/seed=1", "binarize=none/seed=0"],
        ["a/b/c/d/e/f/g", "run"],  # beside a run
        ["data.dir=x", "data.dir=x/y"],  # one job in the folder of another
        ["model.source=/home/me/models/bert/large,seed=0"],
        ["runs/train/2026", "runs/sweeps/2026/seed-0"],
    ],
)  # fmt: skip
def test_runs_are_found_however_deep_they_lie(tmp_path: Path, names: list[str]) -> None:
    found = made(*(tmp_path / name.replace("=/", "=") for name in names))
    assert sorted(runs_below(tmp_path)) == sorted(found)


def test_the_search_ends(tmp_path: Path) -> None:
    deepest, deeper = ("/".join("x" * levels) for levels in (LEVELS, LEVELS + 1))
    (found,) = made(tmp_path / "a" / "/".join("y" * (LEVELS - 1)))
    made(tmp_path / deeper)
    for links in range(10):  # searched again and again, they would be 10 ** 16 folders
        (tmp_path / "a" / f"link{links}").symlink_to(tmp_path, target_is_directory=True)
    assert runs_below(tmp_path) == [found]
    (tmp_path / deepest / "metrics.json").touch()
    assert runs_below(tmp_path) == [found, tmp_path / deepest]


def test_what_a_run_writes_is_no_run(tmp_path: Path) -> None:
    (run,) = made(tmp_path / "run")
    for name in ("wandb/offline-run/files", "checkpoints", "logs/version_0", "model", "packed"):
        (run / name).mkdir(parents=True)
        (run / name / "config.yaml").touch()
    assert runs_below(tmp_path) == [run]


def test_a_job_that_never_started_is_found_beside_a_run(tmp_path: Path) -> None:
    (run,) = made(tmp_path / "a" / "seed=0")
    for name in ("a/seed=1", "b", "a/report"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "a" / "report" / "results.html").touch()
    assert runs_below(tmp_path) == [run, tmp_path / "a" / "seed=1"]
