"""Where a figure comes from: what stands at the head of the result files here."""

from __future__ import annotations

import datetime
import os
import platform
import sys
from importlib.metadata import version
from typing import Any

import psutil
import torch


def provenance(*packages: str) -> dict[str, Any]:
    """Command, date, machine and the versions of Python and of `packages`."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    gib = psutil.virtual_memory().total / 2**30
    return {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {gib:.0f} GiB, {gpu}",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }
