"""The standard work: every recipe on the Penn Treebank, from one full-precision model, on the same budget.

    python -m bitmaps.compare short data.dir=<folder with ptb.train.txt, ptb.valid.txt, ptb.test.txt>
    python -m bitmaps.compare long data.dir=<folder>
    python -m bitmaps.compare table

The first two make the full-precision model if ``<folder>/teacher`` holds none, then every job of ``jobs_of``, several side by
side, each as ``train.py`` or ``evaluate.py`` would on its own. They may be stopped and started again: what is done is left alone,
what has a checkpoint goes on from there. Overrides go to every job, those of the model's weights to the full-precision model
alone, which the others start from; none may set what lines differ in. What came of it is written to ``--results``, one JSON file a
recipe and row, its seeds together, those that were run elsewhere from the same model too. ``table`` prints them, and draws size
against cross entropy into ``<results>/size.png``.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from numpy.typing import NDArray
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bitmaps.cli import is_resumable, key_of
from bitmaps.command.schema import check, conf_dir
from bitmaps.errors import InputError
from bitmaps.runs.folder import (
    SCORES,
    hold,
    need,
    read_json,
    read_metrics,
    read_sentences,
    write_json,
)

PUBLISHED = ("students", "bwn", "bibert", "bit", "paretoq", "bitnet", "onebit")
BEST_PUBLISHED = (
    "paretoq",
    "bibert",
)  # on the short budget, under the common loss, after onebit, which is then ours
# what lines differ in, which no override may change
DIFFER = (
    "seed",
    "recipe",
    "loss",
    "scale",
    "binarize",
    "values",
    "embeddings",
    "activations",
    "calibrate",
)
OURS = {  # what is in one bit
    "layers": ("binarize=layers",),
    "ffnn": ("binarize=ffnn",),
    "all": ("binarize=all",),
    "layers-01": ("binarize=layers", "values=01"),
    "layers-words_bit": ("binarize=layers", "embeddings=bit"),
    "layers-activations_bit": ("binarize=layers", "activations=bit"),
}
AFTER_TRAINING = (
    "embeddings=fp16",
    "embeddings=int8",
    "embeddings=int4",
    "activations=int8",
)  # of a run of `layers`
# what of a run's row does not belong to the line
OF_A_RUN = (
    "format", "status", "error", "command", "seed", "known", *SCORES, "perplexity", "inference_ms", "inference_masked_ms",
    "inference_repeats", "inference_batch", "inference_length",
)  # fmt: skip
OF_THE_PLACE = ("data.dir", "model.source", "checkpoint")  # what of its command does not


@dataclass(frozen=True)
class Job:
    """One run: the line of the table it belongs to, its seed, the overrides of its command, and the line whose model it scores,
    if it trains none."""

    line: str
    seed: int
    overrides: tuple[str, ...]
    command: str = "train"
    of: str | None = None

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.line}-{self.seed}"


def jobs_of(budget: str, seeds: Sequence[int]) -> list[Job]:
    """All runs of a budget, the first seed first."""
    scored = ("data=ptb", "measure=none", "mask_sets=5", "references=false")
    layers, matrices = (*scored, "model=hub", "binarize=layers"), "binarize.scope=matrices"
    published = PUBLISHED if budget == "short" else BEST_PUBLISHED
    jobs = []
    for seed in seeds:
        fixed = (f"experiment=ptb_{budget}", f"seed={seed}")
        jobs += [Job(f"bitmaps-{row}", seed, (*fixed, *what)) for row, what in OURS.items()]
        jobs += [
            Job(f"{recipe}-own_loss", seed, (*fixed, f"recipe={recipe}")) for recipe in published
        ]
        # bitnet's map is that of bit, and onebit's is ours: under the same loss the same run
        shared = [recipe for recipe in published if recipe not in ("bitnet", "onebit")]
        jobs += [
            Job(f"{recipe}-common_loss", seed, (*fixed, f"recipe={recipe}", "loss=common"))
            for recipe in shared
        ]
        # at the rate of latent weights, which are none here, it would forget more than it learns
        jobs.append(
            Job(
                "full_precision",
                seed,
                (*fixed, "binarize=none", "loss=tokens", "optimizer.lr=5e-5"),
            )
        )
        for override in AFTER_TRAINING:
            line = f"bitmaps-layers-{override.replace('=', '_')}"
            jobs.append(Job(line, seed, (*scored, override), "evaluate", of="bitmaps-layers"))
    if budget == "short":
        jobs += [
            Job("naive", 0, layers, "evaluate"),
            Job("scaled", 0, (*layers, "scale=row", matrices), "evaluate"),
            Job(
                "calibrated", 0, (*layers, "scale=rank_one", matrices, "calibrate=512"), "evaluate"
            ),
        ]
    return jobs


def differences(
    ours: NDArray[Any], theirs: NDArray[Any], draws: int = 2000
) -> dict[str, dict[str, float]]:
    """Ours minus theirs, and ours over theirs, with the 95 % interval of a bootstrap that draws sentences, the same for both.

    Args:
        ours, theirs: ``bitmaps.metrics.SentenceSums`` of the same masked sentences, (sentences, 4).
        draws: bootstrap samples.

    Raises:
        InputError: when the masked tokens are not the same.
    """
    if ours.shape != theirs.shape or (ours[:, 0] != theirs[:, 0]).any():
        raise InputError(
            "two runs that were not scored on the same masked sentences cannot be compared"
        )
    sentences = len(ours)
    weights = np.random.RandomState(0).multinomial(
        sentences, np.full(sentences, 1 / sentences), draws
    )
    weights = np.concatenate([np.ones((1, sentences)), weights])
    mine, other = weights @ ours, weights @ theirs
    found = {}
    for column, name in enumerate(SCORES, 1):
        a, b = mine[:, column] / mine[:, 0], other[:, column] / other[:, 0]
        ratio = {f"{name}_ratio": a / b} if b.min() > 0 else {}  # of nothing there is no share
        for kind, values in ({name: a - b} | ratio).items():
            low, high = np.percentile(values[1:], (2.5, 97.5))
            found[kind] = {"value": float(values[0]), "low": float(low), "high": float(high)}
    return found


def sums(folder: Path) -> NDArray[Any]:
    """What each sentence came to in a run's own row."""
    return list(read_sentences(folder).values())[-1]


def done(folder: Path) -> bool:
    return (folder / "metrics.json").is_file() and read_metrics(folder)["status"] == "ok"


def runs_of(line: str, folder: Path) -> list[Path]:
    """The runs of a line that have ended, by their seeds."""
    found = [
        run for run in folder.glob(f"{line}-*") if run.name.rpartition("-")[0] == line and done(run)
    ]
    return sorted(found, key=lambda run: int(run.name.rpartition("-")[2]))


def settings_of(line: str, folder: Path, results: Path) -> dict[Path, dict[str, Any]]:
    """Those of a line's runs that have ended, and of what is written of it."""
    found = {run: read_metrics(run)["settings"] for run in runs_of(line, folder)}
    file = results / f"{line}.json"
    return found | ({file: read_line(file)["settings"]} if file.is_file() else {})


def check_overrides(job: Job, extra: Sequence[str], before: dict[Path, dict[str, Any]]) -> None:
    """Raises:
    InputError: when the job's command does not take all of its overrides, or its line was trained with other settings before."""
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
            config: Any = OmegaConf.to_object(compose(job.command, [*job.overrides, *extra]))
            check(config)
    except (InputError, HydraException, OmegaConfBaseException) as error:
        raise InputError(f"{job.name} cannot be run with {' '.join(extra)}: {error}") from error
    now = json.loads(json.dumps(config.facts()["settings"]))
    for place, was in before.items() if job.of is None else ():
        if other := [f"{key}={was[key]}" for key in now if key in was and was[key] != now[key]]:
            raise InputError(
                f"{place} was run with {', '.join(other)}, unlike what is asked for: choose another --folder and --results"
            )


def run(job: Job, folder: Path, extra: Sequence[str], threads: int) -> float:
    """Run a job, unless it is done, in its folder, and give the seconds that took.

    Raises:
        InputError: when it fails; what it said is in the file beside its folder. When another process is at it, or the folder
            holds something else.
    """
    if done(folder):
        return 0.0
    folder.parent.mkdir(parents=True, exist_ok=True)
    # not the run's own lock, which is free until its process has started
    lock = hold(folder, folder.with_name(f".{folder.name}.lock"))
    try:
        return run_locked(job, folder, extra, threads)
    finally:
        lock.release()


def run_locked(job: Job, folder: Path, extra: Sequence[str], threads: int) -> float:
    start = time.monotonic()
    is_run = (folder / "config.yaml").is_file()
    if folder.is_dir() and not is_run and any(file.suffix != ".log" for file in folder.iterdir()):
        raise InputError(f"{folder} is no run: it stays as it is, so choose another --folder")
    if is_run:
        hold(folder).release()  # one that was started by hand may still be at it
    if (folder / "checkpoints" / "last.ckpt").is_file():
        arguments = [
            f"resume={folder}",
            *(override for override in extra if is_resumable(key_of(override))),
        ]
    else:
        shutil.rmtree(
            folder, ignore_errors=True
        )  # stopped before its first checkpoint: there is nothing to go on from
        arguments = [*job.overrides, *extra, f"hydra.run.dir={folder}"]
    with folder.with_name(f"{folder.name}.log").open("w", encoding="utf-8") as said:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        ended = subprocess.run(
            [sys.executable, "-m", "bitmaps.cli", f"--config-name={job.command}", *arguments],
            stdout=said,
            stderr=said,
            env=environment,
            check=False,
        )
    if ended.returncode or not done(folder):
        raise InputError(f"{job.name} failed: see {said.name}")
    return time.monotonic() - start


def read_line(file: Path) -> dict[str, Any]:
    """What ``write_line`` wrote.

    Raises:
        InputError: when it did not.
    """
    line: dict[str, Any] = read_json(file)
    need(file, line, ("seeds", "settings"))
    for seed in line["seeds"].values():
        need(file, seed, (*SCORES, "versus_full_precision", "versus_bitmaps_layers"))
    return line


def write_line(line: str, folder: Path, budget: str, results: Path) -> None:
    """What the seeds of a line came to, as JSON: what was run, each seed's scores, how they differ from the full-precision model
    and from our own recipe with all layers in one bit and the same seed, where that is there, and the means of it all. The bounds
    of a mean difference are the means of the bounds: a little wide, for seeds do not err alike. Seeds that were written before and
    are not in the folder stay. What was run is told by the first seed."""
    ended = runs_of(line, folder / budget)
    if not ended:
        return
    file = results / budget / f"{line}.json"
    written = read_line(file) if file.is_file() else {"seeds": {}}
    seeds: dict[str, Any] = written["seeds"]
    rows: dict[str, dict[str, Any]] = {}
    for run in ended:
        seed = run.name.rpartition("-")[2]
        row = rows[seed] = read_metrics(run)
        ours = folder / budget / f"bitmaps-layers-{seed}"
        before = seeds.get(seed, {}).get("versus_bitmaps_layers")
        seeds[seed] = {name: row[name] for name in SCORES} | {
            "versus_full_precision": differences(sums(run), sums(folder / "teacher")),
            "versus_bitmaps_layers": differences(sums(run), sums(ours)) if done(ours) else before,
        }
    seeds = {seed: seeds[seed] for seed in sorted(seeds, key=int)}
    found = list(seeds.values())
    compared = all(seed["versus_bitmaps_layers"] for seed in found)
    told = rows.get(next(iter(seeds)), written)  # of the line as a whole, by the first of its seeds
    words = [
        word for word in shlex.split(told["command"]) if word.split("=")[0] not in OF_THE_PLACE
    ]
    result = {
        "line": line,
        "budget": budget,
        "command": shlex.join(words),
        "seeds": seeds,
        "mean": {name: statistics.fmean(seed[name] for seed in found) for name in SCORES},
        "versus_full_precision": mean_of([seed["versus_full_precision"] for seed in found]),
        "versus_bitmaps_layers": mean_of([seed["versus_bitmaps_layers"] for seed in found])
        if compared
        else None,
    }
    (results / budget).mkdir(parents=True, exist_ok=True)
    write_json(
        file, result | {name: told[name] for name in told if name not in (*result, *OF_A_RUN)}
    )


def mean_of(seeds: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Of ``differences``, number by number, of those that all seeds have."""
    kinds = [kind for kind in seeds[0] if all(kind in seed for seed in seeds)]
    return {
        kind: {n: statistics.fmean(seed[kind][n] for seed in seeds) for n in seeds[0][kind]}
        for kind in kinds
    }


def compare(
    budget: str,
    folder: Path,
    results: Path,
    parallel: int,
    seeds: Sequence[int],
    pattern: str,
    extra: Sequence[str],
) -> None:
    """Make the full-precision model, then run what is not done yet of a budget, ``parallel`` runs side by side."""
    if parallel < 1:
        raise InputError(f"--parallel {parallel} is too small; valid is 1 or more")
    if not seeds:
        raise InputError("--seeds is too small; valid is 1 or more")
    threads, jobs = max(1, torch.get_num_threads() // parallel), jobs_of(budget, seeds)
    chosen = [job for job in jobs if fnmatchcase(job.name, pattern)]
    if not chosen:
        raise InputError(f"--jobs {pattern} is none of {', '.join(job.name for job in jobs)}")
    scored = {(job.of, job.seed) for job in chosen}
    chosen = [job for job in jobs if job in chosen or (job.line, job.seed) in scored]
    for override in extra:
        if (key := key_of(override)).split(".")[0] in DIFFER:
            raise InputError(
                f"{override}: {key} is what the lines of a comparison differ in; leave it out"
            )
    teacher = Job("teacher", 0, ("experiment=ptb",))
    made = folder / "teacher"
    check_overrides(teacher, extra, {made: read_metrics(made)["settings"]} if done(made) else {})
    # what else is under `model` is of the weights, which the others take from the full-precision model
    of_scored = [override for override in extra if not override.startswith("model")]
    of_trained = [
        override
        for override in extra
        if override in of_scored or override.startswith("model.dropout=")
    ]

    def overrides(job: Job) -> list[str]:
        """What the job's command gets besides its own."""
        if job.of is None:
            return [*of_trained, f"model.source={folder / 'teacher'}"]
        return [*of_scored, f"checkpoint={folder / budget / job.of}-{job.seed}"]

    # of a line its first seed alone: seeds differ in nothing that can be wrong
    lines = {job.line: job for job in reversed(chosen)}
    for job in reversed(lines.values()):
        check_overrides(
            job, overrides(job), settings_of(job.line, folder / budget, results / budget)
        )
    run(teacher, made, extra, threads * parallel)
    row = read_metrics(made)
    scores, written = {name: row[name] for name in SCORES}, results / "teacher.json"
    if written.is_file() and read_json(written)["mean"] != scores:
        raise InputError(
            f"{results} is of another full-precision model than {folder}: choose another --results"
        )
    facts = {name: value for name, value in row.items() if name not in OF_A_RUN}
    results.mkdir(parents=True, exist_ok=True)
    write_json(written, {"line": "teacher", "mean": scores} | facts)
    todo = [job for job in chosen if not done(folder / budget / job.name)]
    print(f"{len(chosen) - len(todo)} of {len(chosen)} jobs are done", flush=True)
    took: list[float] = []
    for ready in (
        [job for job in todo if job.of is None],
        [job for job in todo if job.of is not None],
    ):
        with ThreadPoolExecutor(parallel) as pool:
            running = {}
            for job in ready:
                running[
                    pool.submit(run, job, folder / budget / job.name, overrides(job), threads)
                ] = job
            for ended in as_completed(running):
                if ended.exception() is not None:
                    pool.shutdown(wait=False, cancel_futures=True)
                took.append(ended.result())
                job, left = running[ended], len(todo) - len(took)
                minutes = left * statistics.mean(took) / parallel / 60
                print(
                    f"{job.name}: {took[-1] / 60:.1f} min; {left} to go, about {minutes:.0f} min",
                    flush=True,
                )
                write_line(job.line, folder, budget, results)
    for line in sorted({job.line for job in jobs}):
        write_line(line, folder, budget, results)


def markdown(results: Path) -> str:
    """The lines of each budget, lowest cross entropy first: mean over the seeds, and that of the lowest and the highest; and, of
    the full-precision model's accuracy and MRR, the share that is left, with its interval."""
    teacher = read_json(results / "teacher.json")["mean"]
    texts = []
    for budget in ("short", "long"):
        lines = [read_json(file) for file in (results / budget).glob("*.json")]
        if not lines:
            continue
        headings = (
            budget,
            "seeds",
            "CE",
            "accuracy",
            "MRR",
            "CE above the teacher",
            "of its accuracy",
            "of its MRR",
        )
        texts += [
            row_of([*headings, "CE above bitmaps-layers", "MiB (pseudo)"]),
            row_of(["---", *["---:"] * (len(headings) + 1)]),
        ]
        texts.append(
            row_of(
                [
                    "the teacher, full precision",
                    "",
                    *(f"{teacher[name]:.4f}" for name in SCORES),
                    *[""] * 5,
                ]
            )
        )
        for line in sorted(lines, key=lambda line: line["mean"]["cross_entropy"]):
            versus, ours = line["versus_full_precision"], line["versus_bitmaps_layers"]
            other = ours is not None and line["line"] != "bitmaps-layers"
            cells = [
                line["line"],
                str(len(line["seeds"])),
                *(f"{line['mean'][name]:.4f}" for name in SCORES),
            ]
            if len(line["seeds"]) > 1:
                losses = [seed["cross_entropy"] for seed in line["seeds"].values()]
                cells[2] += f" ({min(losses):.4f} to {max(losses):.4f})"
            cells.append(interval(versus["cross_entropy"], "+.3f"))
            cells += [interval(versus.get(f"{name}_ratio"), ".1%") for name in ("accuracy", "mrr")]
            texts.append(
                row_of(
                    [
                        *cells,
                        interval(ours["cross_entropy"], "+.3f") if other else "",
                        f"{line['memory_mib']:.1f}",
                    ]
                )
            )
        texts.append("")
    return "\n".join(texts)


def row_of(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def interval(found: dict[str, float] | None, form: str) -> str:
    if found is None:
        return ""
    return f"{found['value']:{form}} ({found['low']:{form}} to {found['high']:{form}})"


def draw_sizes(results: Path) -> None:
    """``size.png``: what the layers in one bit come to with the word table in ever fewer bits, pseudo size against cross
    entropy; and with everything in one bit, and the full-precision model."""
    from matplotlib.figure import Figure  # takes a second, so only when there is something to draw

    found = {
        file.stem: read_json(file) for file in sorted((results / "short").glob("bitmaps-*.json"))
    }
    stored = [
        name
        for name in found
        if name.startswith(("bitmaps-layers-embeddings_", "bitmaps-layers-words_"))
    ]
    points = {
        "full precision": read_json(results / "teacher.json"),
        "layers": found.get("bitmaps-layers"),
        **{f"layers, words {name.split('_')[-1]}": found[name] for name in stored},
        "all": found.get("bitmaps-all"),
    }
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for name, line in points.items():
        if line is not None:
            size, score = line["memory_mib"], line["mean"]["cross_entropy"]
            axis.scatter(size, score, color="tab:blue")
            axis.annotate(
                name, (size, score), xytext=(3, 5), textcoords="offset points", rotation=25
            )
    axis.set(xscale="log", xlabel="MiB (pseudo)", ylabel="cross entropy, nats")
    sizes = [line["memory_mib"] for line in points.values() if line is not None]
    axis.set_xticks(sizes, [f"{size:.3g}" for size in sizes])
    axis.minorticks_off()
    axis.margins(x=0.25, y=0.2)
    figure.savefig(results / "size.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bitmaps.compare", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "budget",
        choices=("short", "long", "table"),
        help="300 or 1,500 steps of 32 sentences; or what is there",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        help="of every job, such as data.dir=<folder>, model=bert_base or trainer=gpu",
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/ptb"), help="of the runs (default: %(default)s)"
    )
    parser.add_argument(
        "--results",
        type=Path,
        help="of the JSON files, where seeds of the same model stay (default: <folder>/results)",
    )
    parser.add_argument(
        "--parallel",
        type=int,
        default=torch.get_num_threads(),
        help="runs side by side (default: one a thread)",
    )
    parser.add_argument(
        "--seeds", type=int, default=3, help="how many, from 0 on (default: %(default)s)"
    )
    parser.add_argument(
        "--jobs",
        default="*",
        metavar="PATTERN",
        help="only those of such names, as in a shell: 'bitmaps-*-0'",
    )
    arguments = parser.parse_intermixed_args()
    results = arguments.results or arguments.folder / "results"
    try:
        if arguments.budget == "table":
            print(markdown(results))
            draw_sizes(results)
            return
        compare(
            arguments.budget, arguments.folder, results, arguments.parallel, range(arguments.seeds),
            arguments.jobs, arguments.overrides,
        )  # fmt: skip
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
