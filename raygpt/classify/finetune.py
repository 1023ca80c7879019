"""`raygpt finetune` on a classification task: one configuration trained to its end, the best epoch exported."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import ray
import torch
from safetensors.torch import load, save

from raygpt import storage
from raygpt.classify.classifier import classification_metrics
from raygpt.classify.folder import EXPORT, save_classifier
from raygpt.classify.shared import Shared, make_shared, read_task, start_training
from raygpt.classify.tasks import Task
from raygpt.classify.training import Training
from raygpt.config import Config
from raygpt.errors import UserError
from raygpt.parallel.pieces import TensorFile
from raygpt.run.frame import (
    COMPLETE,
    FINISHED,
    STOPPED,
    SUMMARY,
    Outcome,
    Run,
    check_start,
    check_unchanged,
    run_job,
)
from raygpt.storage import Location
from raygpt.track.jsonl import read_metrics
from raygpt.track.trackers import Trackers

STATE = "checkpoints/state.safetensors"
# In that file's metadata, as JSON: weights and the epoch they belong to are written at once or not at all.
VALUES = "values"


def train_classifier(config: Config, again: str = "", stream: TextIO | None = None) -> Outcome:
    """Fine-tune `model.init_from` on `task` as the config says, on the connected Ray cluster.

    The run folder gets config.yaml, metrics.jsonl (one record per epoch), the best epoch's classifier in export/ and
    summary.json with its scores on the selection part and, once, on the validation split. A run that was killed goes on
    after its last epoch. Raises UserError for what the user can mend.
    """
    task = read_task(config)
    if check_start(config, lambda folder: storage.exists(folder / STATE), "finished epoch"):
        check_unchanged(config, "classify")
    return run_job(
        config, lambda run: _work(run, task), again=again, stream=stream, stopping="finishing this epoch, which is kept"
    )


def _work(run: Run, task: Task) -> Outcome:
    config = run.config
    if (closed := _closed_epochs(run.folder)) and config.train.epochs is not None and closed >= config.train.epochs:
        run.say(f"Run {run.folder.uri} is complete after epoch {closed}: raise train.epochs to train on.")
        return Outcome(COMPLETE)
    shared = make_shared(config, task, run.say, metric="accuracy", reinit_layers=config.task.reinit_layers)
    done, unlogged = _earlier_epochs(run, shared)
    summary: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        trackers = Trackers(
            run.folder,
            config.run.name,
            config.to_dict(),
            wandb=config.track.wandb,
            wandb_project=config.track.wandb_project,
            tensorboard=config.track.tensorboard,
            resume_step=done - len(unlogged),
            local_dir=Path(scratch),
        )
        try:
            for note in trackers.notes:
                run.say(note)
            for record in unlogged:
                trackers.log({"step": record["epoch"], "time": time.time(), **record})
            for record in _epochs(run, shared, done):
                if "summary" in record:
                    summary = record["summary"]
                    continue
                done = record["epoch"]
                trackers.log({"step": done, "time": time.time(), **record})
                run.say(
                    f"epoch {done}/{config.train.epochs:g} | train {record['train_loss']:.4f} | "
                    f"accuracy {record['accuracy']:.4f} | f1 {record['f1']:.4f} | loss {record['loss']:.4f} | "
                    f"{record['epoch_seconds']:.1f}s"
                )
            if summary:
                cost = run.cost_usd()
                summary |= {"outcome": FINISHED, "wall_seconds": run.lock.wall_seconds, "restarts": run.lock.restarts}
                summary |= {} if cost is None else {"cost_usd": cost}
        finally:
            trackers.close(summary)
    if not summary:
        return Outcome(STOPPED, closing=f"after epoch {done} of {config.train.epochs:g}, which is kept.")
    return Outcome(FINISHED, summary, closing=_sentence(summary, run.folder))


def _closed_epochs(folder: Location) -> int:
    """Epochs whose best one is exported and scored, 0 for none; a killed run may have trained further."""
    try:
        return int(json.loads(storage.read_text(folder / SUMMARY))["epochs"])
    except FileNotFoundError:
        return 0


def _earlier_epochs(run: Run, shared: Shared) -> tuple[int, list[dict[str, Any]]]:
    """(epochs that the state holds, the records of those that a kill kept from being logged).

    Raises UserError where they were trained on other data; a state from before that was recorded is trusted.
    """
    if not storage.exists(run.folder / STATE):
        return 0, []
    values = _values(run.folder)
    shape = {**shared.shape, "dropout": None}
    if {**values.get("model", shape), "dropout": None} != shape:
        raise UserError(
            f"model.init_from has another shape than the model of run {run.folder.uri}: set it back, or give the new "
            "run a run.name of its own."
        )
    if values.get("task", shared.task.digest) != shared.task.digest:
        raise UserError(
            f"task.train holds other examples than run {run.folder.uri} was trained on: set it back, or give the new "
            "run a run.name of its own."
        )
    metrics = run.folder / "metrics.jsonl"
    logged = {row["step"] for row in read_metrics(metrics)} if storage.exists(metrics) else set()
    done = int(values["epoch"])
    last = max((step for step in logged if step <= done), default=0)
    return done, [record for record in values["history"] if record["epoch"] > last]


def _epochs(run: Run, shared: Shared, done: int) -> Iterator[dict[str, Any]]:
    """The records of the training as they come; none after the epoch in which a stop was asked for."""
    options = {"num_cpus": shared.cpus, "num_gpus": shared.gpus}
    records = _train.options(**options).remote(shared, run.folder.uri, done)
    run.lock.workers_started()
    for reference in records:  # type: ignore[attr-defined]
        record = ray.get(reference)
        run.check_held()
        yield record
        if run.stop.requested and "summary" not in record and record["epoch"] < run.config.train.epochs:
            ray.cancel(records, force=False)
            with contextlib.suppress(ray.exceptions.RayError):
                # until it has ended: it writes no more once the run is let go
                for reference in records:  # type: ignore[attr-defined]
                    ray.get(reference)
            return


@ray.remote
def _train(shared: Shared, run_uri: str, done: int) -> Iterator[dict[str, Any]]:
    """The training itself, in a Ray worker: yields a record per epoch, then the summary."""
    run = storage.locate(run_uri)
    torch.set_num_threads(max(1, int(shared.cpus)))
    training = start_training(shared)
    training.keep_best_model = True
    if done:
        training.restore(load(storage.read_bytes(run / STATE)), _values(run))
    trained_on = {"task": shared.task.digest, "model": shared.shape}
    for record in training.run():
        tensors, values = training.state()
        storage.write_bytes(run / STATE, save(tensors, {VALUES: json.dumps({**values, **trained_on})}))
        yield record
    yield {"summary": _finish(training, shared, run)}


def _finish(training: Training, shared: Shared, run: Location) -> dict[str, Any]:
    """Export the best epoch and score it."""
    if training.best_model is not None:
        training.model.load_state_dict(training.best_model)
    task, progress = shared.task, training.progress
    rows = {"max_tokens": training.max_tokens, "swap_eval": training.recipe.swap_eval, "task": task.name}
    with tempfile.TemporaryDirectory() as scratch:
        folder = save_classifier(
            training.model,
            Path(scratch) / EXPORT,
            labels=task.labels,
            eot_id=task.eot_id,
            tokenizer_json=shared.tokenizer_json,
            rows=rows,
        )
        for path in sorted(folder.iterdir(), key=lambda path: path.name == "config.json"):
            storage.write_bytes(run / EXPORT / path.name, path.read_bytes())
    summary: dict[str, Any] = {"epochs": progress.epoch, "best_epoch": progress.best_epoch}
    summary["selection"] = classification_metrics(training.predict(task.selection), task.selection.labels)
    if task.val is not None:
        summary["validation"] = classification_metrics(training.predict(task.val), task.val.labels)
        summary["validation_examples"] = len(task.val)
    return summary


def _values(run: Location) -> dict[str, Any]:
    return json.loads(TensorFile.open(run / STATE).metadata[VALUES])


def _sentence(summary: dict[str, Any], run: Location) -> str:
    parts = [f"Best epoch {summary['best_epoch']} of {summary['epochs']}"]
    for part in ("selection", "validation"):
        if part in summary:
            scores = summary[part]
            parts.append(f"{part} accuracy {scores['accuracy']:.4f}, f1 {scores['f1']:.4f}")
    return "; ".join(parts) + f". Classifier: {(run / EXPORT).uri}"
