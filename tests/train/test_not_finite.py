"""Gradients and losses that are no numbers, seen from the whole loop: what moves, what is saved, how the run ends."""

from __future__ import annotations

import gc
import math
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from raygpt.data.order import Order
from raygpt.data.stream import Batch
from raygpt.model.gpt import GPT, GPTConfig
from raygpt.parallel.checkpoint import RunState
from raygpt.parallel.distributed import World
from raygpt.train.loop import End, LoopOptions, train
from raygpt.train.objective import LanguageModelling
from raygpt.train.optim import OPTIMIZERS, make_optimizer
from raygpt.train.plan import TrainPlan
from raygpt.train.precision import Precision
from raygpt.train.schedule import Schedule
from raygpt.train.step import TrainStep
from tests.train.toy_optimizer import three_means

assert three_means is OPTIMIZERS["three_means"].make
CPU = torch.device("cpu")
CONFIG = GPTConfig(vocab_size=20, seq_len=4, n_layer=1, n_head=1, n_embd=8)
MARK = CONFIG.vocab_size - 1  # the first token of a batch whose gradients shall be infinite
ROWS, LR = 2, 1e-2


class InfiniteGradients(LanguageModelling):
    """Language modelling; marked batches have the same finite loss and an infinite gradient."""

    def __call__(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, Any]:
        loss, weight = super().__call__(model, batch)
        if batch["rows"][0, 0] == MARK:
            parameter = next(model.parameters())[0, 0].double()
            loss = loss + (parameter - parameter.detach()).sqrt()  # 0, with a slope of infinity
        return loss, weight


def tokens(step: int, bad: bool) -> np.ndarray:
    out = np.random.default_rng(step).integers(0, MARK, (ROWS, CONFIG.seq_len + 1)).astype("<u2")
    out[0, 0] = MARK if bad else 0
    return out


def build(optimizer: str = "adamw", precision: str = "fp32") -> tuple[GPT, TrainStep]:
    torch.manual_seed(1)
    model = GPT(CONFIG)
    made = make_optimizer(optimizer, model, lr=LR, weight_decay=0.1, betas=(0.9, 0.95))
    step = TrainStep(
        model, made, Precision(precision, CPU), micro_batch_size=1, grad_clip=1.0, objective=InfiniteGradients()
    )
    return model, step


def weights(model: GPT) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


class Run:
    """A run of the loop in this process and what its surroundings saw."""

    def __init__(
        self,
        bad: set[int],
        steps: int = 6,
        *,
        optimizer: str = "adamw",
        precision: str = "fp32",
        evaluations: list[float] | None = None,
        state: RunState | None = None,
        **options: Any,
    ) -> None:
        self.model, step = build(optimizer, precision)
        self.state = state or RunState()
        self.records: list[dict] = []
        self.saved: dict[int, torch.Tensor] = {}
        self.best: list[float | None] = []
        plan = TrainPlan(Order("x", 1, CONFIG.seq_len, ROWS, 10_000), Schedule("constant", LR, steps), steps)

        def batches() -> Iterator[Batch]:
            yield from (Batch(number, 0, tokens(number, number in bad)) for number in range(steps))

        def save(state: RunState, rank_state: dict) -> None:
            self.saved[state.step] = weights(self.model)
            self.best.append(state.best_val_loss)

        hooks: Any = SimpleNamespace(log=self.records.append, stop_requested=lambda: False, save=save)
        left = iter(evaluations or [])
        evaluate = (lambda: next(left)) if evaluations else None
        try:
            self.end: End = train(
                step, batches(), plan, self.state, World.join(CPU), hooks, LoopOptions(**options), evaluate
            )
        finally:
            gc.unfreeze()


@pytest.mark.parametrize("optimizer", ["adamw", "three_means"])
def test_a_step_with_infinite_gradients_moves_nothing_is_counted_and_the_run_goes_on(optimizer: str) -> None:
    """One optimizer is told on the device, the other is waited for."""
    run = Run({2}, optimizer=optimizer, log_every=1, checkpoint_every=1)
    assert run.end == End("finished") and run.state.step == 6
    assert torch.equal(run.saved[3], run.saved[2]) and not torch.equal(run.saved[4], run.saved[3])
    assert all(torch.isfinite(saved).all() for saved in run.saved.values())
    assert run.state.skipped_steps == 1 and run.state.optimizer_steps == 5
    assert [record.get("skipped_steps") for record in run.records] == [None, None, 1, 1, 1, 1]
    assert "grad_norm" not in run.records[2] and "train_loss" not in run.records[2]
    # as if there had been no such batch, moments and their counters included
    model, step = build(optimizer)
    for number in (0, 1, 3, 4, 5):
        step(torch.from_numpy(tokens(number, False).astype(np.int64)), LR)
    assert torch.equal(run.saved[6], weights(model))


def test_skipped_steps_are_counted_at_the_next_record_and_do_not_enter_its_mean_loss() -> None:
    each = [record["train_loss"] for record in Run({1, 3}, log_every=1).records if "train_loss" in record]
    run = Run({1, 3}, log_every=6)
    assert len(each) == 4 and [record["step"] for record in run.records] == [6]
    assert run.records[0]["train_loss"] == pytest.approx(sum(each) / 4, rel=1e-6)
    assert run.records[0]["skipped_steps"] == run.state.skipped_steps == 2


def test_eight_in_a_row_end_the_run_as_diverged_and_name_step_digest_and_norm() -> None:
    run = Run(set(range(3, 30)), 30, log_every=1, checkpoint_every=5)
    assert run.end.outcome == "diverged" and run.state.step == 11 and max(run.saved) == 10
    assert torch.equal(run.saved[10], run.saved[5]) and torch.isfinite(run.saved[10]).all()
    digest = World.join(CPU).batch_digest(tokens(10, True), ROWS)
    why = run.end.why or ""
    assert "8 steps in a row" in why and "step 11" in why and digest in why and re.search(r"norm (inf|nan)\b", why)
    assert Run(set(range(3, 10)), 30, log_every=1).end == End("finished"), "seven are not eight"


def test_fp16_lowers_its_scale_to_one_before_a_row_of_skipped_steps_counts() -> None:
    run = Run(set(range(50)), 50, precision="fp16", log_every=10)
    assert run.end.outcome == "diverged" and run.state.step == 16 + 7, "the 16th brings 2^16 down to 1"


@pytest.mark.parametrize("first", [True, False])
def test_an_evaluation_that_is_no_number_never_becomes_the_best(first: bool) -> None:
    evaluations = [math.nan, 3.0, math.inf, math.nan, 2.0]
    run = Run(
        set(), 5 - first, evaluations=evaluations, evaluate_first=first, eval_every=1, log_every=1, checkpoint_every=1
    )
    assert run.best == ([] if first else [None]) + [3.0, 3.0, 3.0, 2.0]
    assert run.state.best_val_loss == 2.0 and run.state.best_step == 5 - first


def test_a_first_evaluation_that_is_no_number_is_not_saved_as_the_best() -> None:
    run = Run(set(), 2, evaluations=[math.nan, 3.0], evaluate_first=True, eval_every=2, checkpoint_every=1)
    assert run.best == [None, 3.0]


def test_a_best_that_was_saved_as_no_number_is_replaced() -> None:
    run = Run(set(), 2, evaluations=[3.0, 4.0], state=RunState(best_val_loss=math.nan), eval_every=1)
    assert run.state.best_val_loss == 3.0 and run.state.best_step == 1
