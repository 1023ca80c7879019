"""PURE. Which rows make up the global batch of step k: arithmetic, not state.

Properties
- The order is a function of (fingerprint, seed, seq_len, global_batch_rows, epoch, step) alone. The worker count, the
  prefetch depth and the backend do not enter, so a run resumes anywhere from the pair (epoch, step).
- A row is `seq_len + 1` neighbouring tokens of the shard folder's one token stream; neighbouring rows share one token,
  so every token but the very first of an epoch is predicted at most once.
- Each epoch starts its rows at a seeded offset, so row boundaries differ between epochs.
- An epoch visits short runs of neighbouring rows in a seeded permutation. A window of as many steps as a run has rows
  takes one run per lane, and step k of the window the k-th row of each: a lane's reads are contiguous, and the rows of
  one run land in different steps. Rank r owns a contiguous range of lanes.
- Any row is found by itself, in time and memory that do not depend on the corpus (see `permutation`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from raygpt.data.permutation import Permutation
from raygpt.errors import UserError

# What a checkpoint records: runs of another version saw other rows, and do not go on. 1 sorted random numbers, and let
# the global batch shorten the runs.
ORDER_VERSION = 2
MAX_RUN_BYTES = 128 * 1024  # one ranged read; past this S3 throughput no longer grows with the request
# Below this an epoch is shuffled too coarsely to learn as from single rows: with 14,000 runs of 4 rows of 64 tokens, 16
# rows a step, the quick start's loss at step 500 was 4.66 instead of 4.52, for steps in a row saw the same files.
MIN_RUNS = 100_000
MAX_RUN_ROWS = 64


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
    def run_rows(self) -> int:
        """Neighbouring rows that stay together: one on a small corpus, up to 128 KiB on a large one; a power of two.

        The global batch shortens them only where an epoch has fewer steps than a run has rows.
        """
        by_bytes = MAX_RUN_BYTES // (self.seq_len * self.token_bytes)
        by_shuffle = (self.total_tokens - 1) // self.seq_len // MIN_RUNS
        return power_of_two_at_most(min(by_bytes, by_shuffle, MAX_RUN_ROWS, self.steps_per_epoch))

    def position(self, step: int) -> tuple[int, int]:
        """(epoch, step in that epoch) of the run's 0-based `step`."""
        return divmod(step, self.steps_per_epoch)

    def epochs(self, steps: int) -> float:
        """Passes over the corpus that the run's first `steps` make."""
        return steps / self.steps_per_epoch

    def run_step(self, epoch: int, step: int) -> int:
        """The run's step at that position."""
        return epoch * self.steps_per_epoch + step

    def offset(self, epoch: int) -> int:
        """First token of the epoch's first row: seeded, in [0, seq_len), less where that would cost a step."""
        slack = (self.total_tokens - 1) - self.steps_per_epoch * self.global_batch_rows * self.seq_len
        return int.from_bytes(self._seed(epoch, "offset")[:8], "little") % min(self.seq_len, slack + 1)

    def account(self, epoch: int) -> EpochAccount:
        """Where every token of the epoch went."""
        head = self.offset(epoch)
        used = self.steps_per_epoch * self.global_batch_rows
        dropped = (self._rows(epoch) - used) * self.seq_len
        trained = used * self.seq_len + 1
        return EpochAccount(head, trained, dropped, self.total_tokens - head - trained - dropped)

    def chunk(self, step: int, steps: int) -> Chunk:
        """At most `steps` steps from the run's `step` on, cut at the epoch's end."""
        epoch, inside = self.position(step)
        return Chunk(epoch, inside, min(steps, self.steps_per_epoch - inside))

    def rows(self, epoch: int, step: int, lanes: slice = slice(None)) -> np.ndarray:
        """Row numbers of one step, in lane order: (lanes,) int64."""
        return self.chunk_rows(Chunk(epoch, step, 1), lanes)[0]

    def chunk_rows(self, chunk: Chunk, lanes: slice = slice(None)) -> np.ndarray:
        """Row numbers of a chunk's steps for some lanes: (steps, lanes) int64."""
        lane = np.arange(self.global_batch_rows, dtype=np.int64)[lanes]
        step = np.arange(chunk.first_step, chunk.first_step + chunk.steps, dtype=np.int64)
        return self._rows_of(chunk.epoch, step[:, None], lane[None, :])

    def starts(self, epoch: int, rows: np.ndarray) -> np.ndarray:
        """First token of each row in the token stream: int64, same shape as `rows`."""
        return self.offset(epoch) + rows * self.seq_len

    def chunk_starts(self, chunk: Chunk, lanes: slice = slice(None)) -> np.ndarray:
        """First tokens of the rows of a chunk's steps for some lanes: (steps, lanes) int64."""
        return self.starts(chunk.epoch, self.chunk_rows(chunk, lanes))

    def starts_of_taken(self, number: np.ndarray) -> np.ndarray:
        """First token of the `number`-th row of the run, counted from 0 over steps and lanes: same shape, int64."""
        step, lane = np.divmod(number, self.global_batch_rows)
        epoch, step = np.divmod(step, self.steps_per_epoch)
        out = np.empty_like(number)
        for one in np.unique(epoch).tolist():
            here = epoch == one
            out[here] = self.starts(one, self._rows_of(one, step[here], lane[here]))
        return out

    def _rows_of(self, epoch: int, step: np.ndarray, lane: np.ndarray) -> np.ndarray:
        # the last window also takes the remainder: a shorter one could hold two rows of a run in one step
        size = self.run_rows
        last = max(1, self.steps_per_epoch // size) - 1
        window = np.minimum(step // size, last)
        length = np.where(window == last, self.steps_per_epoch - last * size, size)
        begin = window * size
        return self._row_at(epoch, begin * self.global_batch_rows + step - begin + lane * length)

    def _row_at(self, epoch: int, entry: np.ndarray) -> np.ndarray:
        # place in the epoch's permuted runs, laid end to end -> row; only the corpus's last run may be shorter
        length, rows = self.run_rows, self._rows(epoch)
        runs = -(-rows // length)
        permuted = Permutation(runs, self._seed(epoch, "runs"))
        missing = runs * length - rows
        if missing:
            short_at = int(permuted.inverse(np.array([runs - 1]))[0])
            entry = np.where(entry >= short_at * length + (length - missing), entry + missing, entry)
        return permuted(entry // length) * length + entry % length

    def _rows(self, epoch: int) -> int:
        return (self.total_tokens - 1 - self.offset(epoch)) // self.seq_len

    def _seed(self, epoch: int, purpose: str) -> bytes:
        text = f"raygpt-order-{ORDER_VERSION} {self.fingerprint} {self.seed} {epoch} {purpose}"
        return hashlib.sha512(text.encode()).digest()


def lanes_of(rank: int, world_size: int, global_batch_rows: int) -> slice:
    """The contiguous lanes of one rank: where they do not divide evenly, some ranks have one more than others.

    Raises UserError where there are more ranks than rows.
    """
    if world_size > global_batch_rows:
        raise UserError(
            f"{world_size} workers cannot share a global batch of {global_batch_rows} rows: choose at most "
            f"scale.num_workers={global_batch_rows}, or raise train.global_batch_tokens."
        )
    return slice(rank * global_batch_rows // world_size, (rank + 1) * global_batch_rows // world_size)


def power_of_two_at_most(limit: int) -> int:
    """Largest power of two that is no more than `limit`, at least 1."""
    return 1 << (max(1, limit).bit_length() - 1)
