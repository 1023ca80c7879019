"""The training step on workers of Ray Train: what raygpt.bench.step measures, started by Ray instead of torchrun."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray.train

from raygpt.bench import step
from raygpt.bench.scaling import Launch
from raygpt.cluster.connect import train_environment
from raygpt.errors import UserError
from raygpt.run.control import ControlLink, Mailbox, make_control
from raygpt.train.lean_trainer import Fitting, GroupConfig, LeanTorchTrainer


def ray_launcher(folder: str, use_gpu: bool, cpus_per_worker: float, stopped: Callable[[], bool]) -> Launch:
    """A launcher for the connected cluster; Ray Train's own files go to `folder`. Once it is `stopped` nothing is
    waited for: workers end with the driver."""

    def launch(workers: int, words: Sequence[str]) -> dict[str, Any] | None:
        control = make_control()
        trainer = LeanTorchTrainer(
            _worker,
            train_loop_config={"words": list(words), "control": control, "use_gpu": use_gpu},
            environment=train_environment(),
            torch_config=GroupConfig(backend=None if use_gpu else "gloo"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers,
                use_gpu=use_gpu,
                resources_per_worker={"CPU": cpus_per_worker, **({"GPU": 1} if use_gpu else {})},
            ),
            run_config=ray.train.RunConfig(name=f"step-{workers}", storage_path=folder),
        )
        fitting = Fitting(trainer)
        fitting.start()
        while fitting.is_alive():
            fitting.join(0.5)
            if stopped():
                return None
        if (failure := fitting.failure) is not None:
            raise UserError(f"Ray Train with {workers} workers failed: {str(failure)[-400:]}") from failure
        found = [value for kind, value in Mailbox(control).take() if kind == "step"]
        if not found:
            raise UserError(f"Ray Train with {workers} workers ended without a figure.")
        return found[-1]

    return launch


def _worker(settings: dict[str, Any]) -> None:
    context = ray.train.get_context()
    words = list(settings["words"])
    if settings["use_gpu"]:
        words = [word for word in words if not word.startswith("--device")]
        words.append(f"--device=cuda:{ray.train.torch.get_device().index}")
    measured = step.measure(step.parse(words))
    if context.get_world_rank() == 0:
        link = ControlLink(settings["control"])
        link.send("step", measured)
        link.close()
