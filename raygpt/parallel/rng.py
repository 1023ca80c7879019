"""PURE. The random generators of one process, taken down and put back."""

from __future__ import annotations

import random
from typing import Any

import torch


def rng_state(device: torch.device) -> dict[str, Any]:
    """Random generators of this process: torch on the CPU and the device, and Python's."""
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_rng(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def rank_seed(seed: int, rank: int, step: int) -> int:
    """Seed of a rank's generators where a start at `step` finds none of its own to go on with: one per rank and step.

    A run that goes on with another number of workers must not draw the dropout of its first steps once more.
    """
    return (seed * 1_000_003 + rank + step * 1_000_003**2) % 2**63
