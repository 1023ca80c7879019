"""Reading and asking on all nodes of a Ray cluster, so that several of them ask several replicas.

A node has one actor that asks, with a client of its own; the driver gives each question to the node with the fewest
under way and keeps every answer the moment it comes. Units of the prompts are read by tasks. On a single machine
neither is used: the driver's own client asks 6,000 questions a second (benchmarks/client.json).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raygpt.data.documents import Unit
from raygpt.distill import prompts as prompts_of
from raygpt.distill.answers import Question
from raygpt.distill.client import Asking, Client, Outcome, Stopped
from raygpt.distill.generation import scan_here
from raygpt.distill.prompts import Prompts, Scan
from raygpt.errors import UserError


def other_nodes() -> list[str]:
    """Ids of the nodes with CPUs where there are several, else none."""
    if not ray.is_initialized():
        return []
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
    return nodes if len(nodes) > 1 else []


def shares(asking: Asking, nodes: int) -> Asking:
    """One node's part of concurrency and limits."""
    return replace(
        asking,
        concurrency=-(-asking.concurrency // nodes),
        rate=None if asking.rate is None else asking.rate / nodes,
        tokens_per_minute=None if asking.tokens_per_minute is None else max(1, asking.tokens_per_minute // nodes),
    )


@ray.remote(num_cpus=0, max_restarts=0)
class _Asker:
    """A node's client. What ends the run comes back as a sentence: an exception would bring Ray's own words along."""

    def __init__(self, asking: Asking, api_key: str | None) -> None:
        self._client = Client(asking, api_key)
        self._opened: asyncio.Task[Client] | None = None

    async def ask(self, question: Question, key: str) -> Outcome | str | None:
        """The outcome; a UserError's sentence; None after `close_soon`."""
        if self._opened is None:
            self._opened = asyncio.ensure_future(self._client.__aenter__())
        await self._opened
        try:
            return await self._client.ask(question, key)
        except UserError as error:
            return str(error)
        except Stopped:
            return None

    async def close_soon(self) -> None:
        self._client.close_soon()


@dataclass
class _Node:
    id: str
    actor: Any
    under_way: int = 0


class NodeAskers:
    """Use as `async with`, in place of a Client. A node that is lost is left out; its questions are asked elsewhere."""

    def __init__(self, asking: Asking, api_key: str | None, nodes: list[str]) -> None:
        share = shares(asking, len(nodes))
        self._nodes = [_Node(node, self._start(share, api_key, node)) for node in nodes]
        self._closing = False

    @staticmethod
    def _start(asking: Asking, api_key: str | None, node: str) -> Any:
        here = NodeAffinitySchedulingStrategy(node, soft=False)
        options = {"scheduling_strategy": here, "max_concurrency": asking.concurrency + 1}
        return _Asker.options(**options).remote(asking, api_key)  # type: ignore[attr-defined]

    async def __aenter__(self) -> NodeAskers:
        return self

    async def __aexit__(self, *_: object) -> None:
        for node in self._nodes:
            ray.kill(node.actor)

    async def ask(self, question: Question, key: str) -> Outcome:
        """Raises UserError, Stopped, as `Client.ask`; UserError where every node is lost."""
        while True:
            if self._closing:
                raise Stopped
            if not self._nodes:
                raise UserError("every node that asked the teacher was lost: give this command again to go on.")
            node = min(self._nodes, key=lambda each: each.under_way)
            node.under_way += 1
            try:
                said = await node.actor.ask.remote(question, key)
            except ray.exceptions.RayActorError:
                if node in self._nodes:
                    self._nodes.remove(node)
                continue
            finally:
                node.under_way -= 1
            if said is None:
                raise Stopped
            if isinstance(said, str):
                raise UserError(said)
            return said

    def close_soon(self) -> None:
        self._closing = True
        for node in self._nodes:
            node.actor.close_soon.remote()


def scan_on_nodes(prompts: Prompts) -> Iterator[tuple[Unit, Scan]]:
    """As `scan_here`, units read by tasks of the cluster, some ahead of their turn. Files of the driver's own disk,
    and prompts of which only the first are wanted, are read here."""
    if prompts.max_rows is not None or any("://" not in unit.uri for unit in prompts.units):
        yield from scan_here(prompts)
        return
    ahead = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting, units = deque[tuple[Unit, Any]](), iter(prompts.units)
    while True:
        while len(waiting) < ahead and (unit := next(units, None)) is not None:
            waiting.append((unit, _scan.remote(replace(prompts, units=(unit,)))))
        if not waiting:
            return
        unit, result = waiting.popleft()
        found = ray.get(result)
        if isinstance(found, str):
            raise UserError(found)
        for scan in found:
            yield unit, scan


@ray.remote(num_cpus=1)
def _scan(prompts: Prompts) -> list[Scan] | str:
    """All of one unit, or a UserError's sentence."""
    try:
        return list(prompts_of.scan(prompts, prompts.units[0], None))
    except UserError as error:
        return str(error)
