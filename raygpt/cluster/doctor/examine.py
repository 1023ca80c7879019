"""All checks put together: of this machine, and of every node of a cluster."""

from __future__ import annotations

import logging
import time
import uuid
from dataclasses import replace
from typing import Any

from raygpt import storage
from raygpt.cluster.doctor import accounts, allreduce, environment, gpu, machine, store
from raygpt.cluster.doctor.finding import Finding, fail, ok, skipped
from raygpt.cluster.doctor.network import check_address, refused
from raygpt.errors import UserError, one_line
from raygpt.storage import Location


def examine_here(storage_uri: str, wandb: str) -> list[Finding]:
    """This machine alone. Starts no Ray."""
    found = [ok("environment", environment.environment().summary()), *checks_of_a_machine(storage_uri, wandb)]
    gpus = gpu.gpus_here()
    found += allreduce.gpus_of_this_machine(len(gpus)) if isinstance(gpus, list) else []
    return [*found, skipped("cluster", "no address: --scale.address=HOST:PORT looks at every node of a cluster")]


def checks_of_a_machine(storage_uri: str, wandb: str) -> list[Finding]:
    """What is asked on every node alike."""
    where = storage.locate(storage_uri)
    return [
        *gpu.gpu_checks(),
        *machine.machine_checks(where),
        *store.store_checks(where),
        accounts.wandb_key(wandb),
    ]


def examine_cluster(address: str, storage_uri: str, wandb: str) -> list[Finding]:
    """Every node of the cluster at an address, and what lies between them. Joins it, and changes nothing there."""
    import ray

    from raygpt.cluster.doctor.nodes import node_names, on_every_node

    reached = check_address(address)
    if reached.status == "fail":
        return [reached]
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        return [reached, refused(error)]
    try:
        found = [reached, *software(on_every_node(environment.environment))]
        where = storage.locate(storage_uri)
        if where.is_local and len(node_names()) > 1:
            found.append(shared_folder(where))
        # a relative path is another one in each process's own folder
        for node, answer in on_every_node(checks_of_a_machine, where.uri, wandb).items():
            found += (
                [replace(each, node=node) for each in answer] if isinstance(answer, list) else [silent(node, answer)]
            )
        found += clocks(node_names())
        return [*found, *allreduce.nodes_of_the_cluster()]
    finally:
        ray.shutdown()


def software(answers: dict[str, Any]) -> list[Finding]:
    """The nodes' environments against this one's; Ray itself has compared its own and Python's versions."""
    there = {node: each for node, each in answers.items() if isinstance(each, environment.Environment)}
    found = [environment.compare(environment.environment(), there)] if there else []
    return [*found, *(silent(node, each) for node, each in answers.items() if node not in there)]


def silent(node: str, error: Any) -> Finding:
    """A node that ran no check."""
    text = f"no check ran: {one_line(error)}" if isinstance(error, BaseException) else "no check ran"
    fix = "install raygpt there (setup_commands of the cluster's file), and see the node's logs in /tmp/ray"
    return replace(fail("node", text, fix), node=node)


def shared_folder(where: Location) -> Finding:
    """Whether a local run.storage is the same folder on every node, as workers there write into it."""
    from raygpt.cluster.doctor.nodes import on_every_node

    marker = where / f".doctor-{uuid.uuid4().hex[:12]}"
    fix = "set run.storage to an s3:// URI, or to a folder of a file system that every node mounts"
    try:
        storage.write_bytes(marker, b"")
        answers = on_every_node(storage.exists, marker)
        storage.delete(marker)
    except UserError as error:
        return fail("shared storage", str(error), fix)
    blind = [node for node, seen in answers.items() if seen is False]
    if blind:
        return fail("shared storage", f"run.storage={where.uri} is another folder on {environment.listed(blind)}", fix)
    return ok("shared storage", f"run.storage={where.uri} is the same folder on every node")


def clocks(nodes: dict[str, str]) -> list[Finding]:
    """Each node's clock against this one's, {node id: name}; half of a question's time is the doubt."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task, found = ray.remote(_now), []
    for node, name in nodes.items():
        where = NodeAffinitySchedulingStrategy(node, soft=False)
        best: tuple[float, float] | None = None
        for _ in range(3):  # the first may start a process
            asked = time.time()
            try:
                there = ray.get(task.options(num_cpus=0, scheduling_strategy=where).remote(), timeout=30)
            except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError):
                break
            doubt = (time.time() - asked) / 2
            if best is None or doubt < best[0]:
                best = doubt, there - asked - doubt
        if best is not None:
            ahead = 0.0 if abs(best[1]) <= best[0] else best[1]
            found.append(replace(store.skew("clock", ahead, "this machine"), node=name))
    return found


def _now() -> float:
    return time.time()
