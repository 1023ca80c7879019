"""Trials that are training jobs of their own: each starts Ray Train with its workers and resumes from its run folder.

The trial itself holds a tenth of a CPU; its workers' CPUs and GPUs are Ray Train's to ask for, all at once, so two
trials never hold half of what each needs.
"""

from __future__ import annotations

import io
import json
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune

from raygpt import storage
from raygpt.config.settings import config_from_dict, config_with
from raygpt.run.stop import StopToken
from raygpt.storage import Location
from raygpt.track.jsonl import read_metrics
from raygpt.tune.plan import SweepPlan
from raygpt.tune.results import RUNS
from raygpt.tune.space import decode

POLL_SECONDS = 0.5
REPORTED = "reported.json"


def resources() -> dict[str, float]:
    """What the trial itself holds, beside its workers."""
    return {"cpu": 0.1}


def nested_trainable(plan: SweepPlan, folder: Location) -> Callable[[dict[str, Any]], None]:
    """Tune's trainable for a pretraining or fine-tuning sweep whose runs lie in `folder`/runs."""
    return tune.with_parameters(training_trial, settings=plan.config.to_dict(), metric=plan.metric, folder=folder.uri)


def training_trial(params: dict[str, Any], settings: dict[str, Any], metric: str, folder: str) -> None:
    """One training job; every evaluation is reported to Tune, once. A restarted trial goes on from its run's own
    checkpoints; Tune's hold only how many evaluations it has been told."""
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
        },
        "sweep",
    )
    connect(config.scale)
    job = resolve(config)
    failure: list[BaseException] = []
    stop = StopToken()

    def work() -> None:
        try:
            run_training(config, job, "", stream=io.StringIO(), stop=stop)
        except BaseException as error:
            failure.append(error)

    # in a thread, so that evaluations are reported while training goes on and a scheduler can act on them
    thread = threading.Thread(target=work, daemon=True, name="training")
    thread.start()
    reported = _told()
    try:
        while True:
            running = thread.is_alive()
            records = _evaluations(job.run, metric)
            for count in range(reported + 1, len(records) + 1):
                best = min(record[metric] for record in records[:count])
                _tell({**records[count - 1], "epoch": count, f"best_{metric}": best}, count)
                reported = count
            if not running:
                break
            time.sleep(POLL_SECONDS)
    finally:
        # A scheduler ends a trial by leaving `tune.report` for good. Its training is asked to end; Tune does not wait
        # for that and ends this process, with which Ray ends the workers and frees their share of the cluster.
        stop.request()
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
