"""The app on a real socket, in a thread of the test's process: for what a client in the same loop cannot show."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from raygpt.serve.app import AppSettings, build_app
from raygpt.serve.requests import Engine


@contextmanager
def served(engine: Engine, settings: AppSettings | None = None) -> Iterator[str]:
    """Its base URL, without /v1."""
    config = uvicorn.Config(build_app(engine, settings or AppSettings()), port=0, log_level="critical")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)
