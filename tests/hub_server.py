"""A model hub on the loopback address, with repositories in memory and faults on demand.

    with HubServer() as hub:
        hub.add("you/model", {"config.json": b"{}", "model.safetensors": bytes(9)})
        HfApi(endpoint=hub.url).model_info("you/model")

It answers what huggingface_hub asks when it lists, downloads and commits: facts of a repository,
trees, files with ranges, uploads (preupload, LFS batch, commit). Files that end like weights are
LFS. A fault is used up by the request that meets it.
"""

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LFS = (".safetensors", ".bin", ".parquet", ".pth")


def git_oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@dataclass
class Repo:
    """Commits, oldest first, as (hash, files); branches and tags as indices of commits."""

    commits: list = field(default_factory=list)
    refs: dict = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    token: str | None = None

    def commit(self, files, ref="main"):
        text = json.dumps([len(self.commits), sorted((p, git_oid(c)) for p, c in files.items())])
        self.commits.append((hashlib.sha1(text.encode()).hexdigest(), dict(files)))
        self.refs[ref] = len(self.commits) - 1
        return self.commits[-1][0]

    def at(self, revision):
        """Return (hash, files) of a branch, a tag or a commit; None if there is none."""
        if revision in self.refs:
            return self.commits[self.refs[revision]]
        return next((c for c in self.commits if c[0] == revision), None)


@dataclass
class Fault:
    """What the next `times` requests of which `part` is in the path get instead."""

    part: str
    status: int = 0
    headers: dict = field(default_factory=dict)
    cut: int | None = None
    swap: bytes | None = None
    method: str | None = None
    times: int = 1


@dataclass
class Asked:
    """One request, for the tests to look at."""

    method: str
    path: str
    range: str | None
    token: str | None
    status: int = 0
    sent: int = 0


class Listener(ThreadingHTTPServer):
    """Says nothing of clients that hang up, as some tests make them."""

    daemon_threads = True

    def handle_error(self, *_):
        pass


class HubServer:
    """The hub; `url` is its address, `asked` what it was asked.

    `mirror_of` another server: contents are not served but redirected there with 307. `cdn`:
    contents of LFS files are redirected to that server with 302, as the real hub does.
    """

    def __init__(self, mirror_of=None, cdn=None, ranges=True):
        self.repos, self.blobs, self.faults, self.asked = {}, {}, [], []
        self.mirror_of, self.cdn, self.ranges = mirror_of, cdn, ranges
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = Listener(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, name, files, kind="model", **options):
        """Add a repository, or a commit to one; return its hash."""
        repo = self.repos.setdefault((kind, name), Repo(**options))
        self.blobs |= {sha256(content): content for content in files.values()}
        return repo.commit(files)

    def fault(self, part, **what):
        self.faults.append(Fault(part, **what))

    def met(self, method, path):
        """Take the fault that a request meets, if any."""
        with self.lock:
            for fault in self.faults:
                if fault.part in path and fault.method in (None, method):
                    fault.times -= 1
                    if fault.times <= 0:
                        self.faults.remove(fault)
                    return fault
        return None

    def contents(self):
        """Return the requests that were answered with contents of files."""
        return [a for a in self.asked if "/resolve/" in a.path and a.method == "GET"]


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer()

    def do_HEAD(self):
        self._answer()

    def do_POST(self):
        self._answer()

    def do_PUT(self):
        self._answer()

    def _answer(self):
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        bearer = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        path = unquote(url.path)
        self.asking = Asked(self.command, path, self.headers.get("Range"), bearer or None)
        self.hub.asked.append(self.asking)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self._chunks()
        self.fault = self.hub.met(self.command, path)
        if self.fault and self.fault.status:
            self._send(self.fault.status, b"fault", self.fault.headers)
        else:
            self._route(path, self.path.split("?")[0].strip("/").split("/"))

    def _chunks(self):
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _route(self, path, raw):
        parts = [unquote(part) for part in raw]
        if path.startswith("/blobs/"):
            self._content(self.hub.blobs[parts[1]], {})
        elif path.startswith("/upload/"):
            self.hub.blobs[parts[1]] = self.body
            ok = sha256(self.body) == parts[1]
            self._send(200 if ok else 400, b"")
        elif path == "/api/repos/create":
            self._create(json.loads(self.body))
        elif path == "/api/validate-yaml":
            self._json({"warnings": [], "errors": []})
        elif parts[0] == "api" and parts[1] in ("models", "datasets") and len(parts) >= 4:
            self._api(parts[1][:-1], "/".join(parts[2:4]), parts[4:])
        elif ".git/info/lfs/objects/batch" in path:
            self._batch(json.loads(self.body))
        elif "resolve" in parts:
            kind = "dataset" if parts[0] == "datasets" else "model"
            parts = parts[1:] if kind == "dataset" else parts
            self._file(kind, "/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self._send(404, b"")

    def _repo(self, kind, name):
        """Return a repository that the asker may know of, else answer that there is none."""
        repo = self.hub.repos.get((kind, name))
        if repo is None or (repo.private and self.asking.token != repo.token):
            code = 404 if self.asking.token else 401
            self._send(code, b"", {"X-Error-Code": "RepoNotFound"})
            return None
        return repo

    def _commit_of(self, repo, revision):
        found = repo.at(revision)
        if found is None:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        return found

    def _api(self, kind, name, rest):
        repo = self._repo(kind, name)
        if repo is None:
            return
        what = rest[0] if rest else "revision"
        revision = rest[1] if len(rest) > 1 else "main"
        if what == "preupload":
            self._preupload(repo, json.loads(self.body))
        elif what == "branch":
            repo.refs.setdefault(revision, repo.refs["main"])
            self._json({})
        elif what == "commit":
            self._commit(repo, revision, name)
        elif found := self._commit_of(repo, revision):
            if what == "revision":
                siblings = [{"rfilename": path} for path in found[1]]
                facts = {"id": name, "sha": found[0], "siblings": siblings, "gated": repo.gated}
                self._json(facts | {"private": repo.private, "tags": [], "downloads": 0})
            elif what == "tree":
                self._tree(found[1], "/".join(rest[2:]))
            elif what == "paths-info":
                wanted = self._wanted_paths()
                self._json([_entry(p, c) for p, c in found[1].items() if p in wanted])
            else:
                self._send(404, b"")

    def _wanted_paths(self):
        if "json" in (self.headers.get("Content-Type") or ""):
            return json.loads(self.body)["paths"]
        return parse_qs(self.body.decode()).get("paths", [])

    def _tree(self, files, under):
        inside = {p: c for p, c in files.items() if not under or p.startswith(f"{under}/")}
        if under and not inside:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        depth = under.count("/") + 1 if under else 0
        recursive = self.query.get("recursive", ["false"])[0].lower() == "true"
        folders = {"/".join(p.split("/")[:n]) for p in inside for n in range(1, p.count("/") + 1)}
        entries = [
            {"type": "directory", "path": f, "oid": git_oid(f.encode()), "size": 0}
            for f in sorted(folders)
            if f != under and f.count("/") >= depth
        ] + [_entry(path, content) for path, content in inside.items()]
        if not recursive:
            entries = [e for e in entries if e["path"].count("/") == depth]
        self._json(entries)

    def _file(self, kind, name, revision, path):
        repo = self._repo(kind, name)
        found = repo and self._commit_of(repo, revision)
        if not found:
            return
        commit, files = found
        headers = {"X-Repo-Commit": commit}
        if repo.gated and self.asking.token != repo.token:
            code = 403 if self.asking.token else 401
            self._send(code, b"", headers | {"X-Error-Code": "GatedRepo"})
        elif path not in files:
            self._send(404, b"", headers | {"X-Error-Code": "EntryNotFound"})
        else:
            self._give(path, files[path], headers)

    def _give(self, path, content, headers):
        lfs = path.endswith(LFS)
        etag = sha256(content) if lfs else git_oid(content)
        headers |= {"ETag": f'"{etag}"'}
        if lfs:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        if self.hub.mirror_of:
            place = f"{self.hub.mirror_of.url}{self.path}"
            self._send(307, b"", headers | {"Location": place})
        elif lfs and self.hub.cdn:
            place = f"{self.hub.cdn.url}/blobs/{etag}"
            self._send(302, b"", headers | {"Location": place})
        else:
            self._content(content, headers)

    def _content(self, content, headers):
        if self.fault and self.fault.swap is not None:
            content = self.fault.swap
        wanted = self.headers.get("Range")
        status, body = 200, content
        if wanted and self.hub.ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            first, last = int(first), min(int(last or len(content) - 1), len(content) - 1)
            if first >= len(content):
                self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
                return
            status, body = 206, content[first : last + 1]
            headers |= {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
        cut = self.fault.cut if self.fault else None
        self._send(status, body, headers | {"Accept-Ranges": "bytes"}, cut)

    def _create(self, facts):
        name = f"{facts['organization'] or 'you'}/{facts['name']}"
        key = (facts.get("type", "model"), name)
        url = {"url": f"{self.hub.url}/{'datasets/' if key[0] == 'dataset' else ''}{name}"}
        if self.asking.token is None:
            self._send(401, b"", {"X-Error-Message": "Invalid username or password."})
        elif key in self.hub.repos:
            self._send(409, json.dumps(url).encode())
        else:
            private = facts.get("visibility") == "private" or facts.get("private") is True
            self.hub.repos[key] = Repo(private=private, token=self.asking.token)
            self.hub.repos[key].commit({".gitattributes": b"*.bin filter=lfs\n"})
            self._json(url | {"name": name})

    def _preupload(self, repo, asked):
        _, there = repo.at("main")
        self._json(
            {
                "files": [
                    {
                        "path": f["path"],
                        "uploadMode": "lfs" if f["path"].endswith(LFS) else "regular",
                        "shouldIgnore": False,
                        "oid": _remote_oid(f["path"], there),
                    }
                    for f in asked["files"]
                ]
            }
        )

    def _batch(self, asked):
        objects = []
        for wanted in asked["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.blobs:
                href = f"{self.hub.url}/upload/{wanted['oid']}"
                answer["actions"] = {"upload": {"href": href, "header": {}}}
            objects.append(answer)
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, repo, revision, name):
        if self.asking.token is None or self.asking.token != repo.token:
            self._send(403, b"", {"X-Error-Message": "you may not write here"})
            return
        files = dict(repo.at(revision)[1])
        for line in self.body.splitlines():
            _apply(json.loads(line), files, self.hub.blobs)
        self.hub.blobs |= {sha256(content): content for content in files.values()}
        commit = repo.commit(files, revision)
        url = f"{self.hub.url}/datasets/{name}/commit/{commit}"
        self._json({"commitUrl": url, "commitOid": commit, "success": True})

    def _json(self, value):
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status, body, headers=None, cut=None):
        self.asking.status = status
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        whole = body if cut is None else body[:cut]
        self.asking.sent = len(whole)
        self.wfile.write(whole)
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True


def _remote_oid(path, there):
    if path not in there:
        return None
    return (sha256 if path.endswith(LFS) else git_oid)(there[path])


def _entry(path, content):
    entry = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
    if path.endswith(LFS):
        entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 130}
    return entry


def _apply(operation, files, blobs):
    kind, value = operation["key"], operation["value"]
    if kind == "file":
        files[value["path"]] = base64.b64decode(value["content"])
    elif kind == "lfsFile":
        files[value["path"]] = blobs[value["oid"]]
    elif kind == "deletedFile":
        del files[value["path"]]
