"""Trials that are training jobs of their own: each starts Ray Train with its workers and resumes from its run folder.

The trial itself holds a tenth of a CPU; its workers' CPUs and GPUs are Ray Train's to ask for, all at once, so two
trials never hold half of what each needs.

Tune ends a trial by leaving its `tune.report` for good; it waits for no thread of it (`session.finish(timeout=0)` in
ray/tune/trainable/function_trainable.py), gives its slot away at once and ends its process. A trial that it ends
between two reports it hears of at the next, or kills after ten seconds (`_cleanup_stopping_actors` in
ray/tune/execution/tune_controller.py). So the training's own stop token is what ends a training, whoever wishes it, and
the sweep's driver holds Tune's loop until the run is let go (`Trainings`).
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ray import tune

from raygpt import storage
from raygpt.config.settings import config_from_dict, config_with
from raygpt.run.control import ControlLink, Mailbox, make_control
from raygpt.run.frame import STOPPED
from raygpt.run.lock import is_held
from raygpt.run.stop import ASKED, SCHEDULER, SWEEP, StopToken
from raygpt.storage import Location
from raygpt.track.jsonl import read_metrics
from raygpt.tune.plan import SweepPlan
from raygpt.tune.results import RUNS
from raygpt.tune.space import decode

POLL_SECONDS = 0.5
SAY_AFTER_SECONDS = 30.0
REPORTED = "reported.json"


class Trainings:
    """The driver's hold on trials that are training jobs: asks them to stop, and waits until they have saved.

    While it waits, Tune's loop stands still; trainings go on, and what they report is read later.
    """

    def __init__(self, runs: Location, say: Callable[[str], None]) -> None:
        self.control = make_control()
        self._runs, self._say = runs, say
        self._begun: set[str] = set()

    def begin(self, trial_id: str) -> None:
        """A trial has started."""
        self._begun.add(trial_id)

    def wait_for_ended(self, running: Iterable[str]) -> None:
        """Until trials that no longer run have let their runs go: checkpoint and summary are written then, workers and
        their placement group gone."""
        ended = self._begun - set(running)
        self._wait(ended)
        self._begun -= ended

    def stop(self) -> None:
        """Have all of them save and end, before Tune is told to end them."""
        Mailbox(self.control).request_stop()
        self._wait(self._begun)

    def _wait(self, trials: Iterable[str]) -> None:
        began, said = time.monotonic(), False
        for trial in sorted(trials):
            while is_held(self._runs / trial):
                if not said and time.monotonic() - began > SAY_AFTER_SECONDS:
                    self._say(f"Waiting for trial {trial}, which saves a checkpoint.")
                    said = True
                time.sleep(POLL_SECONDS)


def resources() -> dict[str, float]:
    """What the trial itself holds, beside its workers."""
    return {"cpu": 0.1}


def nested_trainable(plan: SweepPlan, folder: Location, trainings: Trainings) -> Callable[[dict[str, Any]], None]:
    """Tune's trainable for a pretraining or fine-tuning sweep whose runs lie in `folder`/runs."""
    return tune.with_parameters(
        training_trial,
        settings=plan.config.to_dict(),
        metric=plan.metric,
        folder=folder.uri,
        control=trainings.control,
    )


def training_trial(params: dict[str, Any], settings: dict[str, Any], metric: str, folder: str, control: Any) -> None:
    """One training job; every evaluation is reported to Tune, once. A restarted trial goes on from its run's own
    checkpoints; Tune's hold only how many evaluations it has been told. `control` says when the sweep itself ends."""
    from raygpt.cluster.connect import connect
    from raygpt.train.resolve import resolve
    from raygpt.train.trainer import run_training

    name = tune.get_context().get_trial_id()
    config = config_with(config_from_dict(settings), decode(params), "trial")
    config = config_with(
        config,
        {
            "run.storage": f"{folder}/{RUNS}",
            "run.name": name,
            "run.resume": "auto",
            "track.wandb": "off",  # the sweep's driver logs its trials
            "track.max_cost_usd": None,  # and counts what they cost together
        },
        "sweep",
    )
    connect(config.scale)
    job = resolve(config)
    failure: list[BaseException] = []
    outcome: list[str] = []
    stop, link = StopToken(), ControlLink(control)

    def work() -> None:
        try:
            outcome.append(run_training(config, job, "", stream=io.StringIO(), stop=stop).outcome)
        except BaseException as error:
            failure.append(error)

    def listen() -> None:
        while thread.is_alive():
            if link.stop_requested():
                stop.request(SWEEP)
            time.sleep(POLL_SECONDS)

    # in a thread, so that evaluations are reported while training goes on and a scheduler can act on them
    thread = threading.Thread(target=work, daemon=True, name="training")
    thread.start()
    # in another, for `tune.report` does not return before the sweep's driver has looked at it
    threading.Thread(target=listen, daemon=True, name="sweep-control").start()
    reported = _told()
    try:
        while True:
            running = thread.is_alive()
            if outcome == [STOPPED]:
                # no word to Tune: to it the trial is one that goes on with the sweep, and it is about to end it
                sys.exit(0)
            records = _evaluations(job.run, metric)
            for count in range(reported + 1, len(records) + 1):
                best = min(record[metric] for record in records[:count])
                _tell({**records[count - 1], "epoch": count, f"best_{metric}": best}, count)
                reported = count
            if not running:
                break
            time.sleep(POLL_SECONDS)
    except SystemExit:  # Tune's, out of tune.report
        stop.request(SCHEDULER)
        raise
    finally:
        stop.request(ASKED)
        thread.join()
    if failure:
        raise failure[0]


def _told() -> int:
    """How many evaluations Tune has been told before a restart."""
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        return int(json.loads((Path(folder) / REPORTED).read_text())["evaluations"])


def _tell(record: dict[str, Any], count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / REPORTED).write_text(json.dumps({"evaluations": count}))
        tune.report(record, checkpoint=tune.Checkpoint.from_directory(folder))


def _evaluations(run: Location, metric: str) -> list[dict[str, Any]]:
    """Evaluations so far, with the metric; train_loss is taken at evaluations too, so that rungs mean the same."""
    where = run / "metrics.jsonl"
    if not storage.exists(where):
        return []
    records = [record for record in read_metrics(where) if "val_loss" in record]
    last: float | None = None
    out = []
    for record in read_metrics(where) if metric != "val_loss" else records:
        last = record.get(metric, last)
        if "val_loss" in record and last is not None:
            out.append({**record, metric: last})
    return out
