"""PURE. Which rows make up the global batch of step k: arithmetic, not state.

Properties
- The order is a function of (fingerprint, seed, seq_len, global_batch_rows, epoch, step) alone. The worker count, the
  prefetch depth and the backend do not enter, so a run resumes anywhere from the pair (epoch, step).
- A row is `seq_len + 1` neighbouring tokens of the shard folder's one token stream; neighbouring rows share one token,
  so every token but the very first of an epoch is predicted at most once.
- Each epoch starts its rows at a seeded offset, so row boundaries differ between epochs.
- An epoch visits short runs of neighbouring rows in a seeded permutation. Rows are laid out lane-major: lane l of a
  chunk of K steps owns K neighbouring entries of that permutation, and step k of the chunk takes entry k of every lane.
  Rank r owns a contiguous range of lanes: its reads are contiguous, and the rows of one run land in different steps.
- The numbers come from raw Philox counters and a stable sort, both fixed for ever by NumPy's compatibility policy
  (NEP 19), unlike `Generator.permutation`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from raygpt.errors import UserError

MAX_RUN_BYTES = 128 * 1024  # one ranged read; past this S3 throughput no longer grows with the request
# Below this an epoch is shuffled too coarsely to learn as from single rows: with 14,000 runs of 4 rows of 64 tokens, 16
# rows a step, the quick start's loss at step 500 was 4.66 instead of 4.52, for steps in a row saw the same files.
MIN_RUNS = 100_000
MAX_CHUNK_BYTES = 64 * 1024 * 1024  # one Ray Data block of one rank must stay below 128 MiB
MAX_CHUNK_STEPS = 64


@dataclass(frozen=True)
class EpochAccount:
    """Tokens of one epoch, all counted: head + trained + dropped_rows + tail == total tokens."""

    head: int  # before the first row (the seeded offset)
    trained: int  # predicted once, plus the first token of the stream of rows
    dropped: int  # in whole rows left over after the last full global batch
    tail: int  # after the last row


@dataclass(frozen=True)
class Chunk:
    """Steps [first_step, first_step + steps) of one epoch, read together."""

    epoch: int
    first_step: int
    steps: int


@dataclass(frozen=True)
class Order:
    """The plan of a run over one shard folder. `global_batch_rows` is rows per optimizer step over all workers."""

    fingerprint: str
    seed: int
    seq_len: int
    global_batch_rows: int
    total_tokens: int
    token_bytes: int = 2

    def __post_init__(self) -> None:
        if self.steps_per_epoch < 1:
            needed = self.seq_len * self.global_batch_rows + 1
            raise UserError(
                f"data.train holds {self.total_tokens:,} tokens but one batch needs {needed:,}: lower "
                "train.global_batch_tokens or data.seq_len, or prepare more text."
            )

    @property
    def steps_per_epoch(self) -> int:
        """Full global batches in every epoch (the same number in each)."""
        return max(0, self.total_tokens - 1) // self.seq_len // self.global_batch_rows

    @property
    def chunk_steps(self) -> int:
        """Steps per chunk: a power of two, so that a lane holds whole runs."""
        per_step = self.global_batch_rows * (self.seq_len + 1) * self.token_bytes
        limit = min(MAX_CHUNK_STEPS, max(1, MAX_CHUNK_BYTES // per_step), self.steps_per_epoch)
        return _power_of_two_at_most(limit)

    @property
    def run_rows(self) -> int:
        """Neighbouring rows that stay together: one on a small corpus, up to 128 KiB on a large one."""
        rows = self.steps_per_epoch * self.global_batch_rows
        by_bytes = MAX_RUN_BYTES // (self.seq_len * self.token_bytes)
        return _power_of_two_at_most(max(1, min(by_bytes, rows // MIN_RUNS, self.chunk_steps)))

    def position(self, step: int) -> tuple[int, int]:
        """(epoch, step in that epoch) of the run's 0-based `step`."""
        return divmod(step, self.steps_per_epoch)

    def offset(self, epoch: int) -> int:
        """First token of the epoch's first row: seeded, in [0, seq_len), less where that would cost a step."""
        slack = (self.total_tokens - 1) - self.steps_per_epoch * self.global_batch_rows * self.seq_len
        return int(_random(self, epoch, "offset", 1)[0] % min(self.seq_len, slack + 1))

    def account(self, epoch: int) -> EpochAccount:
        """Where every token of the epoch went."""
        head = self.offset(epoch)
        rows = (self.total_tokens - 1 - head) // self.seq_len
        used = self.steps_per_epoch * self.global_batch_rows
        dropped = (rows - used) * self.seq_len
        trained = used * self.seq_len + 1
        return EpochAccount(head, trained, dropped, self.total_tokens - head - trained - dropped)

    def chunks(self, first_step: int, last_step: int) -> list[Chunk]:
        """Chunks that cover the run's steps [first_step, last_step), the outer ones cut to that range."""
        out = []
        step = first_step
        while step < last_step:
            epoch, inside = self.position(step)
            _, end = self._chunk_of(inside)
            steps = min(end - inside, last_step - step)
            out.append(Chunk(epoch, inside, steps))
            step += steps
        return out

    def rows(self, epoch: int, step: int, lanes: slice = slice(None)) -> np.ndarray:
        """Row numbers of one step, in lane order: (lanes,) int64."""
        return self.chunk_rows(Chunk(epoch, step, 1), lanes)[0]

    def chunk_rows(self, chunk: Chunk, lanes: slice = slice(None)) -> np.ndarray:
        """Row numbers of a chunk's steps for some lanes: (steps, lanes) int64."""
        start, end = self._chunk_of(chunk.first_step)
        if chunk.first_step + chunk.steps > end:
            raise ValueError("a chunk may not cross the plan's chunk boundaries")
        lane = np.arange(self.global_batch_rows, dtype=np.int64)[lanes]
        step = np.arange(chunk.first_step - start, chunk.first_step - start + chunk.steps, dtype=np.int64)
        entry = start * self.global_batch_rows + lane[None, :] * (end - start) + step[:, None]
        return self._entries(chunk.epoch, entry)

    def starts(self, epoch: int, rows: np.ndarray) -> np.ndarray:
        """First token of each row in the token stream: int64, same shape as `rows`."""
        return self.offset(epoch) + rows * self.seq_len

    def _chunk_of(self, step: int) -> tuple[int, int]:
        # the last chunk also takes the remainder: a shorter one could hold two rows of a run in one step
        size, total = self.chunk_steps, self.steps_per_epoch
        last = max(1, total // size) - 1
        index = min(step // size, last)
        return index * size, total if index == last else (index + 1) * size

    def _entries(self, epoch: int, entry: np.ndarray) -> np.ndarray:
        # entry of the epoch's permutation -> row; only the last run of the corpus may be shorter than the others
        length = self.run_rows
        rows = (self.total_tokens - 1 - self.offset(epoch)) // self.seq_len
        runs = -(-rows // length)
        order, short_at = _permutation(self, epoch, runs)
        missing = runs * length - rows
        shifted = np.where(entry >= short_at * length + (length - missing), entry + missing, entry)
        return order[shifted // length] * length + shifted % length


def lanes_of(rank: int, world_size: int, global_batch_rows: int) -> slice:
    """The contiguous lanes of one rank; `world_size` must divide `global_batch_rows`."""
    if global_batch_rows % world_size:
        raise UserError(
            f"{world_size} workers cannot share a global batch of {global_batch_rows} rows evenly: choose "
            "scale.num_workers or train.global_batch_tokens so that they divide."
        )
    local = global_batch_rows // world_size
    return slice(rank * local, (rank + 1) * local)


@lru_cache(maxsize=4)
def _permutation(order: Order, epoch: int, runs: int) -> tuple[np.ndarray, int]:
    permutation = np.argsort(_random(order, epoch, "runs", runs), kind="stable")
    return permutation, int(np.flatnonzero(permutation == runs - 1)[0])


def _random(order: Order, epoch: int, purpose: str, count: int) -> np.ndarray:
    text = f"raygpt-order-1 {order.fingerprint} {order.seed} {epoch} {purpose}"
    key = np.frombuffer(hashlib.sha256(text.encode()).digest()[:16], dtype="<u8")
    return np.random.Philox(key=key).random_raw(count)


def _power_of_two_at_most(limit: int) -> int:
    return 1 << (max(1, limit).bit_length() - 1)
