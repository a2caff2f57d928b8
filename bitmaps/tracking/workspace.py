"""The comparison of runs as a saved workspace of Weights & Biases.

``python -m bitmaps.dashboard`` saves it.
"""

from __future__ import annotations

import wandb
import wandb_workspaces.reports.v2.interface as wr
import wandb_workspaces.workspaces as ws

from bitmaps.errors import InputError
from bitmaps.runs.records import measures

VIEW = "bitmapsview"  # identifies the workspace in its address; as long as the names W&B makes
RUNS = 100  # the most that a panel shows
CURVES = {
    "val/cross_entropy": "validation: cross entropy",
    "val/accuracy": "validation: accuracy",
    "val/mrr": "validation: MRR",
    "val/recall_at_10": "validation: recall at 10",
    "val/loss": "validation: loss of classes",
    "train/loss": "training loss",
    "train/hidden": "distance of hidden states",
    "flips/all": "flip rate: share of bits per step",
}


def workspace(entity: str, project: str) -> ws.Workspace:
    """The workspace, made without network.

    Bars and curves are means over the runs of one ``label``, which differ in their seed alone
    (``bitmaps.tracking``).
    """
    wide = ws.SectionLayoutSettings(columns=1, rows=1)
    table = wr.WeavePanelSummaryTable(table_name="predictions")
    return ws.Workspace(
        entity=entity,
        project=project,
        name="bitmaps: comparison",
        sections=[
            ws.Section(name="Measures by components and values", panels=[*bars()], is_open=True),
            ws.Section(name="Training", panels=[*curves()], is_open=True),
            ws.Section(name="Predictions", panels=[table], is_open=True, layout_settings=wide),
        ],
        settings=ws.WorkspaceSettings(max_runs=RUNS),
        runset_settings=runset(),
        auto_generate_panels=True,  # histograms and curves of each layer, below these sections
    )


def bars() -> list[wr.BarPlot | wr.ScatterPlot]:
    """A bar chart for each measure, and size against cross entropy."""
    charts = [
        wr.BarPlot(
            title=column.heading,
            metrics=[name],
            groupby=wr.Config("label"),
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
            max_runs_to_show=RUNS,
            max_bars_to_show=RUNS,
        )
        for name, column in measures().items()
    ]
    sizes = wr.ScatterPlot(
        title="size against cross entropy",
        x=wr.SummaryMetric("memory_mib"),
        y=wr.SummaryMetric("cross_entropy"),
        log_x=True,
    )
    return [*charts, sizes]


def curves() -> list[wr.LinePlot]:
    return [
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


def runset() -> ws.RunsetSettings:
    """The order of the runs, and the columns that stay in sight."""
    facts = ("components", "values", "row", "model", "data", "seed")
    pinned = [f"config:{name}.value" for name in facts]
    pinned += [f"summary:{name}" for name in (*measures(), "verdict")]
    ordering = [ws.Ordering(ws.Config(name)) for name in ("components", "values", "row")]
    return ws.RunsetSettings(order=ordering, pinned_columns=pinned)


def save(entity: str, project: str) -> ws.Workspace:
    """Make the workspace of a project, or update the one that is there: its sections are replaced,
    while filters and sections of others stay.

    Raises:
        InputError: when nobody is logged in to W&B, or it shows no such project.
    """
    if not wandb.login(prompt=False, verify=False):
        raise InputError(
            "there is no W&B account to save to (not logged in, or WANDB_MODE=offline): type "
            "`wandb login`; without an account, use logger=wandb_offline and look at the runs by "
            "`wandb leet <run folder>/wandb`"
        )
    wanted = workspace(entity, project)
    try:
        wandb.Api().project(project, entity).id  # noqa: B018 (asks the server)
    except ValueError as error:
        raise InputError(
            f"W&B shows you no project {entity}/{project}: upload a run to it first ({error})"
        ) from error
    try:
        found = ws.Workspace.from_url(f"https://wandb.ai/{entity}/{project}?nw={VIEW}")
    except ValueError:  # there is no such view
        wanted._internal_name = f"nw-{VIEW}-v"
        return wanted.save()
    replaced = {section.name for section in wanted.sections}
    others = [section for section in found.sections if section.name not in replaced]
    found.sections = [*wanted.sections, *others]
    return found.save()
