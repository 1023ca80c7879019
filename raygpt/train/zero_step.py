"""The step function of a model under DeepSpeed ZeRO."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from raygpt.parallel.zero import ZeroEngine
from raygpt.train.step import StepResult


class ZeroStep:
    """`TrainStep`'s contract on a ZeroEngine: the same shift, the same weight of every micro-batch."""

    def __init__(self, engine: ZeroEngine, micro_batch_size: int) -> None:
        self.engine = engine
        self.micro_batch_size = micro_batch_size
        self.precision_name = engine.precision_name

    def __call__(self, rows: Tensor, lr: float) -> StepResult:
        loss, norm, skipped = self.engine.step(rows.split(self.micro_batch_size), lr)
        return StepResult(loss, norm, skipped)

    def loss_scale(self) -> float | None:
        return self.engine.loss_scale

    def scaler_state(self) -> dict[str, Any]:
        return self.engine.scaler_state()
