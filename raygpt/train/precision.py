"""PURE. fp32, tf32, bf16 and fp16 as one small object: autocast context and, for fp16, the gradient scaler."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from raygpt.parallel import loss_scale


@dataclass
class Precision:
    """`name` is fp32, tf32, bf16 or fp16. Weights and optimizer state stay fp32 in every one of them.

    Under fp16 the scaler needs no synchronisation of its own: gradients are summed over ranks before it looks at them,
    and an overflow on one rank is an overflow in the sum, so every rank skips the same step and keeps the same scale
    (tests/train/test_step.py holds it to that).
    """

    name: str
    device: torch.device
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self) -> None:
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")
        if self.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = self.name != "fp32"
            torch.backends.cudnn.allow_tf32 = self.name != "fp32"

    def autocast(self) -> AbstractContextManager:
        """Context of the forward pass."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.name)
        return torch.autocast(self.device.type, dtype=dtype) if dtype else nullcontext()

    def scaler_state(self) -> dict[str, Any]:
        """The loss scale for a checkpoint: plain numbers, {} but in fp16."""
        return loss_scale.of_torch(self.scaler)

    def load_scaler(self, saved: dict[str, Any]) -> None:
        """Take up the loss scale of a checkpoint, whichever strategy wrote it."""
        loss_scale.to_torch(self.scaler, saved)
