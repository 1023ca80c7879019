"""The benchmarks' measurements where a cluster's devices are: each in a Ray task of its own, heard of as it goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray

from raygpt.bench import pricing
from raygpt.bench.ladder import LadderSettings, measure_ladder
from raygpt.bench.provenance import provenance
from raygpt.bench.result import Row
from raygpt.bench.scaling import Launch, under_torchrun
from raygpt.bench.step import choose_device
from raygpt.cluster import nodes
from raygpt.errors import UserError
from raygpt.model.gpt import GPTConfig
from raygpt.run.control import ControlLink, Mailbox, make_control


def ladder_on_cluster(
    config: GPTConfig,
    settings: LadderSettings,
    *,
    use_gpu: bool,
    cpus: float,
    command: Sequence[str],
    say: Callable[[str], None],
    keep: Callable[[list[Row], dict[str, Any]], None],
    stopped: Callable[[], bool],
) -> None:
    """Measure the ladder on one worker's worth of the cluster. `keep` gets all rows so far, and the provenance of the
    node that measured them; once it is `stopped` the measurement ends with what there is."""
    control = make_control()
    mailbox = Mailbox(control)
    task = ray.remote(num_cpus=cpus, num_gpus=1 if use_gpu else 0, max_retries=0)(_ladder)
    measuring = task.remote(config, settings, use_gpu, list(command), control)

    def hear() -> None:
        for kind, value in mailbox.take():
            if kind == "note":
                say(value)
            elif kind == "rows":
                keep(*value)

    while True:
        ready, _ = ray.wait([measuring], timeout=0.5)
        hear()
        if ready:
            break
        if stopped():
            ray.cancel(measuring, force=True)
            return
    ray.get(measuring)
    hear()


def _ladder(config: GPTConfig, settings: LadderSettings, use_gpu: bool, command: list[str], control: Any) -> None:
    link = ControlLink(control)
    device = choose_device("cuda" if use_gpu else "cpu")
    facts = provenance(command, "ray", "numpy", device=device)
    try:
        rows = measure_ladder(
            config,
            device,
            settings,
            say=lambda text: link.send("note", text),
            keep=lambda rows: link.send("rows", (rows, facts)),
        )
        link.send("rows", (rows, facts))
    finally:
        link.close()


def torchrun_launcher(use_gpu: bool, cpus_per_worker: float, stopped: Callable[[], bool]) -> Launch:
    """torchrun within one node of the cluster that has room for all its workers. Raises UserError where none has."""

    def launch(workers: int, words: Sequence[str]) -> dict[str, Any] | None:
        gpus, cpus = workers if use_gpu else 0, workers * cpus_per_worker
        if most_on_a_node(use_gpu, cpus_per_worker) < workers:
            raise UserError(f"no node of the cluster has room for {workers} workers: torchrun is measured on one node.")
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(under_torchrun)
        running = task.remote(workers, list(words))
        while not ray.wait([running], timeout=0.5)[0]:
            if stopped():
                ray.cancel(running, force=True)
                return None
        return ray.get(running)

    return launch


def most_on_a_node(use_gpu: bool, cpus_per_worker: float) -> int:
    """Workers that the roomiest node of the cluster holds."""
    found = 0
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            fit = int(has.get("CPU", 0) / cpus_per_worker + 1e-6)
            found = max(found, min(fit, int(has.get("GPU", 0))) if use_gpu else fit)
    return found


def pricing_of_cluster(use_gpu: bool, cpus_per_worker: float) -> pricing.Pricing | None:
    """A worker's share of the connected cluster at its nodes' own prices, as track.price_per_hour=auto has them."""
    prices = {node.id: node.price for node in nodes.nodes() or () if node.ended is None}
    what, uses = ("GPU", 1.0) if use_gpu else ("CPU", cpus_per_worker)
    has = [(prices.get(node["NodeID"]), node["Resources"].get(what, 0.0)) for node in ray.nodes() if node["Alive"]]
    return pricing.of_nodes(has, uses, "GPUs" if use_gpu else "cores")
