"""PURE. What a process runs on, in a few words: versions, system, processor."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import raygpt

PACKAGES = ("torch", "ray", "numpy", "transformers")


def environment() -> dict[str, str]:
    """{name: text}; a package that is not installed is absent."""
    found = {"raygpt": raygpt.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass
    return found | {"system": platform.platform(terse=True), "processor": f"{_processor()}, {os.cpu_count()} threads"}


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()
