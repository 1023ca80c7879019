"""Training batches of one rank, through Ray Data or straight from the reader, in the plan's order.

Each rank runs its own small Ray Data pipeline over the same plan: one read task per chunk of steps, one block per
task, `preserve_order=True`. No coordinator, no shuffle buffer and no state: the first step alone says where to start.
Every block carries the plan positions of its rows, and `batches` checks them: a lost, repeated or reordered row ends
the job instead of training on it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from raygpt.data.order import Chunk, Order, lanes_of
from raygpt.data.reader import TokenReader

READ_CPUS = 0.25  # logical: a read task waits on storage more than it computes
PREFETCH_BLOCKS = 2
MAX_TASKS = 2048  # per pipeline: Ray Data lists them up front; a longer run chains pipelines
OBJECT_STORE_BYTES = 256 * 2**20  # per rank


@dataclass(frozen=True)
class Batch:
    """One rank's part of one global batch; `tokens` is (local_rows, seq_len + 1) in the shards' dtype."""

    step: int
    epoch: int
    tokens: np.ndarray


@dataclass(frozen=True)
class Source:
    """What a rank reads: picklable and free of credentials."""

    uri: str
    order: Order
    rank: int
    world_size: int
    cache_bytes: int = 0

    @property
    def lanes(self) -> slice:
        return lanes_of(self.rank, self.world_size, self.order.global_batch_rows)

    @property
    def local_rows(self) -> int:
        return self.order.global_batch_rows // self.world_size

    def read(self, chunk: Chunk) -> tuple[np.ndarray, np.ndarray]:
        """(positions (steps * local_rows,) int64, tokens (steps * local_rows, seq_len + 1)) of a chunk."""
        rows = self.order.chunk_rows(chunk, self.lanes)
        # read lane by lane: a lane's steps are neighbouring rows
        starts = self.order.starts(chunk.epoch, rows.T.ravel())
        tokens = _reader(self.uri, self.cache_bytes).read_rows(starts, self.order.seq_len + 1)
        tokens = tokens.reshape(self.local_rows, chunk.steps, -1).swapaxes(0, 1)
        return self.positions(chunk), tokens.reshape(-1, self.order.seq_len + 1)

    def positions(self, chunk: Chunk) -> np.ndarray:
        """Number of each row in the run: (epoch * steps_per_epoch + step) * global_batch_rows + lane."""
        step = chunk.epoch * self.order.steps_per_epoch + chunk.first_step + np.arange(chunk.steps, dtype=np.int64)
        lane = np.arange(self.lanes.start, self.lanes.stop, dtype=np.int64)
        return (step[:, None] * self.order.global_batch_rows + lane).ravel()


def batches(source: Source, backend: str, first_step: int, last_step: int) -> Iterator[Batch]:
    """This rank's batches of the run's steps [first_step, last_step). `backend` is ray or mmap: same tokens."""
    chunks = source.order.chunks(first_step, last_step)
    blocks = _ray_blocks(source, chunks) if backend == "ray" else map(source.read, chunks)
    step = first_step
    for chunk, (positions, tokens) in zip(chunks, blocks, strict=True):
        if not np.array_equal(positions, source.positions(chunk)):
            raise RuntimeError(
                f"rows of step {step} arrived lost, repeated or out of order: this is a bug in the reader"
            )
        for part in tokens.reshape(chunk.steps, source.local_rows, -1):
            yield Batch(step, chunk.epoch, part)
            step += 1


def started(stream: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, the first one fetched from now on in the background: a pipeline takes seconds to start."""
    waiting: queue.Queue[tuple[Batch | None, BaseException | None]] = queue.Queue(1)

    def fetch() -> None:
        try:
            waiting.put((next(stream, None), None))
        except BaseException as error:
            waiting.put((None, error))

    threading.Thread(target=fetch, daemon=True, name="first-batch").start()

    def batches_from_the_first() -> Iterator[Batch]:
        first, error = waiting.get()
        if error is not None:
            raise error
        if first is not None:
            yield first
            yield from stream

    return batches_from_the_first()


@lru_cache(maxsize=4)
def _reader(uri: str, cache_bytes: int) -> TokenReader:
    return TokenReader(uri, cache_bytes)


def _ray_blocks(source: Source, chunks: list[Chunk]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for first in range(0, len(chunks), MAX_TASKS):
        yield from _pipeline(source, chunks[first : first + MAX_TASKS])


def _pipeline(source: Source, chunks: list[Chunk]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    import ray.data

    from raygpt.data.datasource import TokenDatasource

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.retried_io_errors = [*context.retried_io_errors, "AWS Error"]
    dataset = ray.data.read_datasource(
        TokenDatasource(source, chunks), num_cpus=READ_CPUS, override_num_blocks=len(chunks)
    )
    dataset.context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(
        cpu=1, object_store_memory=OBJECT_STORE_BYTES
    )
    width = source.order.seq_len + 1
    for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=PREFETCH_BLOCKS):
        tokens = block["tokens"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        yield block["position"].to_numpy(), tokens.reshape(-1, width)
