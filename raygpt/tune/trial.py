"""One trial of a classification sweep: a function that Ray Tune runs, with a checkpoint after every epoch."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ray import tune

from raygpt import storage
from raygpt.classify.shared import Shared, load_state, save_state, start_training
from raygpt.classify.training import Training
from raygpt.errors import one_line
from raygpt.run.frame import run_location
from raygpt.tune.plan import SweepPlan
from raygpt.tune.space import decode

FAILURES = "failures"
OUT_OF_MEMORY = "out of memory"
# parameters of the sweep's own, beside settings: which final run of which configuration this is
FINAL_KEYS = ("configuration", "seed")


class TrialOutOfMemory(Exception):
    """The trial needs more memory than it may take; its configuration stays on record and the sweep goes on."""


def classify_trainable(plan: SweepPlan, shared: Shared, *, final: bool = False) -> Callable[[dict[str, Any]], None]:
    """Tune's trainable for a trial of a classification sweep, or for one of its final runs."""
    return tune.with_parameters(
        classify_trial,
        shared=shared,
        sweep=run_location(plan.config).uri,
        memory_gb=plan.config.tune.memory_gb,
        final=final,
    )


def classify_trial(
    params: dict[str, Any], shared: Shared, sweep: str, memory_gb: float | None = None, final: bool = False
) -> None:
    """Train one configuration, reporting after every epoch; goes on from Tune's checkpoint after a kill or exploit.

    `sweep` is the sweep's folder. A final run takes its seed from `params` and keeps its validation logits.
    """
    name = tune.get_context().get_trial_id()
    mark = storage.locate(sweep) / FAILURES / f"{name}.json"
    if storage.exists(mark):
        # a second attempt would end the same way
        raise TrialOutOfMemory(json.loads(storage.read_text(mark))["reason"])
    torch.set_num_threads(max(1, int(shared.cpus)))
    _limit_memory(shared.gpus, memory_gb)
    try:
        changes = decode({key: value for key, value in params.items() if key not in FINAL_KEYS})
        if final:
            changes["run.seed"] = int(params["seed"])
        training = start_training(shared, changes, keep_val=final)
        checkpoint = tune.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                load_state(training, Path(folder))
        for record in training.run():
            report = {**record, f"best_{shared.metric}": _best(training), "best_epoch": training.progress.best_epoch}
            with tempfile.TemporaryDirectory() as folder:
                save_state(training, Path(folder))
                tune.report(report, checkpoint=tune.Checkpoint.from_directory(folder))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = one_line(error, 300)
        storage.write_text(mark, json.dumps({"reason": f"{OUT_OF_MEMORY}: {reason}", "params": params}) + "\n")
        raise TrialOutOfMemory(f"{OUT_OF_MEMORY}: {reason}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch, on a GPU or a CPU, or Python could not get memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text or "cannot allocate memory" in text


def _best(training: Training) -> float:
    best = training.progress.best
    return -best if training.metric == "loss" else best


def _limit_memory(gpus: float, memory_gb: float | None) -> None:
    """Hold the trial to its share: Ray counts fractions of a GPU but does not enforce them."""
    if 0 < gpus < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(gpus)
    if memory_gb is not None:
        import resource

        status = Path("/proc/self/status").read_text() if os.path.exists("/proc/self/status") else ""
        held = next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmData:")), 0)
        # of private memory, on top of what the process holds already; the hard limit stays, for the next trial
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (held + int(memory_gb * 1e9), hard))
