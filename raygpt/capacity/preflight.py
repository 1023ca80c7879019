"""Before the workers start: does the run fit the machines of the cluster it found?"""

from __future__ import annotations

import math
from dataclasses import replace

import ray

from raygpt.capacity.fit import Hardware
from raygpt.capacity.forecast import GIB, Forecast
from raygpt.capacity.from_config import forecast_run
from raygpt.capacity.machine import free_disk, probe
from raygpt.cluster.connect import wants_gpu
from raygpt.config import Config
from raygpt.errors import UserError
from raygpt.model.architecture import ModelConfig
from raygpt.storage import Location


def check_fit(config: Config, model: ModelConfig, run: Location, *, teacher: int = 0) -> Forecast | None:
    """The forecast of a run on the connected cluster, printed in a line; None with plan.check=off. `teacher` is what
    one takes beside the student in each worker, bytes.

    Raises UserError, naming the setting to change, where it does not fit and plan.check is refuse.
    """
    if config.plan.check == "off":
        return None
    config, hardware = _cluster(config, run)
    report = forecast_run(config, model, hardware, teacher=teacher)
    print(summary(report), flush=True)
    if report.refusal is not None:
        if config.plan.check == "refuse":
            raise UserError(f"{report.refusal.removesuffix('.')} (plan.check=warn starts regardless).")
        print(f"Warning: {report.refusal}", flush=True)
    return report


def summary(report: Forecast) -> str:
    """What the run takes, in one line."""
    device = f"{report.needs.device_peak / GIB:.1f} GiB per GPU, " if report.hardware.gpu is not None else ""
    return (
        f"Plan: {device}{report.needs.host_peak / GIB:.1f} of {report.hardware.host_memory / GIB:.1f} GiB per host, "
        f"checkpoints of {report.needs.checkpoint / GIB:.2f} GiB, {report.needs.disk / GIB:.1f} GiB of disk at most"
    )


def _cluster(config: Config, run: Location) -> tuple[Config, Hardware]:
    """Hardware of the machines that workers run on, seen from one of them, and the config with workers per machine."""
    use_gpu = wants_gpu(config.scale)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    ask = ray.remote(probe).options(num_cpus=0, num_gpus=1 if use_gpu else 0)
    hardware: Hardware = ray.get(ask.remote(None, use_gpu))  # type: ignore[call-arg]
    if run.is_local:
        hardware = replace(hardware, disk=free_disk(run))
    if config.plan.gpus_per_host is None:
        share = math.ceil(config.scale.worker_range[0] / len(nodes))
        if use_gpu:
            share = int(max(node["Resources"].get("GPU", 0) for node in nodes)) or 1
        config = config.model_copy(update={"plan": config.plan.model_copy(update={"gpus_per_host": share})})
    return config, hardware
