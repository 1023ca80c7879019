"""The Ray cluster a job runs on: one started here, or the one that is already there."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from pathlib import Path

import ray

from raygpt.cluster.doctor.environment import check_environment
from raygpt.cluster.doctor.network import TOKEN_REFUSED, refused
from raygpt.cluster.nodes import asked_now
from raygpt.cluster.phases import CHECK, CONNECT, MACHINES
from raygpt.cluster.room import Need
from raygpt.cluster.starting import check_answers, check_shadows, check_start, usable_cpus
from raygpt.cluster.waiting import has_gone, refuse_what_never_fits, room_for
from raygpt.config import Scale
from raygpt.errors import UserError, one_line

OBJECT_STORE_BYTES = 1_000_000_000  # a local cluster's; the reader holds 0.3 GB at most
START_TRIES = 3
WAITING_PROCESSES = 4  # beside one a CPU: a run's reader, its mailbox and Ray's own actors find them started
# What Ray Train's controller reads from its environment.
TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a report waits for the next check: 2 s by default
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",  # of the seconds a node has left; one question to the head: 5 s
}

_own = False
_waited: tuple[Need, bool] | None = None  # what a joined cluster was waited for, and whether that was with GPUs
_actors: list[object] = []


def _say(line: str) -> None:
    print(line, flush=True)


def training_need(scale: Scale) -> Need:
    """The workers that a training cannot start without: of an elastic one the fewest."""
    return Need(scale.worker_range[0], scale.cpus_per_worker, scale.use_gpu)


def connect(
    scale: Scale,
    need: Need | None = None,
    *,
    object_store_bytes: int = OBJECT_STORE_BYTES,
    say: Callable[[str], None] = _say,
    mark: Callable[[str], object] = lambda phase: None,
) -> str:
    """Connect to Ray and return one sentence about it.

    An address from scale.address or RAY_ADDRESS means that cluster; without one a cluster of this machine is started,
    with enough logical CPUs for the workers. A cluster that is joined is waited for until it has room for what the job
    needs, and it has to hold the same software on every node; `say` is told what is waited for, `mark` which phase of
    the launch (`raygpt.cluster.phases`) has ended. Raises UserError when
    there is none at the address, too few CPUs or GPUs for the job, or a node is another than this one.
    """
    global _waited
    _waited = None
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    address = scale.address or os.environ.get("RAY_ADDRESS")
    asked_now()
    if not ray.is_initialized():
        if address and address != "local":
            _join(address, "scale.address" if scale.address else "RAY_ADDRESS")
        else:
            wanted = math.ceil(need.count * need.cpus) if need is not None else 0
            start(cpus=max(usable_cpus(), wanted), object_store_bytes=object_store_bytes)
    quiet()
    if need is not None and is_own():
        mark(CONNECT)
        refuse_what_never_fits(need)  # nothing grows and nobody else is there, so nothing is waited for
    elif need is not None:
        mark(CONNECT)
        with room_for(need, scale.wait_minutes, say) as gpu:
            mark(MACHINES)
            check_environment(scale.check_environment, say)
            mark(CHECK)
        _waited = need, gpu
    cpus = ray.cluster_resources().get("CPU", 0)
    where = f"at {address}" if address and address != "local" else "started on this machine"
    nodes = sum(node["Alive"] for node in ray.nodes())
    gpus = ray.cluster_resources().get("GPU", 0)
    return f"Ray cluster {where}: {nodes} node{'s' * (nodes != 1)}, {cpus:g} CPUs, {gpus:g} GPUs"


def start(*, cpus: int, gpus: int | None = None, object_store_bytes: int = OBJECT_STORE_BYTES) -> None:
    """A cluster of this machine that ends with this process. CPUs and GPUs are counted, not had. UserError where Ray
    cannot be started here."""
    global _own
    temporary = check_start()
    # beside anything else on this machine a worker at nice 15, Ray's default, hardly runs
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_num_workers_soft_limit", str(cpus + WAITING_PROCESSES))
    # nobody looks at the metrics of a cluster without a dashboard
    os.environ.setdefault("REPORTER_UPDATE_INTERVAL_MS", "60000")
    for attempt in range(START_TRIES):
        try:
            ray.init(
                address="local",  # whatever cluster another program of this machine has left its address of
                num_cpus=cpus,
                num_gpus=gpus,
                object_store_memory=object_store_bytes,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=temporary,
            )
            break
        except Exception as error:
            # Ray waits 30 s for its own processes, whatever else the machine has to do (ray/_private/node.py)
            late = "timed out during startup" in str(error)
            if isinstance(error, OSError) and not late:
                raise UserError(
                    f"Ray cannot start here ({one_line(error, 160)}): set RAY_TMPDIR to a short path that is writable, "
                    "and HOME to a folder that is there."
                ) from error
            if late and attempt + 1 == START_TRIES:
                raise UserError(
                    f"Ray did not start here in {START_TRIES} tries ({one_line(error, 160)}): try again when the "
                    "machine has less to do."
                ) from error
            if not late:
                raise
            ray.shutdown()
    _own = True
    _start_actors()


def _start_actors() -> None:
    """Have Ray Data's two actors of a cluster started when a run waits for them: each takes a second of a core."""
    try:
        from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
            get_or_create_autoscaling_coordinator,
        )
        from ray.data._internal.stats import get_or_create_stats_actor

        _actors[:] = [get_or_create_autoscaling_coordinator(), get_or_create_stats_actor()]
    except (ImportError, AttributeError):  # no part of Ray's interface: they start later then
        pass


def is_own() -> bool:
    """Whether the connected cluster was started by this process, and ends with it."""
    return _own and ray.is_initialized()


def train_environment() -> dict[str, str]:
    """What Ray Train's controller is to find in its environment; the user's own settings come first."""
    chosen = {name: os.environ.get(name, value) for name, value in TRAIN_ENVIRONMENT.items()}
    if is_own():  # nothing gives notice to a cluster of one process on this machine, and nobody looks at it
        return {**chosen, "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
    tracking = "1" if ray.is_initialized() and ray._private.worker.get_dashboard_url() else "0"
    return {"RAY_TRAIN_ENABLE_STATE_TRACKING": os.environ.get("RAY_TRAIN_ENABLE_STATE_TRACKING", tracking), **chosen}


def wants_gpu(scale: Scale) -> bool:
    """Whether workers get a GPU each; waits for nodes that went in the meantime, as while text was prepared on CPUs.

    Raises UserError when they should and the cluster has too few.
    """
    if _waited is not None and not is_own() and has_gone(*_waited):
        with room_for(_waited[0], scale.wait_minutes, _say):
            pass
    gpus = ray.cluster_resources().get("GPU", 0)
    use = gpus >= 1 if scale.use_gpu == "auto" else bool(scale.use_gpu)
    if use and gpus < scale.worker_range[0]:
        raise UserError(
            f"scale.num_workers={scale.worker_range[0]} needs a GPU for each worker but the cluster has {gpus:g}: "
            "lower it, add GPU nodes, or set scale.use_gpu=false."
        )
    return use


def quiet() -> None:
    """Ray's own progress and info lines off: raygpt says what the user needs."""
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _join(address: str, setting: str) -> None:
    global _own
    _own = False
    check_shadows(Path.cwd())
    check_answers(address, setting)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        found = refused(error)
        if found.text == TOKEN_REFUSED:
            raise UserError(f"{setting}={address}: {found.text}: {found.fix}.") from error
        reason = one_line(error, 160)
        raise UserError(
            f"no Ray cluster answers at {setting}={address} ({reason}): start one, mend the address, or leave it out "
            "to run on this machine."
        ) from error
