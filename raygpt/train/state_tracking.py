"""A run in the Train tab of Ray's dashboard, and in its `/api/train/v2/runs/v1`: state, attempts, workers, logs.

Ray Train writes this down where RAY_TRAIN_ENABLE_STATE_TRACKING is 1, and counts on a controller that is an actor: when
that actor is gone, it notes the run as aborted. raygpt's controller is in the driver (`raygpt.train.lean_trainer`); an
actor that lives and dies with the driver stands for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray.train.constants import RAY_TRAIN_ENABLE_STATE_TRACKING
from ray.train.v2._internal.callbacks.state_manager import StateManagerCallback
from ray.train.v2._internal.logging.logging import get_train_application_controller_log_path
from ray.train.v2._internal.state.state_manager import TrainStateManager

from raygpt.config import Config
from raygpt.track.trackers import public_config


def tracked(config: Config, stand_in: Any, environment: Mapping[str, str]) -> DriverState | None:
    """The callback that tells of this run, where a dashboard could show it."""
    if environment.get(RAY_TRAIN_ENABLE_STATE_TRACKING) != "1":
        return None
    return DriverState(config.run.name, stand_in, public_config(config.to_dict()))


class DriverState(StateManagerCallback):
    """Tells Ray's state actor about a run whose controller is no actor. `settings` are shown to whoever may see the
    dashboard, so they come with secrets struck out."""

    def __init__(self, name: str, stand_in: Any, settings: dict[str, Any]) -> None:
        super().__init__(datasets={})
        self._name, self._stand_in, self._settings = name, stand_in, settings

    def after_controller_start(self, train_run_context: Any) -> None:
        self._state_manager = TrainStateManager()
        self._run_name, self._run_id = self._name, train_run_context.run_id
        self._job_id = ray.get_runtime_context().get_job_id()
        self._controller_actor_id = self._stand_in._actor_id.hex()
        self._state_manager.create_train_run(
            id=self._run_id,
            name=self._name,
            job_id=self._job_id,
            controller_actor_id=self._controller_actor_id,
            controller_log_file_path=get_train_application_controller_log_path(),  # type: ignore[arg-type]
            run_config=train_run_context.run_config,
            train_loop_config=self._settings,
            scaling_config=train_run_context.scaling_config,
            backend_config=train_run_context.backend_config,
            datasets={},
            dataset_config=train_run_context.dataset_config,
        )
