"""Parts of tasks shared out: to this process where it is the only worker, else to workers of Ray Data.

An answer hangs on its own part alone, so that it does not matter who gives it, nor when. A worker opens the model once
and answers one part after another; what it answers travels to the driver, which alone writes.
"""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raygpt.errors import UserError
from raygpt.evaluate.answering import ModelSource, OpenModel
from raygpt.evaluate.tasks import Record, Task

Answer = tuple[str, int, int, list[Record], dict[str, Any]]  # task, first item, past the last, records, who answered
# A stop waits for the part in hand: where nobody else shares the items, a part is what takes about so long.
PART_SECONDS = 10.0
CPU_ITEMS = 8  # of a part for a worker of Ray without a GPU: nobody can tell it the time that others took
FIRST_ITEMS = 2  # of a part whose items' time is not known


@dataclass(frozen=True)
class Pending:
    """A part to be answered: `items` are the task's from number `start` on."""

    task: str
    start: int
    items: Sequence[Any]

    def cut(self, size: int) -> tuple[Pending, Pending]:
        """The first `size` items, and the others."""
        one = replace(self, items=self.items[:size])
        return one, replace(self, start=self.start + size, items=self.items[size:])


@dataclass(frozen=True)
class Workers:
    """How many, and the cores of each. `connect` joins the Ray cluster they are of, and says whether each gets a GPU,
    which is what the source's `use_gpu` then says; without it there is one, this process."""

    count: int = 1
    cpus: float = 1
    connect: Callable[[], bool] | None = None


def answers(
    source: ModelSource, tasks: Sequence[Task], pending: Sequence[Pending], workers: Workers
) -> Generator[Answer]:
    """Every pending part answered, in whatever order they come; close it to stop. Raises UserError from a worker as it
    was raised there."""
    if workers.connect is not None:
        yield from _by_ray(source, tasks, pending, workers)
        return
    answering = Answering(source, tasks)
    size = dict.fromkeys(answering.tasks, FIRST_ITEMS)
    for rest in pending:
        while rest.items:
            part, rest = rest.cut(size[rest.task])
            began = time.monotonic()
            found = answering.answer(part)
            pace = PART_SECONDS / max(time.monotonic() - began, 1e-3)
            size[rest.task] = max(1, min(answering.tasks[rest.task].part_items, int(len(part.items) * pace)))
            yield found


class Answering:
    """One worker: the model, opened once, and the tasks it knows."""

    def __init__(self, source: ModelSource, tasks: Sequence[Task]) -> None:
        self.model = OpenModel(source)
        self.tasks = {task.name: task for task in tasks}

    def answer(self, pending: Pending) -> Answer:
        records = self.tasks[pending.task].answer(self.model, pending.items)
        return pending.task, pending.start, pending.start + len(pending.items), records, self.model.facts()


class RayAnswering:
    """The same as Ray Data calls it: a batch of one part in, its answer out. A user's mistake travels as a row."""

    def __init__(self, source: ModelSource, tasks: Sequence[Task], cpus: float) -> None:
        import torch

        torch.set_num_threads(max(1, int(cpus)))
        self.answering = Answering(source, tasks)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        told = []
        for pickled in batch["pending"]:
            try:
                told.append(json.dumps(self.answering.answer(pickle.loads(pickled))))
            except UserError as error:
                told.append(json.dumps(str(error)))
        return {"answer": told}


def _by_ray(
    source: ModelSource, tasks: Sequence[Task], pending: Sequence[Pending], workers: Workers
) -> Generator[Answer]:
    import ray

    rows = []
    for rest in pending:  # on CPUs in pieces: a stop waits for one
        while rest.items:
            one, rest = rest.cut(len(rest.items) if source.use_gpu else CPU_ITEMS)
            rows.append({"pending": pickle.dumps(one)})
    count = min(workers.count, len(rows))
    data = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        RayAnswering,
        fn_constructor_args=(source, tuple(tasks), workers.cpus),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=count),
        num_cpus=workers.cpus,
        num_gpus=int(bool(source.use_gpu)),
    )
    for row in data.iter_rows():
        found = json.loads(row["answer"])
        if isinstance(found, str):
            raise UserError(found)
        yield tuple(found)
