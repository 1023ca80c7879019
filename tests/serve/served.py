"""The app on a real socket, by uvicorn in a thread of the test's process or by Ray Serve."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

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


@contextmanager
def on_ray(make_engine: Callable[..., Engine], **settings: str) -> Iterator[str]:
    """`raygpt serve` in a thread, on the Ray cluster that the test is connected to: its base URL."""
    from raygpt.config.settings import load_config
    from raygpt.jobs import serve
    from raygpt.run.stop import StopToken

    lines: list[str] = []
    ended: list[int] = []
    token = StopToken()
    keys = {key.replace("__", "."): value for key, value in settings.items()}
    config = load_config("serve", None, {"serve.port": "0", "teacher.use_gpu": "false", **keys}, {})
    run = partial(serve.serve, config, make_engine, say=lines.append, stop=token)
    thread = threading.Thread(target=lambda: ended.append(run()), daemon=True)
    thread.start()
    end = time.monotonic() + 120
    while not any(line.startswith("Try:") for line in lines):
        assert thread.is_alive() and time.monotonic() < end, lines
        time.sleep(0.05)
    (ready,) = (line for line in lines if line.startswith("Ready after"))
    try:
        yield ready.rpartition(" at ")[2].removesuffix("/v1")
    finally:
        token.request()
        thread.join(60)
    assert ended == [0] and lines[-1] == "Stopped: nothing is left running."
