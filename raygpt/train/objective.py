"""PURE. What training makes small: a function of model and batch, and how much each batch counts.

An objective is `objective(model, batch) -> (loss_sum, weight)`. `batch` is a dict of tensors that have one row per
example in dimension 0; a step cuts them into micro-batches. `loss_sum` is a scalar to differentiate, the sum of the
losses of all that is predicted; `weight` is how many those are. A step divides gradients by the weight of the global
batch, over all micro-batches and ranks, whatever way it is shared out.

Sums are float64: a mean times a count in fp32, divided by the count again, would lose its last bit. A weight is an int
where the shapes decide it, the same for every row of the global batch; then it is not exchanged between ranks. Where
the contents decide it, it is a tensor on the device, which nobody waits for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raygpt.model.head_loss import IGNORE_INDEX

Batch = dict[str, Tensor]
Weight = int | Tensor


class Objective(Protocol):
    """`weight` must agree with what a call returns: it is asked for all micro-batches before the first is computed.

    An objective may have more, which `extra` finds: `parts`, {name of a metric: sum} of the last call's loss, on the
    device; `figures()`, sums of other metrics over the steps since it was asked last; `beside(rows)`, arrays that a
    batch gets beside a rank's rows of a step; `rehearsal(rows)`, a batch of any rows with the shapes of training.
    """

    def weight(self, batch: Batch) -> Weight:
        """What a batch counts for: an int (of shapes alone), or a scalar tensor."""

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Weight]:
        """(sum of losses: float64 scalar, weight)."""


OBJECTIVES: dict[str, Callable[..., Objective]] = {}


def register(name: str) -> Callable[[type], type]:
    """Class decorator: makes an objective known by name."""

    def add(kind: type) -> type:
        OBJECTIVES[name] = kind
        return kind

    return add


def make_objective(name: str, **settings: Any) -> Objective:
    """The objective registered as `name`. Raises KeyError for a name that nobody registered."""
    return OBJECTIVES[name](**settings)


@register("language_modelling")
class LanguageModelling:
    """Next-token prediction. `rows` is (B, seq_len + 1) int64: inputs are rows[:, :-1], targets rows[:, 1:]. Shifted
    here, once, and nowhere else.

    With `mask`, (B, seq_len + 1) bool, only tokens where it is true are learned; the others are read all the same.
    """

    def weight(self, batch: Batch) -> Weight:
        mask = batch.get("mask")
        rows = batch["rows"]
        return rows.size(0) * (rows.size(1) - 1) if mask is None else mask[:, 1:].sum()

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Weight]:
        inputs, targets = self.pair(batch)
        weight = self.weight(batch)
        if isinstance(weight, int):
            return model(inputs, targets).double() * weight, weight
        return model(inputs, targets, reduction="sum").double(), weight

    @staticmethod
    def pair(batch: Batch) -> tuple[Tensor, Tensor]:
        """(inputs, targets), (B, seq_len) each; a target that is not to be learned is IGNORE_INDEX."""
        rows, mask = batch["rows"], batch.get("mask")
        inputs, targets = rows[:, :-1], rows[:, 1:]
        return inputs, targets if mask is None else targets.masked_fill(~mask[:, 1:], IGNORE_INDEX)


@register("classification")
class Classification:
    """Cross-entropy of a model's logits (B, K) for `tokens` (B, T) int64 under `labels` (B,) int64."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def weight(self, batch: Batch) -> Weight:
        return batch["labels"].size(0)

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Weight]:
        weight = batch["labels"].size(0)
        loss = F.cross_entropy(model(batch["tokens"]), batch["labels"], label_smoothing=self.label_smoothing)
        return loss.double() * weight, weight


def extra(objective: Any, name: str) -> Any | None:
    """What an objective may have beside what all have."""
    return getattr(objective, name, None)


def as_batch(rows: Batch | Tensor) -> Batch:
    """Rows of tokens alone stand for a batch of them."""
    return {"rows": rows} if isinstance(rows, Tensor) else rows


def split(batch: Batch, size: int) -> list[Batch]:
    """Micro-batches of `size` rows, the last one maybe smaller."""
    parts = {name: value.split(size) for name, value in batch.items()}
    count = len(next(iter(parts.values())))
    return [{name: value[index] for name, value in parts.items()} for index in range(count)]


def rows_of(batch: Batch) -> int:
    """Rows of a batch."""
    return next(iter(batch.values())).size(0)


def divisor(weights: list[Weight], local_rows: int, global_rows: int, world_size: int) -> float | Tensor:
    """What sums of losses are divided by so that their gradients, averaged over the ranks, are those of the mean.

    It is the weight of the global batch over the number of ranks. Ints need no collective: every row weighs the same,
    and every rank knows how many rows there are. Else one number is added up over the ranks, on the device.
    """
    total = sum(weights[1:], start=weights[0])
    if isinstance(total, int):
        return total * global_rows / (local_rows * world_size)
    total = total.double()
    if world_size > 1:
        torch.distributed.all_reduce(total)
    return (total / world_size).clamp(min=1e-30)  # nothing to learn: a loss of 0, not nan
