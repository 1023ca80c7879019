"""PURE. Does a run fit a machine's memory, and if not: which strategy, offload and micro-batch would?"""

from __future__ import annotations

from dataclasses import dataclass, replace

from raygpt.capacity.memory import Needs, Setup, needs
from raygpt.capacity.micro_batch import accumulation, micro_batch_choices, most_rows
from raygpt.model.architecture import ModelConfig

# What may be planned with: the rest is left to the system, other programs and what nobody can know beforehand.
DEVICE_SHARE = 0.97
HOST_SHARE = 0.95
FULL_ROWS = 4  # smaller ones leave a GPU idle between kernels
# How much longer a step takes, roughly: only their order matters. ZeRO's communication, from the ZeRO papers
# (Rajbhandari et al., 2020; Ren et al., 2021); recomputation adds a forward pass to a forward and a backward one.
SLOWDOWN = {
    ("ddp", "none"): 1.0,
    ("zero1", "none"): 1.02,
    ("zero2", "none"): 1.03,
    ("zero3", "none"): 1.4,
    ("zero1", "optimizer"): 2.0,
    ("zero2", "optimizer"): 2.05,
    ("zero3", "optimizer"): 2.8,
    ("zero3", "all"): 3.2,
}
RECOMPUTATION = 1.33


@dataclass(frozen=True)
class Hardware:
    """One kind of machine; bytes. `gpu` None means workers on CPUs; `disk` None means no limit (S3)."""

    host_memory: int
    gpu: str | None = None
    gpu_memory: int = 0
    workers_per_host: int = 1
    disk: int | None = None

    @property
    def device_limit(self) -> int:
        return int(DEVICE_SHARE * self.gpu_memory)

    @property
    def host_limit(self) -> int:
        return int(HOST_SHARE * self.host_memory)


@dataclass(frozen=True)
class Shortage:
    """One thing there is too little of: `what` is device, host or disk; bytes."""

    what: str
    needed: int
    available: int


def shortages(need: Needs, hardware: Hardware) -> list[Shortage]:
    """What a run lacks on this hardware, nothing where it fits."""
    found = []
    if hardware.gpu is not None and need.device_peak > hardware.device_limit:
        found.append(Shortage("device", need.device_peak, hardware.gpu_memory))
    if need.host_peak > hardware.host_limit:
        found.append(Shortage("host", need.host_peak, hardware.host_memory))
    if hardware.disk is not None and need.disk > hardware.disk:
        found.append(Shortage("disk", need.disk, hardware.disk))
    return found


def resized(setup: Setup, rows: int, local_rows: int) -> Setup:
    """The same with another micro-batch, and the accumulation that follows."""
    return replace(setup, micro_batch_size=rows, grad_accum_steps=accumulation(local_rows, 1, rows))


def slowdown(setup: Setup) -> float:
    """Rough length of a step beside that of the fastest setup."""
    rows = min(1.0, setup.micro_batch_size / FULL_ROWS)
    recomputed = RECOMPUTATION if setup.activation_checkpointing else 1.0
    return SLOWDOWN[setup.strategy, setup.offload] * recomputed * (1 + 0.5 * (1 - rows))


def largest_rows(model: ModelConfig, setup: Setup, hardware: Hardware, local_rows: int) -> Setup | None:
    """The setup with the largest micro-batch that fits device and host, None where not even one row does.

    No larger than workers would take (`most_rows`).
    """
    for rows in micro_batch_choices(local_rows, most_rows(setup.strategy, setup.gpu, setup.seq_len)):
        candidate = resized(setup, rows, local_rows)
        if not _too_large(model, candidate, hardware):
            return candidate
    return None


def fit(model: ModelConfig, setup: Setup, hardware: Hardware, local_rows: int) -> Setup | None:
    """The fastest setup that fits: strategy, offload, activation checkpointing and micro-batch are free.

    `local_rows` are a worker's rows of one optimizer step. None where nothing fits. With one worker ZeRO has nothing to
    share out, but it keeps weights in half precision and moves the rest to the host.
    """
    found = []
    for strategy, offload in SLOWDOWN:
        if setup.lora_rank and strategy != "ddp":
            continue
        if offload != "none" and hardware.gpu is None:
            continue  # on a CPU the host is the device
        for recompute in (False, True):
            base = replace(setup, strategy=strategy, offload=offload, activation_checkpointing=recompute)
            candidate = largest_rows(model, base, hardware, local_rows)
            if candidate is not None:
                found.append(candidate)
    return min(found, key=slowdown) if found else None


def _too_large(model: ModelConfig, setup: Setup, hardware: Hardware) -> bool:
    return any(shortage.what != "disk" for shortage in shortages(needs(model, setup), hardware))


def smallest(model: ModelConfig, setup: Setup, hardware: Hardware) -> Needs:
    """What the most frugal setup needs: everything in host memory, one row at a time."""
    frugal = replace(setup, micro_batch_size=1, activation_checkpointing=True)
    if not setup.lora_rank:
        frugal = replace(frugal, strategy="zero3", offload="all" if hardware.gpu is not None else "none")
    return needs(model, frugal)
