"""PURE. What torch.compile has made, as one file beside the checkpoints: a restarted run need not compile again.

A cold start compiles for minutes; torch's cache artifacts bring a second one down to what loading takes.

Trust: checkpoints load without unpickling, these artifacts do not. torch keeps its graphs as pickles and its kernels as
binaries, and runs both: whoever may write to this file may run code in the job. So it is read from a run's own folder
alone, when that run is resumed, never from what model.init_from names. The sha256 in it finds damage, it proves no
origin. Without train.compile the file is neither written nor read; deleting it costs one compilation.

Rank 0 writes its own: graphs name their device, so of a host with several GPUs the first is served, the others compile.
"""

from __future__ import annotations

import hashlib
import json
import platform

import torch

NAME = "compile-cache.bin"  # in the run folder
MAGIC = b"raygpt compile cache 1\n"


def pack(device: torch.device) -> bytes | None:
    """Everything this process has compiled, as a file's contents; None where torch cannot say or there is nothing."""
    save = getattr(torch.compiler, "save_cache_artifacts", None)
    found = save() if save is not None else None
    if not found:
        return None
    payload = found[0]
    facts = _made_by(device) | {"bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
    return MAGIC + json.dumps(facts).encode() + b"\n" + payload


def unpack(data: bytes, device: torch.device) -> str | None:
    """Put the contents of such a file into torch's caches. Returns None, or why they were ignored: never an error."""
    if not data.startswith(MAGIC):
        return "it is no compile cache of this version"
    head, _, payload = data[len(MAGIC) :].partition(b"\n")
    try:
        facts = json.loads(head)
        expected = facts.pop("bytes"), facts.pop("sha256")
    except (ValueError, KeyError, TypeError, AttributeError):
        return "its head is damaged"
    if (len(payload), hashlib.sha256(payload).hexdigest()) != expected:
        return "it is damaged (sha256 differs)"
    here = _made_by(device)
    other = [f"{key} {facts.get(key)} instead of {value}" for key, value in here.items() if facts.get(key) != value]
    if other:
        return f"it was made with {', '.join(other)}"
    load = getattr(torch.compiler, "load_cache_artifacts", None)
    try:
        if load is None or load(payload) is None:
            return "torch does not take it"
    except Exception as error:  # a cache: whatever is wrong with it, compiling is the way out
        return f"torch does not take it ({type(error).__name__}: {error})"
    return None


def _made_by(device: torch.device) -> dict[str, str]:
    """What must agree for the artifacts to mean anything here."""
    gpu = device.type == "cuda"
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cuda": str(torch.version.cuda),
        "device": torch.cuda.get_device_name(device) if gpu else platform.machine(),
    }
