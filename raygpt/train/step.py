"""PURE. One optimizer step: micro-batches, accumulation, clipping, loss scaling, and no step on gradients that are not
finite."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raygpt.parallel.optimizer_state import set_lr
from raygpt.train.objective import Batch, LanguageModelling, Objective, as_batch, divisor, extra, rows_of, split
from raygpt.train.precision import Precision


@dataclass
class StepResult:
    """Tensors stay on the device: reading one is a synchronisation the caller decides on."""

    loss: Tensor  # fp32 scalar; its mean over ranks is the mean loss of the global batch
    grad_norm: Tensor  # before clipping, over all parameters and ranks
    overflow: Tensor | bool = False  # gradients were not finite and the weights did not move
    parts: dict[str, Tensor] = field(default_factory=dict)  # of the loss, by metric, as `loss` is the whole of it

    @cached_property
    def skipped(self) -> bool:
        """`overflow`, read once: a synchronisation where it is a tensor."""
        return bool(self.overflow)


class StepFunction(Protocol):
    """What the loop asks of a strategy: DDP's `TrainStep`, or DeepSpeed's `raygpt.train.zero_step.ZeroStep`."""

    precision_name: str

    def __call__(self, batch: Batch | Tensor, lr: float) -> StepResult:
        """One optimizer step on this rank's rows of a batch; a tensor stands for {"rows": tensor}."""

    def loss_scale(self) -> float | None:
        """Current loss scale of fp16, None in other precisions."""

    def scaler_state(self) -> dict[str, Any]:
        """The loss scaler for a checkpoint: plain numbers."""

    def weights_finite(self) -> bool:
        """Whether this rank's weights all are numbers. Waits for the device."""


class TrainStep:
    """Callable `(batch, lr) -> StepResult`.

    Properties
    - Gradients are those of the objective's mean over the global batch: 1 worker x 4 accumulation steps, 2 x 2 and
      4 x 1 give one gradient, and so do ranks and micro-batches of unequal weight.
    - Ranks exchange gradients in the last micro-batch alone, and that is decided before its forward pass.
    - Gradients that are not finite move nothing: the optimizer is told so on the device and keeps weights, moments and
      counters. Only an optimizer that cannot be told (without torch's fused kernels) is waited for.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        *,
        micro_batch_size: int,
        grad_clip: float = 0.0,
        objective: Objective | None = None,
        global_rows: int | None = None,
    ) -> None:
        """`global_rows` of a step over all ranks; without it every rank has as many as this one. The objective is
        language modelling where none is given."""
        self.model = model
        self.optimizer = optimizer
        self.precision = precision
        self.precision_name = precision.name
        self.micro_batch_size = micro_batch_size
        self.grad_clip = grad_clip
        self.objective = objective or LanguageModelling()
        self.global_rows = global_rows
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._exchanges = isinstance(model, DistributedDataParallel)
        self._world_size = torch.distributed.get_world_size() if self._exchanges else 1

    def __call__(self, batch: Batch | Tensor, lr: float) -> StepResult:
        set_lr(self.optimizer, lr)
        loss = self.backward(batch)
        scaler = self.precision.scaler
        scaler.unscale_(self.optimizer)
        limit = self.grad_clip if self.grad_clip > 0 else float("inf")
        grad_norm = nn.utils.clip_grad_norm_(self.parameters, limit)
        if scaler.is_enabled():
            # a scaled one is the scale, and stays on the device, where get_scale would wait for it
            one = torch.ones((), device=loss.device)
            before = scaler.scale(one)
            scaler.step(self.optimizer)
            scaler.update()
            overflow = scaler.scale(one) < before
        else:
            overflow = ~torch.isfinite(grad_norm)
            self._update(overflow)
        self.optimizer.zero_grad(set_to_none=True)
        return StepResult(loss, grad_norm, overflow, self._parts)

    def _update(self, overflow: Tensor) -> None:
        optimizer: Any = self.optimizer
        if not getattr(optimizer, "_step_supports_amp_scaling", False):
            if not overflow:
                optimizer.step()
            return
        optimizer.grad_scale, optimizer.found_inf = None, overflow.float()  # as torch's GradScaler does
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf

    def loss_scale(self) -> float | None:
        """Current loss scale of fp16, None in other precisions."""
        return self.precision.scaler.get_scale() if self.precision.scaler.is_enabled() else None

    def scaler_state(self) -> dict[str, Any]:
        """The gradient scaler for a checkpoint: plain numbers."""
        return self.precision.scaler_state()

    def weights_finite(self) -> bool:
        """Whether the weights that are trained all are numbers. Waits for the device."""
        return all_finite(self.parameters)

    def backward(self, batch: Batch | Tensor) -> Tensor:
        """Accumulate gradients of all micro-batches; returns this rank's part of the loss (see StepResult)."""
        batch = as_batch(batch)
        micro_batches = split(batch, self.micro_batch_size)
        rows = rows_of(batch)
        weights = [self.objective.weight(micro) for micro in micro_batches]
        over = divisor(weights, rows, self.global_rows or rows * self._world_size, self._world_size)
        total: Tensor | None = None
        self._parts: dict[str, Tensor] = {}
        for index, micro in enumerate(micro_batches):
            last = index == len(micro_batches) - 1
            with self.model.no_sync() if self._exchanges and not last else nullcontext():  # type: ignore[operator]
                with self.precision.autocast():
                    loss_sum, _ = self.objective(self.model, micro)
                loss = (loss_sum / over).float()
                self.precision.scaler.scale(loss).backward()
            total = loss.detach() if total is None else total + loss.detach()
            add_parts(self._parts, self.objective, over)
        assert total is not None, "a batch without rows"
        return total


def add_parts(parts: dict[str, Tensor], objective: Objective, over: float | Tensor) -> None:
    """Add the parts of the objective's last call, if it tells any, divided as the loss is."""
    for name, value in (extra(objective, "parts") or {}).items():
        value = (value.detach() / over).float()
        parts[name] = parts[name] + value if name in parts else value


def all_finite(tensors: list[nn.Parameter] | list[Tensor]) -> bool:
    """Whether every number is one; waits for the device. An infinite norm stands for infinite numbers."""
    if not tensors:
        return True
    norms = torch._foreach_norm([tensor.detach() for tensor in tensors])
    return bool(torch.stack([torch.isfinite(norm).to(norms[0].device) for norm in norms]).all())
