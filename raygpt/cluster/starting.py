"""What keeps Ray from starting or answering, found before Ray is asked: each is one sentence within seconds."""

from __future__ import annotations

import math
import os
import socket
import sys
import tempfile
import threading
from pathlib import Path

from raygpt.cluster import container
from raygpt.errors import UserError

# Below Ray's temp folder its sockets' names take up to this many characters, of the 107 that Linux allows in all:
# /ray/session_2026-11-27_14-25-14_213466_1234567/sockets/plasma_store.1
SOCKET_NAME, SOCKET_PATH = 71, 107
CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 12.0
# What a worker imports, by its top-level names: a file of the user's that is called so comes before it there.
IMPORTED = frozenset(
    {
        *("ray", "raygpt", "torch", "numpy", "pyarrow", "tokenizers", "transformers", "datasets", "safetensors"),
        *("deepspeed", "wandb", "boto3", "botocore", "yaml", "pydantic", "psutil", "zstandard", "aiohttp"),
    }
)  # fmt: skip


def usable_cpus() -> int:
    """CPUs that this process may use: of the machine's those of its affinity, at most its container's quota."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = container.cpus()
    return max(1, min(cpus, math.ceil(quota))) if quota is not None else cpus


def check_start() -> str | None:
    """The temp folder that Ray has to be given, None for its own choice. UserError where none will do, and for a file
    of the current folder that would be imported in place of a library."""
    check_shadows(Path.cwd())
    name = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    chosen = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if len(chosen) + SOCKET_NAME <= SOCKET_PATH:
        if not os.access(chosen, os.W_OK | os.X_OK):
            raise UserError(f"Ray cannot start: {name}={chosen} is not writable: set RAY_TMPDIR to a folder that is.")
        return None
    short = Path("/tmp")
    if os.access(short, os.W_OK | os.X_OK):
        return str(short / "ray")
    raise UserError(
        f"Ray cannot start: the path {name}={chosen} is too long for its sockets: set RAY_TMPDIR to one of at most "
        f"{SOCKET_PATH - SOCKET_NAME} characters."
    )


def check_shadows(folder: Path) -> None:
    """UserError for a module in `folder` that Ray's workers, which look there first, would take for a library's."""
    for name in sorted(IMPORTED | (sys.stdlib_module_names - {"test", "this", "antigravity"})):
        for path in (folder / f"{name}.py", folder / name / "__init__.py"):
            if path.is_file() and not _is_itself(name, path):
                raise UserError(
                    f"{path} would be imported in place of the library {name} by Ray's workers: rename it, or start "
                    "raygpt in another folder."
                )


def _is_itself(name: str, path: Path) -> bool:
    """Whether `path` is the library: one who works on raygpt starts it in its checkout."""
    loaded = getattr(sys.modules.get(name), "__file__", None)
    return loaded is not None and os.path.exists(loaded) and os.path.samefile(loaded, path)


def check_answers(address: str, setting: str) -> None:
    """UserError, naming the setting, where no Ray cluster answers at `address` within seconds."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return  # auto, or what Ray itself has to understand
    way_out = (
        f"start one, mend {setting}, or {'unset it' if setting.isupper() else 'leave it out'} to run on this machine"
    )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"no Ray cluster answers at {setting}={address} ({reason}): {way_out}.") from error
    if not address.startswith("ray://") and not _is_ray(address):
        raise UserError(f"what answers at {setting}={address} is no Ray cluster: {way_out}.")


def _is_ray(address: str) -> bool:
    """Whether a head node's control store answers there in time; true as well where Ray no longer offers the look."""
    try:
        from ray._raylet import GcsClient  # type: ignore[attr-defined]
    except ImportError:
        return True
    answered: list[bool] = []

    def ask() -> None:
        try:
            answered.append(bool(GcsClient(address=address)))
        except Exception:  # authentication among them: `ray.init` says that in its own words
            answered.append("token" in str(sys.exc_info()[1]).lower())

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    return bool(answered and answered[0])
