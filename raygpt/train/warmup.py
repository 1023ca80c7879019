"""PURE. One pass before the first counted step: finds the micro-batch, compiles, and settles DDP's buckets.

DDP lays its gradient buckets out anew after its first backward pass, which changes the order in which ranks' gradients
are added. Rehearsing moves that before the first step of every start, so a resumed run adds in the order an unbroken
one does and stays bit-identical. Random generators, weights and gradients are left as they were.
"""

from __future__ import annotations

import torch
from torch import nn

from raygpt.errors import UserError
from raygpt.train import checkpoint
from raygpt.train.distributed import World
from raygpt.train.plan import micro_batch_choices
from raygpt.train.precision import Precision

CPU_MICRO_BATCH_TOKENS = 16_384  # larger ones gain nothing on a CPU and cost memory


def find_micro_batch(
    model: nn.Module,
    precision: Precision,
    world: World,
    micro_batch_size: int | str,
    *,
    local_rows: int,
    seq_len: int,
    previous: int | None = None,
) -> int:
    """Micro-batch size for this start: the one set, the one the checkpoint was made with, or the largest that fits.

    `model` is the bare one: ranks may run out of memory at different sizes, and a collective would hang then. Raises
    UserError when not even the smallest fits the device.
    """
    if isinstance(micro_batch_size, int):
        return micro_batch_size
    if previous is not None and local_rows % previous == 0:
        return previous
    if world.device.type != "cuda":
        return micro_batch_choices(local_rows, max(1, CPU_MICRO_BATCH_TOKENS // seq_len))[0]
    rng = checkpoint.rng_state(world.device)
    try:
        for choice in micro_batch_choices(local_rows):
            if world.minimum(int(_fits(model, precision, world, choice, seq_len))):
                return choice
    finally:
        checkpoint.restore_rng(rng, world.device)
    raise UserError(
        f"train.micro_batch_size=1 does not fit the memory of {torch.cuda.get_device_name(world.device)}: set "
        "train.activation_checkpointing=true, or choose a smaller data.seq_len or model."
    )


def rehearse(model: nn.Module, precision: Precision, world: World, micro_batch_size: int, seq_len: int) -> None:
    """Two passes through the wrapped model; the second one runs with the buckets the first one settled."""
    rng = checkpoint.rng_state(world.device)
    rows = torch.zeros((micro_batch_size, seq_len + 1), dtype=torch.int64, device=world.device)
    for _ in range(2):
        with precision.autocast():
            loss = model(rows[:, :-1], rows[:, 1:])
        loss.backward()
    model.zero_grad(set_to_none=True)
    checkpoint.restore_rng(rng, world.device)


def _fits(model: nn.Module, precision: Precision, world: World, micro_batch_size: int, seq_len: int) -> bool:
    rows = torch.zeros((micro_batch_size, seq_len + 1), dtype=torch.int64, device=world.device)
    try:
        with precision.autocast():
            loss = model(rows[:, :-1], rows[:, 1:])
        loss.backward()
        torch.cuda.synchronize(world.device)
        free, total = torch.cuda.mem_get_info(world.device)
        free += torch.cuda.memory_reserved(world.device) - torch.cuda.max_memory_allocated(world.device)
        # still to come: two moments in fp32, and DDP's buckets as large as the gradients
        to_come = 12 * sum(parameter.numel() for parameter in model.parameters())
        return free > to_come + 0.03 * total
    except torch.OutOfMemoryError:
        return False
    finally:
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(world.device)
