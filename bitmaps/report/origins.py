"""Where the rows of a comparison come from: models, text, dates, machines, runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bitmaps.report.comparison import Comparison, in_words
from bitmaps.report.entries import Entry


@dataclass(frozen=True)
class Origin:
    """Runs with the same commit, versions and machine."""

    commit: str | None
    versions: Mapping[str, str]
    machine: str
    runs: Sequence[Entry]


def origins_of(comparison: Comparison) -> list[Origin]:
    """What made the rows."""
    found: dict[str, Origin] = {}
    for run in runs_of(comparison):
        commit, versions, machine = run.facts.commit, run.facts.versions, machine_of(run)
        key = json.dumps([commit, dict(versions), machine], sort_keys=True)
        known = found.get(key, Origin(commit, versions, machine, []))
        found[key] = Origin(commit, versions, machine, [*known.runs, run])
    return list(found.values())


def runs_of(comparison: Comparison) -> list[Entry]:
    """An entry for every run folder."""
    runs = [run for entry in comparison.entries for run in entry.runs]
    return list({run.run: run for run in runs}.values())


def machine_of(run: Entry) -> str:
    """The device with its threads; beside a GPU, the processor too. Empty if it is not known."""
    device, processor, threads = map(run.get, ("device", "processor", "threads"))
    if device is None:
        return ""
    name = (
        (processor or device)
        if device == "cpu"
        else " and ".join(filter(None, (device, processor)))
    )
    counted = "" if threads is None else f" with {threads} thread{'s' * (threads != 1)}"
    return f"{name}{counted}"


def about(comparison: Comparison) -> dict[str, str]:
    """What a reader of the numbers must know first: a term, and what is said of it."""
    runs = runs_of(comparison)
    found = {
        "Model": listed([model_of(run) for run in runs]),
        "Scored on": in_words({n: v for n, v in comparison.text.items() if v is not None}),
        "Date": dates_of(comparison),
        "Machine": listed([machine_of(run) for run in runs]),
    }
    return {term: said for term, said in found.items() if said}


def model_of(run: Entry) -> str:
    """The name of the model, and where its weights are from."""
    name, source = run.facts.model, run.facts.settings.get("model.source")
    return f"{name} ({source})" if name and source else str(name or "")


def listed(names: Sequence[str]) -> str:
    return "; ".join(dict.fromkeys(filter(None, names)))


def dates_of(comparison: Comparison) -> str:
    """When the rows were scored, from the first to the last."""
    rows = [run for entry in comparison.entries for run in entry.runs]
    times = sorted(time for run in rows if (time := run.get("scored_at")))
    if not times:
        return ""
    first, last = (time[:16].replace("T", " ") for time in (times[0], times[-1]))
    if first[:10] == last[:10]:
        return f"{first} UTC" if first == last else f"{first} to {last[11:]} UTC"
    return f"{first[:10]} to {last[:10]}"
