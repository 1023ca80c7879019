"""One trial of a classification sweep: a function that Ray Tune runs, with a checkpoint after every epoch."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from ray import tune
from safetensors.torch import load_file, save_file

from raygpt import storage
from raygpt.classify.training import EncodedTask, Recipe, Training
from raygpt.config.settings import config_from_dict, config_with
from raygpt.model.gpt import GPT
from raygpt.parallel.weights import load_weights
from raygpt.tune.space import decode

STATE_TENSORS, STATE_VALUES = "state.safetensors", "state.json"
FAILURES = "failures"
OUT_OF_MEMORY = "out of memory"
# parameters of the sweep's own, beside settings: which final run of which configuration this is
FINAL_KEYS = ("configuration", "seed")


class TrialOutOfMemory(Exception):
    """The trial needs more memory than it may take; its configuration stays on record and the sweep goes on."""


@dataclass(frozen=True)
class Shared:
    """What all trials of a sweep share. `origin` is where the base weights lie, `sweep` the sweep's folder."""

    config: dict[str, Any]
    task: EncodedTask
    origin: str
    metric: str
    sweep: str
    cpus: float
    gpus: float
    memory_gb: float | None = None
    final: bool = False


def classify_trial(params: dict[str, Any], shared: Shared) -> None:
    """Train one configuration, reporting after every epoch; goes on from Tune's checkpoint after a kill or exploit."""
    name = tune.get_context().get_trial_id()
    mark = storage.locate(shared.sweep) / FAILURES / f"{name}.json"
    if storage.exists(mark):
        # a second attempt would end the same way
        raise TrialOutOfMemory(json.loads(storage.read_text(mark))["reason"])
    torch.set_num_threads(max(1, int(shared.cpus)))
    _limit_memory(shared)
    try:
        training = start_training(params, shared)
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
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        storage.write_text(mark, json.dumps({"reason": f"{OUT_OF_MEMORY}: {reason}", "params": params}) + "\n")
        raise TrialOutOfMemory(f"{OUT_OF_MEMORY}: {reason}") from error


def start_training(params: dict[str, Any], shared: Shared) -> Training:
    """The training of one configuration at its beginning."""
    settings = {key: value for key, value in params.items() if key not in FINAL_KEYS}
    if shared.final:
        settings["run.seed"] = int(params["seed"])
    config = config_with(config_from_dict(shared.config), decode(settings), "trial")
    device = torch.device("cuda" if shared.gpus > 0 and torch.cuda.is_available() else "cpu")
    base = base_model(shared.origin)
    return Training(base, shared.task, Recipe.from_config(config), device, metric=shared.metric, keep_val=shared.final)


@lru_cache(maxsize=1)
def base_model(origin: str) -> GPT:
    """The model every trial starts from, read once per process. Callers leave it as it is."""
    return load_weights(origin)[0]


def save_state(training: Training, folder: Path) -> None:
    """Write what `load_state` goes on from."""
    tensors, values = training.state()
    save_file(tensors, folder / STATE_TENSORS)
    (folder / STATE_VALUES).write_text(json.dumps(values))


def load_state(training: Training, folder: Path) -> None:
    """Bring a training to where `save_state` left it."""
    training.restore(load_file(folder / STATE_TENSORS), json.loads((folder / STATE_VALUES).read_text()))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch, on a GPU or a CPU, or Python could not get memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text or "cannot allocate memory" in text


def _best(training: Training) -> float:
    best = training.progress.best
    return -best if training.metric == "loss" else best


def _limit_memory(shared: Shared) -> None:
    """Hold the trial to its share: Ray counts fractions of a GPU but does not enforce them."""
    if 0 < shared.gpus < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(shared.gpus)
    if shared.memory_gb is not None:
        import resource

        status = Path("/proc/self/status").read_text() if os.path.exists("/proc/self/status") else ""
        held = next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmData:")), 0)
        # of private memory, on top of what the process holds already; the hard limit stays, for the next trial
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (held + int(shared.memory_gb * 1e9), hard))
