"""A Hugging Face Hub for tests: real HTTP, so that unmodified huggingface_hub and datasets run against it.

    with HubServer(tmp_path) as hub:
        hub.create_repo("user/x")
        HfApi(endpoint=hub.url, token=hub.token).upload_file(...)

It serves dataset repositories, LFS uploads in one part and reads with ranges; what they hold can be read as models, too. Reads
of the repositories in `gated` are refused, and all writes while it is `read_only`. It has no Xet: clients that write need
HF_HUB_DISABLE_XET=1, which `hub.env()` holds for a subprocess. `python -m tests.hubserver` runs it as a process of
its own; its controls are then at /_test/state, /_test/faults and /_test/down.
"""

import argparse
import base64
import hashlib
import json
import re
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from tests.hubjobs import Jobs
from tests.hubstore import (
    BUSY,
    STALE,
    Commit,
    Dropped,
    Faults,
    FileInfo,
    HubError,
    Repo,
    Store,
    apply_operations,
    is_heavy,
    lfs_pointer,
    list_tree,
)

USER = "tester"
MAX_PAGE, MAX_EXPANDED_PAGE, MAX_COMMITS_PAGE = 1000, 50, 50
BLOCK_BYTES = 1 << 16
READS = {"info", "tree", "paths", "resolve", "refs", "log"}  # what needs no token in a public repository
WRITES = {"create", "delete", "preupload", "commit", "branch", "tag", "squash", "batch"}
CONTROLS = {"state", "faults", "down"}
OPEN = {"upload", *CONTROLS}  # an upload's address is its own permit, as on S3

# Patterns match the address before unquoting: a revision or folder with a slash arrives quoted, as one segment.
REPO, REV = r"(?P<repo>[^/]+/[^/]+?)", r"(?P<rev>[^/]+)"
API = rf"/api/datasets/{REPO}"
READ_API = rf"/api/(?:datasets|models)/{REPO}"
ROUTES = [
    (methods, re.compile(pattern), kind)
    for methods, pattern, kind in [
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/validate-yaml", "yaml"),
        ("POST", r"/api/repos/create", "create"),
        ("DELETE", r"/api/repos/delete", "delete"),
        ("GET", rf"{READ_API}(/revision/{REV})?", "info"),
        ("GET", rf"{READ_API}/tree/{REV}(/(?P<path>.+))?", "tree"),
        ("POST", rf"{API}/paths-info/{REV}", "paths"),
        ("POST", rf"{API}/preupload/{REV}", "preupload"),
        ("POST", rf"{API}/commit/{REV}", "commit"),
        ("GET", rf"{API}/refs", "refs"),
        ("GET", rf"{API}/commits/{REV}", "log"),
        ("POST DELETE", rf"{API}/branch/{REV}", "branch"),
        ("POST DELETE", rf"{API}/tag/{REV}", "tag"),
        ("POST", rf"{API}/super-squash/{REV}", "squash"),
        ("POST", rf"/datasets/{REPO}\.git/info/lfs/objects/batch", "batch"),
        ("PUT", rf"/_lfs/{REPO}/(?P<path>[0-9a-f]{{64}})", "upload"),
        ("POST", rf"/_lfs/{REPO}/verify", "verify"),
        ("GET HEAD", rf"/(?:datasets/)?{REPO}/resolve/{REV}/(?P<path>.+)", "resolve"),
        ("GET POST", r"/api/jobs/(?P<namespace>[^/]+)", "jobs"),
        ("GET POST", r"/api/jobs/(?P<namespace>[^/]+)/(?P<job>[^/]+)(/(?P<part>logs|cancel))?", "job"),
        ("GET", r"/_test/state", "state"),
        ("POST", r"/_test/faults", "faults"),
        ("POST", r"/_test/down", "down"),
    ]
]


class Request(NamedTuple):
    method: str
    path: str
    status: int  # 0 if the connection was closed without an answer
    kind: str
    client: str  # address


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every keep-alive answer waits 40 ms for a delayed ACK
    wbufsize = -1

    def setup(self):
        super().setup()
        self.hub: HubServer = self.server.hub
        self.hub.sockets.add(self.connection)

    def finish(self):
        self.hub.sockets.discard(self.connection)
        try:
            super().finish()
        except OSError:
            self.close_connection = True  # the client left before the last flush

    def handle(self):
        try:
            super().handle()
        except (OSError, Dropped):
            self.close_connection = True

    def log_message(self, *args):
        """The server's own list of requests is the log."""

    def answer(self):
        address = urlsplit(self.path)
        self.query = parse_qs(address.query)
        self.blocks = self.read_blocks()
        self.kind, names = self.route(address.path)
        try:
            if self.hub.down and self.kind not in CONTROLS:
                raise Dropped
            self.respond(names)
        except Dropped:
            self.log(0)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        except HubError as error:
            words = {"X-Error-Message": error.message} | error.headers
            self.send_json({"error": error.message}, error.status, words)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def route(self, path: str) -> tuple[str, dict[str, str]]:
        for methods, pattern, kind in ROUTES:
            if self.command in methods.split() and (match := pattern.fullmatch(path)):
                return kind, {name: unquote(text) for name, text in match.groupdict().items() if text is not None}
        return "unknown", {}

    def respond(self, names: dict[str, str]):
        """Check the token, let a fault strike before or after the work, do the work, answer."""
        kind, action = self.hub.faults.draw(self.kinds()) or ("", "")
        landed = action.startswith("landed_")
        if not landed:
            self.strike(kind, action)
        signed_in = self.check_token()
        if self.kind == "unknown":
            raise HubError(404, f"no such address: {self.path}")
        if "repo" in names:
            names["repo"] = self.open_repo(names["repo"], signed_in)
        result = getattr(self, f"do_{self.kind}")(**names)
        if landed:
            self.strike(kind, action.removeprefix("landed_"))
        if result is not None:  # a file has been sent already
            self.send_json(*result) if isinstance(result, tuple) else self.send_json(result)

    def kinds(self) -> set[str]:
        """The names under which a fault may find this request."""
        if self.kind in CONTROLS:
            return set()
        kinds = {self.kind}
        if self.kind == "tree" and "cursor" in self.query:
            kinds.add("page")
        if self.kind != "resolve":
            kinds.add("any")
        if self.kind not in ("upload", "resolve"):
            kinds.add("api")
        return kinds

    def strike(self, kind: str, action: str):
        faults = self.hub.faults
        if action == "slow":
            self.hub.sleep(faults.slow_seconds)
        elif action == "hang":
            self.hub.sleep(faults.hang_seconds)
            raise Dropped
        elif action == "drop":
            if self.kind == "upload":  # a connection that breaks in mid-body
                left = int(self.headers.get("Content-Length", 2)) // 2  # a chunked body tells no length: one block
                while left > 0:
                    left -= len(next(self.blocks))
            raise Dropped
        elif action:
            raise faults.refusal(kind, action)

    def check_token(self) -> bool:
        if self.kind in OPEN:
            return True
        header = self.headers.get("Authorization")
        if header not in (None, f"Bearer {self.hub.token}"):
            raise HubError(401, "Invalid credentials in Authorization header")
        if header is None and self.kind not in READS:
            raise HubError(401, "Invalid username or password.")
        if self.hub.read_only and self.kind in WRITES:
            raise HubError(403, "You don't have the required permissions to write here.")
        return header is not None

    def open_repo(self, repo_id: str, signed_in: bool) -> Repo:
        """A stranger cannot tell a private repository from a missing one."""
        try:
            repo = self.hub.store.repo(repo_id)
        except HubError:
            if signed_in:
                raise
            repo = None
        if repo is None or (repo.private and not signed_in):
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        return repo

    def read_blocks(self) -> Iterator[bytes]:
        """The request's body, once; what a handler leaves is drained before the answer, for keep-alive."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while length := int(self.rfile.readline().split(b";")[0] or b"0", 16):
                yield self.read_exactly(length)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length", 0))
        while left:
            block = self.read_exactly(min(left, BLOCK_BYTES))
            left -= len(block)
            yield block

    def read_exactly(self, length: int) -> bytes:
        block = self.rfile.read(length)
        if len(block) < length:
            raise Dropped
        return block

    def body(self) -> bytes:
        return b"".join(self.blocks)

    def json(self) -> dict:
        return json.loads(self.body() or b"{}")

    def log(self, status: int):
        """Before the answer leaves, so that a client that has it also finds it counted."""
        self.hub.requests.append(Request(self.command, self.path, status, self.kind, self.client_address[0]))

    def send_head(self, status: int, length: int, headers: dict[str, str]):
        for _ in self.blocks:
            pass
        self.log(status)
        self.send_response(status)
        for name, value in ({"Content-Length": str(length)} | headers).items():
            self.send_header(name, value)
        self.end_headers()

    def send_json(self, value, status: int = 200, headers: dict[str, str] | None = None):
        content = json.dumps(value).encode()
        self.send_head(status, len(content), {"Content-Type": "application/json"} | (headers or {}))
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_whoami(self):
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
        return {"type": "user", "id": "1", "name": USER, "orgs": [], "auth": auth}

    def do_yaml(self):
        return {"errors": [], "warnings": []}

    def do_create(self):
        asked = self.json()
        if asked.get("type") != "dataset":
            raise HubError(400, f"this stand-in holds datasets only, not {asked.get('type')}")
        repo_id = f"{asked.get('organization') or USER}/{asked['name']}"
        answer = {"url": f"{self.hub.url}/datasets/{repo_id}", "name": repo_id, "id": repo_id}
        try:
            self.hub.store.create(repo_id, asked.get("visibility") == "private")
        except HubError as error:
            return answer | {"error": error.message}, error.status
        return answer

    def do_delete(self):
        asked = self.json()
        repo = self.hub.store.repo(f"{asked.get('organization') or USER}/{asked['name']}")
        del self.hub.store.repos[repo.id]
        return {}

    def do_info(self, repo: Repo, rev: str = "main"):
        commit, blobs = repo.at(rev), "blobs" in self.query
        info = {
            "id": repo.id,
            "author": repo.id.split("/")[0],
            "sha": commit.oid,
            "createdAt": iso(repo.created),
            "lastModified": iso(commit.time),
            "private": repo.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": [sibling(path, file, blobs) for path, file in sorted(commit.tree.items())],
        }
        if wanted := self.query.get("expand"):
            info["usedStorage"] = sum(file.size for file in commit.tree.values())
            return {name: value for name, value in info.items() if name in ("id", *wanted)}
        return info

    def do_tree(self, repo: Repo, rev: str, path: str = ""):
        commit, expand = repo.at(rev), "true" in self.query.get("expand", ())
        rows = self.hub.listing(commit, path, "true" in self.query.get("recursive", ()))
        after, size = self.query.get("cursor", [""])[0], MAX_EXPANDED_PAGE if expand else MAX_PAGE
        rows = [row for row in rows if row[0] > after]
        link = self.next_page(cursor=rows[size - 1][0]) if len(rows) > size else {}
        return [entry(repo, commit, name, file, expand) for name, file in rows[:size]], 200, link

    def next_page(self, **change: str) -> dict[str, str]:
        query = urlencode(self.query | {name: [value] for name, value in change.items()}, doseq=True)
        return {"Link": f'<{self.hub.url}{urlsplit(self.path).path}?{query}>; rel="next"'}

    def do_paths(self, repo: Repo, rev: str):
        form, commit = parse_qs(self.body().decode()), repo.at(rev)
        found = dict(list_tree(commit.tree, "", True))
        wanted = [path.strip("/") for path in form.get("paths", ())]
        expand = form.get("expand") == ["true"]
        return [entry(repo, commit, path, found[path], expand) for path in wanted if path in found]

    def do_refs(self, repo: Repo):
        def shown(kind: str, refs: dict[str, str]):
            return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid} for name, oid in refs.items()]

        return {
            "branches": shown("heads", repo.branches),
            "tags": shown("tags", repo.tags),
            "converts": [],
            "pullRequests": [],
        }

    def do_log(self, repo: Repo, rev: str):
        page, history = int(self.query.get("p", ["0"])[0]), repo.history(rev)
        limit = min(MAX_COMMITS_PAGE, int(self.query.get("limit", [MAX_COMMITS_PAGE])[0]))
        rows = [
            {
                "id": c.oid,
                "title": c.message,
                "message": c.description,
                "authors": [{"user": USER}],
                "date": iso(c.time),
            }
            for c in history[page * limit : (page + 1) * limit]
        ]
        more = (page + 1) * limit < len(history)
        return rows, 200, self.next_page(p=str(page + 1)) if more else {}

    def do_branch(self, repo: Repo, rev: str):
        start = self.json().get("startingPoint", "main")
        return self.change_ref(repo, repo.branches, rev, start)

    def do_tag(self, repo: Repo, rev: str):
        asked = self.json()  # a tag's name is in the body when it is made, in the address when it is deleted
        return self.change_ref(repo, repo.tags, asked.get("tag", rev), rev)

    def change_ref(self, repo: Repo, refs: dict[str, str], name: str, start: str):
        with repo.lock:
            if self.command == "DELETE":
                if refs.pop(name, None) is None:
                    raise HubError(404, f"no ref {name}", "RevisionNotFound")
            elif name in refs:
                raise HubError(409, f"Reference already exists: {name}")
            else:
                refs[name] = repo.at(start).oid
        return {}

    def do_squash(self, repo: Repo, rev: str):
        repo.squash(rev, self.json().get("message", "Super-squash"))
        return {}

    def do_preupload(self, repo: Repo, rev: str):
        tree, answers = repo.head(rev).tree, []
        for file in self.json()["files"]:
            heavy = is_heavy(file["path"], file["size"], base64.b64decode(file["sample"]))
            known = tree.get(file["path"])
            oid = known and (known.sha256 if known.lfs else known.oid)
            mode = "lfs" if heavy else "regular"
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answers}

    def do_batch(self, repo: Repo):
        base, objects = f"{self.hub.url}/_lfs/{quote(repo.id)}", []
        for asked in self.json()["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in repo.lfs:
                actions = {"upload": {"href": f"{base}/{asked['oid']}"}, "verify": {"href": f"{base}/verify"}}
                answer["actions"] = actions
            objects.append(answer)
        return {"transfer": "basic", "objects": objects}

    def do_upload(self, repo: Repo, path: str):
        sha256, size = self.hub.store.keep_blocks(self.throttled())
        if sha256 != path:
            raise HubError(400, f"the content's sha256 is {sha256}, not {path}")
        repo.lfs[sha256] = size
        return {}

    def throttled(self) -> Iterator[bytes]:
        for block in self.blocks:
            if rate := self.hub.upload_bytes_per_second:
                self.hub.sleep(len(block) / rate)
            yield block

    def do_verify(self, repo: Repo):
        asked = self.json()
        if repo.lfs.get(asked["oid"]) != asked["size"]:
            raise HubError(404, f"no object {asked['oid']} of {asked['size']} bytes")
        return {}

    def do_commit(self, repo: Repo, rev: str):
        header, *operations = [json.loads(line) for line in self.body().splitlines()]
        for operation in operations:
            if operation["key"] == "file":
                operation["content"] = base64.b64decode(operation["value"]["content"])
        commit = self.hub.commit(repo, rev, header["value"], operations)
        url = f"{self.hub.url}/datasets/{repo.id}/commit/{commit.oid}"
        return {"success": True, "commitOid": commit.oid, "commitUrl": url, "hookOutput": "", "pullRequestUrl": None}

    def do_resolve(self, repo: Repo, rev: str, path: str):
        if repo.id in self.hub.gated:
            words = f"Access to {repo.id} is restricted and you are not in the authorized list."
            raise HubError(403, words, "GatedRepo")
        commit, file = repo.file(rev, path)
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes", "ETag": f'"{file.oid}"'}
        if file.lfs:
            headers |= {"ETag": f'"{file.sha256}"', "X-Linked-ETag": f'"{file.sha256}"'}
            headers["X-Linked-Size"] = str(file.size)
        asked = self.asked_range(file.size)
        start, end = asked or (0, file.size)
        if asked:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.size}"
        headers["Content-Type"] = "application/octet-stream"
        self.send_head(206 if asked else 200, end - start, headers)
        if self.command == "GET":
            with self.hub.store.path(file.sha256).open("rb") as content:
                content.seek(start)
                for left in range(end - start, 0, -BLOCK_BYTES):
                    self.wfile.write(content.read(min(left, BLOCK_BYTES)))

    def asked_range(self, size: int) -> tuple[int, int] | None:
        """First byte and the one after the last."""
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not match or match.groups() == ("", ""):
            return None
        first, last = match.groups()
        start = int(first) if first else max(0, size - int(last))
        end = min(size, int(last) + 1) if first and last else size
        if start >= end:
            raise HubError(416, "Range Not Satisfiable", headers={"Content-Range": f"bytes */{size}"})
        return start, end

    def do_jobs(self, namespace: str):
        if self.command == "POST":
            return self.hub.jobs.start(namespace, self.json())
        return self.hub.jobs.list(namespace, self.query.get("stage", []), self.query.get("label", []))

    def do_job(self, namespace: str, job: str, part: str = ""):
        if job not in self.hub.jobs.all:
            raise HubError(404, f"no job {job}")
        if part == "cancel":
            return self.hub.jobs.cancel(job)
        if part != "logs":
            return self.hub.jobs.all[job].to_json()
        events = self.hub.jobs.events(job, int(self.query.get("tail", ["0"])[0]))
        self.send_head(200, len(events), {"Content-Type": "text/event-stream"})
        self.wfile.write(events)

    def do_state(self):
        """?repo=user/x&revision=main adds that repository's files and commits."""
        hub = self.hub
        state = {"repos": sorted(hub.store.repos), "counts": hub.counts(), "fired": dict(hub.faults.fired)}
        state |= {"down": hub.down, "requests": [list(r) for r in list(hub.requests)]}
        if "repo" in self.query:
            repo_id, revision = self.query["repo"][0], self.query.get("revision", ["main"])[0]
            state["files"] = {path: asdict(file) for path, file in hub.files(repo_id, revision).items()}
            state["commits"] = [
                {"oid": c.oid, "parent": c.parent, "time": c.time, "message": c.message, "paths": c.paths}
                for c in hub.commits(repo_id, revision)
            ]
        return state

    def do_faults(self):
        self.hub.faults = Faults(**self.json())
        return {}

    def do_down(self):
        self.hub.set_down(self.json()["down"], spare=self.connection)
        return {}


def iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def sibling(path: str, file: FileInfo, blobs: bool) -> dict:
    if not blobs:
        return {"rfilename": path}
    lfs = {"sha256": file.sha256, "size": file.size, "pointerSize": len(lfs_pointer(file.sha256, file.size))}
    return {"rfilename": path, "size": file.size, "blobId": file.oid} | ({"lfs": lfs} if file.lfs else {})


def entry(repo: Repo, commit: Commit, path: str, file: FileInfo | None, expand: bool) -> dict:
    """A file or folder of a tree listing."""
    last = commit
    if file is None:
        row = {"type": "directory", "path": path, "oid": hashlib.sha1(f"{commit.oid}/{path}".encode()).hexdigest()}
    else:
        last = repo.commits.get(file.commit, commit)
        row = {"type": "file", "path": path, "size": file.size, "oid": file.oid}
        if file.lfs:
            pointer_bytes = len(lfs_pointer(file.sha256, file.size))
            row["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": pointer_bytes}
    if expand:
        row["lastCommit"] = {"id": last.oid, "title": last.message, "date": iso(last.time)}
    return row


class Listener(ThreadingHTTPServer):
    daemon_threads, block_on_close = True, False
    request_queue_size = 256

    def handle_error(self, request, client_address):
        """A client that went away is no news; anything else is a fault of this file."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class HubServer:
    """The server and its controls; see the module. `upload_bytes_per_second` holds for each connection."""

    def __init__(
        self,
        root: Path,
        *,
        token: str = "hf_test",
        commits_per_hour: int | None = None,
        commit_seconds: float = 0.0,
        create_seconds: float = 0.0,  # between a new repository and its first commit
        upload_bytes_per_second: float | None = None,
        faults: Faults | None = None,
        hour_seconds: float = 3600.0,  # a test of the limit's end need not take an hour
        host: str = "127.0.0.1",
        port: int = 0,
    ):
        self.store, self.token, self.faults = Store(Path(root), create_seconds), token, faults or Faults()
        self.commits_per_hour, self.hour_seconds = commits_per_hour, hour_seconds
        self.commit_seconds, self.upload_bytes_per_second = commit_seconds, upload_bytes_per_second
        self.requests: list[Request] = []
        self.sockets: set[socket.socket] = set()
        self.gated, self.read_only = set[str](), False
        self._down, self._stopping = False, threading.Event()
        self._listed: tuple = ((), [])  # the key of a listing, and the listing
        self._listener = Listener((host, port), Handler)
        self._listener.hub = self
        self.url = f"http://{host}:{self._listener.server_address[1]}"
        # what a job finds in its container; the token it has to bring
        self.jobs = Jobs(Path(root) / "jobs", {k: v for k, v in self.env().items() if k != "HF_TOKEN"})

    def start(self) -> "HubServer":
        threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self) -> None:
        self._stopping.set()
        self.jobs.stop()
        self._listener.shutdown()
        self._listener.server_close()
        self._cut()

    def __enter__(self) -> "HubServer":
        return self.start()

    def __exit__(self, *error) -> None:
        self.stop()

    @property
    def down(self) -> bool:
        """While True, every connection is closed without an answer, those in use at once."""
        return self._down

    @down.setter
    def down(self, value: bool) -> None:
        self.set_down(value)

    def set_down(self, value: bool, spare: socket.socket | None = None) -> None:
        self._down = value
        if value:
            self._cut(spare)

    def _cut(self, spare: socket.socket | None = None) -> None:
        for connection in self.sockets.copy() - {spare}:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it closed by itself meanwhile

    def sleep(self, seconds: float) -> None:
        self._stopping.wait(seconds)

    def commit(self, repo: Repo, branch: str, header: dict, operations: list[dict]) -> Commit:
        """One at a time per repository; lands after `commit_seconds`, whether or not the client still waits."""
        if not repo.committing.acquire(blocking=False):
            raise HubError(409, BUSY)
        try:
            repo.spend(self.commits_per_hour, self.hour_seconds)
            head = repo.head(branch)
            if not head.oid.startswith(header.get("parentCommit", "")):
                raise HubError(412, STALE)
            tree, paths = apply_operations(repo, head, operations, self.store)
            self.sleep(self.commit_seconds)
            repo.recent.append(time.monotonic())
            return repo.record(branch, tree, header.get("summary", ""), paths, header.get("description", ""))
        finally:
            repo.committing.release()

    def create_repo(self, repo_id: str, private: bool = False) -> None:
        self.store.create(repo_id, private)

    def listing(self, commit: Commit, folder: str, recursive: bool) -> list[tuple[str, FileInfo | None]]:
        """The last one is kept: a client asks for it page by page, and 20,000 files take 0.1 s to sort."""
        key = (commit.oid, folder, recursive)
        kept = self._listed
        if kept[0] != key:
            kept = self._listed = key, list_tree(commit.tree, folder, recursive)
        return kept[1]

    def files(self, repo_id: str, revision: str = "main") -> dict[str, FileInfo]:
        return dict(self.store.repo(repo_id).at(revision).tree)

    def read(self, repo_id: str, path: str, revision: str = "main") -> bytes:
        return self.store.path(self.store.repo(repo_id).file(revision, path)[1].sha256).read_bytes()

    def write(self, repo_id: str, files: dict[str, bytes | None], message: str = "someone else's commit") -> str:
        """Commit as somebody else would; None deletes. The commit's oid."""
        return self.store.write(self.store.repo(repo_id), files, message).oid

    def commits(self, repo_id: str, revision: str = "main") -> list[Commit]:
        """Oldest first; the first is the Hub's own "initial commit"."""
        return self.store.repo(repo_id).history(revision)[::-1]

    def counts(self) -> dict[str, int]:
        return dict(Counter(request.kind for request in list(self.requests)))

    def count(self, kind: str, status: int | None = None) -> int:
        return sum(r.kind == kind and status in (None, r.status) for r in list(self.requests))

    def env(self) -> dict[str, str]:
        """What a client process needs besides an HF_HOME of its own."""
        switches = ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS")
        quiet = dict.fromkeys((*switches, "HF_DATASETS_DISABLE_PROGRESS_BARS"), "1")
        online = {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "NO_PROXY": "127.0.0.1,localhost"}
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": self.token} | quiet | online


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--faults", type=json.loads, default={}, help="JSON: the fields of Faults")
    parser.add_argument("--token", default="hf_test")
    parser.add_argument("--commits-per-hour", type=int)
    parser.add_argument("--hour-seconds", type=float, default=3600.0)
    parser.add_argument("--commit-seconds", type=float, default=0.0)
    parser.add_argument("--upload-bytes-per-second", type=float)
    options = vars(parser.parse_args())
    options["faults"] = Faults(**options["faults"])
    with HubServer(options.pop("root"), **options) as hub:
        print(hub.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
