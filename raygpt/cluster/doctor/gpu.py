"""Driver, CUDA and torch's build against the GPUs that are here, with the wheel that fits.

What the driver has is asked of nvidia-smi, which also sees a GPU that Ray has hidden from this process.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from raygpt.cluster.doctor.finding import Finding, fail, ok, skipped, warn
from raygpt.errors import one_line

QUERY = "--query-gpu=name,compute_cap,driver_version,memory.total"
SMI_SECONDS = 30.0
KERNEL_SECONDS = 120.0  # torch's import and a CUDA context, on a machine that is busy
WHEELS = "https://download.pytorch.org/whl"
# cu126 is the only wheel with kernels below compute capability 7.5, to torch 2.14 (pytorch #172352, #190385)
OLD_WHEEL = f"pip install 'torch<=2.14' --index-url {WHEELS}/cu126"
# The least driver of a CUDA major version (CUDA Toolkit release notes, minor version compatibility).
LEAST_DRIVER = {11: (450, 80), 12: (525, 60), 13: (580, 65)}
KERNEL = "import torch; print(float((torch.ones(8, 8, device='cuda') @ torch.ones(8, 8, device='cuda')).sum()))"


@dataclass(frozen=True)
class Gpu:
    """One GPU as the driver names it; capability (major, minor), memory in MiB."""

    name: str
    capability: tuple[int, int]
    driver: str
    memory: int


@dataclass(frozen=True)
class Build:
    """torch's: its version, the CUDA it was built with (None: none), and what its kernels are compiled for."""

    torch: str
    cuda: str | None
    arch_list: tuple[str, ...]


def gpu_checks() -> list[Finding]:
    """The findings about this machine's GPUs; at least one."""
    gpus = gpus_here()
    if isinstance(gpus, Finding):
        return [gpus]
    found = build_findings(gpus, build_here())
    return [*found, kernel_runs()] if all(each.status != "fail" for each in found) else found


def gpus_here() -> list[Gpu] | Finding:
    """What nvidia-smi lists, or the finding about why it lists nothing."""
    if shutil.which("nvidia-smi") is None:
        if os.path.exists("/proc/driver/nvidia/version"):
            return warn("driver", "the kernel has an NVIDIA driver but nvidia-smi is not on PATH", "add it to PATH")
        return skipped("driver", "no NVIDIA driver here: training runs on the CPU")
    try:
        done = subprocess.run(
            ["nvidia-smi", QUERY, "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=SMI_SECONDS,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return fail("driver", f"nvidia-smi does not answer ({one_line(error)})", "restart the machine or its driver")
    if done.returncode or "No devices" in done.stdout:
        return fail(
            "driver",
            f"nvidia-smi finds no GPU: {' '.join((done.stdout + done.stderr).split())[:160]}",
            "install the driver for this kernel, or take an image that has it (AWS: Deep Learning Base AMI)",
        )
    return parse_gpus(done.stdout)


def parse_gpus(text: str) -> list[Gpu]:
    """nvidia-smi's rows `name, compute capability, driver, MiB`."""
    gpus = []
    for line in text.strip().splitlines():
        name, capability, driver, memory = (part.strip() for part in line.split(","))
        major, _, minor = capability.partition(".")
        gpus.append(Gpu(name, (int(major), int(minor or 0)), driver, _mib(memory)))
    return gpus


def _mib(text: str) -> int:
    """MiB, 0 where the driver tells none: a GPU that shares the host's memory says [N/A]."""
    try:
        return int(float(text))
    except ValueError:
        return 0


def build_here() -> Build:
    import torch

    # get_arch_list() is empty in a process without a visible GPU, such as a Ray task that asked for none
    flags = getattr(torch._C, "_cuda_getArchFlags", lambda: None)() or ""
    return Build(torch.__version__, torch.version.cuda, tuple(flags.split()))


def runs_on(capability: tuple[int, int], arch_list: Sequence[str]) -> bool:
    """Whether a build has kernels for a GPU: binary code of the same major version and no newer minor one, or PTX
    (compute_80) that the driver compiles for any newer GPU. `sm_90a` runs on 9.0 alone."""
    for arch in arch_list:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", arch)
        if match is None:
            continue
        kind, built, special = match[1], (int(match[2]), int(match[3])), match[4]
        if built == capability:
            return True
        if special:
            continue
        if kind == "compute" and built <= capability:
            return True
        if kind == "sm" and built[0] == capability[0] and built[1] <= capability[1]:
            return True
    return False


def build_findings(gpus: Sequence[Gpu], build: Build) -> list[Finding]:
    """Driver, and torch's build, against the GPUs."""
    kinds = ", ".join(sorted({f"{gpu.name} ({gpu.memory / 1024:.0f} GiB)" for gpu in gpus}))
    drivers = sorted({gpu.driver for gpu in gpus})
    found = [ok("driver", f"{len(gpus)} x {kinds}, driver {', '.join(drivers)}")]
    lowest = min(gpu.capability for gpu in gpus)
    wheel = wheel_for(lowest, drivers[0])
    if build.cuda is None:
        return [*found, fail("torch", f"torch {build.torch} is built without CUDA but there is a GPU", wheel)]
    needs = LEAST_DRIVER.get(int(build.cuda.split(".")[0]))
    if needs is not None and _version(drivers[0]) < needs:
        text = f"torch {build.torch} needs driver {needs[0]}.{needs[1]} for CUDA {build.cuda}, here is {drivers[0]}"
        return [*found, fail("torch", text, f"update the driver, or {wheel}")]
    for gpu in gpus:
        if not runs_on(gpu.capability, build.arch_list):
            sm = f"sm_{gpu.capability[0]}{gpu.capability[1]}"
            text = f"torch {build.torch} has no kernels for {gpu.name} ({sm}; it has {' '.join(build.arch_list)})"
            return [*found, fail("torch", text, wheel)]
    return [*found, ok("torch", f"torch {build.torch}, CUDA {build.cuda}, has kernels for every GPU here")]


def wheel_for(capability: tuple[int, int], driver: str) -> str:
    """The command that installs a torch with kernels for this GPU and a CUDA that this driver can do."""
    if capability < (7, 5):
        return OLD_WHEEL
    if _version(driver) >= LEAST_DRIVER[13]:
        return "pip install torch"
    # Blackwell came with CUDA 12.8
    return f"pip install torch --index-url {WHEELS}/{'cu128' if capability >= (10, 0) else 'cu126'}"


def kernel_runs() -> Finding:
    """A kernel on the GPU, in a process of its own that sees all of them."""
    hidden = {"CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    try:
        done = subprocess.run(
            [sys.executable, "-c", KERNEL], capture_output=True, text=True, env=environment, timeout=KERNEL_SECONDS
        )
    except subprocess.TimeoutExpired:
        return fail("kernel", f"no kernel ran within {KERNEL_SECONDS:.0f} s", "see `nvidia-smi` for a GPU that hangs")
    if done.returncode or done.stdout.strip() != "512.0":
        said = (done.stderr.strip() or done.stdout.strip() or "no answer").splitlines()[-1][:200]
        return fail("kernel", f"a matrix product on the GPU failed: {said}", "mend the driver; see `dmesg | grep Xid`")
    return ok("kernel", "a matrix product on the GPU is right")


def _version(driver: str) -> tuple[int, int]:
    parts = [int(part) for part in re.findall(r"\d+", driver)[:2]]
    return (parts[0], parts[1]) if len(parts) == 2 else (parts[0] if parts else 0, 0)
