"""The saved workspace of W&B: its specification without network, and how it is saved to a local
server that speaks enough of W&B's GraphQL."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import wandb_workspaces.reports.v2.interface as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces.workspaces.internal import View, WorkspaceViewspec

from bitmaps.runs.records import measures
from bitmaps.tracking.workspace import CURVES, workspace


def specification(made: ws.Workspace) -> str:
    """What is sent to W&B."""
    return made._to_model().spec.model_dump_json(by_alias=True, exclude_none=True)


def test_wandb_reads_the_specification_back() -> None:
    text = specification(workspace("me", "bitmaps"))
    view = View(
        entity="me",
        project="bitmaps",
        display_name="x",
        name="",
        id="",
        spec=WorkspaceViewspec.model_validate_json(text),
    )
    back = ws.Workspace._from_model(view)
    assert specification(back) == text
    panels = [panel for section in back.sections for panel in section.panels]
    assert not any(isinstance(panel, wr.UnknownPanel) for panel in panels)


def test_the_comparison_has_bars_for_the_measures_size_against_quality_and_curves() -> None:
    made = workspace("me", "bitmaps")
    panels = json.loads(specification(made))["section"]["panelBankConfig"]["sections"]
    configs = {panel["viewType"]: [] for section in panels for panel in section["panels"]}  # type: dict[str, list[Any]]
    for section in panels:
        assert section["isOpen"]
        for panel in section["panels"]:
            configs[panel["viewType"]].append(panel["config"])
    bars, (scatter,), lines = (
        configs["Bar Chart"],
        configs["Scatter Plot"],
        configs["Run History Line Plot"],
    )
    assert [bar["metrics"] for bar in bars] == [[name] for name in measures()]
    assert {(bar["groupBy"], bar["groupAgg"], bar["aggregate"]) for bar in bars} == {
        ("label.value", "mean", True)
    }
    assert (scatter["xAxis"], scatter["yAxis"]) == ("summary:memory_mib", "summary:cross_entropy")
    assert [line["metrics"] for line in lines] == [[name] for name in CURVES]
    assert {(line["xAxis"], line["groupBy"]) for line in lines} == {
        ("trainer/global_step", "label.value")
    }
    assert len(configs["Weave"]) == 1


class Server:
    """What W&B would answer, and what it was sent.

    Attributes:
        views: the saved views: id -> what was saved.
        projects: the existing ones.
        refuses: whether views may not be saved.
    """

    def __init__(self) -> None:
        self.views: dict[str, dict[str, Any]] = {}
        self.projects = {("me", "bitmaps")}
        self.refuses = False

    def answer(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        if "query Viewer" in query:
            user = {
                "id": "1",
                "entity": "me",
                "username": "me",
                "email": "",
                "flags": "{}",
                "teams": {"edges": []},
            }
            return {"data": {"viewer": user}}
        if "upsertView" in query:
            if self.refuses:
                return {"errors": [{"message": "permission denied"}], "data": None}
            id = given.get("id") or f"view{len(self.views)}"
            inserted, self.views[id] = id not in self.views, given
            return {
                "data": {
                    "upsertView": {"view": {"id": id, "name": given["name"]}, "inserted": inserted}
                }
            }
        name = given["name"]
        if (given.get("entityName") or given.get("entity"), name) not in self.projects:
            return {"data": {"project": None}}
        if "allViews" in query:
            found = [
                {"node": {"id": id, "displayName": view["displayName"], "spec": view["spec"]}}
                for id, view in self.views.items()
                if view["name"] == given["viewName"]
            ]
            return {"data": {"project": {"allViews": {"edges": found}}}}
        fields = {"__typename": "Project", "id": "2", "name": name, "entityName": "me", "createdAt": "2026-01-01T00:00:00Z",
                  "isBenchmark": False, "user": None}  # fmt: skip
        return {"data": {"project": fields}}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path != "/graphql":
                self.send_error(404)
                return
            asked = json.loads(body)
            answer = json.dumps(
                server.answer(asked["query"], asked.get("variables") or {})
            ).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=http.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{http.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    yield server
    http.shutdown()
    http.server_close()


@pytest.fixture(autouse=True)
def empty_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No login is found, and nothing is kept."""
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def dashboard(*arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: W&B keeps one login a process."""
    command = [sys.executable, "-m", "bitmaps.dashboard", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=120
    )


def names(spec: str) -> list[str]:
    return [
        section["name"] for section in json.loads(spec)["section"]["panelBankConfig"]["sections"]
    ]


def test_a_second_save_updates_the_workspace_and_keeps_the_sections_of_others(
    server: Server,
) -> None:
    done = dashboard("me/bitmaps")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("/me/bitmaps?nw=bitmapsview")
    (view,) = server.views.values()
    assert (view["entityName"], view["projectName"], view["name"]) == (
        "me",
        "bitmaps",
        "nw-bitmapsview-v",
    )
    saved = names(view["spec"])
    assert saved == [section.name for section in workspace("me", "bitmaps").sections]

    spec = json.loads(view["spec"])
    sections = spec["section"]["panelBankConfig"]["sections"]
    sections[0]["panels"] = sections[0]["panels"][:1]  # as an older version saved it
    sections.append(sections[1] | {"name": "another section"})
    spec["section"]["runSets"][0]["search"]["query"] = "another search"
    view["spec"] = json.dumps(spec)
    done = dashboard("me/bitmaps")
    assert done.returncode == 0, done.stderr
    (view,) = server.views.values()
    assert names(view["spec"]) == [*saved, "another section"]
    spec = json.loads(view["spec"])
    assert len(spec["section"]["panelBankConfig"]["sections"][0]["panels"]) == len(measures()) + 1
    assert spec["section"]["runSets"][0]["search"]["query"] == "another search"


def test_an_unknown_project_is_an_error(server: Server) -> None:
    done = dashboard("me/another")
    assert done.returncode == 2
    assert "error: W&B shows you no project me/another: upload a run to it first" in done.stderr
    assert "Traceback" not in done.stderr
    assert not server.views


def test_a_refusal_of_the_server_is_an_error(server: Server) -> None:
    server.refuses = True
    done = dashboard("me/bitmaps")
    assert done.returncode == 2
    assert "error: W&B: " in done.stderr
    assert "permission denied" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("mode", [None, "offline"])
def test_without_an_account_one_line_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, mode: str | None
) -> None:
    if mode:
        monkeypatch.setenv("WANDB_MODE", mode)
    done = dashboard("me/bitmaps")
    assert done.returncode == 2
    *_, line = done.stderr.splitlines()
    assert line.startswith("error: there is no W&B account to save to")
    assert all(
        way in line
        for way in ("`wandb login`", "logger=wandb_offline", "`wandb leet <run folder>/wandb`")
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("project", ["bitmaps", "a/b/c", "me/", "https://wandb.ai/me/bitmaps"])
def test_a_malformed_project_is_an_error(project: str) -> None:
    done = dashboard(project)
    assert done.returncode == 2
    assert (
        done.stderr
        == f"error: {project!r} is no project: valid is <entity>/<project>, as in its address at W&B\n"
    )
