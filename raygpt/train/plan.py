"""PURE. From settings to numbers: steps, rows, accumulation, warm-up. All arithmetic mistakes are found here."""

from __future__ import annotations

from dataclasses import dataclass

from raygpt.data.mixture import AnyOrder
from raygpt.data.order import Order
from raygpt.errors import UserError
from raygpt.train.schedule import Schedule


@dataclass(frozen=True)
class TrainPlan:
    """What a run will do. `global_batch_rows` rows of `seq_len` tokens per optimizer step over all workers.

    `evaluation_rows`: the most rows an evaluation takes, None for all there are.
    """

    order: AnyOrder
    schedule: Schedule
    total_steps: int
    evaluation_rows: int | None = None

    @property
    def tokens_per_step(self) -> int:
        return self.order.global_batch_rows * self.order.seq_len


def batch_rows(global_batch_tokens: int, seq_len: int, workers: tuple[int, int]) -> int:
    """Rows of the global batch. UserError unless they are whole and enough for every worker to have one.

    They need not divide by workers or micro-batches: then ranks differ by a row, and a last micro-batch is smaller.
    """
    rows, rest = divmod(global_batch_tokens, seq_len)
    if rest or rows == 0:
        near = max(1, round(global_batch_tokens / seq_len)) * seq_len
        raise UserError(
            f"train.global_batch_tokens={global_batch_tokens:,} is no multiple of data.seq_len={seq_len}: {near:,} "
            "would be."
        )
    if workers[1] > rows:
        raise UserError(
            f"train.global_batch_tokens={global_batch_tokens:,} makes {rows} rows of data.seq_len={seq_len}, too few "
            f"for {workers[1]} workers: {workers[1] * seq_len:,} would be enough."
        )
    return rows


def total_steps(
    order: Order,
    tokens_per_step: int,
    *,
    max_steps: int | None,
    max_tokens: int | None,
    epochs: float | None,
    real_share: float = 0.0,
) -> int:
    """Optimizer steps of the run: exactly one of the three lengths is set; part of a step counts as none.

    Epochs are passes over data.train, to which a batch's mean share of other text brings nothing nearer.
    """
    if max_steps is not None:
        return max_steps
    if max_tokens is not None:
        if max_tokens < tokens_per_step:
            raise UserError(
                f"train.max_tokens={max_tokens:,} is less than one step of {tokens_per_step:,} tokens: raise it."
            )
        return max_tokens // tokens_per_step
    assert epochs is not None
    return max(1, round(epochs * order.steps_per_epoch / (1 - real_share)))


def warmup(total: int, warmup_steps: int | None, warmup_fraction: float | None) -> int:
    """Warm-up steps, no more than the run has."""
    steps = warmup_steps if warmup_steps is not None else round((warmup_fraction or 0.0) * total)
    return min(steps, total)
