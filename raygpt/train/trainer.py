"""The training job's driver: starts Ray Train, owns the terminal and the signals, and closes the run."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sys
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, TextIO

import psutil
import ray
import ray.train
from ray.train.torch import TorchConfig

from raygpt import storage
from raygpt.cluster.connect import train_environment, wants_gpu
from raygpt.config import Config
from raygpt.config.settings import dump
from raygpt.data.service import start_service
from raygpt.data.stream import Source
from raygpt.errors import UserError
from raygpt.parallel import checkpoint
from raygpt.run.control import RunControl, pause
from raygpt.run.lock import RunLock
from raygpt.track.jsonl import read_metrics
from raygpt.track.progress import Progress, human_count, human_duration
from raygpt.track.report import write_report
from raygpt.track.summary import summarise
from raygpt.train.lean_trainer import LeanTorchTrainer
from raygpt.train.resolve import Resolved
from raygpt.train.worker import Assignment, train_worker

RAY_SNAPSHOT = "checkpoint_manager_snapshot.json"


@dataclass
class Outcome:
    """How a call of `run_training` ended: finished, early, stopped, budget or complete (nothing to do)."""

    outcome: str
    summary: dict[str, Any] = field(default_factory=dict)
    signal: int = 0

    @property
    def exit_status(self) -> int:
        """0 when the run is where it should be, 128 + signal when somebody stopped it."""
        return 128 + self.signal if self.outcome == "stopped" else 0


def run_training(
    config: Config, job: Resolved, again: str, stream: TextIO | None = None, planned_rows: int | None = None
) -> Outcome:
    """Train the resolved job on the connected cluster until it ends or is asked to stop.

    `again` is the command that goes on with the run, for the closing words; `planned_rows` is the micro-batch that the
    memory plan found, for strategies that cannot try it out. Raises UserError for what the user can
    mend, and the worker's own error when training failed for good.
    """
    stream = stream or sys.stdout
    lock = RunLock(job.run)
    lock.acquire()
    progress = Progress(job.plan.total_steps, stream)
    outcome = "failed"
    try:
        if job.done_steps >= job.plan.total_steps or (job.stopped_early and config.eval.patience is not None):
            outcome = "complete"
            if job.done_steps >= job.plan.total_steps:
                progress.note(f"Run {job.run.uri} is complete at step {job.done_steps}: raise the length to train on.")
            else:
                progress.note(
                    f"Run {job.run.uri} stopped early at step {job.done_steps}: set eval.patience=none to train on."
                )
            _catch_up(config, job, lock)
            return Outcome(outcome)
        checkpoint.delete_leftovers(job.run)
        storage.write_text(job.run / "config.yaml", dump(config))
        _announce(config, job, lock, progress)
        end = _fit(config, job, lock, progress, planned_rows)
        progress.close()
        outcome = end["outcome"]
        lock.touch()
        summary = _close(config, job, lock, end, outcome)
        _closing_words(job, end, outcome, summary, again, stream)
        return Outcome(outcome, summary, end["signal"])
    finally:
        progress.close()
        lock.release(outcome)


def _announce(config: Config, job: Resolved, lock: RunLock, progress: Progress) -> None:
    order, model = job.plan.order, job.model
    account = order.account(0)
    progress.note(
        f"Model {config.model.preset if config.model.init_from == 'random' else config.model.init_from}: "
        f"{human_count(model.num_parameters())} parameters, {model.n_layer} layers, width {model.n_embd}, "
        f"context {order.seq_len}"
    )
    progress.note(
        f"Data {job.train_uri}: {human_count(job.train.tokens)} tokens, {order.steps_per_epoch:,} steps per epoch; "
        f"{account.head + account.dropped + account.tail:,} of its tokens fall outside the rows of the first epoch"
    )
    progress.note(
        f"Run {job.run.uri}: {job.plan.total_steps:,} steps of {job.plan.tokens_per_step:,} tokens "
        f"({job.plan.total_steps / order.steps_per_epoch:.2f} epochs)"
    )


def _fit(config: Config, job: Resolved, lock: RunLock, progress: Progress, planned_rows: int | None) -> dict[str, Any]:
    control = RunControl.remote()  # type: ignore[attr-defined]
    reader = f"raygpt-reader-{uuid.uuid4().hex}"
    service = _early_reader(config, job, reader)
    trainer = _trainer(config, job, lock, control, reader, planned_rows)
    failure: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            failure.append(error)

    # in a thread: Ray Train would take Ctrl-C for itself in the main one
    thread = threading.Thread(target=fit, daemon=True, name="ray-train")
    end: dict[str, Any] = {}
    with _Signals(control, progress) as signals:
        thread.start()
        began = time.monotonic()
        while thread.is_alive():
            thread.join(pause(time.monotonic() - began))
            end = _show(ray.get(control.take.remote()), progress) or end
        end = _show(ray.get(control.take.remote()), progress) or end
    del service  # the driver's: it served restarted workers as well
    if failure:
        raise _cause(failure[0])
    if not end:
        raise RuntimeError("training ended without saying how")
    return {**end, "signal": signals.number}


def _early_reader(config: Config, job: Resolved, name: str) -> Any | None:
    """The reader service of a cluster of one node, started while Ray Train starts; elsewhere workers start theirs."""
    if config.data.backend != "ray" or sum(node["Alive"] for node in ray.nodes()) != 1:
        return None
    workers = config.scale.worker_range
    layout = job.train.layout(job.train_uri)
    likely = Source(layout, job.plan.order, 0, workers[0], int(config.data.cache_gb * 1e9))
    return start_service(name, workers[1], likely, job.done_steps)


def _trainer(
    config: Config, job: Resolved, lock: RunLock, control: Any, reader: str, planned_rows: int | None
) -> LeanTorchTrainer:
    use_gpu = wants_gpu(config.scale)
    low, high = config.scale.worker_range
    home = job.run / checkpoint.FOLDER
    # checkpoints are found and verified by themselves; Ray's list of them would only bind the run to one Ray version
    # and refuse to start when a folder it names is gone
    storage.delete(home / RAY_SNAPSHOT)
    if home.is_local:
        os.makedirs(home.path, exist_ok=True)
    assignment = Assignment(
        config=config.to_dict(),
        run_uri=job.run.uri,
        train=job.train.layout(job.train_uri),
        val=job.val.layout(job.val_uri),
        plan=job.plan,
        model=job.model.to_dict(),
        tokenizer_json=job.tokenizer_json,
        tokenizer_name=job.train.tokenizer.name,
        eot_id=job.train.tokenizer.eot_id,
        tokenizer_sha256=job.train.tokenizer.sha256,
        spent_seconds=lock.earlier_seconds,
        control=control,
        reader=reader,
        planned_rows=planned_rows,
    )
    return LeanTorchTrainer(
        train_worker,  # type: ignore[arg-type]  # its config is a dataclass, pickled as it is
        train_loop_config=assignment,  # type: ignore[arg-type]
        environment=train_environment(),
        torch_config=TorchConfig(backend=None if use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=low if low == high else (low, high),  # type: ignore[arg-type]  # a pair is elastic
            use_gpu=use_gpu,
            resources_per_worker={"CPU": config.scale.cpus_per_worker, **({"GPU": 1} if use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name=checkpoint.FOLDER,
            storage_path=job.run.path,
            storage_filesystem=job.run.fs,
            failure_config=ray.train.FailureConfig(max_failures=config.train.max_failures),
        ),
    )


def _show(events: list[tuple[str, Any]], progress: Progress) -> dict[str, Any] | None:
    end = None
    for kind, value in events:
        if kind == "record":
            progress.update(value)
        elif kind == "note":
            progress.note(value)
        elif kind == "start":
            if value["resumed"]:
                progress.note(f"Going on from step {value['step']}: {value['resumed']}")
            progress.note(
                f"{value['workers']} worker{'s' * (value['workers'] != 1)} on {value['device']}, precision "
                f"{value['precision']}, micro-batch {value['micro_batch_size']} rows x {value['grad_accum_steps']} "
                "accumulation steps"
            )
        elif kind == "end":
            end = value
        elif kind == "refused":
            raise UserError(value)
    return end


def _catch_up(config: Config, job: Resolved, lock: RunLock) -> None:
    """Write summary and report of a whole run whose driver was killed after the last checkpoint and before them."""
    where = job.run / "summary.json"
    if storage.exists(where) and json.loads(storage.read_text(where))["steps"] == job.done_steps:
        return
    state = checkpoint.read_state(checkpoint.complete_checkpoints(job.run)[0])
    lock.touch()
    _close(config, job, lock, {"state": dataclasses.asdict(state)}, "early" if job.stopped_early else "finished")


def _close(config: Config, job: Resolved, lock: RunLock, end: dict[str, Any], outcome: str) -> dict[str, Any]:
    state = end["state"]
    records = read_metrics(job.run / "metrics.jsonl")
    price = config.track.price_per_hour
    summary = summarise(
        records,
        outcome=outcome,
        steps=state["step"],
        tokens=state["tokens"],
        wall_seconds=lock.wall_seconds,
        train_seconds=state["train_seconds"],
        restarts=lock.restarts,
        best_val_loss=state["best_val_loss"],
        best_step=state["best_step"],
        data_wait_fraction=state["wait_seconds"] / max(state["train_seconds"], 1e-9),
        cost_usd=None if price is None else price * lock.wall_seconds / 3600,
    )
    storage.write_text(job.run / "summary.json", json.dumps(summary, indent=2) + "\n")
    write_report(job.run)
    return summary


def _closing_words(
    job: Resolved, end: dict[str, Any], outcome: str, summary: dict[str, Any], again: str, stream: TextIO
) -> None:
    step, total = end["state"]["step"], job.plan.total_steps
    say = lambda text: print(text, file=stream, flush=True)  # noqa: E731
    if outcome == "diverged":
        raise UserError(
            f"Run {job.run.uri} diverged: {end['why']}: lower optim.lr or lengthen optim.warmup_steps, or leave fp16 "
            "for bf16 or fp32; the checkpoint before it is untouched."
        )
    if outcome == "early":
        best = end["state"]["best_step"]
        where = f"step {best}" if best is not None else "where it began"
        say(
            f"Stopped early after step {step} of {total}: {end['state']['stale_evaluations']} evaluations in a row "
            f"were no better than the best, validation loss {summary['best_val_loss']:.4f} at {where}. "
            f"Report: {(job.run / 'report.html').uri}"
        )
        return
    if outcome in ("stopped", "budget"):
        why = "Stopped" if outcome == "stopped" else "track.max_cost_usd is reached: stopped"
        say(f"{why} after step {step} of {total}; checkpoint saved in {job.run.uri}. To go on: {again}")
        return
    loss = f"validation loss {summary['val_loss']:.4f}, " if "val_loss" in summary else ""
    say(
        f"Finished {step} steps: {loss}{human_count(summary.get('tokens_per_second', 0))} tok/s, "
        f"{human_duration(summary['wall_seconds'])}. Report: {(job.run / 'report.html').uri}"
    )


def _cause(error: BaseException) -> BaseException:
    # a user's mistake found inside a worker comes wrapped once or twice
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError):
            return seen
        for inner in getattr(seen, "worker_failures", {}).values():
            found = _cause(inner)
            if isinstance(found, UserError):
                return found
        seen = getattr(seen, "cause", None) or seen.__cause__
    return error


class _Signals:
    """Ctrl-C and SIGTERM: the first asks the workers to finish the step and save, a second Ctrl-C leaves at once."""

    def __init__(self, control: Any, progress: Progress) -> None:
        self.control, self.progress = control, progress
        self.asked = 0.0
        self.number = signal.SIGTERM
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: object) -> None:
        # a terminal and a launcher may both deliver the one key press
        if self.asked and time.monotonic() - self.asked < 0.3:
            return
        if self.asked and number == signal.SIGINT:
            for child in psutil.Process().children(recursive=True):  # a cluster of this process's own, if any
                with contextlib.suppress(psutil.Error):
                    child.kill()
            print("\nLeft at once; the last checkpoint is untouched.", file=sys.stderr, flush=True)
            os._exit(130)
        self.asked, self.number = time.monotonic(), signal.Signals(number)
        self.control.request_stop.remote()
        self.progress.note("Stopping: finishing this step and saving a checkpoint (Ctrl-C again leaves at once).")
