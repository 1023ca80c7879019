"""Start a Serve application, say when it is ready, wait for the wish to stop, and leave nothing behind."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.serve.schema import ApplicationStatus, LoggingConfig

from raygpt.errors import UserError, one_line
from raygpt.run.stop import StopToken

APP = "raygpt"
SHUTDOWN_SECONDS = 12.0  # that answers under way have when the server is stopped
LOOK_SECONDS = 1.0  # between two looks at whether the application still runs
KEEP_ALIVE_SECONDS = 90  # that an idle connection is kept


@dataclass(frozen=True)
class Listening:
    """Where the protocol is spoken. `key_env` names the variable with the key that clients must send."""

    host: str
    port: int
    key_env: str | None = None

    @property
    def local(self) -> bool:
        return self.host in ("localhost", "::1") or self.host.startswith("127.")

    @property
    def url(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(self.host, self.host)
        return f"http://{host}:{self.port}"


def choose_port(host: str, port: int) -> int:
    """`port`, or a free one for 0. Raises UserError where it cannot be listened on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except (OSError, OverflowError) as error:
            reason = "is in use" if getattr(error, "errno", None) in (98, 48) else f"cannot be used ({one_line(error)})"
            raise UserError(f"serve.port={port} at serve.host={host} {reason}: choose another one, or 0.") from None
        return int(probe.getsockname()[1])


class Server:
    """A Serve application that runs while the `with` block does; with `own_cluster` the cluster ends after it.

    Raises UserError where the replicas cannot start for a reason that the user can mend, or where the cluster has a
    server of its own already.
    """

    def __init__(self, application: Any, listening: Listening, stop: StopToken, *, own_cluster: bool) -> None:
        self._application, self._listening, self._own_cluster = application, listening, own_cluster
        self._stopped = threading.Event()
        stop.listen(self._stopped.set)
        self._problem: Exception | None = None

    def __enter__(self) -> Server:
        logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
        if serve.status().proxies:
            raise UserError(
                "this Ray cluster runs Ray Serve already: end what it serves, or serve on another cluster "
                "(scale.address)."
            )
        quiet = LoggingConfig(enable_access_log=False, log_level="WARNING")
        try:
            serve.start(
                "HeadOnly" if self._listening.local else "EveryNode",
                {
                    "host": self._listening.host,
                    "port": self._listening.port,
                    "keep_alive_timeout_s": KEEP_ALIVE_SECONDS,
                },
                logging_config=quiet,
            )
            self._start()
        except BaseException:
            self._shut_down()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._shut_down()

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    def wait(self, say: Callable[[str], None]) -> None:
        """Until a stop is asked for; says when the application is not well. Raises UserError when it is gone."""
        said = ""
        while not self._stopped.wait(LOOK_SECONDS):
            try:
                state = serve.status().applications.get(APP)
            except Exception as error:
                raise UserError(
                    f"the Ray cluster no longer answers ({one_line(error)}): start the server anew."
                ) from None
            if state is None:
                raise UserError("somebody has ended the application on the Ray cluster: start the server anew.")
            word = {ApplicationStatus.UNHEALTHY: "not well", ApplicationStatus.DEPLOYING: "starting replicas"}.get(
                state.status, "ready"
            )
            if word != said and (said or word != "ready"):
                say(f"Server: {word}.")
            said = word

    def _start(self) -> None:
        """Deploy in a thread: a signal is heard while the model loads."""
        done = threading.Event()

        def deploy() -> None:
            try:
                serve.run(self._application, name=APP, route_prefix="/")
            except Exception as error:
                self._problem = error
            finally:
                done.set()

        threading.Thread(target=deploy, daemon=True, name="serve-deploy").start()
        while not done.wait(0.1):
            if self.stopped:
                return
        if self._problem is not None:
            raise self._as_user_error(self._problem)

    def _as_user_error(self, problem: Exception) -> Exception:
        """The sentence of the UserError that ended a replica's start; else what Serve says."""
        with contextlib.suppress(Exception):
            state = serve.status().applications[APP]
            text = "\n".join([state.message, *(one.message for one in state.deployments.values())])
            if found := re.search(r"raygpt\.errors\.UserError: (.+)|UserError\S*: (.+)", text):
                return UserError((found[1] or found[2]).strip())
            problem = RuntimeError(f"{problem}\n{text}")
        return problem

    def _shut_down(self) -> None:
        """End what was started, with a few seconds for answers under way."""
        with contextlib.suppress(Exception):
            serve.delete(APP, _blocking=False)
            end = time.monotonic() + SHUTDOWN_SECONDS
            while APP in serve.status().applications and time.monotonic() < end:
                time.sleep(0.1)
        if self._own_cluster:
            return  # the rest goes with the cluster
        with contextlib.suppress(Exception):
            for actor in ray.util.list_named_actors(all_namespaces=True):
                if actor["namespace"] == "serve" and f"REPLICA::{APP}#" in actor["name"]:
                    ray.kill(ray.get_actor(actor["name"], namespace="serve"))
            # the end of Serve's controller makes Ray print that a task of it failed
            with contextlib.redirect_stdout(io.StringIO()):
                serve.shutdown()


def model_name(url: str, key: str | None, seconds: float = 30.0) -> str:
    """What the server that has just come up calls its model. UserError where it cannot be reached from here."""
    request = urllib.request.Request(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"} if key else {})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy stands before one's own server
    end = time.monotonic() + seconds
    while True:
        try:
            with direct.open(request, timeout=10) as reply:
                return str(json.load(reply)["data"][0]["id"])
        except (OSError, ValueError) as error:
            if time.monotonic() > end:
                raise UserError(
                    f"the server at {url} does not answer from this machine ({type(error).__name__}): start it on the "
                    "head node of the cluster."
                ) from None
            time.sleep(0.2)


def ready_lines(listening: Listening, model: str, seconds: float, *, page: bool) -> list[str]:
    """What is said once the server can be used."""
    url = listening.url
    key = f' -H "Authorization: Bearer ${listening.key_env}"' if listening.key_env else ""
    body = json.dumps({"model": model, "prompt": "Once upon a time", "max_tokens": 32})
    lines = [f"Ready after {seconds:.1f} s: model {model} at {url}/v1"]
    if page:
        lines.append(f"Page: {url}/")
    lines.append(f"Try: curl {url}/v1/completions -H 'Content-Type: application/json'{key} -d '{body}'")
    if not listening.local and listening.key_env is None:
        lines.append(
            f"Warning: everybody who reaches {listening.host} may use this server: set serve.api_key_env, or "
            "serve.host=127.0.0.1"
        )
    return lines
