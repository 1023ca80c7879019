"""A metadata service that speaks AWS's protocol (IMDSv2) on a local port: a token first, then answers by it."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ACTION = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"


class MetadataService(ThreadingHTTPServer):
    """`answers` are what stands at a path (404 where nothing does); `asked` every (method, path, token) so far."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, bytes] = {}
        self.asked: list[tuple[str, str, str]] = []
        self.tokens: set[str] = set()
        self.delay = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def take_back_tokens(self) -> None:
        self.tokens.clear()


class Handler(BaseHTTPRequestHandler):
    server: MetadataService

    def do_PUT(self) -> None:
        lifetime = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
        self.server.asked.append(("PUT", self.path, ""))
        time.sleep(self.server.delay)
        if self.path != "/latest/api/token" or not lifetime.isdigit() or not 1 <= int(lifetime) <= 21600:
            self._answer(400)
            return
        token = uuid.uuid4().hex
        self.server.tokens.add(token)
        self._answer(200, token.encode())

    def do_GET(self) -> None:
        token = self.headers.get("X-aws-ec2-metadata-token", "")
        self.server.asked.append(("GET", self.path, token))
        time.sleep(self.server.delay)
        if token not in self.server.tokens:
            self._answer(401)
        elif self.path in self.server.answers:
            self._answer(200, self.server.answers[self.path])
        else:
            self._answer(404)

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def metadata_service() -> Iterator[MetadataService]:
    server = MetadataService()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def aws_time(seconds: float) -> str:
    """Seconds since 1970 UTC as AWS writes them."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
