"""The two commands, ``train.py`` and ``evaluate.py``: Hydra composes a configuration, a job runs it in a run folder.

What a user got wrong ends the command in one line, before a model is loaded; in a sweep it becomes a row, and the other
jobs go on.
"""

from __future__ import annotations

import logging
import shlex
import sys
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bitmaps.command.schema import Devices, Evaluate, Train, check, conf_dir
from bitmaps.errors import InputError
from bitmaps.runs.folder import (
    Row,
    RunFolder,
    commit,
    read_analyses,
    read_metrics,
    read_rows,
    read_sentences,
    versions,
)

log = logging.getLogger(__name__)

SWEEPS: list[Path] = []  # the folder of the sweep that has ended, if this command was one
# what may differ from the run that is resumed
RESUMABLE = ("trainer", "callbacks", "logger", "measure", "analysis", "text")
OF_THE_CHECKPOINT = ("model", "binarize", "values", "scale")  # what a trained run decides


def train() -> None:
    """``python train.py``."""
    main("train")


def evaluate() -> None:
    """``python evaluate.py``."""
    main("evaluate")


class SweepTable(Callback):
    """Tells ``main`` that a sweep has ended. (Hydra swallows what a callback raises, so the table is made over there.)"""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        SWEEPS.append(Path(config.hydra.sweep.dir))


def main(command: str | None = None) -> None:
    """Run ``conf/<command>.yaml`` with the overrides of the command line, once or at every point of a sweep. Without a command,
    Hydra's own ``--config-name`` says which."""
    OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=command)(run)()
    while SWEEPS:
        from bitmaps.report import table
        from bitmaps.report.page import write_page

        sweep = SWEEPS.pop()
        rows = table.collect(table.run_folders(sweep))
        written = table.write(rows, sweep)
        write_page(rows, sweep / "results.html")
        table.print_table(rows)
        print(f"{sweep}: results.html, {', '.join(written)}")
        if any(row["status"] != "ok" for row in rows):
            sys.exit(1)


def run_folder(resume: str | None, new: str) -> str:
    """Where a run writes: the folder of the run that is resumed, if there is one there."""
    return resume if resume is not None and (Path(resume) / "config.yaml").is_file() else new


def run(cfg: DictConfig) -> None:
    """One job: check, claim the run folder, do the work, write down what came of it."""
    from lightning.fabric.utilities.rank_zero import (
        rank_zero_only,
    )  # takes seconds: not before Hydra has found what is mistyped

    from bitmaps.jobs.jobs import Evaluation, Training
    from bitmaps.report.table import print_analyses, print_sentences, print_table
    from bitmaps.tracking.loggers import tracking

    hydra_config = HydraConfig.get()
    command = hydra_config.job.config_name
    overrides = list(hydra_config.overrides.task)
    in_sweep = hydra_config.mode is RunMode.MULTIRUN
    folder = RunFolder(
        Path(hydra_config.runtime.output_dir), writes=getattr(rank_zero_only, "rank", 0) == 0
    )
    facts: Row = {"command": shlex.join(["python", f"{command}.py", *overrides])}
    facts |= {"versions": versions(), "commit": commit()}
    quieten_libraries()
    if in_sweep and (folder.holds_run() or (folder.path.parent / "results.csv").exists()):
        raise SystemExit(
            f"error: {folder.path.parent} already holds a sweep: choose another hydra.sweep.dir"
        )
    try:
        check_lists(overrides)
        resume = bool(cfg.get("resume"))
        if resume:
            cfg = resumed(cfg, overrides)
            if folder.path.resolve() != Path(cfg.resume).resolve():
                raise InputError(
                    f"a run is resumed in its own folder, {cfg.resume}: leave out hydra.run.dir, and -m"
                )
            # what makes this run: the command that began it, with what was changed since
            began, changed = (
                shlex.split(read_metrics(folder.path)["command"]),
                [o for o in overrides if key_of(o) != "resume"],
            )
            facts["command"] = shlex.join(
                {key_of(word): word for word in (*began, *changed)}.values()
            )
        if cfg.get("checkpoint"):
            cfg = of_checkpoint(cfg, overrides)
        config = cast(Train | Evaluate, OmegaConf.to_object(cfg))
        facts |= config.facts()
        check(config)
        job = Training(config) if isinstance(config, Train) else Evaluation(config)
        if in_sweep and job.starts_processes:
            raise SystemExit(
                f"error: trainer.strategy={config.trainer.strategy} with trainer.devices={config.trainer.devices} in a multirun: "
                "each process that it starts would replay the whole sweep. Run the jobs one by one, without -m."
            )
        if not resume:
            folder.claim(OmegaConf.to_yaml(cfg), facts)
        # not of a training, which leaves a model
        twin = twin_of(cfg, folder.path) if in_sweep and isinstance(config, Evaluate) else None
        with tracking(
            config.logger, folder.path, facts, group=folder.path.parent.name if in_sweep else None
        ) as track:
            if resume:  # only now: a logger that does not start costs the run that is there nothing
                folder.claim(OmegaConf.to_yaml(cfg), facts, resume)
            rows = (
                job.run(folder.path, facts, track.loggers)
                if twin is None
                else [row | {"command": facts["command"]} for row in read_rows(twin)]
            )
            analyses = read_analyses(twin) if twin else job.analyses
            track.summarize(rows, analyses, job.scored, folder.path / "packed")
        folder.finish(rows, read_sentences(twin) if twin else job.sentences, analyses)
        if folder.writes and not in_sweep:
            print_table([{"status": "ok"} | row for row in rows])
            if config.analysis:
                print_analyses(analyses)
            if config.analysis or config.text is not None:
                print_sentences(analyses, None if config.analysis else 1)
            print(f"{folder.path}: metrics.json")
    except (InputError, OmegaConfBaseException) as error:
        if in_sweep and not folder.claimed:  # so that the sweep's table has a row for it
            folder.claim(OmegaConf.to_yaml(cfg), facts)
        folder.fail(error, facts)
        print(f"error: {error}", file=sys.stderr)
        if not in_sweep:
            sys.exit(2)
    except BaseException as error:
        folder.fail(error, facts)
        if not in_sweep or not isinstance(error, Exception):
            raise
        log.exception("this job failed; the sweep goes on")


def resumed(cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """The configuration of the run that ``cfg.resume`` names, with the overrides that may change it.

    Raises:
        InputError: when there is no such run, it has no checkpoint, or an override would make it another run.
    """
    path = Path(cfg.resume)
    for file in ("config.yaml", "checkpoints/last.ckpt"):
        if not (path / file).is_file():
            raise InputError(f"resume={cfg.resume} holds no run to go on with: it has no {file}")
    merged = cast(
        DictConfig,
        OmegaConf.merge(OmegaConf.structured(Train), OmegaConf.load(path / "config.yaml")),
    )
    for override in overrides:
        key = key_of(override)
        if key != "resume" and not is_resumable(key):
            raise InputError(
                f"{key} cannot change when a run is resumed; what can: {', '.join(RESUMABLE)}"
            )
        parent, _, name = key.rpartition(".")
        if override.startswith("~") and parent:
            OmegaConf.select(merged, parent).pop(name, None)
        elif (
            key == "trainer"
        ):  # the choice of devices; the steps and what else is under `trainer` stay
            for device in fields(Devices):
                merged.trainer[device.name] = cfg.trainer[device.name]
        else:
            OmegaConf.update(merged, key, OmegaConf.select(cfg, key), merge=False)
    steps = read_metrics(path).get("steps") or 0
    if merged.trainer.max_steps < steps:
        raise InputError(
            f"trainer.max_steps={merged.trainer.max_steps} is too small: {path} has {steps} steps already"
        )
    return merged


def is_resumable(key: str) -> bool:
    """Whether a run that is resumed may differ in this key from what it was."""
    return key.split(".")[0] in RESUMABLE and key != "trainer.accumulate_grad_batches"


def check_lists(overrides: list[str]) -> None:
    """Raises:
    InputError: for several options of a group, of which Hydra would lay one over the other."""
    for override in overrides:
        group, _, value = override.partition("=")
        if value.startswith("[") and group != "experiment" and (conf_dir() / group).is_dir():
            instead = (
                f"; for several components: 'binarize.components={value}'"
                if group == "binarize"
                else ""
            )
            raise InputError(f"{override} names several options where one is valid{instead}")


def key_of(override: str) -> str:
    """What an override sets: ``+a.b=c`` sets ``a.b``."""
    return override.lstrip("+~").split("=")[0]


def of_checkpoint(cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """The configuration for scoring a trained run: its model and what was binarized, and its data unless others are asked for.

    Raises:
        InputError: when there is no such run or it came to no model, or an override contradicts it.
    """
    from bitmaps.packed.format import is_packed

    path, given = Path(cfg.checkpoint), [key_of(override) for override in overrides]
    if contradicting := [
        key for key in given if key.split(".")[0] in (*OF_THE_CHECKPOINT, "calibrate")
    ]:
        raise InputError(
            f"{contradicting[0]} is what checkpoint={cfg.checkpoint} was trained with: leave it out"
        )
    real_bits = is_packed(path)
    if real_bits:
        if "embeddings" in given:
            raise InputError(
                f"embeddings is what checkpoint={cfg.checkpoint} was packed with: leave it out"
            )
        if "activations" not in given:
            OmegaConf.update(cfg, "activations", "int8")
        if cfg.activations.name == "bit":
            raise InputError(
                "activations=bit is trained, and then part of what is packed: valid are float, int8"
            )
        if not (
            path.parent / "config.yaml"
        ).is_file():  # it was taken elsewhere: there is nothing to compare with
            if "references" in given and cfg.references:
                raise InputError(
                    f"references=true: there is no run beside checkpoint={cfg.checkpoint} to refer to"
                )
            model = {"name": "hub", "source": str(path), "adapter": None, "sha256": None}
            return cast(DictConfig, OmegaConf.merge(cfg, {"model": model, "references": False}))
        path = path.parent
    metrics = read_metrics(path)
    if not (path / "config.yaml").is_file() or not (path / "model" / "config.json").is_file():
        what = (
            "was scored, not trained"
            if metrics["status"] == "ok"
            else f"has the status {metrics['status']}"
        )
        raise InputError(f"checkpoint={cfg.checkpoint} holds no trained model: that run {what}")
    for key, plain in (("embeddings", "fp32"), ("activations", "float")):
        if key in given and metrics.get(key) != plain and not real_bits:
            raise InputError(
                f"{key} is {metrics.get(key)} in checkpoint={cfg.checkpoint}, as it was trained: leave it out"
            )
    saved = cast(DictConfig, OmegaConf.load(path / "config.yaml"))
    names = [*OF_THE_CHECKPOINT, *(name for name in ("data", "seed") if name not in given)]
    merged = OmegaConf.merge(cfg, {name: saved[name] for name in names if name in saved})
    if "data" in given:  # other text, cut as it was in training
        OmegaConf.update(merged, "data.length", saved.data.length)
    for key in given:
        if key.startswith("data."):
            OmegaConf.update(merged, key, OmegaConf.select(cfg, key))
    return cast(DictConfig, merged)


def twin_of(cfg: DictConfig, own: Path) -> Path | None:
    """The folder of an earlier job of the same sweep with the same configuration, where nothing to binarize makes the value
    set, the scale and the scope mean nothing; ``None`` when there is none."""

    def identity(config: Any) -> Any:
        plain = cast(dict[str, Any], OmegaConf.to_container(config))
        if not plain["binarize"]["components"] and plain["embeddings"] != "bit":
            plain |= {"binarize": None, "values": None, "scale": None}
        return OmegaConf.to_yaml(plain)

    wanted = identity(OmegaConf.create(OmegaConf.to_yaml(cfg)))
    for metrics in own.parent.glob("*/metrics.json"):
        other = metrics.parent
        if other == own or read_metrics(other)["status"] != "ok":
            continue
        if identity(OmegaConf.load(other / "config.yaml")) == wanted:
            return other
    return None


def quieten_libraries() -> None:
    """Keep the terminal, or a notebook, for what a user can act on."""
    # in a notebook without widgets: bars of text will do
    warnings.filterwarnings("ignore", message="IProgress not found")
    import lightning.pytorch  # noqa: F401 (it sets the level of its own logger)

    for name in ("lightning.pytorch", "lightning.fabric", "httpx", "httpx2", "gensim"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # batches are made in microseconds: worker processes would only add to the start
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # a run that is resumed finds its own checkpoints
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # Lightning 2.6 on torch 2.13: theirs to mend
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")


if __name__ == "__main__":
    # python -m bitmaps.cli --config-name=train …: a command that Lightning can start again for its other processes
    from bitmaps import cli  # whose SWEEPS the callback fills

    cli.main()
