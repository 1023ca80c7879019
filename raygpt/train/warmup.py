"""PURE. Before the first counted step: finds the micro-batch, compiles, and settles DDP's buckets.

DDP lays its gradient buckets out anew after its first backward pass, which changes the order in which ranks' gradients
are added. Rehearsing moves that before the first step of every start, so a resumed run adds in the order an unbroken
one does and stays bit-identical. Random generators, weights and gradients are left as they were.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from raygpt.capacity.micro_batch import EVALUATION_ROWS, micro_batch_choices, most_rows
from raygpt.errors import UserError
from raygpt.model.architecture import LanguageModel
from raygpt.parallel.distributed import World
from raygpt.parallel.rng import restore_rng, rng_state
from raygpt.train.precision import Precision


def find_micro_batch(
    model: nn.Module,
    precision: Precision,
    world: World,
    micro_batch_size: int | str,
    *,
    local_rows: int,
    seq_len: int,
    previous: int | None = None,
    fits: Callable[[int], bool] | None = None,
) -> int:
    """Micro-batch size for this start: the one set, the one the checkpoint was made with, or the largest that fits.

    `model` is the bare one: ranks may run out of memory at different sizes, and a collective would hang then; and not
    compiled yet: after a second size the compiler would make kernels for any size, which are slower. `fits` says of a
    size whether it does; without it a GPU tries. Raises UserError when not even the smallest fits the device.
    """
    if isinstance(micro_batch_size, int):
        return micro_batch_size
    if fits is None and world.device.type == "cuda":
        fits = _trial(model, precision, world, seq_len)
    choices = micro_batch_choices(local_rows, most_rows("ddp", fits is not None, seq_len))
    if previous is not None and previous in micro_batch_choices(local_rows, local_rows):
        choices.insert(0, previous)  # tried as well: this GPU may be a smaller one
    if fits is None:
        return choices[0]
    rng = rng_state(world.device)
    try:
        for choice in choices:
            if world.minimum(int(fits(choice))):
                return choice
    finally:
        restore_rng(rng, world.device)
    raise UserError(
        f"train.micro_batch_size=1 does not fit the memory of {torch.cuda.get_device_name(world.device)}: set "
        "train.activation_checkpointing=true, or choose a smaller data.seq_len or model."
    )


def compile_for_training(
    model: LanguageModel, *, blocks: bool, backend: str = "inductor", mode: str | None = None
) -> None:
    """torch.compile in place, for the one shape that training has. The first call compiles.

    All in one graph is fastest. Under DDP it would hand over all gradients at once, when nothing is left to compute
    while they travel: `blocks` compiles each block by itself, and the loss, so that gradients leave block by block.
    (DDPOptimizer, torch's own cure, leaves one bucket where a graph holds a function with its own gradient, as the loss
    here does, or activation checkpointing: pytorch/pytorch#104674. So it is switched off.) A model without
    blocks `h` or a `chunked_loss` runs what it lacks uncompiled.
    """
    options = {"dynamic": False, "backend": backend, "mode": mode}
    if not blocks:
        model.compile(**options)
        return
    import torch._dynamo

    torch._dynamo.config.optimize_ddp = False
    for block in getattr(model, "h", ()):
        block.compile(**options)
    if hasattr(model, "chunked_loss"):
        model.chunked_loss = torch.compile(model.chunked_loss, **options)  # type: ignore[call-overload]


def rehearse(model: nn.Module, precision: Precision, world: World, micro_batch_size: int, seq_len: int) -> None:
    """Two passes through the wrapped model; the second one runs with the buckets the first one settled."""
    rng = rng_state(world.device)
    for _ in range(2):
        _forward(model, precision, world.device, micro_batch_size, seq_len).backward()
    model.zero_grad(set_to_none=True)
    restore_rng(rng, world.device)


def _forward(
    model: nn.Module, precision: Precision, device: torch.device, micro_batch_size: int, seq_len: int
) -> torch.Tensor:
    rows = torch.zeros((micro_batch_size, seq_len + 1), dtype=torch.int64, device=device)
    with precision.autocast():
        return model(rows[:, :-1], rows[:, 1:])


def _allowed(device: torch.device) -> float:
    """Share of the device's memory that this process may take."""
    ask = getattr(torch.cuda, "get_per_process_memory_fraction", None)  # newer than the function that sets it
    return 1.0 if ask is None else ask(device)


def _trial(model: nn.Module, precision: Precision, world: World, seq_len: int) -> Callable[[int], bool]:
    """Whether a micro-batch can be trained on and, with the rows that an evaluation takes for it, evaluated."""

    def fits(micro_batch_size: int) -> bool:
        try:
            _forward(model, precision, world.device, micro_batch_size, seq_len).backward()
            rows = torch.zeros((EVALUATION_ROWS * micro_batch_size, seq_len), dtype=torch.int64, device=world.device)
            with torch.no_grad(), precision.autocast():
                model(rows, rows, reduction="none")
            torch.cuda.synchronize(world.device)
            free, total = torch.cuda.mem_get_info(world.device)
            peak = torch.cuda.max_memory_allocated(world.device)
            free = min(free + torch.cuda.memory_reserved(world.device), int(_allowed(world.device) * total)) - peak
            # still to come: two moments in fp32, and DDP's buckets as large as the gradients
            to_come = 12 * sum(parameter.numel() for parameter in model.parameters())
            return free > to_come + 0.03 * total
        except torch.OutOfMemoryError:
            return False
        finally:
            model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(world.device)

    return fits
