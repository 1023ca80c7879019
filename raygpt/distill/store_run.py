"""`raygpt distill --distill.store=…`: the run that writes a teacher's states, its parts shared out over workers."""

from __future__ import annotations

import shlex
import socket
import time
import uuid
from dataclasses import dataclass
from typing import Any

import ray
import torch

from raygpt import storage
from raygpt.data.reader import TokenReader
from raygpt.data.shards import Shard
from raygpt.distill.stored import MANIFEST, read_states_manifest
from raygpt.distill.storing import StatesPlan, finish, finished_parts, write_part
from raygpt.distill.teacher_states import TeacherSource
from raygpt.errors import UserError
from raygpt.parallel.distributed import World
from raygpt.run.frame import COMPLETE, FINISHED, STOPPED, Outcome, Run
from raygpt.track.progress import human_count, human_duration

LOOK_SECONDS = 0.5  # between looks at whether somebody asked for a stop


@dataclass(frozen=True)
class Workers:
    """Processes that hold a teacher each; `max_failures` of them may die (-1: any number)."""

    count: int
    use_gpu: bool
    cpus: float
    max_failures: int


@ray.remote
class StatesWriter:
    """One worker: the teacher on its device, part after part."""

    def __init__(self, plan: StatesPlan, source: TeacherSource, cpus: float, mark: str) -> None:
        self.mark = mark
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if device.type == "cpu":
            torch.set_num_threads(max(1, int(cpus)))
        self.plan = plan
        self.teacher = source.load(plan.transport, World(0, 1, device))
        self.reader = TokenReader(plan.layout)

    def write(self, part: int) -> Shard:
        if not storage.exists(storage.locate(self.mark)):
            raise UserError(
                f"distill.store={self.plan.folder} is a folder of the driver's machine, which {socket.gethostname()} "
                "does not see: name one that all nodes share, or s3://."
            )
        return write_part(self.plan, part, self.teacher, self.reader)

    def finish(self, parts: dict[int, Shard]) -> None:
        finish(self.plan, parts, self.teacher)


def store_states(run: Run, plan: StatesPlan, source: TeacherSource, workers: Workers) -> Outcome:
    """Write what is missing of the plan's parts, and the manifest when none is. A stop lets parts in hand come to their
    end. Raises UserError for a folder that holds something else."""
    done = finished_parts(plan)
    if len(done) == plan.parts and storage.exists(storage.locate(plan.folder) / MANIFEST):
        run.say(f"{plan.folder} is complete: {plan.layout.tokens:,} tokens' states.")
        return Outcome(COMPLETE, {})
    run.say(
        f"States of {human_count(plan.layout.tokens)} tokens, {plan.transport.bytes_per_token:,} bytes each "
        f"({plan.layout.tokens * plan.transport.bytes_per_token / 1e9:.2f} GB), in {plan.parts} parts, "
        f"{len(done)} of them there; windows of {plan.context} tokens, {plan.context - plan.block} of them context"
    )
    left = [part for part in range(plan.parts) if part not in done]
    began, before = time.monotonic(), sum(shard.tokens for shard in done.values())
    mark = storage.locate(plan.folder) / f".seen-{uuid.uuid4().hex}"  # what every worker must see
    storage.write_text(mark, "")
    crew = _Crew(plan, source, workers, mark.uri)
    try:
        while (left and not run.stop.requested) or crew.busy:
            while left and not run.stop.requested and crew.has_room(len(left)):
                crew.begin(left.pop(0))
            for part, shard in crew.wait(LOOK_SECONDS):
                if shard is None:
                    left.insert(0, part)
                    run.say(f"A worker was lost; part {part} is written again.")
                    continue
                done[part] = shard
                tokens = sum(shard.tokens for shard in done.values())
                speed = (tokens - before) / (time.monotonic() - began)
                eta = human_duration((plan.layout.tokens - tokens) / speed)
                run.say(f"part {len(done)}/{plan.parts} | {human_count(speed)} tok/s | eta {eta}")
            if crew.busy and (not left or run.stop.requested):
                crew.let_idle_go()
            run.check_held()
        if len(done) < plan.parts:
            return Outcome(STOPPED, closing=f"after {len(done)} of {plan.parts} parts in {plan.folder}.")
        crew.finish(done)
    finally:
        crew.dismiss()
        storage.delete(mark)
    manifest = read_states_manifest(plan.folder)
    seconds = time.monotonic() - began
    new = manifest.tokens - before
    summary = {
        "tokens": manifest.tokens,
        "bytes_per_token": manifest.bytes_per_token,
        "bytes": manifest.tokens * manifest.bytes_per_token,
        "parts": len(manifest.parts),
        "least_context": manifest.least_context,
        "teacher_digest": manifest.teacher_digest,
        "wall_seconds": run.lock.wall_seconds,
        **({"tokens_per_second": new / seconds} if new else {}),
    }
    if (cost := run.cost_usd()) is not None:
        summary["cost_usd"] = cost
    learn = f"--distill.teacher={shlex.quote(plan.folder)}"
    closing = f"Wrote {manifest.tokens:,} tokens' states to {plan.folder}; train with {learn}"
    return Outcome(FINISHED, summary, closing=closing)


class _Crew:
    """The workers and which part each is at."""

    def __init__(self, plan: StatesPlan, source: TeacherSource, workers: Workers, mark: str) -> None:
        self._arguments = plan, source, workers.cpus, mark
        self._workers = workers
        self._idle: list[Any] = []
        self._at: dict[Any, tuple[int, Any]] = {}
        self._lost = 0

    @property
    def busy(self) -> bool:
        return bool(self._at)

    def has_room(self, parts: int) -> bool:
        return bool(self._idle) or len(self._at) < min(self._workers.count, parts + len(self._at))

    def begin(self, part: int) -> None:
        worker = self._idle.pop() if self._idle else self._hire()
        self._at[worker.write.remote(part)] = part, worker

    def wait(self, seconds: float) -> list[tuple[int, Shard | None]]:
        """Parts that ended, None for one whose worker died."""
        if not self._at:
            return []
        ready, _ = ray.wait(list(self._at), timeout=seconds)
        ended: list[tuple[int, Shard | None]] = []
        for reference in ready:
            part, worker = self._at.pop(reference)
            try:
                ended.append((part, ray.get(reference)))
                self._idle.append(worker)
            except ray.exceptions.RayActorError:
                self._lost += 1
                if 0 <= self._workers.max_failures < self._lost:
                    raise
                ended.append((part, None))
            except ray.exceptions.RayTaskError as error:
                raise _users(error) from None
        return ended

    def let_idle_go(self) -> None:
        """Workers without a part: one that has not started yet may wait for their cores."""
        while self._idle:
            ray.kill(self._idle.pop())

    def finish(self, parts: dict[int, Shard]) -> None:
        worker = self._idle.pop() if self._idle else self._hire()
        ray.get(worker.finish.remote(parts))
        self._idle.append(worker)

    def dismiss(self) -> None:
        for worker in [*self._idle, *(worker for _, worker in self._at.values())]:
            ray.kill(worker)

    def _hire(self) -> Any:
        gpus = 1 if self._workers.use_gpu else 0
        return StatesWriter.options(num_cpus=self._workers.cpus, num_gpus=gpus).remote(*self._arguments)  # type: ignore[attr-defined]


def _users(error: ray.exceptions.RayTaskError) -> BaseException:
    """A user's mistake that a worker found, as it is."""
    return error.cause if isinstance(error.cause, UserError) else error
