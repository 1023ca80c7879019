"""Before the workers start: the machines of the cluster they found, and what is said of a run that does not fit."""

from __future__ import annotations

import math
from dataclasses import replace

import ray

from raygpt.capacity.fit import Hardware
from raygpt.capacity.forecast import GIB, Forecast
from raygpt.capacity.machine import free_disk, probe
from raygpt.errors import UserError
from raygpt.storage import Location


def announce(report: Forecast, check: str) -> None:
    """Print the forecast in a line. Raises UserError, naming the setting to change, where the run does not fit and
    `check` is refuse; else that is a warning."""
    print(summary(report), flush=True)
    if report.refusal is not None:
        if check == "refuse":
            raise UserError(f"{report.refusal.removesuffix('.')} (plan.check=warn starts regardless).")
        print(f"Warning: {report.refusal}", flush=True)


def summary(report: Forecast) -> str:
    """What the run takes, in one line."""
    device = f"{report.needs.device_peak / GIB:.1f} GiB per GPU, " if report.hardware.gpu is not None else ""
    return (
        f"Plan: {device}{report.needs.host_peak / GIB:.1f} of {report.hardware.host_memory / GIB:.1f} GiB per host, "
        f"checkpoints of {report.needs.checkpoint / GIB:.2f} GiB, {report.needs.disk / GIB:.1f} GiB of disk at most"
    )


def survey(run: Location, *, use_gpu: bool, workers: int) -> tuple[Hardware, int]:
    """(a machine of the connected cluster, how many of so many workers share one); checkpoints go to `run`."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    ask = ray.remote(probe).options(num_cpus=0, num_gpus=1 if use_gpu else 0)
    hardware: Hardware = ray.get(ask.remote(None, use_gpu))  # type: ignore[call-arg]
    if run.is_local:
        hardware = replace(hardware, disk=free_disk(run))
    share = math.ceil(workers / len(nodes))
    if use_gpu:
        share = int(max(node["Resources"].get("GPU", 0) for node in nodes)) or 1
    return hardware, share
