"""A hub on loopback that speaks what the client of Hugging Face speaks: repositories, the question
how a file is sent, large files by LFS, and commits. It keeps what it got and how often."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Replying(BaseHTTPRequestHandler):
    """A handler that answers with JSON and says nothing."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *words: Any) -> None:
        pass

    def reply(self, status: int, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Loopback:
    """A server on loopback that runs until it is closed."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Hub(Loopback):
    """The state of the stub. `broken`: how many uploads of large files break off in the middle."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, Any]] = {}
        self.objects: dict[str, bytes] = {}
        self.uploads: Counter[str] = Counter()
        self.asked: list[tuple[str, str]] = []
        self.broken = 0
        hub = self

        class Handler(Replying):
            def do_GET(self) -> None:
                hub.asked.append(("GET", self.path))
                if self.path == "/api/whoami-v2":
                    self.reply(200, {"name": "me", "type": "user"})
                    return
                name = self.path.partition("?")[0].removeprefix("/api/models/")
                name = name.removesuffix("/revision/main")
                repo = hub.repos.get(name)
                if repo is None:
                    self.reply(404, {"error": "not found"})
                else:
                    self.reply(200, {"id": name, "private": repo["private"], "sha": "0" * 40})

            def do_PUT(self) -> None:
                hub.asked.append(("PUT", self.path))
                size = int(self.headers["Content-Length"])
                if hub.broken > 0:
                    hub.broken -= 1
                    self.rfile.read(size // 2)
                    self.connection.close()
                    self.close_connection = True
                    return
                data = self.rfile.read(size)
                digest = hashlib.sha256(data).hexdigest()
                assert self.path == f"/lfs/{digest}"
                hub.objects[digest] = data
                hub.uploads[digest] += 1
                self.reply(200, {})

            def do_POST(self) -> None:
                hub.asked.append(("POST", self.path))
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.reply(*hub.answer(self.path.partition("?")[0], body))

        super().__init__(Handler)

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/api/repos/create":
            given = json.loads(body)
            owner = given.get("organization") or "me"
            name = f"{owner}/{given['name']}"
            known = name in self.repos
            if not known:
                private = given.get("private") is True or given.get("visibility") == "private"
                self.repos[name] = {"private": private, "files": {}, "commits": 0}
            told = {"url": f"{self.address}/{name}", "name": name}
            return (409 if known else 200), told
        if path.endswith("/info/lfs/objects/batch"):
            return 200, {"transfer": "basic", "objects": [self._object(o) for o in objects(body)]}
        if path == "/api/validate-yaml":
            return 200, {"warnings": [], "errors": []}
        name, _, what = path.removeprefix("/api/models/").removesuffix("/main").rpartition("/")
        repo = self.repos[name]
        if what == "preupload":
            files = json.loads(body)["files"]
            return 200, {"files": [self._mode(repo, one) for one in files]}
        assert what == "commit", path
        return 200, self._commit(name, repo, body)

    def _object(self, one: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {"oid": one["oid"], "size": one["size"], "authenticated": True}
        if one["oid"] not in self.objects:
            found["actions"] = {"upload": {"href": f"{self.address}/lfs/{one['oid']}"}}
        return found

    def _mode(self, repo: dict[str, Any], one: dict[str, Any]) -> dict[str, Any]:
        large = one["path"].endswith((".safetensors", ".gguf")) or one["size"] > 1_000_000
        known = repo["files"].get(one["path"])
        found = {"path": one["path"], "uploadMode": "lfs" if large else "regular"}
        oid = None
        if known is not None:
            blob = b"blob %d\x00" % len(known) + known
            oid = hashlib.sha256(known).hexdigest() if large else hashlib.sha1(blob).hexdigest()  # noqa: S324
        return {**found, "shouldIgnore": False, "oid": oid}

    def _commit(self, name: str, repo: dict[str, Any], body: bytes) -> dict[str, Any]:
        for line in body.splitlines():
            said = json.loads(line)
            value = said["value"]
            if said["key"] == "file":
                repo["files"][value["path"]] = base64.b64decode(value["content"])
            elif said["key"] == "lfsFile":
                repo["files"][value["path"]] = self.objects[value["oid"]]
            else:
                assert said["key"] == "header", said
        repo["commits"] += 1
        oid = f"{repo['commits']:040x}"
        return {"commitUrl": f"{self.address}/{name}/commit/{oid}", "commitOid": oid}


def objects(body: bytes) -> list[dict[str, Any]]:
    return list(json.loads(body)["objects"])
