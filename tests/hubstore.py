"""The Hub stand-in's memory: repositories, revisions, files and commits, and the faults its server injects.

Metadata lives in memory under a lock; bytes live on disk, one file per sha256, so that large uploads cost no RAM.
"""

import hashlib
import itertools
import os
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

HEAVY_ENDINGS = (".parquet", ".arrow", ".bin", ".npy", ".npz", ".safetensors", ".gz", ".zip", ".zst", ".tar")
MAX_REGULAR_BYTES = 5_000_000
MAX_FILES_PER_FOLDER = 10_000  # the one hard limit among the Hub's storage recommendations
GITATTRIBUTES = "".join(f"*{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in HEAVY_ENDINGS).encode()

BUSY = "Another commit operation is in progress for this repository. Please try again later."
STALE = "A commit has happened since. Please refresh and try again."
SPENT = (
    "You have exceeded the rate limit for repository commits ({} per hour). You can retry this action in about 1 hour."
)
# The real 429 for commits speaks of the API bucket, which still has room: a client that sleeps by it sleeps wrongly.
SPENT_HEADERS = {"RateLimit": '"api";r=949;t=271', "RateLimit-Policy": '"fixed window";"api";q=1000;w=300'}


class HubError(Exception):
    """A refusal, as the Hub words it; `code` goes out as X-Error-Code, which picks the client's exception class."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict | None = None):
        super().__init__(status, message)
        self.status, self.message = status, message
        self.headers = dict(headers or {}) | ({"X-Error-Code": code} if code else {})


class Dropped(Exception):
    """The connection closes without an answer."""


def is_heavy(path: str, size: int, sample: bytes) -> bool:
    """Whether a file goes through LFS; a NUL byte marks a binary, as it does for git."""
    return path.endswith(HEAVY_ENDINGS) or size > MAX_REGULAR_BYTES or b"\0" in sample


def git_blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


@dataclass(frozen=True)
class FileInfo:
    size: int
    sha256: str
    lfs: bool
    oid: str  # git's blob id, of the pointer for an LFS file
    commit: str = ""  # the commit that last wrote it


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    time: float
    message: str
    paths: tuple[str, ...]  # written or deleted by it
    tree: dict[str, FileInfo] = field(repr=False)  # every commit keeps its own, so a pinned reader is never torn
    description: str = ""


class Repo:
    """One dataset repository. The caller holds `lock` to change it; `committing` is the Hub's own commit lock."""

    def __init__(self, repo_id: str, private: bool):
        self.id, self.private, self.created = repo_id, private, time.time()
        self.lock, self.committing = threading.RLock(), threading.Lock()
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.lfs: dict[str, int] = {}  # sha256 -> size of what was uploaded here; a commit may name nothing else
        self.recent: deque[float] = deque()  # times of the commits that count against the hourly limit

    def at(self, revision: str) -> Commit:
        with self.lock:
            name = revision.removeprefix("refs/heads/")
            oid = self.branches.get(name) or self.tags.get(name) or revision
            if oid not in self.commits:
                raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            return self.commits[oid]

    def head(self, branch: str) -> Commit:
        if branch not in self.branches:
            raise HubError(404, f"Invalid branch: {branch}", "RevisionNotFound")
        return self.at(branch)

    def file(self, revision: str, path: str) -> tuple[Commit, FileInfo]:
        commit = self.at(revision)
        if path not in commit.tree:
            raise HubError(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": commit.oid})
        return commit, commit.tree[path]

    def history(self, revision: str) -> list[Commit]:
        """Newest first."""
        commit, found = self.at(revision), []
        while commit:
            found.append(commit)
            commit = self.commits.get(commit.parent or "")
        return found

    def record(
        self, branch: str, tree: dict[str, FileInfo], message: str, paths: tuple[str, ...], description: str = ""
    ) -> Commit:
        """Put a new head on `branch`; no parent if the branch has none yet."""
        with self.lock:
            parent = self.branches.get(branch)
            oid = hashlib.sha1(f"{self.id} {parent} {message} {os.urandom(8).hex()}".encode()).hexdigest()
            files = {path: info if info.commit else replace(info, commit=oid) for path, info in tree.items()}
            self.commits[oid] = Commit(oid, parent, time.time(), message, paths, files, description)
            self.branches[branch] = oid
            return self.commits[oid]

    def squash(self, branch: str, message: str) -> None:
        """One commit instead of the branch's history; commits that nothing refers to any more are gone."""
        with self.lock:
            tree = self.head(branch).tree
            del self.branches[branch]
            kept = {c.oid for ref in [*self.branches.values(), *self.tags.values()] for c in self.history(ref)}
            self.commits = {oid: commit for oid, commit in self.commits.items() if oid in kept}
            self.record(branch, tree, message, tuple(tree))

    def spend(self, limit: int | None, window_seconds: float) -> None:
        """Refuse the commit if the rolling hour holds `limit` of them."""
        while self.recent and self.recent[0] <= time.monotonic() - window_seconds:
            self.recent.popleft()
        if limit is not None and len(self.recent) >= limit:
            raise HubError(429, SPENT.format(limit), headers=SPENT_HEADERS)


def list_tree(tree: dict[str, FileInfo], folder: str, recursive: bool) -> list[tuple[str, FileInfo | None]]:
    """Files and folders (None) under `folder`, by path."""
    prefix = f"{folder}/" if folder else ""
    found: dict[str, FileInfo | None] = {}
    for path, info in tree.items():
        if path.startswith(prefix):
            parts = path[len(prefix) :].split("/")
            for depth in range(1, len(parts) if recursive else min(2, len(parts))):
                found[prefix + "/".join(parts[:depth])] = None
            if recursive or len(parts) == 1:
                found[path] = info
    if folder and not found:
        raise HubError(404, f"{folder} does not exist", "EntryNotFound")
    return sorted(found.items())


def apply_operations(repo: Repo, head: Commit, operations: list[dict], store: "Store") -> tuple[dict, tuple[str, ...]]:
    """The tree after the ndjson operations of a commit, and the paths they touched."""
    tree, touched = dict(head.tree), []
    for operation in operations:
        key, path = operation["key"], operation["value"]["path"]
        if key == "file":
            tree[path] = store.keep(operation["content"])
        elif key == "lfsFile":
            sha256 = operation["value"]["oid"]
            if sha256 not in repo.lfs:
                raise HubError(400, f"LFS pointer pointed to a file that does not exist: {path} ({sha256})")
            tree[path] = lfs_info(sha256, repo.lfs[sha256])
        elif key in ("deletedFile", "deletedFolder"):
            gone = [p for p in tree if p == path or (key == "deletedFolder" and p.startswith(path.rstrip("/") + "/"))]
            if not gone:
                raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for name in gone:
                del tree[name]
            touched.extend(gone[:-1])
            path = gone[-1]
        else:
            raise HubError(400, f"Unknown operation {key}")
        touched.append(path)
    check_folders(tree)
    return tree, tuple(touched)


def check_folders(tree: dict[str, FileInfo]) -> None:
    if len(tree) > MAX_FILES_PER_FOLDER:
        folder, num_files = Counter(path.rpartition("/")[0] for path in tree).most_common(1)[0]
        if num_files > MAX_FILES_PER_FOLDER:
            raise HubError(400, f"Too many files per directory: {num_files} in '{folder}'")


def lfs_info(sha256: str, size: int) -> FileInfo:
    return FileInfo(size, sha256, True, git_blob_id(lfs_pointer(sha256, size)))


class Store:
    """All repositories, and the bytes of their files under `root`."""

    def __init__(self, root: Path, create_seconds: float = 0.0):
        self.create_seconds = create_seconds
        self.objects, self.incoming = root / "objects", root / "incoming"
        self.objects.mkdir(parents=True, exist_ok=True)
        self.incoming.mkdir(exist_ok=True)
        self.repos: dict[str, Repo] = {}
        self.lock = threading.Lock()
        self._serial = itertools.count()

    def create(self, repo_id: str, private: bool = False) -> Repo:
        with self.lock:
            if repo_id in self.repos:
                raise HubError(409, "You already created this dataset repo")
            repo = self.repos[repo_id] = Repo(repo_id, private)
        time.sleep(self.create_seconds)
        # As on the Hub, no repository is empty: a client that lists one finds this file.
        repo.record("main", {".gitattributes": self.keep(GITATTRIBUTES)}, "initial commit", (".gitattributes",))
        return repo

    def repo(self, repo_id: str) -> Repo:
        with self.lock:
            if repo_id not in self.repos:
                raise HubError(404, "Repository not found", "RepoNotFound")
            return self.repos[repo_id]

    def path(self, sha256: str) -> Path:
        return self.objects / sha256

    def keep_blocks(self, blocks: Iterator[bytes]) -> tuple[str, int]:
        """Write a stream to disk; sha256 and size of what came."""
        part, digest, size = self.incoming / str(next(self._serial)), hashlib.sha256(), 0
        try:
            with part.open("wb") as file:
                for block in blocks:
                    file.write(block)
                    digest.update(block)
                    size += len(block)
            part.replace(self.path(digest.hexdigest()))
        finally:
            part.unlink(missing_ok=True)
        return digest.hexdigest(), size

    def keep(self, content: bytes) -> FileInfo:
        """A regular file."""
        sha256, size = self.keep_blocks(iter([content]))
        return FileInfo(size, sha256, False, git_blob_id(content))

    def write(self, repo: Repo, files: dict[str, bytes | None], message: str, branch: str = "main") -> Commit:
        """Somebody else's commit: waits for the commit lock, counts against the hour, is never refused."""
        with repo.committing, repo.lock:
            tree = dict(repo.head(branch).tree)
            for path, content in files.items():
                if content is None:
                    del tree[path]
                    continue
                info = self.keep(content)
                if is_heavy(path, info.size, content[:512]):
                    info = lfs_info(info.sha256, info.size)
                    repo.lfs[info.sha256] = info.size
                tree[path] = info
            repo.recent.append(time.monotonic())
            return repo.record(branch, tree, message, tuple(files))


# The server's own kinds of request, and three that cut across them.
KINDS = {"whoami", "yaml", "create", "delete", "info", "tree", "paths", "preupload", "commit", "refs", "log", "branch"}
KINDS |= {"tag", "squash", "batch", "upload", "verify", "resolve"} | {"page", "api", "any"}
ACTIONS = ("ok", "drop", "hang", "slow", "409", "412", "429", "500", "502", "503", "504", "quota")
# A first tree page is retried like any request; what breaks clients is the page in the middle of an iteration.
# "any" is every request but file reads, which datasets and pyarrow retry by their own rules.
SHORT_NAMES = {
    "tree_429": "page_429",
    "commit_504_landed": "commit_landed_504",
    "drop": "any_drop",
    "hang": "any_hang",
    "slow": "any_slow",
}


@dataclass
class Faults:
    """What goes wrong, and how often.

    `rates` maps "<kind>_<action>" to a probability for each matching request: `commit_409`, `commit_landed_500` (done,
    then a 500), `commit_landed_drop`, `api_429`, `upload_drop` (cut after half the body), `tree_429` (in mid-listing),
    `drop`, `hang`, `slow`: any of KINDS with any of ACTIONS. Each rate draws from its own seeded stream, so its n-th
    matching request has the same fate in every run, whatever else is going on.
    """

    seed: int = 0
    rates: dict[str, float] = field(default_factory=dict)
    script: dict[str, list[str]] = field(default_factory=dict)
    hang_seconds: float = 30.0
    slow_seconds: float = 0.5
    reset_seconds: int = 2  # t= of the API bucket's 429; the client sleeps one second longer
    commits_per_hour: int = 128  # as worded in an injected commit_429
    fired: Counter = field(default_factory=Counter)  # "kind_action" -> how often it happened

    def __post_init__(self):
        self._lock = threading.Lock()
        self._rules = [(*self._parse(SHORT_NAMES.get(name, name)), p) for name, p in self.rates.items()]
        self._random = [random.Random(f"{self.seed} {name}") for name in self.rates]
        script, self.script = self.script, {}
        for kind, actions in script.items():
            self.next(kind, actions)

    @staticmethod
    def _parse(name: str) -> tuple[str, str]:
        kind, _, action = name.partition("_")
        if kind not in KINDS:
            raise ValueError(f"fault {name!r}: {kind!r} is none of {sorted(KINDS)}")
        if action.removeprefix("landed_") not in ACTIONS:
            raise ValueError(f"fault {name!r}: {action!r} is none of {ACTIONS}, nor landed_ and one of them")
        return kind, action

    def next(self, kind: str, actions: list[str]) -> None:
        """Decide the fate of the next requests of this kind: ["409", "ok", "landed_500"]. Goes before the rates."""
        for action in actions:
            self._parse(f"{kind}_{action}")
        with self._lock:
            self.script.setdefault(kind, []).extend(actions)

    def draw(self, kinds: set[str]) -> tuple[str, str] | None:
        """(kind, action) for a request that is of all these kinds, or None."""
        with self._lock:
            fault = None
            for (kind, action, probability), stream in zip(self._rules, self._random, strict=True):
                if kind in kinds and stream.random() < probability and fault is None:
                    fault = kind, action
            for kind in sorted(kinds & {k for k, actions in self.script.items() if actions}):
                fault = kind, self.script[kind].pop(0)
                break
            if fault is None or fault[1] == "ok":
                return None
            self.fired["_".join(fault)] += 1
            return fault

    def refusal(self, kind: str, action: str) -> HubError:
        """The answer to an injected error status."""
        if action == "429" and kind == "commit":
            return HubError(429, SPENT.format(self.commits_per_hour), headers=SPENT_HEADERS)
        if action == "429":
            bucket = f'"api";r=0;t={self.reset_seconds}'
            policy = {"RateLimit-Policy": SPENT_HEADERS["RateLimit-Policy"]}
            return HubError(429, "We had to rate limit you.", headers={"RateLimit": bucket} | policy)
        if action == "quota":
            return HubError(403, "Private repository storage limit reached, please upgrade your plan")
        words = {"409": BUSY, "412": STALE, "500": "Internal Error", "502": "Bad Gateway", "504": "Gateway Timeout"}
        return HubError(int(action), words.get(action, "maximum queue size reached"))
