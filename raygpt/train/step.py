"""PURE. One optimizer step: micro-batches, the one label shift, accumulation, clipping, loss scaling."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from raygpt.parallel.optimizer_state import set_lr
from raygpt.train.precision import Precision


@dataclass
class StepResult:
    """Tensors stay on the device: reading one is a synchronisation the caller decides on."""

    loss: torch.Tensor  # mean over this rank's micro-batches, fp32 scalar
    grad_norm: torch.Tensor  # before clipping, over all parameters and ranks
    overflow: torch.Tensor | bool = False  # fp16 only: gradients overflowed and the weights did not move

    @cached_property
    def skipped(self) -> bool:
        """`overflow`, read once: a synchronisation where it is a tensor."""
        return bool(self.overflow)


class StepFunction(Protocol):
    """What the loop asks of a strategy: DDP's `TrainStep`, or DeepSpeed's `raygpt.train.zero_step.ZeroStep`."""

    precision_name: str

    def __call__(self, rows: torch.Tensor, lr: float) -> StepResult:
        """One optimizer step on this rank's rows (local_rows, seq_len + 1) int64."""

    def loss_scale(self) -> float | None:
        """Current loss scale of fp16, None in other precisions."""

    def scaler_state(self) -> dict[str, Any]:
        """The loss scaler for a checkpoint: plain numbers."""


class TrainStep:
    """Callable `(rows, lr) -> StepResult`.

    Properties
    - `rows` is (local_rows, seq_len + 1) int64: inputs are rows[:, :-1], targets rows[:, 1:]. Shifted here, once, and
      nowhere else.
    - Every micro-batch weighs the same, so 1 worker x 4 accumulation steps, 2 x 2 and 4 x 1 give one gradient.
    - Ranks exchange gradients in the last micro-batch alone, and that is decided before its forward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        *,
        micro_batch_size: int,
        grad_clip: float = 0.0,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.precision = precision
        self.precision_name = precision.name
        self.micro_batch_size = micro_batch_size
        self.grad_clip = grad_clip
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def __call__(self, rows: torch.Tensor, lr: float) -> StepResult:
        set_lr(self.optimizer, lr)
        loss = self.backward(rows)
        scaler = self.precision.scaler
        scaler.unscale_(self.optimizer)
        limit = self.grad_clip if self.grad_clip > 0 else float("inf")
        grad_norm = nn.utils.clip_grad_norm_(self.parameters, limit)
        # a scaled one is the scale, and stays on the device, where get_scale would wait for it
        one = torch.ones((), device=loss.device)
        before = scaler.scale(one)
        scaler.step(self.optimizer)
        scaler.update()
        overflow = scaler.scale(one) < before if scaler.is_enabled() else False
        self.optimizer.zero_grad(set_to_none=True)
        return StepResult(loss, grad_norm, overflow)

    def loss_scale(self) -> float | None:
        """Current loss scale of fp16, None in other precisions."""
        return self.precision.scaler.get_scale() if self.precision.scaler.is_enabled() else None

    def scaler_state(self) -> dict[str, Any]:
        """The gradient scaler for a checkpoint: plain numbers."""
        return self.precision.scaler_state()

    def backward(self, rows: torch.Tensor) -> torch.Tensor:
        """Accumulate gradients of all micro-batches; returns the mean loss (detached)."""
        micro_batches = rows.split(self.micro_batch_size)
        count = len(micro_batches)
        total = torch.zeros((), device=rows.device)
        for index, micro in enumerate(micro_batches):
            last = index == count - 1
            hold = (
                self.model.no_sync() if isinstance(self.model, DistributedDataParallel) and not last else nullcontext()
            )
            with hold:
                with self.precision.autocast():
                    loss = self.model(micro[:, :-1], micro[:, 1:])
                self.precision.scaler.scale(loss / count).backward()
            total += loss.detach() / count
        return total
