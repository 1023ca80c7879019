"""The sweep's driver: the search, the final runs over seeds, and what is written about them.

<run.storage>/<run.name>/
  config.yaml    sweep.json     the settings, and every trial with its figures
  search/        finals/        Ray Tune's experiments, which a killed sweep goes on from
  optuna.db      wandb/         the study; one W&B run per trial
  best.yaml      report.html    plots/    summary.json
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TextIO

import ray
from ray import tune

from raygpt import storage
from raygpt.classify.shared import Shared, make_shared
from raygpt.config import Config
from raygpt.config.settings import dump
from raygpt.errors import UserError
from raygpt.run.lock import RunLock
from raygpt.storage import Location
from raygpt.train.resolve import run_location
from raygpt.tune import finals
from raygpt.tune.plan import POPULATION, SweepPlan
from raygpt.tune.report import write_outcome
from raygpt.tune.results import UNFINISHED, TrialRecord, best_first, read_trials
from raygpt.tune.schedulers import make_scheduler, parameter_space
from raygpt.tune.search import ListSearch, make_search
from raygpt.tune.trial import classify_trainable
from raygpt.tune.watch import SweepBudget, WandbRuns, Watch

SEARCH, FINALS = "search", "finals"
# Tune's snapshot of a sweep may lie a second or more behind, and after a kill a trial goes on from the checkpoint named
# there. Those of nested trials hold one number, so plenty of them are kept.
NESTED_CHECKPOINTS = 100


@dataclass
class Phase:
    """One Tune experiment of a sweep and how it may use the cluster."""

    name: str
    trainable: Callable[..., None]
    resources: dict[str, float]
    search: Any
    trials: int
    scheduler: Any
    concurrent: int | None
    longest: int | None  # epochs of a trial that was not stopped early; None where trials have runs of their own
    keep_checkpoints: int = 2
    parameters: dict[str, Any] | None = None  # Tune's parameter space, where no searcher proposes


def run_sweep(plan: SweepPlan, again: str, stream: TextIO | None = None) -> int:
    """Run a checked sweep on the connected cluster; exit status 0, or 128 + signal when it was stopped.

    A sweep of the same name and place goes on where it stopped. `again` is the command that does so.
    """
    stream = stream or sys.stdout
    config = plan.config
    folder = run_location(config)
    say = lambda text: print(text, file=stream, flush=True)  # noqa: E731
    _check_resume(config, folder)
    lock = RunLock(folder)
    lock.acquire()
    outcome = "failed"
    try:
        say(plan.describe())
        storage.write_text(folder / "config.yaml", dump(config))
        budget = SweepBudget(plan.max_seconds, lambda: _spent(lock))
        shared = None
        if plan.task is not None:
            reinit = plan.space.largest("task.reinit_layers", config.task.reinit_layers)
            shared = make_shared(config, plan.task, say, metric=plan.metric, reinit_layers=int(reinit))
        with _Signals(say) as signals:
            began = time.monotonic()
            phase = search_phase(plan, shared, folder)
            trials = run_phase(phase, plan, folder, lock, stream)
            search_seconds = time.monotonic() - began
            if not budget.spent and signals.interrupted(trials):
                outcome = "stopped"
                say(f"Stopped; every finished epoch is kept. To go on: {again}")
                return 128 + (signals.number or signal.SIGINT)
            verdict = None
            if shared is not None and config.tune.top and best_first(trials, plan.mode):
                budget.max_seconds = None  # what has been searched is worth its final runs
                jobs = finals.final_jobs(plan, trials)
                done = run_phase(final_phase(plan, shared, jobs), plan, folder, lock, stream, final=True)
                if signals.interrupted(done):
                    outcome = "stopped"
                    say(f"Stopped in the final runs. To go on: {again}")
                    return 128 + (signals.number or signal.SIGINT)
                verdict = finals.judge(plan, folder, shared.task, jobs, done)
        lock.touch()
        for line in write_outcome(plan, folder, trials, verdict, lock.wall_seconds, search_seconds):
            say(line)
        outcome = "finished"
        return 0
    finally:
        lock.release(outcome)


def search_phase(plan: SweepPlan, shared: Shared | None, folder: Location) -> Phase:
    """The search's experiment."""
    config = plan.config
    metric = f"best_{plan.metric}"
    settings = config.tune
    search, count = make_search(config, plan.space, metric, plan.mode)
    scheduler = make_scheduler(settings, plan.space, plan.longest, config.run.seed)
    if shared is None:
        from raygpt.tune.nested import nested_trainable, resources

        return Phase(
            SEARCH,
            nested_trainable(plan, folder),
            resources(),
            search,
            count,
            scheduler,
            _nested_slots(plan),
            None,
            NESTED_CHECKPOINTS,
        )
    keep = 4 if settings.scheduler in POPULATION else 2
    return Phase(
        SEARCH,
        classify_trainable(plan, shared),
        {"cpu": shared.cpus, **({"gpu": shared.gpus} if shared.gpus else {})},
        search,
        count,
        scheduler,
        settings.concurrent,
        plan.longest,
        keep,
        parameter_space(settings, plan.space),
    )


def final_phase(plan: SweepPlan, shared: Shared, jobs: list[dict[str, Any]]) -> Phase:
    """The experiment of the final runs: every job to its end, nobody stopped early."""
    from ray.tune.schedulers import FIFOScheduler

    return Phase(
        FINALS,
        classify_trainable(plan, shared, final=True),
        {"cpu": shared.cpus, **({"gpu": shared.gpus} if shared.gpus else {})},
        ListSearch(jobs, f"best_{plan.metric}", plan.mode),
        len(jobs),
        FIFOScheduler(),
        plan.config.tune.concurrent,
        plan.longest,
    )


def run_phase(
    phase: Phase, plan: SweepPlan, folder: Location, lock: RunLock, stream: TextIO, *, final: bool = False
) -> list[TrialRecord]:
    """Run an experiment, or the rest of it, and return its trials. Finished trials are not run again."""
    config = plan.config
    _check_resources(phase.resources)
    home = folder / phase.name
    runs = WandbRuns(folder, config.track.wandb, config.track.wandb_project, config.to_dict(), phase.name)
    keys = list(plan.space.dimensions) if not final else ["configuration", "seed", *plan.space.dimensions]
    Watch(
        f"{config.run.name} {phase.name}",
        keys,
        plan.metric,
        plan.mode,
        stream,
        total=phase.trials,
        show_every=config.tune.show_every,
        spent_seconds=lock.wall_seconds,
        price_per_hour=config.track.price_per_hour,
        runs=runs,
    )
    trainable = tune.with_resources(phase.trainable, phase.resources)
    if tune.Tuner.can_restore(home.path, storage_filesystem=home.fs):
        tuner = tune.Tuner.restore(
            home.path,
            trainable,
            resume_unfinished=True,
            resume_errored=False,
            param_space=phase.parameters,
            storage_filesystem=home.fs,
        )
    else:
        tuner = tune.Tuner(
            trainable,
            param_space=phase.parameters,
            tune_config=tune.TuneConfig(
                metric=f"best_{plan.metric}",
                mode=plan.mode,
                search_alg=phase.search,
                scheduler=phase.scheduler,
                num_samples=phase.trials,
                max_concurrent_trials=phase.concurrent,
                reuse_actors=config.tune.scheduler not in POPULATION,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=phase.name,
                storage_path=folder.path,
                storage_filesystem=folder.fs,
                failure_config=tune.FailureConfig(max_failures=config.tune.max_failures),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=phase.keep_checkpoints),
                callbacks=[Watch.current],  # type: ignore[list-item]
                stop=SweepBudget.current,
                verbose=0,
            ),
        )
    grid = tuner.fit()
    for note in runs.notes[1:]:
        print(note, file=stream, flush=True)
    return read_trials(grid, folder, plan.metric, plan.mode, phase.longest)


def prepare_environment() -> None:
    """Tune's switches, to be set before Ray starts: quiet, snapshots every second, no loggers of its own but JSON."""
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1")
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # see _Signals
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "0")
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    os.environ.setdefault("TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "60")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")


def _check_resume(config: Config, folder: Location) -> None:
    """Refuse to go on with another space or search than the sweep was begun with."""
    import yaml

    exists = storage.exists(folder / SEARCH)
    if config.run.resume == "must" and not exists:
        raise UserError(f"run.resume=must but there is no sweep at {folder.uri}: start it first, or mend run.name.")
    if not exists:
        return
    if config.run.resume == "never":
        raise UserError(f"run.resume=never but {folder.uri} holds a sweep: choose another run.name.")
    try:
        saved = yaml.safe_load(storage.read_text(folder / "config.yaml"))
    except FileNotFoundError:
        return
    now = config.to_dict()
    fixed = [("tune", key) for key in ("space", "search", "scheduler", "trials", "job", "metric")]
    fixed += [("run", "seed"), ("task", "train"), ("task", "split_seed"), ("model", "init_from"), ("train", "epochs")]
    changed = [f"{a}.{b}" for a, b in fixed if saved.get(a, {}).get(b) != now[a][b]]
    if changed:
        raise UserError(
            f"sweep {folder.uri} was begun with other settings ({', '.join(changed)}): set them back to go on with it, "
            "or give the new sweep a run.name of its own."
        )


def _spent(lock: RunLock) -> float:
    lock.touch()
    return lock.wall_seconds


def _check_resources(resources: dict[str, float]) -> None:
    """Raises UserError for a trial that no node of the cluster can hold: it would wait for ever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    names = {"cpu": "CPU", "gpu": "GPU"}
    if not any(all(node.get(names[key], 0) >= value for key, value in resources.items()) for node in nodes):
        wanted = ", ".join(f"tune.{key}s_per_trial={value:g}" for key, value in resources.items())
        most = ", ".join(f"{max((n.get(name, 0) for n in nodes), default=0):g} {name}s" for name in names.values())
        raise UserError(f"{wanted} is more than any node of the cluster has ({most} at most): lower it or add a node.")


def _nested_slots(plan: SweepPlan) -> int:
    """How many training jobs fit side by side; more would only wait for each other's workers."""
    scale = plan.config.scale
    cpus = ray.cluster_resources().get("CPU", 1)
    each = scale.worker_range[0] * scale.cpus_per_worker + (0.5 if plan.config.data.backend == "ray" else 0.1)
    slots = max(1, int(cpus // each))
    gpus = ray.cluster_resources().get("GPU", 0)
    if scale.use_gpu is not False and gpus >= 1:
        slots = max(1, min(slots, int(gpus // scale.worker_range[0])))
    return min(slots, plan.config.tune.concurrent or slots)


class _Signals:
    """Ctrl-C and SIGTERM: the first has Tune save the experiment and stop, a second Ctrl-C leaves at once.

    Tune would take Ctrl-C for itself and not say so afterwards; it listens to SIGUSR1 as well, so that is what it gets.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.number = say, 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def interrupted(self, trials: list[TrialRecord]) -> bool:
        """Whether somebody stopped the sweep."""
        return bool(self.number) or any(trial.status == UNFINISHED for trial in trials)

    def _handle(self, number: int, _: object) -> None:
        again, self.number = bool(self.number), signal.Signals(number)
        if again or not callable(signal.getsignal(signal.SIGUSR1)):
            raise KeyboardInterrupt
        self.say("Stopping: saving the sweep (Ctrl-C again leaves at once).")
        os.kill(os.getpid(), signal.SIGUSR1)
