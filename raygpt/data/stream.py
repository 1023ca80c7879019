"""Training batches of one rank, through the node's reader service or straight from the shards, in the plan's order.

No coordinator, no shuffle buffer and no state: the first step alone says where to start. Every block carries the plan
positions of its rows, and `batches` checks them: a lost, repeated or reordered row ends the job instead of training on
it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from raygpt.data.mixture import AnyOrder
from raygpt.data.order import Chunk, lanes_of, power_of_two_at_most
from raygpt.data.reader import JoinedReader, TokenReader, open_reader
from raygpt.data.shards import AnyLayout

MMAP_BLOCK_BYTES = 16 * 2**20  # whole runs of a lane in one read, where a step is not larger itself
MMAP_BLOCK_STEPS = 64


@dataclass(frozen=True)
class Batch:
    """One rank's part of one global batch; `tokens` is (local_rows, seq_len + 1) in the shards' dtype."""

    step: int
    epoch: int
    tokens: np.ndarray


@dataclass(frozen=True)
class Block:
    """Rows of one rank over the run's steps [step, step + chunk.steps).

    `positions` is (steps * local_rows,) int64, `tokens` (steps * local_rows, seq_len + 1) in the shards' dtype.
    """

    step: int
    chunk: Chunk
    positions: np.ndarray
    tokens: np.ndarray


@dataclass(frozen=True)
class Source:
    """What a rank reads: picklable and free of credentials."""

    layout: AnyLayout
    order: AnyOrder
    rank: int
    world_size: int
    cache_bytes: int = 0

    @property
    def lanes(self) -> slice:
        return lanes_of(self.rank, self.world_size, self.order.global_batch_rows)

    @property
    def local_rows(self) -> int:
        return self.lanes.stop - self.lanes.start

    @property
    def step_bytes(self) -> int:
        """Bytes of this rank's rows of one step in a block, positions included."""
        return self.local_rows * ((self.order.seq_len + 1) * self.order.token_bytes + 8)

    def read(self, chunk: Chunk) -> tuple[np.ndarray, np.ndarray]:
        """(positions (steps * local_rows,) int64, tokens (steps * local_rows, seq_len + 1)) of a chunk."""
        # read lane by lane: a lane's steps are neighbouring rows
        starts = self.order.chunk_starts(chunk, self.lanes).T.ravel()
        tokens = _reader(self.layout, self.cache_bytes).read_rows(starts, self.order.seq_len + 1)
        tokens = tokens.reshape(self.local_rows, chunk.steps, -1).swapaxes(0, 1)
        return self.positions(chunk), tokens.reshape(-1, self.order.seq_len + 1)

    def positions(self, chunk: Chunk) -> np.ndarray:
        """Number of each row in the run: the run's step * global_batch_rows + lane."""
        step = self.order.run_step(chunk.epoch, chunk.first_step) + np.arange(chunk.steps, dtype=np.int64)
        lane = np.arange(self.lanes.start, self.lanes.stop, dtype=np.int64)
        return (step[:, None] * self.order.global_batch_rows + lane).ravel()


def batches(source: Source, blocks: Iterable[Block], first_step: int, last_step: int) -> Iterator[Batch]:
    """This rank's batches of the run's steps [first_step, last_step), cut out of `blocks` that cover them in order.

    Blocks come from `mapped_blocks` or `raygpt.data.service.served_blocks`: the same tokens. The first may begin before
    `first_step`. Raises RuntimeError when a row is missing, twice there or out of place.
    """
    step = first_step
    for block in blocks:
        if not np.array_equal(block.positions, source.positions(block.chunk)) or not block.step <= step:
            raise RuntimeError(
                f"rows of step {step} arrived lost, repeated or out of order: this is a bug in the reader"
            )
        parts = block.tokens.reshape(block.chunk.steps, source.local_rows, -1)
        for part in parts[step - block.step : last_step - block.step]:
            yield Batch(step, block.chunk.epoch, part)
            step += 1
        if step >= last_step:
            return
    if step < last_step:
        raise RuntimeError(f"the reader ended before step {step} of {last_step}: this is a bug in the reader")


def mapped_blocks(source: Source, first_step: int, last_step: int) -> Iterator[Block]:
    """Blocks read in this process, memory-mapped where the shards are local: the oracle of every other way."""
    by_bytes = MMAP_BLOCK_BYTES // source.step_bytes
    size = power_of_two_at_most(min(by_bytes, MMAP_BLOCK_STEPS))
    step = first_step
    while step < last_step:
        # cut at multiples of a power of two, so that a lane's runs are read whole
        inside = source.order.position(step)[1]
        chunk = source.order.chunk(step, min(size - inside % size, last_step - step))
        yield Block(step, chunk, *source.read(chunk))
        step += chunk.steps


_readers: dict[tuple[str, str, int], TokenReader | JoinedReader] = {}  # of this process: open files are worth keeping


def _reader(layout: AnyLayout, cache_bytes: int) -> TokenReader | JoinedReader:
    key = (layout.fingerprint, layout.uri, cache_bytes)
    if key not in _readers:
        while len(_readers) >= 4:
            _readers.pop(next(iter(_readers)))
        _readers[key] = open_reader(layout, cache_bytes)
    return _readers[key]
