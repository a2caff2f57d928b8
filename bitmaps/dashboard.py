"""The comparison of runs as a saved workspace of Weights & Biases.

python -m bitmaps.dashboard <entity>/<project>
"""

from __future__ import annotations

import argparse
import re
import sys

import wandb
import wandb_workspaces.reports.v2.interface as wr
import wandb_workspaces.workspaces as ws
from wandb.sdk.lib.service.service_connection import WandbApiFailedError

from bitmaps.errors import InputError
from bitmaps.report.table import COLUMNS, MEASURES

VIEW = "bitmapsview"  # the view's name in its address, by which it is found again; W&B's own are as long
RUNS = 100  # of which a panel shows at most so many
CURVES = {
    "val/cross_entropy": "validation: cross entropy",
    "val/accuracy": "validation: accuracy",
    "val/mrr": "validation: MRR",
    "train/loss": "training loss",
    "train/hidden": "distance of hidden states",
    "flips/all": "flip rate: share of bits a step",
}


def workspace(entity: str, project: str) -> ws.Workspace:
    """What the workspace shows, made without network. Bars and curves are means over the runs of one ``label``, those that
    differ in their seed alone (``bitmaps.tracking.loggers``)."""
    settings = [
        f"config:{name}.value" for name in ("components", "values", "row", "model", "data", "seed")
    ]
    bars = [
        wr.BarPlot(
            title=COLUMNS[name][0],
            metrics=[name],
            groupby=wr.Config("label"),
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
            max_runs_to_show=RUNS,
            max_bars_to_show=RUNS,
        )
        for name in MEASURES
    ]
    sizes = wr.ScatterPlot(
        title="size against cross entropy",
        x=wr.SummaryMetric("memory_mib"),
        y=wr.SummaryMetric("cross_entropy"),
        log_x=True,
    )
    curves = [
        wr.LinePlot(
            title=title,
            x="trainer/global_step",
            y=[name],
            log_y=name == "flips/all",
            groupby=wr.Config("label"),
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
            max_runs_to_show=RUNS,
        )
        for name, title in CURVES.items()
    ]
    wide = ws.SectionLayoutSettings(columns=1, rows=1)
    return ws.Workspace(
        entity=entity,
        project=project,
        name="bitmaps: comparison",
        sections=[
            ws.Section(
                name="Measures by components and values", panels=[*bars, sizes], is_open=True
            ),
            ws.Section(name="Training", panels=[*curves], is_open=True),
            ws.Section(
                name="Predictions",
                panels=[wr.WeavePanelSummaryTable(table_name="predictions")],
                is_open=True,
                layout_settings=wide,
            ),
        ],
        settings=ws.WorkspaceSettings(max_runs=RUNS),
        runset_settings=ws.RunsetSettings(
            order=[
                ws.Ordering(ws.Config("components")),
                ws.Ordering(ws.Config("values")),
                ws.Ordering(ws.Config("row")),
            ],
            pinned_columns=[*settings, *(f"summary:{name}" for name in (*MEASURES, "verdict"))],
        ),
        auto_generate_panels=True,  # below ours: the histograms, and the curves of each layer
    )


def saved(entity: str, project: str) -> ws.Workspace:
    """Make the workspace of a project, or bring the one that was made before up to date: our sections are replaced; filters,
    and sections that somebody added, stay.

    Raises:
        InputError: when W&B is not logged in or cannot be reached, or has no such project.
    """
    if not wandb.login(prompt=False, verify=False):
        raise InputError(
            "no W&B account to save it to (not logged in, or WANDB_MODE=offline): type `wandb login`, or do without one, by "
            "logger=wandb_offline, and look by `wandb leet <run folder>/wandb`"
        )
    wanted = workspace(entity, project)
    try:
        wandb.Api().project(project, entity).id  # noqa: B018 (it is asked for here)
    except ValueError as error:
        raise InputError(
            f"W&B shows you no project {entity}/{project}: upload a run to it first ({error})"
        ) from error
    try:
        found = ws.Workspace.from_url(f"https://wandb.ai/{entity}/{project}?nw={VIEW}")
    except ValueError:  # there is no such view
        wanted._internal_name = f"nw-{VIEW}-v"
        return wanted.save()
    ours = {section.name for section in wanted.sections}
    found.sections = [
        *wanted.sections,
        *(section for section in found.sections if section.name not in ours),
    ]
    return found.save()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bitmaps.dashboard",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "project", metavar="<entity>/<project>", help="where the runs are, as in its address at W&B"
    )
    given = parser.parse_args().project
    try:
        if not (names := re.fullmatch(r"([\w.-]+)/([\w.-]+)", given)):
            raise InputError(
                f"{given!r} is no project: valid is <entity>/<project>, as in its address at W&B"
            )
        print(saved(*names.groups()).url)
    except (wandb.Error, WandbApiFailedError) as error:
        sys.exit(f"error: W&B: {error}")
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
