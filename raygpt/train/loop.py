"""PURE. The training loop: batches in, steps, records, evaluations and checkpoints out. Knows nothing of Ray.

The same loop runs under Ray Train, under torchrun and in one bare process. What surrounds it (where records go, how a
checkpoint is stored, who asks it to stop) comes in as `Hooks`.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from raygpt.hardware import mfu
from raygpt.parallel.distributed import Agreement, World
from raygpt.track.eta import Eta
from raygpt.track.record import Record, make_record
from raygpt.train.ahead import Ahead, Beside
from raygpt.train.plan import TrainPlan
from raygpt.train.step import StepFunction, StepResult

if TYPE_CHECKING:
    from raygpt.data.stream import Batch
    from raygpt.parallel.checkpoint import RunState

RUNNING, STOP = 0, 1  # what ranks agree on; the largest wins
# Steps in a row whose gradients were not finite (in fp16 at the smallest loss scale: no scale is left that serves).
HOPELESS_SKIPS = 8
# Ranks agree on whether to stop about this often: an all-reduce of a thousand ranks takes 60 ms, a small model's step
# less.
AGREE_SECONDS = 0.5


class Hooks(Protocol):
    """The loop's surroundings. All but `log` and `stop_requested` are called on every rank."""

    def log(self, record: Record) -> None:
        """Take a record (rank 0 only)."""

    def stop_requested(self) -> bool:
        """Whether somebody asked this rank to stop after the current step. Must not block."""

    def save(self, state: RunState, rank_state: dict) -> None:
        """Take a snapshot before returning; storing it may go on in the background."""


@dataclass(frozen=True)
class End:
    """How the loop ended. `why` says of a run that diverged what was seen, where: half a sentence."""

    outcome: str
    why: str | None = None


@dataclass
class LoopOptions:
    """Intervals in steps; 0 turns one off except at the end. `flops_per_token` feeds mfu."""

    log_every: int = 10
    eval_every: int = 0
    checkpoint_every: int = 0
    log_batch_digest: bool = False
    flops_per_token: float = 0.0
    cost_usd: Callable[[], float | None] = lambda: None  # of the run so far
    evaluation_steps: float = 0.0  # what an evaluation costs in steps, until one has been timed
    checkpoint_seconds: float = 0.0  # what a checkpoint costs, until one has been timed
    evaluate_first: bool = False
    patience: int | None = None
    min_delta: float = 0.0
    save_best: bool = False


@dataclass
class _Interval:
    """What happened since the last record. The loss sum is part of a checkpoint: a record may span a restart."""

    loss_sum: torch.Tensor  # of steps that were not skipped
    parts: dict[str, torch.Tensor]  # the same of the loss's parts, where the objective tells them
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
    beside: Beside | None = None,
    figures: Callable[[], dict[str, float]] = dict,
    answers: Callable[[], dict[str, float]] = dict,
) -> End:
    """Run steps [state.step, plan.total_steps), keeping `state` current.

    Ends with the outcome finished, early (`patience` evaluations brought nothing better), stopped (asked to) or
    diverged (loss or weights are not finite, or gradients were not for HOPELESS_SKIPS
    steps in a row: nothing is saved then). In all but the last the last step is saved.

    A step whose gradients are not finite is skipped: it used up its tokens, and counts as none in the mean loss; one
    that fp16 skipped counts as none in the learning-rate schedule either. Whether a step was skipped is read at records
    and checkpoints, where the device is waited for anyway; in fp16 after every step, for the scale depends on it.

    `beside` and `figures` are those of the objective (`raygpt.train.objective.Objective`); `answers` are what an
    evaluation tells beside the loss.
    """
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
    fp16 = step_fn.precision_name == "fp16"
    skips = _Skips(world.device)
    poll = _Poll(world)
    ahead = Ahead(batches, world.device, beside)
    figures()  # those of a rehearsal count nowhere
    if evaluate is not None and options.evaluate_first and state.step == 0:
        before = time.perf_counter()
        state.val_loss = evaluate()
        state.best_val_loss = state.val_loss if math.isfinite(state.val_loss) else None
        told = {"val_loss": state.val_loss, **answers()}
        eta.observe_evaluation(time.perf_counter() - before)
        if world.rank == 0:
            hooks.log(make_record(step=0, tokens=0, world_size=world.size, time=time.time(), **told))
    while state.step < plan.total_steps:
        begin = time.perf_counter()
        batch, taken = ahead.take()
        waited = time.perf_counter() - begin
        assert batch.step == state.step
        flag = STOP if hooks.stop_requested() else RUNNING
        poll.ask(state.step, flag)
        lr = plan.schedule.lr(state.step - state.skipped_steps * fp16)
        result = step_fn(taken, lr)
        if flag == RUNNING and state.step + 1 < plan.total_steps:
            fetching = time.perf_counter()
            ahead.fetch()  # before anything waits for the device
            waited += time.perf_counter() - fetching
        digest = world.batch_digest(batch.tokens, plan.order.global_batch_rows) if options.log_batch_digest else None
        state.step += 1
        state.tokens += plan.tokens_per_step
        state.epoch, state.epoch_step = plan.order.position(state.step)
        interval.loss_sum += skips.count(result)
        for name, part in result.parts.items():
            part = skips.unless_skipped(result, part)
            interval.parts[name] = interval.parts[name] + part if name in interval.parts else part
        interval.steps += 1
        if fp16:
            _read_skips(skips, state, interval, (step_fn.loss_scale() or 0.0) <= 1.0)
        flag = poll.answer()
        last = state.step == plan.total_steps or flag != RUNNING
        log_now = last or state.step % options.log_every == 0
        evaluate_now = evaluate is not None and _due(state.step, options.eval_every, state.step == plan.total_steps)
        save_now = _due(state.step, options.checkpoint_every, last)
        if log_now or evaluate_now or save_now:
            loss_sum = float(interval.loss_sum)  # the one place that waits for the device
            part_sums = {name: float(part) for name, part in interval.parts.items()}
            if not fp16:
                _read_skips(skips, state, interval, True)
        if skips.in_a_row >= HOPELESS_SKIPS:
            return End("diverged", _bad_gradients(skips.in_a_row, state.step, batch, result, world, plan))
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
                return End("diverged", f"its loss stopped being a number at step {state.step}")
        told = {}
        early = False
        if evaluate_now:
            before = time.perf_counter()
            assert evaluate is not None
            val_loss = evaluate()
            told = {"val_loss": val_loss, **answers()}
            eta.observe_evaluation(time.perf_counter() - before)
            state.val_loss = val_loss
            best = state.best_val_loss
            best = math.inf if best is None or not math.isfinite(best) else best
            better = val_loss < best - options.min_delta  # never one that is no number
            state.stale_evaluations = 0 if better else state.stale_evaluations + 1
            if val_loss < best:
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
            if world.sum(float(not step_fn.weights_finite()))[0]:
                return End("diverged", f"its weights stopped being numbers by step {state.step}")
            open_loss: dict = {"loss_sum": 0.0, "steps": 0}
            if not log_now:
                open_loss = {
                    "loss_sum": loss_sum,
                    "steps": interval.steps,
                    **({"parts": part_sums} if part_sums else {}),
                }
            state.scaler = step_fn.scaler_state()
            state.stopped_early = early
            hooks.save(state, open_loss)
            saved_step = state.step
            stall = time.perf_counter() - before
            eta.observe_checkpoint(stall)
        if log_now or evaluate_now:
            record = _record(state, world, step_fn, result, lr, told, digest)
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
                    **_means(part_sums, interval.steps, world),
                    **{name: value / interval.timed_steps for name, value in figures().items()},
                )
                interval = _open_interval(world, None)
                stall = None
            record |= make_record(
                step=state.step,
                eta_seconds=eta.seconds_left(state.step),
                cost_usd=options.cost_usd(),
            )
            if world.rank == 0:
                hooks.log(make_record(**record))
        if early:
            return End("early")
        if flag != RUNNING and state.step < plan.total_steps:
            assert saved_step == state.step
            return End("stopped")
        poll.took(seconds)
    return End("finished")


class _Skips:
    """Counts skipped steps on the device: how many since they were read last, and how many in a row."""

    def __init__(self, device: torch.device) -> None:
        self._row = torch.zeros((), dtype=torch.int32, device=device)
        self._new = torch.zeros((), dtype=torch.int32, device=device)
        self.in_a_row = 0

    def count(self, result: StepResult) -> torch.Tensor:
        """The step's loss, 0 where it was skipped."""
        if result.overflow is False:
            self._row.zero_()
            return result.loss
        skipped = torch.as_tensor(result.overflow, device=self._row.device)
        self._new += skipped
        self._row = (self._row + 1) * skipped
        return self.unless_skipped(result, result.loss)

    def unless_skipped(self, result: StepResult, value: torch.Tensor) -> torch.Tensor:
        """The value, 0 where the step was skipped."""
        if result.overflow is False:
            return value
        return torch.where(torch.as_tensor(result.overflow, device=value.device), torch.zeros_like(value), value)

    def read(self) -> int:
        """Steps skipped since the last time. Waits for the device."""
        new, self.in_a_row = torch.stack([self._new, self._row]).tolist()
        self._new.zero_()
        return new

    def forgive(self) -> None:
        """Those in a row are not held against the run: the loss scale has yet to fall."""
        self._row.zero_()
        self.in_a_row = 0


def _means(sums: dict[str, float], steps: int, world: World) -> dict[str, float]:
    """Parts of the mean loss of the global batches."""
    if not sums or not steps:
        return {}
    return {name: value / world.size for name, value in zip(sums, world.sum(*(part / steps for part in sums.values())))}


def _read_skips(skips: _Skips, state: RunState, interval: _Interval, hopeless: bool) -> None:
    new = skips.read()
    state.skipped_steps += new
    interval.steps -= new
    if new and not hopeless:
        skips.forgive()


def _bad_gradients(count: int, step: int, batch: Batch, result: StepResult, world: World, plan: TrainPlan) -> str:
    digest = world.batch_digest(batch.tokens, plan.order.global_batch_rows)
    return (
        f"its gradients were not finite in {count} steps in a row, the last of them step {step} with gradient norm "
        f"{float(result.grad_norm)} and batch digest {digest}"
    )


class _Poll:
    """What ranks agree on while steps compute: every so many steps, as many on every rank, about AGREE_SECONDS apart.

    Each rank says how many of its steps that is; the fewest hold for all, so that nothing hangs on one rank's clock. At
    most twice as many as before: the first steps tell little. A rank alone asks itself after every step.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._every = 1
        self._due: int | None = None  # step of the next agreement; None: the one that comes
        self._agreement: Agreement | None = None
        self._steps, self._seconds = 0, 0.0

    def ask(self, step: int, flag: int) -> None:
        """Before a step: start agreeing where it is time."""
        if self._due is not None and step < self._due:
            return
        wanted = 1
        if self._world.size > 1 and self._steps:
            wanted = min(int(AGREE_SECONDS * self._steps / max(self._seconds, 1e-9)), 2 * self._every)
        self._steps, self._seconds = 0, 0.0
        self._agreement = self._world.agree(flag, -max(1, wanted))
        self._due = step

    def answer(self) -> int:
        """After it: the agreed flag, RUNNING where nobody was asked."""
        if self._agreement is None:
            return RUNNING
        flag, fewest = self._agreement.wait()
        assert self._due is not None
        self._every = -fewest
        self._due += self._every
        self._agreement = None
        return flag

    def took(self, seconds: float) -> None:
        """A step took this long."""
        self._steps += 1
        self._seconds += seconds


def _record(
    state: RunState,
    world: World,
    step_fn: StepFunction,
    result: StepResult,
    lr: float,
    told: dict[str, float],
    digest: str | None,
) -> Record:
    return make_record(
        step=state.step,
        tokens=state.tokens,
        **told,
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

    def number(value: float) -> torch.Tensor:
        return torch.tensor(value, dtype=torch.float32, device=world.device)

    parts = {name: number(value) for name, value in saved.get("parts", {}).items()}
    return _Interval(number(saved["loss_sum"]), parts, saved["steps"])


def _due(step: int, every: int, last: bool) -> bool:
    return last or (every > 0 and step % every == 0)
