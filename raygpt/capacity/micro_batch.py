"""PURE. Which micro-batches a worker may take: what the plan of a run, its forecast and the workers agree on."""

from __future__ import annotations

CPU_MICRO_BATCH_TOKENS = 16_384  # larger ones gain nothing on a CPU and cost memory
EVALUATION_ROWS = 2  # rows of an evaluation's batch for each row of the micro-batch


def micro_batch_choices(local_rows: int, limit: int = 64) -> list[int]:
    """Divisors of a rank's rows, largest first, at most `limit`: what `micro_batch_size: auto` tries."""
    return [size for size in range(min(local_rows, limit), 0, -1) if local_rows % size == 0]
