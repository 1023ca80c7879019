"""One reader per node: an actor that runs Ray Data for the node's ranks, so that no training process does.

Ray Data's executor never rests while a finished block waits to be taken, and on a run that reads faster than it trains
one always does: in the training process that thread took more of the interpreter than training (two workers on two
cores ran at 0.42 of the memory map's speed), and its no-progress guard ends a job whose steps are long
(benchmarks/ray_data_waiting.py shows both). So the service runs one short pipeline after another, each to its end: a
*round* of one block per rank. Between rounds no executor is alive, and nothing is awake.

- A round is at most about a minute of training and at most `ROUND_BYTES`; two are ahead of the slowest rank.
- `take(rank, step)` depends on nothing that went before. A service that died is started anew by Ray and goes on from
  the steps it is asked for: nothing is lost, nothing comes twice.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raygpt.data.order import Chunk, power_of_two_at_most
from raygpt.data.stream import Block, Source

ROUND_BYTES = 96 * 2**20  # over all ranks of a node; three of them are in the object store at most
ROUND_SECONDS = 60.0  # what is read ahead and lost when a run ends or is killed
FIRST_STEPS = 4  # of a round whose pace is not known yet
GROWTH = 8  # of a round over the one before: the next must be there when this one is used up
ROUNDS_AHEAD = 2
READ_TASKS = {True: 1, False: 4}  # at a time and node, of local shards or of S3's: there each has 16 threads
ATTEMPTS = 5  # of a block without any coming
ANEW = "the workers were started anew"


@dataclass
class _Round:
    step: int
    chunk: Chunk
    blocks: dict[int, Any]  # rank -> reference of its block


class ReaderService:
    """The actor. It knows nothing but what `take` says; `likely` is what will probably be asked for first.

    Reading its first step warms what reading takes seconds for the first time: modules, Ray Data's own actors, a
    process for read tasks. The driver starts a service before the workers, so that they need not wait for it.
    """

    def __init__(self, likely: Source | None = None, step: int = 0) -> None:
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        self._lock = threading.Lock()
        self._stream: _Stream | None = None
        self._ended: set[str] = set()  # names of groups whose workers were started anew
        if likely is not None:
            threading.Thread(target=_warm, args=(likely, step), daemon=True, name="warm").start()

    def take(self, group: Group, source: Source, step: int) -> tuple[int, Chunk, list[Any]]:
        """(first step, chunk, [reference]) of the block of `source.rank` that holds `step`; waits until it is read.

        The rank is done with all steps before. Raises what reading raised.
        """
        with self._lock:
            if group.name in self._ended:  # a worker's last call, late
                raise RuntimeError(ANEW)
            if self._stream is None or self._stream.group != group:
                if self._stream is not None:
                    self._ended.add(self._stream.group.name)
                    self._stream.close()
                self._stream = _Stream(group, source)
            stream = self._stream
        return stream.take(source.rank, step)


@dataclass(frozen=True)
class Group:
    """Ranks of one node that train together; `name` differs between starts of the workers."""

    name: str
    ranks: tuple[int, ...]
    last_step: int


class _Stream:
    """Rounds of one group of workers, read ahead in a thread."""

    def __init__(self, group: Group, source: Source) -> None:
        self.group = group
        self._sources = {rank: replace(source, rank=rank) for rank in group.ranks}
        self._layout = ray.put(source.layout)
        self._most_steps = max(1, ROUND_BYTES // sum(each.step_bytes for each in self._sources.values()))
        self._changed = threading.Condition()
        self._rounds: list[_Round] = []
        self._begin = 0  # step of the first round held, or to come
        self._next: int | None = None  # step the next round begins with; None until a rank has asked
        self._steps = FIRST_STEPS
        self._taken = dict.fromkeys(group.ranks, -1)  # step each rank asked for last
        self._pace = Pace()
        self._failure: BaseException | None = None
        threading.Thread(target=self._produce, daemon=True, name="rounds").start()

    def close(self) -> None:
        with self._changed:
            self._failure = RuntimeError(ANEW)
            self._changed.notify_all()

    def take(self, rank: int, step: int) -> tuple[int, Chunk, list[Any]]:
        with self._changed:
            if rank == min(self._taken):
                self._pace.asked(step, time.monotonic())
            self._taken[rank] = step
            if self._next is None or step < self._begin:
                # the first to ask, or, after a restart of this actor, one that is behind the first to ask
                self._begin = self._next = step
                self._rounds = []
            behind = min(self._taken.values())
            while self._rounds and self._rounds[0].step + self._rounds[0].chunk.steps <= behind:
                done = self._rounds.pop(0)
                self._begin = done.step + done.chunk.steps
            self._changed.notify_all()
            while True:
                if self._failure is not None:
                    raise self._failure
                for each in self._rounds:
                    if each.step <= step < each.step + each.chunk.steps:
                        return each.step, each.chunk, [each.blocks[rank]]
                self._changed.wait()

    def _produce(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(self._has_room)
                    if self._failure is not None:
                        return
                    step = self._next
                    assert step is not None
                chunk = self._chunk(step)
                blocks = _read(self._layout, [(source, chunk) for source in self._sources.values()])
                with self._changed:
                    if self._next == step:  # else somebody asked for an earlier one meanwhile
                        self._rounds.append(_Round(step, chunk, dict(zip(self._sources, blocks))))
                        self._next = step + chunk.steps
                        self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _has_room(self) -> bool:
        if self._failure is not None:
            return True  # to find it and end
        return self._next is not None and self._next < self.group.last_step and len(self._rounds) < ROUNDS_AHEAD

    def _chunk(self, step: int) -> Chunk:
        order = next(iter(self._sources.values())).order
        self._steps = round_steps(self._steps, self._pace.steps_per_second, self._most_steps)
        # cut at multiples of a power of two, so that a lane's runs are read whole
        inside = order.position(step)[1]
        return order.chunk(step, min(self._steps - inside % self._steps, self.group.last_step - step))


class Pace:
    """Steps per second of a rank, from the times at which it asked for blocks; None until it has used one up."""

    def __init__(self) -> None:
        self.steps_per_second: float | None = None
        self._asked: list[tuple[int, float]] = []

    def asked(self, step: int, now: float) -> None:
        """A rank asks for its next block when it gets one: between two times it used up the block before."""
        self._asked = [*self._asked[-2:], (step, now)]
        if len(self._asked) == 3:
            (first, _), (second, before), _ = self._asked
            if second > first and now > before:
                self.steps_per_second = (second - first) / (now - before)


def round_steps(last: int, pace: float | None, most: int) -> int:
    """Steps of the next round, a power of two: about a minute's, in memory's bounds, no sudden growth over the last."""
    wanted = FIRST_STEPS if pace is None else min(int(pace * ROUND_SECONDS), last * GROWTH)
    return power_of_two_at_most(min(wanted, most))


def _warm(likely: Source, step: int) -> None:
    # a mistake in the data comes out where it is asked for
    with contextlib.suppress(Exception):
        _read(ray.put(likely.layout), [(likely, likely.order.chunk(step, 1))])


def _read(layout: Any, parts: list[tuple[Source, Chunk]]) -> list[Any]:
    """References of one Arrow block per part, from a pipeline that has ended when this returns."""
    import ray.data

    from raygpt.data.datasource import TokenDatasource

    node = ray.get_runtime_context().get_node_id()
    dataset = ray.data.read_datasource(
        TokenDatasource(layout, parts),
        override_num_blocks=len(parts),
        concurrency=READ_TASKS[parts[0][0].layout.is_local],
        ray_remote_args={
            # no CPU of its own: workers may hold them all, and a read waits on storage more than it computes
            "num_cpus": 0,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
        },
    )
    context = dataset.context
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.retried_io_errors = [*context.retried_io_errors, "AWS Error"]
    return dataset.to_arrow_refs()


def start_service(name: str, ranks: int, likely: Source | None = None, step: int = 0, **options: Any) -> Any:
    """Handle of this node's service called `name`, started where there is none; `ranks` of this node will ask it.

    `likely` and `step`: what will probably be asked for first. `options` are Ray's for an actor.
    """
    node = ray.get_runtime_context().get_node_id()
    return (
        ray.remote(ReaderService)
        .options(
            name=f"{name}-{node}",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
            max_concurrency=2 * ranks + 1,
            # a service on another node would send every block over the network, and die with that node
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            **options,
        )
        .remote(likely, step)
    )


def service_of(name: str, group: Group) -> Any:
    """Handle of the service for this node's part of a group: the driver's, called `name`, or one of the group's own.

    One that a worker starts dies with that worker, so the next group, which may come before it has, must not find it.
    """
    try:
        return ray.get_actor(f"{name}-{ray.get_runtime_context().get_node_id()}")
    except ValueError:
        return start_service(f"{name}-{group.name}", len(group.ranks))


def served_blocks(service: Any, group: Group, source: Source, first_step: int) -> Iterator[Block]:
    """This rank's blocks from its node's service, in the plan's order. Reading begins at once."""
    asked = service.take.remote(group, source, first_step)
    return _taken(service, asked, group, source, first_step)


def _taken(service: Any, asked: Any, group: Group, source: Source, step: int) -> Iterator[Block]:
    failed = 0
    while step < group.last_step:
        try:
            first, chunk, [block] = ray.get(asked)
            table = ray.get(block)
        except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError):
            # its node's memory went with a service that died: the one Ray starts in its place reads the block again
            failed += 1
            if failed == ATTEMPTS:
                raise
            asked = service.take.remote(group, source, step)
            continue
        failed = 0
        after = first + chunk.steps
        if after < group.last_step:
            asked = service.take.remote(group, source, after)
        tokens = table["tokens"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        yield Block(first, chunk, table["position"].to_numpy(), tokens.reshape(-1, source.order.seq_len + 1))
        step = after
