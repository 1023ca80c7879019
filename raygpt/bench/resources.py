"""Resources of a node over time: processor, memory, disk, network and, where NVIDIA's driver says it, GPUs.

A `Sampler` looks when it is asked; `sample_cluster` has one on every node of the Ray cluster and appends what they see
to a JSONL file, one object per node and look. Rates are bytes per second since the look before.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import Any

import psutil

from raygpt import storage
from raygpt.storage import Location

RESOURCES = "resources.jsonl"
# name -> what it is, with its unit. This table is the schema of resources.jsonl.
FIELDS = {
    "time": "seconds since 1970-01-01 UTC",
    "node": "the host's name, with its place among the nodes where several share one",
    "cpu_percent": "of all cores of the node, whoever uses them",
    "run_cpu_percent": "of all cores, by the run alone: this cluster's Ray processes on the node, and the driver",
    "memory_bytes": "in use on the node",
    "run_rss_bytes": "resident sets of the same processes, pages that they share counted in each",
    "network_received": "bytes per second, all interfaces but the loopback",
    "network_sent": "bytes per second, all interfaces but the loopback",
    "disk_read": "bytes per second",
    "disk_written": "bytes per second",
    "gpus": "list of util_percent, memory_bytes, power_watts, temperature_celsius per GPU",
}
QUERY = {"utilization.gpu": 1.0, "memory.used": 2.0**20, "power.draw": 1.0, "temperature.gpu": 1.0}
GPU_FIELDS = ("util_percent", "memory_bytes", "power_watts", "temperature_celsius")


class Sampler:
    """Looks at this node. The run's own processes are those of the pids `roots`, and all below them."""

    def __init__(self, name: str = "", roots: Sequence[int] = ()) -> None:
        self.name = name or socket.gethostname()
        self.roots = roots
        self._gpus = _gpu_reader()
        self._last: dict[str, float] | None = None
        self._cpu: dict[int, float] = {}
        psutil.cpu_percent()  # the first call begins the interval

    def look(self) -> dict[str, Any]:
        """FIELDS as they are now; rates from the second look on. What the machine does not tell is absent."""
        now, counters = time.monotonic(), _counters()
        sample: dict[str, Any] = {"time": time.time(), "node": self.name, "memory_bytes": psutil.virtual_memory().used}
        used, sample["run_rss_bytes"] = self._own_processes()
        if self._last is not None:
            elapsed = max(now - self._last["now"], 1e-6)
            sample["cpu_percent"] = psutil.cpu_percent()
            sample["run_cpu_percent"] = 100 * used / elapsed / (psutil.cpu_count() or 1)
            sample |= {name: (counters[name] - self._last[name]) / elapsed for name in counters if name in self._last}
        self._last = {"now": now, **counters}
        if self._gpus is not None and (gpus := self._gpus()):
            sample["gpus"] = gpus
        return {name: sample[name] for name in FIELDS if name in sample}

    def _own_processes(self) -> tuple[float, int]:
        """(processor seconds since the look before, resident bytes) of the run."""
        used, rss, now = 0.0, 0, {}
        own: dict[int, psutil.Process] = {}
        for root in self.roots:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(root)
                own |= {each.pid: each for each in (process, *process.children(recursive=True))}
        for process in own.values():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                now[process.pid] = times.user + times.system
                # of one that was not there before all it has used, unless nothing was
                used += now[process.pid] - self._cpu.get(process.pid, 0.0) if self._cpu else 0.0
                rss += process.memory_info().rss
        self._cpu = now
        return used, rss


class _NodeSampler(Sampler):
    """On a node of a Ray cluster: its own raylet's processes, and a `driver` of this node."""

    def __init__(self, name: str, driver: int | None) -> None:
        super().__init__(name, [os.getppid(), *([driver] if driver is not None else [])])


def _counters() -> dict[str, float]:
    found: dict[str, float] = {}
    with contextlib.suppress(OSError, RuntimeError):
        cards = [io for name, io in psutil.net_io_counters(pernic=True).items() if name != "lo"]
        found["network_received"] = float(sum(io.bytes_recv for io in cards))
        found["network_sent"] = float(sum(io.bytes_sent for io in cards))
    with contextlib.suppress(OSError, RuntimeError, NotImplementedError):
        if (disks := psutil.disk_io_counters()) is not None:
            found |= {"disk_read": float(disks.read_bytes), "disk_written": float(disks.write_bytes)}
    return found


def _gpu_reader() -> Callable[[], list[dict[str, float]]] | None:
    """NVML through pynvml, else nvidia-smi; None without either."""
    try:
        import pynvml  # type: ignore[import-not-found]

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except Exception:  # not installed, no driver, no permission: nvidia-smi may still answer
        return _nvidia_smi if _nvidia_smi() else None

    def read() -> list[dict[str, float]]:
        return [_by_nvml(pynvml, handle) for handle in handles]

    return read


def _by_nvml(nvml: Any, handle: Any) -> dict[str, float]:
    asked: dict[str, Callable[[], float]] = {
        "util_percent": lambda: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        "memory_bytes": lambda: float(nvml.nvmlDeviceGetMemoryInfo(handle).used),
        "power_watts": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        "temperature_celsius": lambda: float(nvml.nvmlDeviceGetTemperature(handle, 0)),
    }
    found = {}
    for name, ask in asked.items():
        with contextlib.suppress(nvml.NVMLError):  # a card without a sensor
            found[name] = ask()
    return found


def _nvidia_smi() -> list[dict[str, float]]:
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return parse_nvidia_smi(done.stdout)


def parse_nvidia_smi(text: str) -> list[dict[str, float]]:
    """A GPU per line of `nvidia-smi --query-gpu=… --format=csv,noheader,nounits`; "[N/A]" is absent."""
    gpus = []
    for line in filter(None, map(str.strip, text.splitlines())):
        gpu = {}
        for name, factor, word in zip(GPU_FIELDS, QUERY.values(), line.split(",")):
            with contextlib.suppress(ValueError):
                gpu[name] = float(word) * factor
        gpus.append(gpu)
    return gpus


@contextlib.contextmanager
def sample_cluster(folder: Location, seconds: float, driver: int) -> Iterator[None]:
    """While the block runs, every node of the connected Ray cluster is looked at each `seconds`, and what was seen is
    appended to resources.jsonl in `folder`. A node that is lost, or joins, costs samples, never the run."""
    over = threading.Event()
    lines = _earlier(folder / RESOURCES)
    eyes: dict[str, Any] = {}

    def look() -> None:
        while not over.is_set():
            began = time.monotonic()
            with contextlib.suppress(Exception):  # of Ray while a node goes, of storage while it is away
                lines.extend(json.dumps(sample) for sample in _look_everywhere(eyes, driver))
            over.wait(max(0.1, seconds - (time.monotonic() - began)))

    def keep() -> None:
        while not over.wait(10):
            with contextlib.suppress(Exception):
                _write(folder, lines)

    threads = [threading.Thread(target=each, daemon=True, name="raygpt-resources") for each in (look, keep)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(30)
        with contextlib.suppress(OSError):
            _write(folder, lines)
        for eye in eyes.values():
            with contextlib.suppress(Exception):
                import ray

                ray.kill(eye)


def _look_everywhere(eyes: dict[str, Any], driver: int) -> list[dict[str, Any]]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    for gone in set(eyes) - set(alive):
        del eyes[gone]
    hosts = [node["NodeManagerHostname"] for node in alive.values()]
    here = ray.get_runtime_context().get_node_id()
    for number, (node, facts) in enumerate(alive.items()):
        if node not in eyes:
            host = facts["NodeManagerHostname"]
            name = host if hosts.count(host) == 1 else f"{host}/{number}"
            where = NodeAffinitySchedulingStrategy(node, soft=False)
            eye: Any = ray.remote(_NodeSampler)
            eyes[node] = eye.options(num_cpus=0, max_restarts=0, scheduling_strategy=where).remote(
                name, driver if node == here else None
            )
    asked = [eye.look.remote() for eye in eyes.values()]
    ready, _ = ray.wait(asked, num_returns=len(asked), timeout=10)
    found = []
    for each in ready:
        with contextlib.suppress(ray.exceptions.RayError):
            found.append(ray.get(each))
    return found


def _earlier(where: Location) -> list[str]:
    return storage.read_text(where).splitlines() if storage.exists(where) else []


def _write(folder: Location, lines: list[str]) -> None:
    storage.write_text(folder / RESOURCES, "".join(line + "\n" for line in list(lines)))


def read_resources(folder: Location) -> list[dict[str, Any]]:
    """The samples of a run, [] without any."""
    return [json.loads(line) for line in _earlier(folder / RESOURCES)]


def summary(samples: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """{field: {"mean": …, "max": …}} over all nodes and looks; of GPUs over all of them."""
    flat: dict[str, list[float]] = {}
    for sample in samples:
        for name, value in sample.items():
            if name in ("time", "node"):
                continue
            if name == "gpus":
                for gpu in value:
                    for key, figure in gpu.items():
                        flat.setdefault(f"gpu_{key}", []).append(figure)
            else:
                flat.setdefault(name, []).append(value)
    return {name: {"mean": fmean(values), "max": max(values)} for name, values in flat.items()}
