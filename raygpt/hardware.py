"""PURE. What the device can do, and the choices that follow from it, each with its reason."""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from raygpt.errors import UserError


@dataclass(frozen=True)
class GpuSpec:
    """Dense datasheet peaks in FLOP/s (no sparsity) and memory in bytes; None where the chip lacks the type."""

    name: str
    memory: int
    fp32: float
    tf32: float | None
    fp16: float | None
    bf16: float | None

    def peak(self, precision: str) -> float | None:
        """FLOP/s the datasheet gives for a precision (fp32, tf32, bf16, fp16)."""
        return {"fp32": self.fp32, "tf32": self.tf32, "bf16": self.bf16, "fp16": self.fp16}[precision]


GB = 10**9
T = 1e12
# Vendor datasheets, dense figures.
GPUS = (
    GpuSpec("B200", 192 * GB, 75 * T, 1125 * T, 2250 * T, 2250 * T),
    GpuSpec("GH200 144G HBM3e", 144 * GB, 67 * T, 494.7 * T, 989.4 * T, 989.4 * T),
    GpuSpec("GH200 480GB", 96 * GB, 67 * T, 494.7 * T, 989.4 * T, 989.4 * T),  # its name counts the CPU's memory
    GpuSpec("GH200", 96 * GB, 67 * T, 494.7 * T, 989.4 * T, 989.4 * T),
    GpuSpec("H200", 141 * GB, 67 * T, 494.7 * T, 989.4 * T, 989.4 * T),
    GpuSpec("H200 NVL", 141 * GB, 60 * T, 417.5 * T, 835 * T, 835 * T),
    GpuSpec("H100 PCIe", 80 * GB, 51.2 * T, 378 * T, 756 * T, 756 * T),
    GpuSpec("H100 NVL", 94 * GB, 60 * T, 417.5 * T, 835 * T, 835 * T),
    GpuSpec("H100", 80 * GB, 67 * T, 494.7 * T, 989.4 * T, 989.4 * T),
    GpuSpec("A100", 40 * GB, 19.5 * T, 156 * T, 312 * T, 312 * T),
    GpuSpec("A10G", 24 * GB, 31.2 * T, 35 * T, 70 * T, 70 * T),
    GpuSpec("A10", 24 * GB, 31.2 * T, 62.5 * T, 125 * T, 125 * T),
    GpuSpec("L40S", 48 * GB, 91.6 * T, 183 * T, 362 * T, 362 * T),
    GpuSpec("L40", 48 * GB, 90.5 * T, 90.5 * T, 181 * T, 181 * T),
    GpuSpec("L4", 24 * GB, 30.3 * T, 60 * T, 121 * T, 121 * T),
    GpuSpec("RTX 6000 Ada", 48 * GB, 91.1 * T, 182.1 * T, 364.2 * T, 364.2 * T),
    GpuSpec("A6000", 48 * GB, 38.7 * T, 77.4 * T, 154.8 * T, 154.8 * T),
    GpuSpec("RTX 4090", 24 * GB, 82.6 * T, 82.6 * T, 165.2 * T, 165.2 * T),
    GpuSpec("RTX 3090", 24 * GB, 35.6 * T, 35.6 * T, 71 * T, 71 * T),
    GpuSpec("V100-PCIE", 16 * GB, 14 * T, None, 112 * T, None),
    GpuSpec("V100", 16 * GB, 15.7 * T, None, 125 * T, None),
    GpuSpec("T4", 16 * GB, 8.1 * T, None, 65 * T, None),
)


def gpu_spec(device: torch.device | None = None) -> GpuSpec | None:
    """Table entry of a CUDA device (default: the current one); None on a CPU or for a GPU the table lacks."""
    if not torch.cuda.is_available() or (device is not None and device.type != "cuda"):
        return None
    return spec_named(torch.cuda.get_device_name(device))


# Words of a device's name that say whose it is or how it is plugged in. Every other one makes another chip of it:
# Laptop, Ti, SUPER, NVL, a D for China, MIG for a slice of one.
_MAKER = {"nvidia", "tesla", "geforce", "rtx"}
_FORM = re.compile(r"sxm\d?|pcie|generation|hbm\d\w?|(?P<memory>\d+)gb")


def spec_named(name: str) -> GpuSpec | None:
    """Table entry for a device name as the driver prints it, with the memory that the name says; None for another chip.

    All words have to be known: "NVIDIA A100 80GB PCIe" is an A100 of 80 GB, an L40 is no L4, a slice of an A100 none.
    """
    words = _words(name)
    for spec in sorted(GPUS, key=lambda spec: -len(_words(spec.name))):  # an H100 PCIe before an H100
        own = _words(spec.name)
        rest = [word for word in words if word not in own]
        forms = [_FORM.fullmatch(word) for word in rest]
        if set(own) <= set(words) and words[0] == own[0] and all(forms):
            memory = next((int(form["memory"]) * GB for form in forms if form and form["memory"]), spec.memory)
            return replace(spec, memory=memory)
    return None


def _words(name: str) -> list[str]:
    words = re.split(r"[\s-]+", name.strip().lower())
    while len(words) > 1 and words[0] in _MAKER:
        words = words[1:]
    return words


def choose_precision(wanted: str, device: torch.device) -> tuple[str, str]:
    """(precision, reason): the user's choice if the device can do it, or the best one for the device.

    Raises UserError for a precision the device cannot do.
    """
    if device.type != "cuda":
        if wanted == "tf32":
            raise UserError("train.precision=tf32 needs an NVIDIA GPU of compute capability 8.0 or newer: use fp32.")
        if wanted == "auto":
            return "fp32", "no GPU: fp32 is fastest and exact on this CPU"
        return wanted, "as set"
    major, minor = torch.cuda.get_device_capability(device)
    name = torch.cuda.get_device_name(device)
    if major < 8 and wanted in ("bf16", "tf32"):
        raise UserError(
            f"train.precision={wanted} is not supported by {name} (compute capability {major}.{minor}): use fp16."
        )
    if wanted != "auto":
        return wanted, "as set"
    if major >= 8:
        return "bf16", f"{name} has bf16 tensor cores: fp32's range, no loss scaling"
    if major >= 7:
        return "fp16", f"{name} (compute capability {major}.{minor}) has no bf16: fp16 with dynamic loss scaling"
    return "fp32", f"{name} (compute capability {major}.{minor}) has no tensor cores"


def mfu(tokens_per_second: float, flops_per_token: float, precision: str, world_size: int) -> float | None:
    """Share of the datasheet peak that training reaches; None where the device's peak is unknown."""
    spec = gpu_spec()
    peak = spec.peak(precision) if spec else None
    return tokens_per_second * flops_per_token / (peak * world_size) if peak else None


def indexed(device: torch.device) -> torch.device:
    """The same device with its number: several of torch.cuda's functions refuse plain "cuda"."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", torch.cuda.current_device())


def to_device(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """Token ids as int64, and floats as they are, on the device. By way of pinned memory to a GPU, so that the caller
    need not wait."""
    rows = torch.from_numpy(values if values.dtype.kind == "f" else values.astype(np.int64, copy=False))
    if device.type == "cuda":
        return rows.pin_memory().to(device, non_blocking=True)
    return rows


KERNELS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
_attention = ExitStack()  # what `prefer_attention` chose, for the rest of the process


def prefer_attention(device: torch.device, kernel: str = "auto") -> str:
    """Put an attention kernel first (cudnn, flash, efficient, math), process-wide; returns a sentence about it.

    `auto`: on Hopper cuDNN's takes 1/1.7 to 1/2.3 of the time of torch's own first choice for training shapes; on
    Ampere, Ada and small Blackwells it is no faster or slower (six GPUs, huggingface/transformers#48163). It is an
    order, no restriction: what a kernel cannot do (fp32 with cuDNN's, say) goes on to the next. To be called before
    anything is compiled, as that fixes the kernel.
    """
    _attention.close()
    reason = "as set"
    if kernel == "auto":
        if device.type != "cuda" or torch.cuda.get_device_capability(device) != (9, 0):
            return "attention: torch's own order of kernels"
        kernel, reason = "cudnn", "fastest on Hopper"
    first = KERNELS[kernel]
    order = [first, *(other for other in KERNELS.values() if other != first)]
    try:
        _attention.enter_context(sdpa_kernel(order, set_priority=True))
    except TypeError:  # before torch 2.6
        return f"attention: torch's own order of kernels, as this torch cannot put {kernel} first"
    return f"attention: {kernel} first ({reason})"
