"""The logger of one run. It is opened and closed with the run, so that the runs of a sweep stay
apart."""

from __future__ import annotations

import json
import logging
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import wandb
from huggingface_hub import ModelCard
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from bitmaps.bert import Bert
from bitmaps.errors import InputError
from bitmaps.report import card
from bitmaps.report.entries import identity
from bitmaps.runs.analysis import Analysis
from bitmaps.runs.folder import ScoredRow
from bitmaps.runs.records import Facts, Row, headline, measures
from bitmaps.training.sign_watch import values_of

log = logging.getLogger(__name__)


CURVES = ("train/", "trainer/", "flips/", "outside/", "high/", "lr-", "epoch")
"""How the names of curves begin whose last value says little: W&B puts it into the summary."""


@dataclass(frozen=True)
class Tracking:
    """A run's loggers, and what they get when the run is over.

    Attributes:
        logger: the chosen one.
        curves: a second one for the report, where the chosen one keeps no curves in the run folder.
    """

    logger: Logger
    curves: CSVLogger | None

    @property
    def loggers(self) -> list[Logger]:
        return [self.logger] if self.curves is None else [self.logger, self.curves]

    @rank_zero_only
    def summarize(self, scored: Sequence[ScoredRow], model: Bert | None, packed: Path) -> None:
        """Log the outcome of a run.

        Args:
            scored: the rows; the last one is the run's own.
            model: the model of the last row; ``None`` where another run made the row.
            packed: the folder with the model in real bits, if there is one.
        """
        numbers = {f"final/{n}": float(v) for n, v in numbers_of(scored[-1].row).items()}
        self.logger.log_metrics(numbers)


class WandbTracking(Tracking):
    @rank_zero_only
    def summarize(self, scored: Sequence[ScoredRow], model: Bert | None, packed: Path) -> None:
        """Log to Weights & Biases.

        - config: what was run;
        - summary: every measure of the run's own row, and of each other row the score that tables
          compare first, such as ``unbinarized/cross_entropy``;
        - the tables ``rows``, ``predictions`` and ``scales``, and the histogram ``confidence``;
        - the packed model as an artifact, with its card.
        """
        run = self.logger.experiment  # type: ignore[attr-defined]
        rows = [one.row for one in scored]
        own, first = rows[-1], headline(rows)
        run.config.update(config_of(own.facts, label(own.flat())), allow_val_change=True)
        run.tags += (str(own.kind),)
        summary = measured(own) | {f"{row.kind}/{first}": row.flat()[first] for row in rows[:-1]}
        logged: dict[str, Any] = {"rows": wandb.Table(*table_of(rows))}
        if (analysis := scored[-1].analysis) is not None:
            summary |= summary_of(analysis)
            logged["confidence"] = confidence_of(analysis)
            analyses = {str(one.row.kind): one.analysis for one in scored if one.analysis}
            logged["predictions"] = wandb.Table(*predictions(analyses))
        if model is not None and (values := values_of(model)):
            logged["scales"] = wandb.Table(*scales(values))
        run.log(logged)
        for name in [name for name in run.summary.keys() if name.startswith(CURVES)]:  # noqa: SIM118
            del run.summary[name]
        run.summary.update(summary)
        if packed.is_dir():
            self.log_packed(own, packed)

    def log_packed(self, own: Row, packed: Path) -> None:
        named = label(own.flat())
        artifact = wandb.Artifact(
            re.sub(r"[^\w.-]", "-", f"packed-{named}"),
            "model",
            description=ModelCard.load(packed / card.FILE).text,
            metadata=config_of(own.facts, named),
        )
        artifact.add_dir(str(packed))
        self.logger.experiment.log_artifact(artifact)  # type: ignore[attr-defined]


def numbers_of(row: Row) -> dict[str, float]:
    flat = row.flat().items()
    return {n: v for n, v in flat if isinstance(v, int | float) and not isinstance(v, bool)}


def label(flat: Mapping[str, Any]) -> str:
    """The name that runs share if they differ in their seed alone.

    It ends in a digest of everything that the report tells rows apart by.

    Args:
        flat: a flat row, or flat facts while there is no row.
    """
    names = ("components", "values", "scale", "recipe", "row")
    words = [flat[name] for name in names if flat[name] not in (None, "none")]
    digest = zlib.crc32(json.dumps(identity(flat), sort_keys=True).encode()) % 2**16
    return "-".join([*words, f"{digest:04x}"])


def config_of(facts: Facts, label: str) -> dict[str, Any]:
    """Facts as columns: no column is an object."""
    plain = json.loads(json.dumps(asdict(facts)))  # enums as text, which every tracker stores
    settings, versions = plain.pop("settings"), plain.pop("versions")
    return {**plain, **settings, **versions, "label": label}


def measured(row: Row) -> dict[str, float]:
    """The measures that a row has."""
    flat = row.flat()
    return {name: flat[name] for name in measures() if flat[name] is not None}


def table_of(rows: Sequence[Row]) -> tuple[list[str | int], list[list[Any]]]:
    """Rows as a table: columns, and a line a row."""
    names = [name for name in measures() if any(name in measured(row) for row in rows)]
    return ["row", *names], [[row.kind, *(row.flat()[name] for name in names)] for row in rows]


def scales(values: Mapping[str, Tensor]) -> tuple[list[str | int], list[list[Any]]]:
    """The two values of the rows of one-bit matrices (``values_of``) as a table: columns, and for
    each matrix its quantiles."""
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    lines = [
        [name, *np.quantile(found.double().numpy(), shares).tolist()]
        for name, found in values.items()
    ]
    return ["matrix", "least", "lower quartile", "median", "upper quartile", "greatest"], lines


def summary_of(analysis: Analysis) -> dict[str, Any]:
    most = analysis.predicted[0]
    return {
        "verdict": analysis.verdict,
        "predicted": most.token,
        "predicted_share": most.share,
        "confidence_mean": analysis.confidence.mean,
        "confidence_std": analysis.confidence.std,
    }


def confidence_of(analysis: Analysis) -> wandb.Histogram:
    counts = np.array(analysis.confidence.histogram)
    return wandb.Histogram(np_histogram=(counts, np.linspace(0, 1, len(counts) + 1)))


def predictions(
    analyses: Mapping[str, Analysis],
) -> tuple[list[str | int], list[list[Any]]]:
    """The masked tokens of the sentences that were shown, as a table: columns, and a line a token.
    Each kind of row has its first prediction, the probability of that, and its first five."""
    columns: list[str | int] = ["sentence", "position", "true"]
    for kind in analyses:
        columns += [kind, f"{kind} probability", f"{kind} top five"]
    lines = []
    for sentences in zip(*(analysis.sentences for analysis in analyses.values()), strict=True):
        for tokens in zip(*(sentence.masked for sentence in sentences), strict=True):
            line: list[Any] = [sentences[0].text, tokens[0].position, tokens[0].true]
            for guesses in (token.predictions for token in tokens):
                words = ", ".join(f"{one.token} {one.probability:.3f}" for one in guesses)
                line += [guesses[0].token, guesses[0].probability, words]
            lines.append(line)
    return columns, lines


@contextmanager
def tracking(
    config: dict[str, Any], folder: Path, facts: Facts, group: str | None
) -> Iterator[Tracking]:
    """The tracking of a run: a Lightning logger that writes below ``folder``, with the facts as its
    hyperparameters.

    W&B gets a run of its own for every job, tagged with components, values and recipe. What its
    offline mode changes in the environment is restored.

    Args:
        config: the logger as Hydra instantiates it.
        group: the sweep that the run belongs to.

    Raises:
        InputError: when the logger does not start.
    """
    mode = os.environ.get("WANDB_MODE")
    usual: dict[str, Any] = {}
    if config["_target_"].endswith("WandbLogger"):
        tags = [str(tag) for tag in (facts.components, facts.values, facts.recipe) if tag]
        kind = "evaluate" if facts.recipe is None else "train"
        usual = {"name": "-".join(tags), "group": group, "tags": tags, "job_type": kind}
    try:
        logger = instantiate(usual | config, save_dir=str(folder))
    except InstantiationException as error:
        raise InputError(f"logger: {error}") from error
    failed = True
    try:
        try:
            logger.log_hyperparams(config_of(facts, label(asdict(facts))))
        except wandb.Error as error:
            raise InputError(
                f"logger: {error}; type `wandb login`, or choose logger=wandb_offline"
            ) from error
        curves = None if isinstance(logger, CSVLogger) else CSVLogger(str(folder), "logs")
        kind_of_tracking = WandbTracking if isinstance(logger, WandbLogger) else Tracking
        yield kind_of_tracking(logger, curves)
        failed = False
    finally:
        try:
            logger.finalize("failed" if failed else "success")
            if isinstance(logger, WandbLogger):
                # Lightning leaves the run open, and the next job would log into it
                wandb.finish(exit_code=int(failed))
        except Exception as error:  # the outcome is stored by now, or has failed already
            log.warning("the logger did not close: %s: %s", type(error).__name__, error)
        if isinstance(logger, WandbLogger):
            os.environ.pop("WANDB_MODE", None)
            if mode is not None:
                os.environ["WANDB_MODE"] = mode
