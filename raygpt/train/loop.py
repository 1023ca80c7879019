"""PURE. The training loop: batches in, steps, records, evaluations and checkpoints out. Knows nothing of Ray.

The same loop runs under Ray Train, under torchrun and in one bare process. What surrounds it (where records go, how a
checkpoint is stored, who asks it to stop) comes in as `Hooks`.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch

from raygpt.hardware import mfu
from raygpt.parallel.distributed import World
from raygpt.track.cost import Cost
from raygpt.track.eta import Eta
from raygpt.track.record import Record, make_record
from raygpt.train.ahead import Ahead
from raygpt.train.plan import TrainPlan
from raygpt.train.step import StepFunction, StepResult

if TYPE_CHECKING:
    from raygpt.data.stream import Batch
    from raygpt.parallel.checkpoint import RunState

RUNNING, STOP, BUDGET = 0, 1, 2  # what ranks agree on after every step; the largest wins
# Steps in a row skipped at the smallest loss scale: no scale is left at which the gradients are finite.
HOPELESS_SKIPS = 8
OUTCOMES = {STOP: "stopped", BUDGET: "budget"}


class Hooks(Protocol):
    """The loop's surroundings. All but `log` and `stop_requested` are called on every rank."""

    def log(self, record: Record) -> None:
        """Take a record (rank 0 only)."""

    def stop_requested(self) -> bool:
        """Whether somebody asked this rank to stop after the current step. Must not block."""

    def save(self, state: RunState, rank_state: dict) -> None:
        """Take a snapshot before returning; storing it may go on in the background."""


@dataclass
class LoopOptions:
    """Intervals in steps; 0 turns one off except at the end. `flops_per_token` feeds mfu."""

    log_every: int = 10
    eval_every: int = 0
    checkpoint_every: int = 0
    log_batch_digest: bool = False
    flops_per_token: float = 0.0
    cost: Cost = field(default_factory=Cost)
    spent_seconds: float = 0.0  # of earlier attempts, for the cost
    evaluation_steps: float = 0.0  # what an evaluation costs in steps, until one has been timed
    checkpoint_seconds: float = 0.0  # what a checkpoint costs, until one has been timed
    evaluate_first: bool = False
    patience: int | None = None
    min_delta: float = 0.0
    save_best: bool = False


@dataclass
class _Interval:
    """What happened since the last record. The loss sum is part of a checkpoint: a record may span a restart."""

    loss_sum: torch.Tensor
    steps: int = 0
    seconds: float = 0.0
    wait_seconds: float = 0.0
    timed_steps: int = 0


def train(
    step_fn: StepFunction,
    batches: Iterator[Batch],
    plan: TrainPlan,
    state: RunState,
    world: World,
    hooks: Hooks,
    options: LoopOptions,
    evaluate: Callable[[], float] | None = None,
    rank_state: dict | None = None,
) -> str:
    """Run steps [state.step, plan.total_steps), keeping `state` current.

    Returns the outcome: finished, early (`patience` evaluations brought nothing better), stopped (asked to), budget
    (track.max_cost_usd reached) or diverged (the loss is not finite, or no loss scale serves: nothing is saved then).
    In all but the last the last step is saved. A step that fp16 skipped used up its tokens; it counts as none in the
    learning-rate schedule and in the mean loss.
    """
    started = time.monotonic()
    eta = Eta(
        plan.total_steps,
        options.eval_every if evaluate else 0,
        options.checkpoint_every,
        options.evaluation_steps,
        options.checkpoint_seconds,
    )
    interval = _open_interval(world, rank_state)
    stall: float | None = None
    first_step = saved_step = state.step
    hopeless = 0
    ahead = Ahead(batches, world.device)
    if evaluate is not None and options.evaluate_first and state.step == 0:
        before = time.perf_counter()
        state.val_loss = state.best_val_loss = evaluate()
        eta.observe_evaluation(time.perf_counter() - before)
        if world.rank == 0:
            hooks.log(make_record(step=0, tokens=0, val_loss=state.val_loss, world_size=world.size, time=time.time()))
    while state.step < plan.total_steps:
        begin = time.perf_counter()
        batch, rows = ahead.take()
        waited = time.perf_counter() - begin
        assert batch.step == state.step
        spent = options.spent_seconds + time.monotonic() - started
        flag = STOP if hooks.stop_requested() else BUDGET if options.cost.is_spent(spent) else RUNNING
        agreement = world.agree(flag)
        lr = plan.schedule.lr(state.step - state.skipped_steps)
        result = step_fn(rows, lr)
        if flag == RUNNING and state.step + 1 < plan.total_steps:
            fetching = time.perf_counter()
            ahead.fetch()  # before anything waits for the device
            waited += time.perf_counter() - fetching
        digest = world.batch_digest(batch.tokens) if options.log_batch_digest else None
        state.step += 1
        state.tokens += plan.tokens_per_step
        state.epoch, state.epoch_step = plan.order.position(state.step)
        state.skipped_steps += result.skipped
        if result.skipped:
            hopeless = hopeless + 1 if (step_fn.loss_scale() or 0.0) <= 1.0 else 0
            if hopeless >= HOPELESS_SKIPS:
                return "diverged"
        else:
            hopeless = 0
            interval.loss_sum += result.loss
            interval.steps += 1
        flag = agreement.wait()
        last = state.step == plan.total_steps or flag != RUNNING
        log_now = last or state.step % options.log_every == 0
        evaluate_now = evaluate is not None and _due(state.step, options.eval_every, state.step == plan.total_steps)
        save_now = _due(state.step, options.checkpoint_every, last)
        if log_now or evaluate_now or save_now:
            loss_sum = float(interval.loss_sum)  # the one place that waits for the device
        seconds = time.perf_counter() - begin
        if state.step == first_step + 1:
            # What is there now stays: searching it for garbage again and again halts a rank for up to half a second at
            # a time (nanochat), while the others wait for it.
            gc.collect()
            gc.freeze()
        interval.seconds += seconds
        interval.wait_seconds += waited
        interval.timed_steps += 1
        state.train_seconds += seconds
        state.wait_seconds += waited
        if log_now or evaluate_now or save_now:
            loss = world.sum(loss_sum / interval.steps)[0] / world.size if interval.steps else None
            if loss is not None and not math.isfinite(loss):
                return "diverged"
        val_loss = None
        early = False
        if evaluate_now:
            before = time.perf_counter()
            assert evaluate is not None
            val_loss = evaluate()
            eta.observe_evaluation(time.perf_counter() - before)
            state.val_loss = val_loss
            better = state.best_val_loss is None or val_loss < state.best_val_loss - options.min_delta
            state.stale_evaluations = 0 if better else state.stale_evaluations + 1
            if state.best_val_loss is None or val_loss < state.best_val_loss:
                state.best_val_loss, state.best_step = val_loss, state.step
                save_now = save_now or options.save_best
            early = options.patience is not None and state.stale_evaluations >= options.patience
            early = early and not last
            save_now = save_now or early
            log_now = log_now or early
        if log_now:
            mean_seconds = interval.seconds / interval.timed_steps
            eta.observe(state.step, mean_seconds)
        if save_now:
            before = time.perf_counter()
            open_loss = {"loss_sum": 0.0, "steps": 0} if log_now else {"loss_sum": loss_sum, "steps": interval.steps}
            state.scaler = step_fn.scaler_state()
            state.stopped_early = early
            hooks.save(state, open_loss)
            saved_step = state.step
            stall = time.perf_counter() - before
            eta.observe_checkpoint(stall)
        if log_now or evaluate_now:
            record = _record(state, world, step_fn, result, lr, val_loss, digest)
            if log_now:
                speed = plan.tokens_per_step / mean_seconds
                record |= make_record(
                    step=state.step,
                    train_loss=loss,
                    tokens_per_second=speed,
                    mfu=mfu(speed, options.flops_per_token, step_fn.precision_name, world.size),
                    step_seconds=mean_seconds,
                    data_wait_seconds=interval.wait_seconds / interval.timed_steps,
                    checkpoint_stall_seconds=stall,
                )
                interval = _open_interval(world, None)
                stall = None
            record |= make_record(
                step=state.step,
                eta_seconds=eta.seconds_left(state.step),
                cost_usd=options.cost.usd(options.spent_seconds + time.monotonic() - started),
            )
            if world.rank == 0:
                hooks.log(make_record(**record))
        if early:
            return "early"
        if flag != RUNNING and state.step < plan.total_steps:
            assert saved_step == state.step
            return OUTCOMES[flag]
    return "finished"


def _record(
    state: RunState,
    world: World,
    step_fn: StepFunction,
    result: StepResult,
    lr: float,
    val_loss: float | None,
    digest: str | None,
) -> Record:
    return make_record(
        step=state.step,
        tokens=state.tokens,
        val_loss=val_loss,
        lr=lr,
        grad_norm=None if result.skipped else float(result.grad_norm),
        gpu_memory_bytes=torch.cuda.max_memory_allocated() if world.device.type == "cuda" else None,
        loss_scale=step_fn.loss_scale(),
        world_size=world.size,
        batch_digest=digest,
        epoch=state.epoch,
        skipped_steps=state.skipped_steps or None,
        time=time.time(),
    )


def _open_interval(world: World, rank_state: dict | None) -> _Interval:
    saved = rank_state or {"loss_sum": 0.0, "steps": 0}
    return _Interval(torch.tensor(saved["loss_sum"], dtype=torch.float32, device=world.device), saved["steps"])


def _due(step: int, every: int, last: bool) -> bool:
    return last or (every > 0 and step % every == 0)
