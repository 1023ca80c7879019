"""PURE. Where a result comes from: hardware, versions, date, command and commit."""

from __future__ import annotations

import datetime
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import raygpt

SECRET = re.compile("KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL|WEBHOOK", re.IGNORECASE)


def provenance(command: Sequence[str], *packages: str, device: torch.device | None = None) -> dict[str, Any]:
    """What stands beside every result; `packages` are named with their version beside torch, Python and raygpt. What
    cannot be found out is absent."""
    versions = {"raygpt": raygpt.__version__, "torch": torch.__version__, "python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if device is not None and device.type == "cuda":
        versions |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    found: dict[str, Any] = {
        "hardware": hardware(device or torch.device("cpu")),
        "versions": versions,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(command),
    }
    if hasattr(os, "getloadavg"):  # beside the cores it says whether the machine was this measurement's own
        found["load_average"] = round(os.getloadavg()[0], 1)
    if (now := commit()) is not None:
        found["commit"] = now
    return found


def settings_words(environ: Mapping[str, str]) -> list[str]:
    """`env RAYGPT_SECTION__KEY=value …` of the settings that come from the environment, to stand before the command
    that they belong to; [] without any. None that looks like a secret."""
    found = [
        f"{name}={value}"
        for name, value in sorted(environ.items())
        if name.startswith("RAYGPT_") and "__" in name and not SECRET.search(name) and "@" not in value
    ]
    return ["env", *found] if found else []


def hardware(device: torch.device) -> dict[str, Any]:
    """The device by name, the processor, its logical cores and threads in use, and the memory of the host."""
    cpu = _cpu_name()
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "cpu": cpu,
        "cores": f"{os.cpu_count()} logical cores",
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        found["gpus"] = torch.cuda.device_count()
    try:
        found["memory"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (ValueError, OSError, AttributeError):
        pass
    return found


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    except OSError:
        pass
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """Commit of the checkout that this code lies in, with a + where tracked files differ from it; None outside one."""
    where = Path(raygpt.__file__).resolve().parents[1]
    if not (where / ".git").exists():
        return None
    try:
        name = _git(where, "rev-parse", "--short=12", "HEAD")
        return name + ("+" if _git(where, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(where: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(where), *words], capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()


def this_command(module: str, arguments: Sequence[str] | None = None) -> list[str]:
    """The command line of a module with this process's arguments, or others, as it is typed in a checkout."""
    return ["python", "-m", module, *(sys.argv[1:] if arguments is None else arguments)]
