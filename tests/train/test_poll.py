"""Ranks ask each other whether to stop about twice a second, however fast their steps are, and stop together."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from raygpt.data.order import Order
from raygpt.data.stream import Batch
from raygpt.parallel.checkpoint import RunState
from raygpt.parallel.distributed import World
from raygpt.train import loop
from raygpt.train.plan import TrainPlan
from raygpt.train.schedule import Schedule
from raygpt.train.step import StepResult
from tests.train.thread_world import ThreadWorld, on_ranks

CLOCK = threading.local()  # every rank's own seconds; only its steps make them go by


class CountingWorld(ThreadWorld):
    """Counts agreements and notes before which steps they began."""

    def __init__(self, world: World, state: RunState) -> None:
        super().__init__(world.rank, world.size, world.control)
        object.__setattr__(self, "state", state)
        object.__setattr__(self, "asked", [])

    def agree(self, *values: int) -> Any:
        self.asked.append(self.state.step)
        return SimpleNamespace(wait=lambda: [max(column) for column in zip(*self.gather(values))])

    def sum(self, *values: float) -> list[float]:
        return [sum(column) for column in zip(*self.gather(values))]


class Step:
    precision_name = "fp32"

    def __init__(self, durations: Iterator[float]) -> None:
        self.durations = durations

    def __call__(self, batch: Any, lr: float) -> StepResult:
        CLOCK.now += next(self.durations)
        return StepResult(torch.tensor(1.0), torch.tensor(1.0))

    def weights_finite(self) -> bool:
        return True

    def loss_scale(self) -> None:
        return None

    def scaler_state(self) -> dict[str, Any]:
        return {}


def durations(rank: int) -> Iterator[float]:
    """A slow first step, then 10 to 20 ms, the ranks slow in turns."""
    yield 5.0
    number = 0
    while True:
        number += 1
        yield 0.02 if number // 50 % 2 == rank else 0.01


@pytest.fixture(autouse=True)
def clocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def now() -> float:
        return CLOCK.now

    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=now, monotonic=now, time=now))
    yield
    gc.unfreeze()


def train(world: World, steps: int, stop_after: float | None = None) -> tuple[loop.End, RunState, list[int], float]:
    """(end, state, steps before which agreements began, seconds gone by); rank 1 is asked to stop."""
    CLOCK.now = 0.0
    state = RunState()
    plan = TrainPlan(Order("x", 1, 4, 2, 100_000), Schedule("constant", 1e-3, steps), steps)
    batches = (Batch(number, 0, np.zeros((1, 5), np.uint16)) for number in range(steps))
    asks = world.rank == 1 and stop_after is not None
    hooks: Any = SimpleNamespace(
        log=lambda record: None,
        stop_requested=lambda: asks and CLOCK.now > stop_after,
        save=lambda state, rank_state: None,
    )
    counting = CountingWorld(world, state)
    options = loop.LoopOptions(log_every=steps)
    end = loop.train(Step(durations(world.rank)), batches, plan, state, counting, hooks, options)
    return end, state, counting.asked, CLOCK.now


def test_a_thousand_fast_steps_take_some_fifty_agreements_before_the_same_steps_on_every_rank() -> None:
    (end, _, first, _), (other_end, _, second, _) = on_ranks(2, lambda world: train(world, 1000))
    assert end.outcome == other_end.outcome == "finished"
    assert first == second and first[:5] == [0, 1, 2, 4, 8], "the intervals double at most"
    assert len(first) < 60, "20 seconds"
    assert max(later - earlier for earlier, later in pairwise(first)) <= 50


@pytest.mark.parametrize("stop_after", [5.05, 7.77, 12.34])
def test_a_wish_to_stop_is_followed_by_all_at_one_step_within_a_second(stop_after: float) -> None:
    ends = on_ranks(2, lambda world: train(world, 1000, stop_after))
    assert [end.outcome for end, *_ in ends] == ["stopped"] * 2
    assert ends[0][1].step == ends[1][1].step < 1000
    assert 0 < ends[1][3] - stop_after < 1.1


def test_a_rank_alone_asks_itself_after_every_step() -> None:
    (result,) = on_ranks(1, lambda world: train(world, 20))
    assert result[2] == list(range(20))
