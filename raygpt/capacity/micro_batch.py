"""PURE. Which micro-batches a worker may take: what the plan of a run, its forecast and the workers agree on."""

from __future__ import annotations

CPU_MICRO_BATCH_TOKENS = 16_384  # larger ones gain nothing on a CPU and cost memory
EVALUATION_ROWS = 2  # rows of an evaluation's batch for each row of the micro-batch


def most_local_rows(global_batch_rows: int, world_size: int) -> int:
    """Rows of a step on the rank that has most."""
    return -(-global_batch_rows // world_size)


def accumulation(global_batch_rows: int, world_size: int, micro_batch_size: int) -> int:
    """Micro-batches per step on the rank that has most rows.

    Where all divides, global_batch_tokens = micro_batch_size x seq_len x world_size x this.
    """
    return -(-most_local_rows(global_batch_rows, world_size) // micro_batch_size)


def micro_batch_choices(local_rows: int, limit: int = 64) -> list[int]:
    """What `micro_batch_size: auto` tries, largest first, at most `limit`: sizes that divide a rank's rows.

    Where the next that does is less than half as large, sizes that leave a smaller last micro-batch stand between: 103
    rows, a prime, would otherwise be trained one by one.
    """
    sizes = range(min(local_rows, limit), 0, -1)
    dividing = [size for size in sizes if local_rows % size == 0]
    between = []
    for size in sizes:
        below = next(each for each in dividing if each <= size)
        # as even as that many micro-batches can be
        if size >= 2 * below and -(-local_rows // -(-local_rows // size)) == size:
            between.append(size)
    return sorted({*dividing, *between}, reverse=True)
