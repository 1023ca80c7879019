"""An objective as somebody would add it: one class. The batch has an entry of its own, which decides what it weighs."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from raygpt.train.objective import Batch, register


@register("toy_z_loss")
class ZLoss:
    """Next-token prediction, plus `strength` times the square of the log of the softmax's denominator (PaLM, Chowdhery
    et al., 2022). `rows` (B, T + 1) int64; `worth` (B,) counts a row's tokens so many times each."""

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def weight(self, batch: Batch) -> Tensor:
        return batch["worth"].sum() * (batch["rows"].size(1) - 1)

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        rows = batch["rows"]
        logits = model(rows[:, :-1]).float()
        losses = F.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none")
        losses = losses + self.strength * logits.logsumexp(2) ** 2
        return (losses.double() * batch["worth"][:, None]).sum(), self.weight(batch)
