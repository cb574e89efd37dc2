"""A repository of the hub on this machine, for a process of its own."""

import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "a" * 40


class Hub(http.server.ThreadingHTTPServer):
    """The part of the hub that models need: one repository, `o/m`, over a folder.

    `sent` are the bytes of each file that were sent.
    """

    daemon_threads = True

    def __init__(self, folder):
        self.files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
        self.sent = {}
        super().__init__(("127.0.0.1", 0), Answer)


class Answer(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        name = path.partition("/resolve/")[2].partition("/")[2]
        if path.startswith("/api/models/o/m"):
            self.send(self.info(), "info")
        elif path.startswith("/o/m/resolve/") and name in self.server.files:
            self.send(self.server.files[name].read_bytes(), name)
        else:
            is_ours = path.startswith("/o/m/")
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if is_ours else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def info(self):
        files = self.server.files.items()
        siblings = [{"rfilename": n, "size": p.stat().st_size} for n, p in files]
        return json.dumps({"id": "o/m", "sha": COMMIT, "siblings": siblings}).encode()

    def send(self, body, name):
        asked, whole = self.headers.get("Range"), len(body)
        begin = 0
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            begin = int(first)
            body = body[begin : int(last) + 1 if last else None]
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {begin}-{begin + len(body) - 1}/{whole}")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{name}"'.replace("/", "-"))
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.server.sent[name] = self.server.sent.get(name, 0) + len(body)
            self.wfile.write(body)

    def log_message(self, *_args):
        pass


@pytest.fixture
def served(tmp_path):
    """Return a function that runs code with a folder as the hub's repository `o/m`."""

    def run(folder, code):
        hub = Hub(folder)
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        here = {
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "PYTHONPATH": str(Path(__file__).parents[3]),
        }
        try:
            done = subprocess.run(
                [sys.executable, "-c", code],
                capture_output=True,
                text=True,
                check=False,
                cwd=tmp_path,
                env=os.environ | here,
            )
        finally:
            hub.shutdown()
            hub.server_close()
        return hub, done

    return run
