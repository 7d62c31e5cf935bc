"""A hub of data sets on this machine: as much of the Hugging Face hub's protocol as pushing and reading a data set takes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40
REPO = "owner/photos"


class Hub(BaseHTTPRequestHandler):
    """The data set ``REPO``, whose files are held by the server."""

    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        """Say what a file is."""
        self.do_GET()

    def do_GET(self) -> None:
        """Tell the data set, its tree, or a file."""
        path, files = unquote(urlsplit(self.path).path), self.server.files
        if match := re.fullmatch(rf"/datasets/{REPO}/resolve/[^/]+/(.*)", path):
            self._file(files.get(match[1]))
        elif re.fullmatch(rf"/api/datasets/{REPO}(/revision/[^/]+)?", path):
            siblings = [{"rfilename": name} for name in files]
            self._answer({"id": REPO, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})
        elif match := re.fullmatch(rf"/api/datasets/{REPO}/tree/[^/]+/?(.*)", path):
            below = match[1] and match[1].rstrip("/") + "/"
            entries = self._entries(name for name in files if name.startswith(below))
            folders = {
                name[: name.index("/", len(below))]
                for name in files
                if name.startswith(below) and "/" in name[len(below) :]
            }
            inner = [
                entry
                for entry in entries
                if "recursive=true" in self.path.lower() or "/" not in entry["path"][len(below) :]
            ]
            found = inner + [
                {"type": "directory", "path": name, "oid": "0", "size": 0} for name in sorted(folders)
            ]
            self._answer(found) if found or not below else self._answer({}, 404)
        else:
            self._answer({"error": f"unknown: {path}"}, 404)

    def do_POST(self) -> None:
        """Create the data set, take a commit."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        if path == "/api/repos/create":
            self._answer({"url": f"{self.server.url}/datasets/{REPO}", "name": REPO, "id": REPO})
        elif "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            self._answer(
                {
                    "files": [
                        {"path": name, "uploadMode": _mode(name), "shouldIgnore": False} for name in names
                    ]
                }
            )
        elif "/paths-info/" in path:
            text = body.decode()
            wanted = (
                json.loads(text)["paths"]
                if text.startswith("{")
                else re.findall(r"paths=([^&]*)", unquote(text))
            )
            self._answer(self._entries(name for name in wanted if name in self.server.files))
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [self._upload(wanted) for wanted in json.loads(body)["objects"]]
            self._answer({"transfer": "basic", "objects": objects})
        elif "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "lfsFile":
                    self.server.files[line["value"]["path"]] = self.server.uploads[line["value"]["oid"]]
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer(
                {
                    "success": True,
                    "commitOid": COMMIT,
                    "commitUrl": f"{self.server.url}/datasets/{REPO}/commit/{COMMIT}",
                }
            )
        else:
            self._answer({"errors": [], "warnings": []})

    def do_PUT(self) -> None:
        """Take an upload, named by its hash."""
        self.server.uploads[self.path.rpartition("/")[2]] = self.rfile.read(
            int(self.headers["Content-Length"])
        )
        self._send(200, b"", {})

    def _upload(self, wanted: dict[str, Any]) -> dict[str, Any]:
        place = f"{self.server.url}/upload/{wanted['oid']}"
        return {**wanted, "actions": {"upload": {"href": place, "header": {}}}}

    def _entries(self, names: Any) -> list[dict[str, Any]]:
        files = self.server.files
        return [
            {"type": "file", "path": name, "oid": _oid(files[name]), "size": len(files[name])}
            for name in sorted(names)
        ]

    def _answer(self, answer: Any, status: int = 200) -> None:
        body = json.dumps(answer).encode()
        missing = {"X-Error-Code": "EntryNotFound"} if status == 404 else {}
        self._send(status, body, {"Content-Type": "application/json", **missing})

    def _file(self, data: bytes | None) -> None:
        if data is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(match[1]), min(int(match[2] or len(data) - 1), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            self._send(206, data[first : last + 1], headers)
        else:
            self._send(200, data, headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class HubServer(ThreadingHTTPServer):
    """The server, with the files of its data set by name."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Hub)
        self.files: dict[str, bytes] = {}
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.uploads: dict[str, bytes] = {}


def _mode(name: str) -> str:
    return "lfs" if name.endswith(".parquet") else "regular"


def _oid(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """A hub while the block runs."""
    with HubServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
