"""The logger of one run, opened and closed so that the runs of a sweep do not flow into each other."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import wandb
from huggingface_hub import ModelCard
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from bitmaps.bert import Bert
from bitmaps.errors import InputError
from bitmaps.report import card
from bitmaps.report.table import MEASURES, told_by
from bitmaps.runs.folder import Row
from bitmaps.training.sign_watch import values_of

Analyses = dict[str, dict[str, Any]]  # the kind of a row -> what its predictions look like


@dataclass(frozen=True)
class Tracking:
    """A run's loggers, and what is logged when the run is over.

    Attributes:
        logger: the one that was chosen.
        curves: where that keeps none in the run folder, one that does, for the report.
    """

    logger: Logger
    curves: CSVLogger | None
    facts: Row

    @property
    def loggers(self) -> list[Logger]:
        return [self.logger] if self.curves is None else [self.logger, self.curves]

    @rank_zero_only
    def summarize(
        self, rows: list[Row], analyses: Analyses, model: Bert | None, packed: Path
    ) -> None:
        """Log what a run came to.

        Args:
            rows: of which the last is the run's own.
            analyses: of the predictions, as in ``analysis.json``; empty where there were none.
            model: of the last row; ``None`` where that was taken over from another run.
            packed: the model in real bits, if there is such a folder.
        """
        self.logger.log_metrics(
            {f"final/{name}": float(value) for name, value in numbers(rows[-1]).items()}
        )


class WandbTracking(Tracking):
    @rank_zero_only
    def summarize(
        self, rows: list[Row], analyses: Analyses, model: Bert | None, packed: Path
    ) -> None:
        """As config, what was run; as summary, all measures of the run's own row and the five of each other one, such as
        ``unbinarized/accuracy``; the table ``predictions``; the histograms ``confidence`` and ``scales/<matrix>``; and the
        packed model as an artifact, with its card."""
        run, own = self.logger.experiment, rows[-1]  # type: ignore[attr-defined]
        settings = {name: own[name] for name in (*self.facts, "calibrated_on") if name in own}
        run.config.update(config_of(settings) | {"label": label(own)}, allow_val_change=True)
        run.tags += (own["row"],)
        summary = {
            name: value for name, value in own.items() if name not in settings and value is not None
        }
        for row in rows[:-1]:
            summary |= {
                f"{row['row']}/{name}": row[name] for name in MEASURES if row.get(name) is not None
            }
        logged: dict[str, Any] = {}
        if own["row"] in analyses:
            analysis = analyses[own["row"]]
            confidence, most = analysis["confidence"], analysis["predicted"][0]
            summary |= {
                "verdict": analysis["verdict"],
                "predicted": most["token"],
                "predicted_share": most["share"],
            }
            summary |= {"confidence_mean": confidence["mean"], "confidence_std": confidence["std"]}
            counts = confidence["histogram"]
            logged["confidence"] = wandb.Histogram(
                np_histogram=(counts, np.linspace(0, 1, len(counts) + 1))
            )
            columns, lines = predictions(analyses)
            logged["predictions"] = wandb.Table(columns, lines)
        for name, values in values_of(model).items() if model is not None else ():
            logged[f"scales/{name}"] = wandb.Histogram(
                np_histogram=np.histogram(values.numpy(), bins=64)
            )
        if logged:
            run.log(logged)
        run.summary.update(summary)
        if packed.is_dir():
            name = re.sub(r"[^\w.-]", "-", f"packed-{label(own)}")
            text = ModelCard.load(packed / card.FILE).text
            artifact = wandb.Artifact(name, "model", description=text, metadata=config_of(own))
            artifact.add_dir(str(packed))
            run.log_artifact(artifact)


def numbers(row: Row) -> Row:
    return {
        name: v for name, v in row.items() if isinstance(v, int | float) and not isinstance(v, bool)
    }


def label(facts: Row) -> str:
    """What the runs of one bar or curve share, those that differ in their seed alone: in words what tells most of them apart, and
    last a digest of all that the report tells them apart by."""
    words = [
        facts[name]
        for name in ("components", "values", "scale", "recipe", "row")
        if facts[name] != "none"
    ]
    digest = zlib.crc32(json.dumps(told_by(facts), sort_keys=True).encode()) % 2**16
    return "-".join([*filter(None, words), f"{digest:04x}"])


def config_of(facts: Row) -> Row:
    """Facts as columns: no column is an object."""
    plain = {k: v for k, v in facts.items() if not isinstance(v, dict)}
    return plain | facts.get("settings", {}) | facts["versions"] | {"label": label(facts)}


def predictions(analyses: Analyses) -> tuple[list[str | int], list[list[Any]]]:
    """A table of the masked tokens that were looked at: columns, and a line a token. The kinds of row stand side by side, each
    with its first prediction, that one's probability, and the first five in words."""
    columns: list[str | int] = ["sentence", "position", "true"]
    for kind in analyses:
        columns += [kind, f"{kind} probability", f"{kind} top five"]
    lines = []
    for sentences in zip(*(analysis["sentences"] for analysis in analyses.values()), strict=True):
        for tokens in zip(*(sentence["masked"] for sentence in sentences), strict=True):
            line = [sentences[0]["text"], tokens[0]["position"], tokens[0]["true"]]
            for found in (token["predictions"] for token in tokens):
                words = ", ".join(f"{one['token']} {one['probability']:.3f}" for one in found)
                line += [found[0]["token"], found[0]["probability"], words]
            lines.append(line)
    return columns, lines


@contextmanager
def tracking(
    config: dict[str, Any], folder: Path, facts: Row, group: str | None
) -> Iterator[Tracking]:
    """A Lightning logger that writes below ``folder``, with what is run (``facts``) as its hyperparameters.

    W&B gets a run of its own for every job, in one ``group`` a sweep, tagged with components, values and recipe; what its
    offline mode changes in the environment is put back.
    """
    mode = os.environ.get("WANDB_MODE")
    usual: dict[str, Any] = {}
    if config["_target_"].endswith("WandbLogger"):
        tags = [
            facts[name] for name in ("components", "values", "recipe") if facts[name] is not None
        ]
        kind = "evaluate" if facts["recipe"] is None else "train"
        usual = {"name": "-".join(tags), "group": group, "tags": tags, "job_type": kind}
    try:
        logger = instantiate(usual | config, save_dir=str(folder))
    except InstantiationException as error:
        raise InputError(f"logger: {error}") from error
    failed = True
    try:
        try:
            logger.log_hyperparams(config_of(facts))
        except wandb.Error as error:
            raise InputError(
                f"logger: {error}; type `wandb login`, or choose logger=wandb_offline"
            ) from error
        curves = None if isinstance(logger, CSVLogger) else CSVLogger(str(folder), "logs")
        yield (WandbTracking if isinstance(logger, WandbLogger) else Tracking)(
            logger, curves, facts
        )
        failed = False
    finally:
        logger.finalize("failed" if failed else "success")
        if isinstance(logger, WandbLogger):
            wandb.finish(
                exit_code=int(failed)
            )  # Lightning leaves the run open: the next job would log into it
            os.environ.pop("WANDB_MODE", None)
            if mode is not None:
                os.environ["WANDB_MODE"] = mode
