"""A local stand-in of the Hub's HTTP API, as huggingface_hub uses it to upload and download models."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "hf_of_the_stand_in"


@dataclass
class Hub:
    """Attributes:
    repositories: name -> branch -> path -> content.
    commits: the messages, and the paths of each.
    private: the repositories that were made private.
    blobs: what was uploaded for a commit, by its SHA-256.
    """

    url: str = ""
    repositories: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    commits: list[tuple[str, str, list[str]]] = field(default_factory=list)
    private: set[str] = field(default_factory=set)
    blobs: dict[str, bytes] = field(default_factory=dict)

    def environment(self, home: str) -> dict[str, str]:
        """Variables that make huggingface_hub use this stand-in."""
        return {
            "HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_HOME": home, "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }  # fmt: skip


def commit_of(files: dict[str, bytes]) -> str:
    found = hashlib.sha1(b"".join(name.encode() + files[name] for name in sorted(files)))
    return found.hexdigest()


@contextmanager
def running() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *said: object) -> None:
            pass

        def answer(self, status: int, body: Any = None, **headers: str) -> None:
            content = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def handle_one(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = parts.path.strip("/").split("/")
            wrong = self.headers.get("Authorization") != f"Bearer {TOKEN}"
            if self.command in ("POST", "PUT") and wrong and path[0] != "upload":
                self.answer(401)
            elif path[:2] == ["api", "repos"]:
                self.create(json.loads(body))
            elif path[:2] == ["api", "validate-yaml"]:
                self.answer(200, {"warnings": [], "errors": []})
            elif path[0] == "upload":
                assert hashlib.sha256(body).hexdigest() == path[1]
                hub.blobs[path[1]] = body
                self.answer(200)
            elif path[2:4] == ["info", "lfs"]:
                self.batch(json.loads(body))
            elif path[:2] == ["api", "models"]:
                self.model("/".join(path[2:4]), path[4:], body, parse_qs(parts.query))
            elif path[2:3] == ["resolve"]:
                self.file("/".join(path[:2]), path[3], "/".join(path[4:]))
            else:
                self.answer(404)

        do_GET = do_POST = do_PUT = do_HEAD = handle_one  # noqa: N815 (names of http.server)

        def create(self, asked: dict[str, Any]) -> None:
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            known = name in hub.repositories
            hub.repositories.setdefault(name, {"main": {}})
            if asked.get("private") or asked.get("visibility") == "private":
                hub.private.add(name)
            self.answer(409 if known else 200, {"url": f"{hub.url}/{name}", "id": name})

        def batch(self, asked: dict[str, Any]) -> None:
            found = [
                {**each, "actions": {"upload": {"href": f"{hub.url}/upload/{each['oid']}"}}}
                for each in asked["objects"]
            ]
            self.answer(200, {"transfer": "basic", "objects": found},
                        Content_Type="application/vnd.git-lfs+json")  # fmt: skip

        def model(
            self, name: str, rest: list[str], body: bytes, query: dict[str, list[str]]
        ) -> None:
            branches = hub.repositories.get(name)
            if branches is None:
                self.answer(404, X_Error_Code="RepoNotFound")
                return
            what, revision = rest[0] if rest else "revision", rest[1] if len(rest) > 1 else "main"
            if what == "branch":
                branches.setdefault(revision, dict(branches["main"]))
                self.answer(200)
            elif what == "revision":
                files = self.revision(branches, revision)
                siblings = [{"rfilename": path} for path in files]
                sha = commit_of(files)
                self.answer(200, {"id": name, "modelId": name, "sha": sha, "siblings": siblings})
            elif what == "tree":
                files = self.revision(branches, revision)
                found = [
                    {"type": "file", "path": path, "size": len(content), "oid": "0" * 40}
                    for path, content in files.items()
                ]
                self.answer(200, found)
            elif what == "preupload":
                asked = json.loads(body)["files"]
                modes = [
                    {"path": each["path"], "shouldIgnore": False, "oid": None,
                     "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular"}
                    for each in asked
                ]  # fmt: skip
                self.answer(200, {"files": modes})
            elif what == "commit":
                request = query.get("create_pr") == ["1"]
                branch = "refs/pr/1" if request else revision
                files = branches.setdefault(branch, dict(branches["main"]))
                lines = [json.loads(line) for line in body.splitlines()]
                paths = []
                for line in lines:
                    value = line["value"]
                    if line["key"] == "file":
                        files[value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        files[value["path"]] = hub.blobs[value["oid"]]
                    if line["key"] != "header":
                        paths.append(value["path"])
                hub.commits.append((branch, lines[0]["value"]["summary"], sorted(paths)))
                sha = commit_of(files)
                found = {"commitUrl": f"{hub.url}/{name}/commit/{sha}", "commitOid": sha}
                if request:
                    found["pullRequestUrl"] = f"{hub.url}/{name}/discussions/1"
                self.answer(200, found)
            else:
                self.answer(404)

        def revision(self, branches: dict[str, dict[str, bytes]], name: str) -> dict[str, bytes]:
            name = name.replace("%2F", "/")
            by_commit = {commit_of(files): files for files in branches.values()}
            return branches.get(name) or by_commit.get(name) or {}

        def file(self, name: str, revision: str, path: str) -> None:
            if name not in hub.repositories:
                self.answer(404, X_Error_Code="RepoNotFound")
                return
            files = self.revision(hub.repositories[name], revision)
            if path not in files:
                self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit_of(files))
                return
            etag = hashlib.sha256(files[path]).hexdigest()
            self.answer(200, files[path], ETag=f'"{etag}"', X_Repo_Commit=commit_of(files))

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
