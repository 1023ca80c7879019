"""PURE. The optimizers that optim.name may ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from raygpt.errors import UserError
from raygpt.train.optim.groups import decay_groups


class MakeOptimizer(Protocol):
    def __call__(
        self, groups: list[dict], *, lr: float, betas: tuple[float, float], eps: float
    ) -> torch.optim.Optimizer: ...


@dataclass(frozen=True)
class Entry:
    """How an optimizer is made. `elementwise`: every value is updated by its own gradient and state alone, so that ZeRO
    may hand it flat pieces of parameters."""

    make: MakeOptimizer
    elementwise: bool


OPTIMIZERS: dict[str, Entry] = {}


def register(name: str, *, elementwise: bool = True) -> Callable[[MakeOptimizer], MakeOptimizer]:
    """Decorator: optim.name=`name` makes the optimizer with the function below, from groups with their own
    `weight_decay`. Its state may be any tensors of the parameter's shape by name; `step`, where there is one, counts
    updates."""

    def keep(make: MakeOptimizer) -> MakeOptimizer:
        OPTIMIZERS[name] = Entry(make, elementwise)
        return make

    return keep


def names() -> list[str]:
    """What optim.name may be."""
    return sorted(OPTIMIZERS)


def check_name(name: str, strategy: str = "ddp") -> None:
    """UserError where there is no such optimizer, or it cannot be shared out as `strategy` (train.strategy) does."""
    entry = OPTIMIZERS.get(name)
    if entry is None:
        raise UserError(f"optim.name is {name!r}: must be {' | '.join(names())}.")
    if strategy != "ddp" and not entry.elementwise:
        raise UserError(
            f"optim.name={name} works on whole matrices, which train.strategy={strategy} cuts up: set "
            "train.strategy=ddp, or another optim.name."
        )


def make_optimizer(
    name: str,
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> torch.optim.Optimizer:
    """The optimizer of that name over the trained parameters of a model, whole ones or ZeRO's. UserError without it."""
    check_name(name)
    return OPTIMIZERS[name].make(decay_groups(model, weight_decay), lr=lr, betas=betas, eps=eps)
