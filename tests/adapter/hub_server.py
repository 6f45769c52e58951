"""A small stand-in for the Hugging Face Hub on this machine: repositories of models in memory."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import constants


class Hub:
    """Serves ``repos``: name → path → bytes. ``forbidden`` names take no uploads."""

    def __init__(self):
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.forbidden: set[str] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub.answer(self, b"")

            do_HEAD = do_GET

            def do_POST(self):
                hub.answer(self, self.rfile.read(int(self.headers.get("Content-Length", 0))))

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def take_the_place(self, monkeypatch, cache: Path) -> None:
        """Of the Hub that is used where none is named, with a cache of its own."""
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(constants, "ENDPOINT", self.endpoint)
        template = self.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        status, content, headers = self.respond(urlsplit(request.path).path, request.command, body)
        if not isinstance(content, bytes):
            content, headers = json.dumps(content).encode(), headers | {"Content-Type": "application/json"}
        request.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(content)

    def respond(self, path: str, method: str, body: bytes) -> tuple[int, object, dict[str, str]]:
        missing = (404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            if repo in self.forbidden:
                return 403, {"error": "You don't have the rights to create a model here"}, {}
            if asked.get("private") or asked.get("visibility") == "private":
                self.private.add(repo)
            known = repo in self.repos
            self.repos.setdefault(repo, {})
            return 409 if known else 200, {"url": f"{self.endpoint}/{repo}"}, {}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}, {}
        if path.startswith("/api/models/"):
            org, name, action, revision, *_ = (*path.removeprefix("/api/models/").split("/"), "revision", "main")
            if action == "revision" and revision != "main":
                return 404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"}
            return self.api(f"{org}/{name}", action, body) if f"{org}/{name}" in self.repos else missing
        org, name, _, _, *file = path.strip("/").split("/")
        if f"{org}/{name}" not in self.repos:
            return missing
        files = self.repos[f"{org}/{name}"]
        if "/".join(file) not in files:
            return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"}
        content = files["/".join(file)]
        digest = hashlib.sha1(content).hexdigest()
        return 200, content, {"ETag": f'"{digest}"', "X-Repo-Commit": self.commit(f"{org}/{name}")}

    def api(self, repo: str, action: str, body: bytes) -> tuple[int, object, dict[str, str]]:
        files = self.repos[repo]
        if action == "preupload":
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
            return 200, {"files": modes, "commitOid": self.commit(repo)}, {}
        if action == "commit":
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            commit = self.commit(repo)
            return 200, {"commitUrl": f"{self.endpoint}/{repo}/commit/{commit}", "commitOid": commit}, {}
        if action == "tree":
            entries = [
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in files.items()
            ]
            return 200, entries, {}
        siblings = [{"rfilename": path} for path in files]
        return 200, {"id": repo, "sha": self.commit(repo), "siblings": siblings, "private": repo in self.private}, {}

    def commit(self, repo: str) -> str:
        """What stands for the newest commit: 40 digits of all content."""
        return hashlib.sha1(repr(sorted(self.repos[repo].items())).encode()).hexdigest()
