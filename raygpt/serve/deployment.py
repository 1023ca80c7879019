"""The Ray Serve application: replicas that each hold one engine and speak the protocol."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.schema import LoggingConfig

from raygpt.serve.app import AppSettings, build_app
from raygpt.serve.requests import Engine

# A dead engine is found by the first request that needs it, or by three of these in a row.
HEALTH_PERIOD_SECONDS = 2.0
# Ray's 30 s ended healthy engines that a burst kept busy (ray#54070); three in a row end a replica.
HEALTH_TIMEOUT_SECONDS = 60.0
DEATH_SECONDS = 1.0  # from a death seen to the end of the process: its requests get their errors first
# Requests that a replica holds beside those that its gate lets in: on their way in, or being told to come later.
PASSING = 256
QUEUED = 4096  # requests that wait in a proxy for a replica; more get status 503
SHUTDOWN_SECONDS = 10.0
SCALE_DOWN_SECONDS = 1800.0  # that a replica which is too many has for the answers it is writing


@dataclass(frozen=True)
class Replicas:
    """How many replicas, and what each takes. With a range they follow the load: one for every `slots` requests."""

    fewest: int = 1
    most: int = 1
    cpus: float = 1
    gpus: float = 0
    slots: int = 8
    environment: dict[str, str] = field(default_factory=dict)

    def options(self, max_concurrent: int) -> dict[str, Any]:
        """Options of the Serve deployment."""
        many: dict[str, Any] = {"num_replicas": self.fewest}
        if self.most > self.fewest:
            many = {
                "autoscaling_config": {
                    "min_replicas": self.fewest,
                    "initial_replicas": self.fewest,
                    "max_replicas": self.most,
                    "target_ongoing_requests": self.slots,
                    "upscale_delay_s": 5,
                    "downscale_delay_s": 120,
                }
            }
        actor: dict[str, Any] = {"num_cpus": self.cpus}
        if self.gpus:
            actor["num_gpus"] = self.gpus
        if self.environment:
            actor["runtime_env"] = {"env_vars": self.environment}
        return {
            **many,
            "ray_actor_options": actor,
            "max_ongoing_requests": max_concurrent + PASSING,
            "max_queued_requests": QUEUED,
            "health_check_period_s": HEALTH_PERIOD_SECONDS,
            "health_check_timeout_s": HEALTH_TIMEOUT_SECONDS,
            "graceful_shutdown_timeout_s": SCALE_DOWN_SECONDS if self.most > self.fewest else SHUTDOWN_SECONDS,
            "graceful_shutdown_wait_loop_s": 0.5,
            "max_constructor_retry_count": 1,  # a model that cannot be loaded is not tried three times
            "logging_config": LoggingConfig(enable_access_log=False, log_level="WARNING"),
        }


class Replica:
    """An engine and its app. A replica whose engine has died ends itself, so that Serve starts another: as long as it
    lived it would be the idlest, and draw every request."""

    def __init__(self, make_engine: Callable[[], Engine], settings: AppSettings) -> None:
        self._engine = make_engine()
        self._dying = threading.Lock()
        self._app = build_app(self._engine, settings, self._end)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app

    async def check_health(self) -> None:
        """Asked by Serve; raises EngineDied."""
        self._engine.check()

    def _end(self) -> None:
        if self._dying.acquire(blocking=False):
            ending = threading.Timer(DEATH_SECONDS, os._exit, (1,))
            ending.daemon = True
            ending.start()

    def __del__(self) -> None:
        engine = getattr(self, "_engine", None)
        if engine is not None:
            engine.close()


def application(make_engine: Callable[[], Engine], settings: AppSettings, replicas: Replicas) -> Any:
    """The Serve application; `make_engine` is called once in every replica."""
    deployment: Any = serve.deployment(serve.ingress()(Replica))  # the app is made in the replica, over its engine
    return deployment.options(name="Model", **replicas.options(settings.max_concurrent)).bind(make_engine, settings)
