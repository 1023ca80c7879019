"""The sweep's driver: the search, the final runs over seeds, and what is written about them.

<run.storage>/<run.name>/
  config.yaml    sweep.json     the settings, and every trial with its figures
  search/        finals/        Ray Tune's experiments, which a killed sweep goes on from
  optuna.db      wandb/         the study; one W&B run per trial
  best.yaml      report.html    plots/    summary.json
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TextIO

import ray
from ray import tune

from raygpt import storage
from raygpt.classify.shared import Shared, make_shared
from raygpt.errors import UserError
from raygpt.run.frame import FINISHED, STOPPED, Outcome, Run, check_start, check_unchanged, run_job
from raygpt.run.stop import BUDGET
from raygpt.tune import finals
from raygpt.tune.nested import Trainings, nested_trainable, resources
from raygpt.tune.plan import POPULATION, SweepPlan
from raygpt.tune.report import summarise, write_outcome
from raygpt.tune.results import RUNS, UNFINISHED, TrialRecord, best_first, read_trials
from raygpt.tune.schedulers import make_scheduler, parameter_space
from raygpt.tune.search import ListSearch, make_search
from raygpt.tune.snapshot import mend_snapshots
from raygpt.tune.trial import classify_trainable
from raygpt.tune.wandb_runs import WandbRuns
from raygpt.tune.watch import SweepBudget, Watch

SEARCH, FINALS = "search", "finals"
# Tune's snapshot of a sweep may lie a second or more behind, and after a kill a trial goes on from the checkpoint named
# there. Those of nested trials hold one number, so plenty of them are kept.
NESTED_CHECKPOINTS = 100
# Where epochs take less than a second on a busy machine, a snapshot was seen to name the one two saves back.
CHECKPOINTS = 3


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
    keep_checkpoints: int = CHECKPOINTS
    parameters: dict[str, Any] | None = None  # Tune's parameter space, where no searcher proposes
    trainings: Trainings | None = None  # where trials are training jobs


def run_sweep(plan: SweepPlan, again: str, stream: TextIO | None = None) -> Outcome:
    """Run a checked sweep on the connected cluster. A sweep of the same name and place goes on where it stopped.

    `again` is the command that does so. A sweep of which no trial came to anything has failed.
    """
    stream = stream or sys.stdout
    prepare_environment()  # whoever started Ray: a stop is this run's to hear of, not Tune's
    if check_start(plan.config, lambda folder: storage.exists(folder / SEARCH), "sweep to go on with"):
        check_unchanged(plan.config, "sweep")
    return run_job(
        plan.config,
        lambda run: _search(plan, run),
        again=again,
        stream=stream,
        stopping="saving the sweep",
    )


def _search(plan: SweepPlan, run: Run) -> Outcome:
    config, folder = plan.config, run.folder
    run.say(plan.describe())
    budget = SweepBudget(config.tune.max_seconds, lambda: run.lock.wall_seconds)
    shared = None
    if plan.task is not None:
        reinit = plan.space.largest("task.reinit_layers", config.task.reinit_layers)
        shared = make_shared(config, plan.task, run.say, metric=plan.metric, reinit_layers=int(reinit))
    began = time.monotonic()
    trials = run_phase(search_phase(plan, shared, run), plan, run)
    search_seconds = time.monotonic() - began
    if run.stop.requested or (not budget.spent and _is_open(trials)):
        return _stopped(plan, run, trials, search_seconds, "in the search; epochs are kept.")
    if budget.spent and not best_first(trials, plan.mode):
        raise UserError(
            f"the time of sweep {folder.uri} was spent before any trial had a result: raise tune.max_seconds, and the "
            "same command goes on."
        )
    if not best_first(trials, plan.mode):
        reasons = sorted({trial.error or trial.status for trial in trials})
        raise UserError(
            f"all {len(trials)} trials of sweep {folder.uri} failed: {'; '.join(reasons)[:400]}. Mend that, and give "
            "the sweep another run.name."
        )
    verdict = None
    if shared is not None and config.tune.top:
        budget.max_seconds = None
        jobs = finals.final_jobs(plan, trials)
        done = run_phase(final_phase(plan, shared, jobs), plan, run, final=True)
        if run.stop.requested or _is_open(done):
            return _stopped(plan, run, trials, search_seconds, "in the final runs.")
        verdict = finals.judge(plan, folder, shared.task, jobs, done)
    run.check_held()
    summary, lines = write_outcome(plan, folder, trials, verdict, run.lock.wall_seconds, search_seconds, run.cost_usd())
    return Outcome(FINISHED, summary, closing="\n".join(lines))


def _is_open(trials: list[TrialRecord]) -> bool:
    """Whether Tune was told to stop by somebody else."""
    return any(trial.status == UNFINISHED for trial in trials)


def _stopped(plan: SweepPlan, run: Run, trials: list[TrialRecord], search_seconds: float, closing: str) -> Outcome:
    """A stopped sweep goes on later. What the money was spent on is written up: it may be all that there will be."""
    run.check_held()
    if run.stop.reason == BUDGET and best_first(trials, plan.mode):
        summary, lines = write_outcome(
            plan, run.folder, trials, None, run.lock.wall_seconds, search_seconds, run.cost_usd()
        )
        for line in lines:
            run.say(line)
    else:
        summary = summarise(plan, trials, None, run.lock.wall_seconds, run.cost_usd())
    return Outcome(STOPPED, summary, closing=closing)


def search_phase(plan: SweepPlan, shared: Shared | None, run: Run) -> Phase:
    """The search's experiment."""
    config, folder = plan.config, run.folder
    metric = f"best_{plan.metric}"
    settings = config.tune
    search, count = make_search(config, plan.space, metric, plan.mode)
    scheduler = make_scheduler(settings, plan.space, plan.longest, config.run.seed)
    if shared is None:
        trainings = Trainings(folder / RUNS, run.say)
        return Phase(
            SEARCH,
            nested_trainable(plan, folder, trainings),
            resources(),
            search,
            count,
            scheduler,
            _nested_slots(plan),
            None,
            NESTED_CHECKPOINTS,
            trainings=trainings,
        )
    keep = CHECKPOINTS + 1 if settings.scheduler in POPULATION else CHECKPOINTS
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


def run_phase(phase: Phase, plan: SweepPlan, run: Run, *, final: bool = False) -> list[TrialRecord]:
    """Run an experiment, or the rest of it, and return its trials. Finished trials are not run again."""
    config, folder, stream = plan.config, run.folder, run.stream
    if run.stop.requested:
        return []
    _check_resources(phase.resources)
    home = folder / phase.name
    if mended := mend_snapshots(home):
        run.say(mended)
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
        spent_seconds=run.lock.wall_seconds,
        cost_usd=run.cost_usd,
        runs=runs,
        stop=run.stop,
        trainings=phase.trainings,
    )
    assert SweepBudget.current is not None
    SweepBudget.current.trainings = phase.trainings
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
                # a process that trains in a thread of its own must end with its trial
                reuse_actors=config.tune.scheduler not in POPULATION and plan.kind == "classify",
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
    for note in runs.notes:
        print(note, file=stream, flush=True)
    return read_trials(grid, folder, plan.metric, plan.mode, phase.longest)


def prepare_environment() -> None:
    """Tune's switches, to be set before Ray starts: quiet, snapshots every second, no loggers of its own but JSON."""
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1")
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # see watch.py: a stop is the run's to ask for
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "0")
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    os.environ.setdefault("TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "60")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")


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
