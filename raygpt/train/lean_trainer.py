"""Ray Train's TorchTrainer with as few processes as a raygpt run needs beside its workers.

A run of Ray Train starts four small actors before, and while, its workers start: its controller, a manager of
`datasets=` (raygpt gives none: ranks read through `raygpt.data.service`), one that removes the placement group of a
controller that died, and one that watches for a cloud's notices. Each takes a core for one to two seconds, and the
workers wait for the first. Here the controller runs in the driver, which has everything loaded already: the two live
and die together either way, and a placement group goes with the driver that made it. Measured on two cores, the first
step came at 6 instead of 10 s (benchmarks/starts.md).

The methods overridden are no part of Ray's interface. In a Ray that has others its own controller runs, and
tests/train/test_starts.py says so.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.train.torch import TorchConfig, TorchTrainer

from raygpt.train.leaving import LeavingPolicy, without_leaving_nodes
from raygpt.train.reachable import with_reachable_hosts


class Fitting(threading.Thread):
    """`trainer.fit()` in a thread, for Ray Train would take Ctrl-C for itself in the main one. `failure` is what it
    raised, None while it runs or where it raised nothing."""

    def __init__(self, trainer: TorchTrainer) -> None:
        super().__init__(daemon=True, name="ray-train")
        self._trainer = trainer
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            self._trainer.fit()
        except BaseException as error:
            self.failure = error


class GroupConfig(TorchConfig):
    """A TorchConfig under which a worker that was killed does not end the run when the others are put away.

    Ray Train expects a dead actor then, and not one that its memory monitor killed: that error went through the
    controller and ended a run with restarts left.
    """

    @property
    def backend_cls(self) -> type:
        class GroupBackend(super().backend_cls):  # type: ignore[misc]
            def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
                with suppress(ray.exceptions.RayError):
                    super().on_shutdown(worker_group, backend_config)

        return GroupBackend


# StateManagerCallback: counts on a controller that is an actor; `raygpt.train.state_tracking` has one for ours
LEFT_OUT = {"DatasetsCallback", "PlacementGroupCleanerCallback", "StateManagerCallback"}


class LeanTorchTrainer(TorchTrainer):
    """A TorchTrainer for training functions that never ask Ray Train for a dataset shard or for its checkpoints.

    `environment` is what the controller reads from its process's environment, of which nothing else sees anything:
    workers then have the cluster's own environment, and take processes that wait there. `callbacks` are the
    controller's, beside Ray's own.
    """

    def __init__(
        self, *arguments: Any, environment: Mapping[str, str], callbacks: Sequence[Any] = (), **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self._environment = environment
        self._more_callbacks = list(callbacks)

    def _initialize_and_run_controller(self, callbacks: list[Any], **options: Any) -> Any:
        controller_class = _controller_class()
        if controller_class is None:
            return super()._initialize_and_run_controller(callbacks=callbacks, **options)  # type: ignore[misc]
        needed = [each for each in callbacks if type(each).__name__ not in LEFT_OUT] + self._more_callbacks
        options["failure_policy"] = LeavingPolicy(self.run_config.failure_config)  # type: ignore[arg-type]
        # in this order: the first looks for Ray's own elastic policy, the second goes on top of any
        options["scaling_policy"] = without_leaving_nodes(with_reachable_hosts(options["scaling_policy"]))
        with _environment(self._environment):
            controller = controller_class(callbacks=needed, **options)
        asyncio.run(controller.run())
        return controller.get_result()


def _controller_class() -> Any | None:
    """Ray Train's controller for a process that is no actor, or None where this Ray has another one."""
    try:
        from ray.train.v2._internal.execution.controller import TrainController
        from ray.train.v2._internal.execution.worker_group import WorkerGroup

        WorkerGroup._init_train_context_on_workers, TrainController.worker_group_cls  # noqa: B018
    except (ImportError, AttributeError):
        return None

    class DriverWorkerGroup(WorkerGroup):
        def _init_train_context_on_workers(self, workers: Any, sync_actor: Any, train_context_args: Any) -> None:
            # as in Ray, but for the handle of a controller, by which workers could ask for reported checkpoints
            ray.get(
                [
                    worker.actor.init_train_context.remote(
                        train_run_context=self._train_run_context,
                        distributed_context=worker.distributed_context,
                        synchronization_actor=sync_actor,
                        storage_context=self._storage_context,
                        worker_callbacks=self._worker_callbacks_to_propagate,
                        controller_actor=None,
                        dataset_shard_provider=None,
                        **{key: each[rank] for key, each in train_context_args.items()},
                    )
                    for rank, worker in enumerate(workers)
                ]
            )
            self._decorate_worker_log_file_paths(workers)

    class DriverController(TrainController):
        worker_group_cls = DriverWorkerGroup

    return DriverController


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
