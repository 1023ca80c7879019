"""The step function of a model under DeepSpeed ZeRO."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from raygpt.parallel.zero import ZeroEngine
from raygpt.train.objective import Batch, LanguageModelling, Objective, as_batch, divisor, rows_of, split
from raygpt.train.step import StepResult, add_parts, all_finite


class ZeroStep:
    """`TrainStep`'s contract on a ZeroEngine: the same objective, divided by the same weight.

    DeepSpeed takes the same number of micro-batches on every rank: one with fewer rows repeats some at a weight of 0.
    """

    def __init__(
        self,
        engine: ZeroEngine,
        micro_batch_size: int,
        *,
        global_rows: int | None = None,
        objective: Objective | None = None,
    ) -> None:
        self.engine = engine
        self.micro_batch_size = micro_batch_size
        self.precision_name = engine.precision_name
        self.global_rows = global_rows
        self.objective = objective or LanguageModelling()

    def __call__(self, batch: Batch | Tensor, lr: float) -> StepResult:
        batch = as_batch(batch)
        micro_batches, rows = split(batch, self.micro_batch_size), rows_of(batch)
        world_size = torch.distributed.get_world_size()
        weights = [self.objective.weight(micro) for micro in micro_batches]
        over = divisor(weights, rows, self.global_rows or rows * world_size, world_size)
        passes = self.engine.engine.gradient_accumulation_steps()
        parts: dict[str, Tensor] = {}
        padded = [*micro_batches, *[micro_batches[0]] * (passes - len(micro_batches))]

        def loss_of(index: int) -> Tensor:
            loss_sum, _ = self.objective(self.engine.engine, padded[index])
            counted = 1.0 if index < len(micro_batches) else 0.0
            if counted:
                add_parts(parts, self.objective, over)
            return (loss_sum / over * counted).float()

        losses = (partial(loss_of, index) for index in range(passes))
        return StepResult(*self.engine.step(losses, lr), parts)

    def loss_scale(self) -> float | None:
        return self.engine.loss_scale

    def scaler_state(self) -> dict[str, Any]:
        return self.engine.scaler_state()

    def weights_finite(self) -> bool:
        # not the flat buffers themselves: what pads them to one length on every rank is never set
        return all_finite([piece.values["weight"] for piece in self.engine.pieces()])
