"""The training job's driver: starts Ray Train, owns the terminal and the signals, and closes the run."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
import uuid
from typing import Any, TextIO

import ray
import ray.train

from raygpt import storage
from raygpt.cluster import phases
from raygpt.cluster.connect import is_own, train_environment, wants_gpu
from raygpt.cluster.phases import Launch
from raygpt.cluster.waiting import Stalled
from raygpt.config import Config
from raygpt.data.mixture import Mixture
from raygpt.data.service import start_service
from raygpt.data.stream import Source
from raygpt.errors import UserError
from raygpt.parallel import checkpoint
from raygpt.run.control import Mailbox, make_control, pause
from raygpt.run.frame import COMPLETE, EARLY, FINISHED, SPENT, STOPPED, SUMMARY, Outcome, Run, run_job
from raygpt.run.lock import RunLock
from raygpt.run.stop import StopToken
from raygpt.track import spending
from raygpt.track.jsonl import read_metrics
from raygpt.track.metrics_export import MetricsExport
from raygpt.track.progress import Progress, human_count, human_duration
from raygpt.track.report import write_report
from raygpt.track.summary import summarise
from raygpt.train.lean_trainer import Fitting, GroupConfig, LeanTorchTrainer
from raygpt.train.resolve import Resolved
from raygpt.train.state_tracking import tracked
from raygpt.train.watching import Unheard, metrics_export, preemption_watch
from raygpt.train.worker import Assignment, MakeObjective, train_worker

RAY_SNAPSHOT = "checkpoint_manager_snapshot.json"
RESIZE_SECONDS = 30  # an elastic run looks for hosts that joined; each use of one is a restart from a checkpoint


def run_training(
    config: Config,
    job: Resolved,
    again: str,
    stream: TextIO | None = None,
    planned_rows: int | None = None,
    stop: StopToken | None = None,
    objective: MakeObjective | None = None,
    launch: Launch | None = None,
) -> Outcome:
    """Train the resolved job on the connected cluster until it ends or is asked to stop.

    `again` is the command that goes on with the run, for the closing words; `planned_rows` is the micro-batch that the
    memory plan found, for strategies that cannot try it out; `stop` ends it from elsewhere in this process. `objective`
    makes each worker's own; without it they model language. `launch` has what came before. Raises UserError for what
    the user can mend, and the worker's own error when training failed for good.
    """
    stream = stream or sys.stdout

    def work(run: Run) -> Outcome:
        progress = Progress(job.plan.total_steps, stream)
        run.say = progress.note
        run.launch = launch or run.launch
        try:
            return _work(run, job, progress, planned_rows, objective)
        finally:
            progress.close()

    return run_job(config, work, again=again, stream=stream, stop=stop, report=write_report)


def _work(
    run: Run, job: Resolved, progress: Progress, planned_rows: int | None, objective: MakeObjective | None
) -> Outcome:
    if job.done_steps >= job.plan.total_steps:
        run.say(f"Run {job.run.uri} is complete at step {job.done_steps}: raise the length to train on.")
        return Outcome(COMPLETE, _missing_summary(run, job))
    if job.stopped_early and run.config.eval.patience is not None:
        run.say(f"Run {job.run.uri} stopped early at step {job.done_steps}: set eval.patience=none to train on.")
        return Outcome(COMPLETE, _missing_summary(run, job))
    _announce(run.config, job, progress)
    end = _train(run, job, progress, planned_rows, objective)
    progress.close()
    run.check_held()
    outcome = run.named(end["outcome"])
    summary = _summary(run, job, end, outcome)
    return Outcome(outcome, summary, closing=_closing_words(job, end, outcome, summary))


def _announce(config: Config, job: Resolved, progress: Progress) -> None:
    order, model = job.plan.order, job.model
    train = order.train if isinstance(order, Mixture) else order
    account = train.account(0)
    progress.note(
        f"Model {config.model.preset if config.model.init_from == 'random' else config.model.init_from}: "
        f"{human_count(model.num_parameters())} parameters, {model.describe()}, "
        f"context {order.seq_len}"
    )
    progress.note(
        f"Data {job.train_uri}: {human_count(job.train.tokens)} tokens, {train.steps_per_epoch:,} steps per epoch; "
        f"{account.head + account.dropped + account.tail:,} of its tokens fall outside the rows of the first epoch"
    )
    if isinstance(order, Mixture) and job.real is not None:
        passes = order.real_rows_before(job.plan.total_steps) / (order.real.steps_per_epoch * order.global_batch_rows)
        progress.note(
            f"Mixed with {job.real_uri}: {human_count(job.real.tokens)} tokens, share of a batch "
            f"{order.share.describe()}, {passes:.2f} epochs of it"
        )
    if job.val_tokens < job.val.tokens - 1:
        progress.note(
            f"Validation {job.val_uri}: the same {human_count(job.val_tokens)} of {human_count(job.val.tokens)} "
            "tokens, evenly spaced, at every evaluation (eval.batches); `raygpt evaluate` takes all"
        )
    if job.hellaswag:
        progress.note(
            f"HellaSwag: {len(job.hellaswag):,} items of {config.eval.hellaswag} at every evaluation, protocol "
            f"{config.eval.protocols[0]}"
        )
    progress.note(
        f"Run {job.run.uri}: {job.plan.total_steps:,} steps of {job.plan.tokens_per_step:,} tokens "
        f"({order.epochs(job.plan.total_steps):.2f} epochs)"
    )


def _train(
    run: Run, job: Resolved, progress: Progress, planned_rows: int | None, objective: MakeObjective | None
) -> dict[str, Any]:
    """Have Ray Train's workers run the job; what the last of them said about the end."""
    control = make_control()
    reader = f"raygpt-reader-{uuid.uuid4().hex}"
    service = _early_reader(run.config, job, reader)
    trainer = _trainer(run.config, job, run.lock, control, reader, planned_rows, objective)
    fitting = Fitting(trainer)
    end: dict[str, Any] = {}
    mailbox = Mailbox(control)
    mailbox.follow(run.stop)
    fitting.start()
    began, stalled, unheard = time.monotonic(), Stalled(progress.note), Unheard()
    export = metrics_export(run)
    with preemption_watch(run, control):
        while fitting.is_alive():
            fitting.join(pause(time.monotonic() - began))
            if not is_own():
                stalled.look()
            end = _show(mailbox.take(run.cost_usd()), progress, run, export) or end
            if export is not None:
                if (usd := run.cost_usd()) is not None:
                    export.set("train_cost_usd", usd)
                export.repeat()
            run.check_held()
            if unheard.is_so(run.stop.requested):
                return _as_saved(job)
    end = _show(mailbox.take(run.cost_usd()), progress, run, export) or end
    del service  # the driver's: it served restarted workers as well
    if fitting.failure is not None:
        raise _cause(fitting.failure)
    if not end:
        raise RuntimeError("training ended without saying how")
    return end


def _as_saved(job: Resolved) -> dict[str, Any]:
    """How a run ends whose workers are gone, and nobody else came, when it is to stop: at its last checkpoint."""
    found = checkpoint.complete_checkpoints(job.run)
    if not found:
        raise UserError(f"run {job.run.uri} was stopped before its first checkpoint: there is nothing to go on from.")
    return {"outcome": STOPPED, "why": "", "state": dataclasses.asdict(checkpoint.read_state(found[0]))}


def _early_reader(config: Config, job: Resolved, name: str) -> Any | None:
    """The reader service of a cluster of one node, started while Ray Train starts; elsewhere workers start theirs."""
    if config.data.backend != "ray" or sum(node["Alive"] for node in ray.nodes()) != 1:
        return None
    workers = config.scale.worker_range
    likely = Source(job.layout, job.plan.order, 0, workers[0], int(config.data.cache_gb * 1e9))
    return start_service(name, workers[1], likely, job.done_steps)


def _trainer(
    config: Config,
    job: Resolved,
    lock: RunLock,
    control: Any,
    reader: str,
    planned_rows: int | None,
    objective: MakeObjective | None = None,
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
        train=job.layout,
        val=job.val.layout(job.val_uri),
        plan=job.plan,
        model=job.model.to_dict(),
        tokenizer_json=job.tokenizer_json,
        tokenizer_name=job.train.tokenizer.name,
        eot_id=job.train.tokenizer.eot_id,
        tokenizer_sha256=job.train.tokenizer.sha256,
        control=control,
        reader=reader,
        planned_rows=planned_rows,
        objective=objective,
        hellaswag=job.hellaswag,
    )
    environment = train_environment()
    state = tracked(config, control, environment)
    return LeanTorchTrainer(
        train_worker,  # type: ignore[arg-type]  # its config is a dataclass, pickled as it is
        train_loop_config=assignment,  # type: ignore[arg-type]
        environment=environment,
        callbacks=[state] if state is not None else [],
        torch_config=GroupConfig(backend=None if use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(  # type: ignore[call-arg]  # mypy sees the former one
            num_workers=low if low == high else (low, high),  # type: ignore[arg-type]  # a pair is elastic
            use_gpu=use_gpu,
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
            resources_per_worker={"CPU": config.scale.cpus_per_worker, **({"GPU": 1} if use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name=checkpoint.FOLDER,
            storage_path=job.run.path,
            storage_filesystem=job.run.fs,
            failure_config=ray.train.FailureConfig(max_failures=config.train.max_failures),
        ),
    )


def _show(
    events: list[tuple[str, Any]], progress: Progress, run: Run, export: MetricsExport | None = None
) -> dict[str, Any] | None:
    end = None
    for kind, value in events:
        if kind == "record":
            progress.update(value)
            if export is not None:
                export.log(value)
        elif kind == "note":
            progress.note(value)
        elif kind == "start":
            run.lock.workers_started(**{name: value[name] for name in ("workers", "device", "precision")})
            run.launch.mark(phases.WORKERS)
            if export is not None:
                export.set("train_restarts", run.lock.restarts)
            if value["resumed"]:
                progress.note(f"Going on from step {value['step']}: {value['resumed']}")
            progress.note(
                f"{value['workers']} worker{'s' * (value['workers'] != 1)} on {value['device']}, precision "
                f"{value['precision']}, micro-batch {value['micro_batch_size']} rows x {value['grad_accum_steps']} "
                "accumulation steps"
            )
        elif kind == "first_step":
            run.launch.add(phases.FIRST_STEP, value)
            _launched(run)
        elif kind == "end":
            end = value
            if export is not None and value["outcome"] == "diverged":
                export.diverged()
        elif kind == "refused":
            raise UserError(value)
    return end


def _launched(run: Run) -> None:
    """Keep what the phases of the launch took; on a cluster that was joined they are shown."""
    if run.launch.closed:
        return
    run.launch.close()
    cluster = None if is_own() else phases.read_cluster()
    if not is_own():
        run.say(phases.table(run.launch, cluster))
    try:
        text = json.dumps(phases.record(run.launch, cluster), indent=1) + "\n"
        storage.write_text(run.folder / phases.LAUNCH, text)
    except (UserError, OSError) as error:
        run.say(f"{phases.LAUNCH} was not written: {error}")


def _missing_summary(run: Run, job: Resolved) -> dict[str, Any]:
    """Summary of a whole run whose driver was killed after the last checkpoint and before it; {} where there is one."""
    where = job.run / SUMMARY
    if storage.exists(where) and json.loads(storage.read_text(where)).get("steps") == job.done_steps:
        return {}
    state = checkpoint.read_state(checkpoint.complete_checkpoints(job.run)[0])
    return _summary(run, job, {"state": dataclasses.asdict(state)}, EARLY if job.stopped_early else FINISHED)


def _summary(run: Run, job: Resolved, end: dict[str, Any], outcome: str) -> dict[str, Any]:
    state, lock = end["state"], run.lock
    records, history = read_metrics(job.run / "metrics.jsonl"), run.lock.history()
    lost = spending.lost(spending.where_it_went(history, records, spending.paid_for(history)))
    return summarise(
        records,
        outcome=outcome,
        steps=state["step"],
        tokens=state["tokens"],
        wall_seconds=lock.wall_seconds,
        train_seconds=state["train_seconds"],
        restarts=lock.restarts,
        best_val_loss=state["best_val_loss"],
        best_step=state["best_step"],
        val_tokens=job.val_tokens if state["val_loss"] is not None else None,
        data_wait_fraction=state["wait_seconds"] / max(state["train_seconds"], 1e-9),
        cost_usd=run.cost_usd(),
        lost_seconds=None if lost is None else lost.seconds,
        lost_usd=None if lost is None else lost.usd,
        launch_seconds=run.launch.seconds if run.launch.closed else None,
    )


def _closing_words(job: Resolved, end: dict[str, Any], outcome: str, summary: dict[str, Any]) -> str:
    step, total = end["state"]["step"], job.plan.total_steps
    if outcome == "diverged":
        raise UserError(
            f"Run {job.run.uri} diverged: {end['why']}: lower optim.lr or lengthen optim.warmup_steps, or leave fp16 "
            "for bf16 or fp32; the checkpoint before it is untouched."
        )
    if outcome == EARLY:
        best = end["state"]["best_step"]
        where = f"step {best}" if best is not None else "where it began"
        return (
            f"Stopped early after step {step} of {total}: {end['state']['stale_evaluations']} evaluations in a row "
            f"were no better than the best, validation loss {summary['best_val_loss']:.4f} at {where}. "
            f"Report: {(job.run / 'report.html').uri}"
        )
    if outcome in (STOPPED, SPENT):
        return f"after step {step} of {total}; checkpoint saved in {job.run.uri}."
    loss = f"validation loss {summary['val_loss']:.4f}, " if "val_loss" in summary else ""
    return (
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
