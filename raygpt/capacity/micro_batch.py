"""PURE. Which micro-batches a worker may take: what the plan of a run, its forecast and the workers agree on."""

from __future__ import annotations

from dataclasses import dataclass

CPU_MICRO_BATCH_TOKENS = 16_384  # larger ones gain nothing on a CPU and cost memory
EVALUATION_ROWS = 2  # rows of an evaluation's batch for each row of the micro-batch
TRIED_ROWS = 64  # the most that workers try out on a GPU: larger micro-batches gain nothing on these models
TRUSTED_ROWS = 16  # the most where nobody tries: ZeRO takes the plan's word for it
UNPLANNED_ROWS = 4  # the most where nobody tries and nobody planned
# Tokens whose logits exist at a time on a GPU (head_loss.py): 8192 of GPT-2's take 0.8 GB in bf16, and adding up the
# output matrix's gradient over 8 such pieces moves 4 GB, some 1 % of what a step of 64 rows moves.
LOSS_TOKENS = 8192


def most_rows(strategy: str, gpu: bool, seq_len: int) -> int:
    """Largest micro-batch that `auto` takes: the plan, the forecast and the workers stop there."""
    if not gpu:
        return max(1, CPU_MICRO_BATCH_TOKENS // seq_len)
    return TRIED_ROWS if strategy == "ddp" else TRUSTED_ROWS


def most_local_rows(global_batch_rows: int, world_size: int) -> int:
    """Rows of a step on the rank that has most."""
    return -(-global_batch_rows // world_size)


def accumulation(global_batch_rows: int, world_size: int, micro_batch_size: int) -> int:
    """Micro-batches per step on the rank that has most rows.

    Where all divides, global_batch_tokens = micro_batch_size x seq_len x world_size x this.
    """
    return -(-most_local_rows(global_batch_rows, world_size) // micro_batch_size)


def micro_batch_choices(local_rows: int, limit: int) -> list[int]:
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


@dataclass(frozen=True)
class Found:
    """A micro-batch that a checkpoint was trained with. `memory`: bytes of the smallest device then, 0 for CPUs, None
    for a checkpoint from before that was recorded."""

    rows: int
    memory: int | None = None


def untried_rows(
    local_rows: int, *, seq_len: int, memory: int, planned: int | None = None, earlier: Found | None = None
) -> int:
    """Micro-batch where no worker tries out what fits (ZeRO): the checkpoint's, so that a resumed run adds in the same
    order, or the largest that the plan allows.

    `memory` is that of the smallest device now, 0 for CPUs; `planned` what the plan of the run found, None without one:
    then a GPU gets few rows. On a device with less memory, or of another kind, than the checkpoint was made on, its
    micro-batch counts only as far as the plan allows it.
    """
    limit = (planned or UNPLANNED_ROWS) if memory else most_rows("zero", gpu=False, seq_len=seq_len)
    if earlier is not None and earlier.rows in micro_batch_choices(local_rows, local_rows):
        like_then = earlier.memory is None or (memory >= earlier.memory and bool(memory) == bool(earlier.memory))
        if like_then or earlier.rows <= limit:
            return earlier.rows
    return micro_batch_choices(local_rows, limit)[0]
