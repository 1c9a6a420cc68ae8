"""What errors mean, told from the errors that the real client raises."""

import errno
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, close_session, constants
from huggingface_hub.errors import LocalTokenNotFoundError
from huggingface_hub.utils import _http

from hub import reader
from hub.faults import HOURLY_SECONDS, Fault, diagnose
from tests.hubserver import HubServer
from tests.hubstore import Faults

REPO = {"repo_id": "user/x", "repo_type": "dataset"}
SECRET = "hf_" + "aB3" * 11 + "x"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setitem(_http.http_backoff.__kwdefaults__, "max_wait_time", 0.02)
    with HubServer(tmp_path, token=SECRET, faults=Faults(hang_seconds=3.0)) as server:
        server.create_repo("user/x")
        yield server


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub.url, token=SECRET)


def error_of(call) -> Exception:
    with pytest.raises(Exception) as caught:
        call()
    return caught.value


def commit(api: HfApi, path: str = "a.txt"):
    return api.create_commit(operations=[CommitOperationAdd(path, b"1")], commit_message="add", **REPO)


@pytest.mark.parametrize(
    ("action", "kind"),
    [
        ("409", "busy"),
        ("412", "conflict"),
        ("429", "hourly"),
        ("500", "server"),
        ("502", "server"),
        ("503", "server"),
        ("504", "server"),
        ("landed_500", "server"),
        ("drop", "network"),
        ("landed_drop", "network"),
    ],
)
def test_commit_answers(hub, api, action, kind):
    hub.faults.next("commit", [action])
    fault = diagnose(error_of(lambda: commit(api)))
    assert (fault.kind, fault.is_fatal) == (kind, False)
    assert fault.text and fault.seconds > 0
    assert fault.per_hour == (128 if kind == "hourly" else None)


def test_the_hourly_limit_is_not_the_bucket_in_its_headers(hub, api):
    hub.faults.commits_per_hour = 256
    hub.faults.next("commit", ["429"])
    fault = diagnose(error_of(lambda: commit(api)))
    assert (fault.seconds, fault.per_hour) == (HOURLY_SECONDS, 256)


def test_the_request_limit_names_its_end(hub, api):
    hub.faults.reset_seconds = 77
    hub.faults.next("info", ["429"])
    fault = diagnose(error_of(lambda: api.dataset_info("user/x")))
    assert (fault.kind, fault.seconds) == ("rate", 78)


def test_a_hanging_server(hub, api, monkeypatch):
    monkeypatch.setattr(reader, "TIMEOUT", 0.3)
    reader.set_timeouts()
    close_session()
    hub.faults.next("commit", ["hang"])
    try:
        fault = diagnose(error_of(lambda: commit(api)))
    finally:
        close_session()
    assert fault.kind == "network"


def test_no_server_at_all(hub, api):
    hub.stop()
    assert diagnose(error_of(lambda: commit(api))).kind == "network"


def test_a_failed_upload_is_its_cause(hub, api):
    hub.faults.next("upload", ["409"])
    error = error_of(lambda: commit(api, "a.parquet"))
    assert type(error) is RuntimeError
    assert diagnose(error).kind == "busy"


def test_a_bad_token(hub):
    fault = diagnose(error_of(lambda: commit(HfApi(endpoint=hub.url, token="hf_wrong0000"))))
    assert fault.is_fatal and "hf auth login" in fault.text


def test_no_such_dataset(hub, api):
    fault = diagnose(error_of(lambda: api.dataset_info("user/absent")))
    assert fault.is_fatal and "not there" in fault.text


@contextmanager
def answering(status: int, headers: dict[str, str], body: bytes):
    """A server that gives one answer to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "headers", "message", "kind", "says"),
    [
        (403, {}, "You don't have the rights", "fatal", "may not write"),
        (403, {}, "Private repository storage limit reached", "fatal", "quota"),
        (402, {}, "Payment required", "fatal", "quota"),
        (413, {}, "", "fatal", "quota"),
        (401, {}, "Expired", "fatal", "hf auth login"),
        (400, {}, "LFS pointer pointed to a file that does not exist", "fatal", "LFS pointer"),
        (408, {}, "", "server", ""),
        (520, {}, "<html>nginx</html>", "server", ""),
        (429, {"Retry-After": "33"}, "slow down", "rate", ""),
        (429, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, "", "rate", ""),
        (429, {"RateLimit": '"api";r=949;t=271'}, "", "rate", ""),
    ],
)
def test_other_answers(status, headers, message, kind, says):
    headers = headers | {"X-Error-Message": message}
    with answering(status, headers, b'{"error": "token hf_oauth_eyJ0.abc-DEF_9 or %s"}' % SECRET.encode()) as url:
        fault = diagnose(error_of(lambda: HfApi(endpoint=url, token=SECRET).dataset_info("user/x")))
    assert fault.kind == kind and says in fault.text
    assert SECRET not in fault.text and "eyJ0" not in fault.text
    assert "\n" not in fault.text
    if kind == "rate":
        assert fault.seconds == (33 if headers.get("Retry-After") == "33" else 10)


@pytest.mark.parametrize("token", [SECRET, "hf_oauth_eyJh.eyJz-dW_I.c2ln", "hf_jwt_eyJh.eyJz.c2ln"])
def test_no_token_survives(token):
    text = diagnose(RuntimeError(f"Bearer {token} for https://u:{token}@huggingface.co?x={token}\n" + "x" * 1000)).text
    assert token not in text and token[-5:] not in text
    assert len(text) <= 300


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionResetError("reset"), "network"),
        (TimeoutError(), "network"),
        (OSError("Consistency check failed: file should be of size 5 but has size 3"), "network"),
        (RuntimeError("Data processing error: CAS service error : Request failed after 5 retries"), "network"),
        (RuntimeError("Cannot send a request, as the client has been closed."), "network"),
        (LocalTokenNotFoundError("Token is required"), "fatal"),
        (OSError(errno.ENOSPC, "No space left on device"), "fatal"),
        (PermissionError(errno.EACCES, "Permission denied"), "fatal"),
        (FileNotFoundError(errno.ENOENT, "No such file"), "fatal"),
        (TypeError("a bug"), "fatal"),
        (KeyError(), "fatal"),
    ],
)
def test_errors_without_an_answer(error, kind):
    fault = diagnose(error)
    assert fault.kind == kind
    assert fault.text


def test_a_read_of_a_silent_hub_is_no_missing_file(hub, api):
    """huggingface_hub calls it LocalEntryNotFoundError, which is an EntryNotFoundError and a FileNotFoundError too."""
    hub.down = True
    error = error_of(lambda: api.hf_hub_download(filename="README.md", local_dir="/nonexistent", **REPO))
    assert diagnose(error) == Fault("network", diagnose(error).text, 5.0)
