"""A hub on loopback that speaks what the client of ModelScope speaks, as that was seen with 1.40:
questions about a repository, its creation, large files by LFS, commits in JSON."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from typing import Any

from helpers.stub_hub import Loopback, Replying

PUBLIC, PRIVATE = 5, 1
THERE, NOT_THERE = 10010101001, 10010205001


class ModelScope(Loopback):
    """The state of the stub. `broken`: how many uploads of large files break off in the middle."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, Any]] = {}
        self.objects: dict[str, bytes] = {}
        self.uploads: Counter[str] = Counter()
        self.broken = 0
        hub = self

        class Handler(Replying):
            def do_GET(self) -> None:
                self.reply(*hub.about(self.path))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.reply(*hub.answer(self.path, json.loads(body)))

            def do_PUT(self) -> None:
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

        super().__init__(Handler)

    def about(self, path: str) -> tuple[int, Any]:
        name = re.sub(r"^/(openapi|api)/v1/models/", "", path.partition("?")[0])
        repo = self.repos.get(name)
        if repo is None:
            return 404, {"Code": NOT_THERE, "Success": False, "Message": "not found"}
        owner, _, short = name.partition("/")
        told = {"Id": 1, "Path": owner, "Name": short, "Visibility": repo["visibility"]}
        return 200, {"Code": 200, "Success": True, "Data": told}

    def answer(self, path: str, said: dict[str, Any]) -> tuple[int, Any]:
        if path == "/api/v1/models":
            name = f"{said['Path']}/{said['Name']}"
            if name in self.repos:
                return 400, {"Code": THERE, "Success": False, "Message": "it exists"}
            self.repos[name] = {"visibility": said["Visibility"], "files": {}, "commits": 0}
            return self.about(f"/api/v1/models/{name}")
        found = re.fullmatch(r"/api/v1/repos/models/([^/]+/[^/]+)/(.*)", path)
        assert found is not None, path
        if found[2] == "info/lfs/objects/batch":
            return 200, self._done({"objects": [self._object(one) for one in said["objects"]]})
        assert found[2] == "commit/master", path
        repo = self.repos[found[1]]
        for one in said["actions"]:
            large = one["type"] == "lfs"
            content = self.objects[one["sha256"]] if large else base64.b64decode(one["content"])
            assert len(content) == one["size"]
            repo["files"][one["path"]] = content
        repo["commits"] += 1
        return 200, self._done({"Id": f"{repo['commits']:040x}"})

    def _done(self, data: Any) -> dict[str, Any]:
        return {"Code": 200, "Success": True, "Data": data}

    def _object(self, one: dict[str, Any]) -> dict[str, Any]:
        if one["oid"] in self.objects:
            return one
        return {**one, "actions": {"upload": {"href": f"{self.address}/lfs/{one['oid']}"}}}
