"""The next batch is fetched before the step is waited for, and what goes wrong with it is told when its turn comes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from raygpt.data.order import Order
from raygpt.data.stream import Batch
from raygpt.parallel.checkpoint import RunState
from raygpt.parallel.distributed import World
from raygpt.train.ahead import Ahead
from raygpt.train.loop import LoopOptions, train
from raygpt.train.plan import TrainPlan
from raygpt.train.schedule import Schedule
from raygpt.train.step import StepResult

CPU = torch.device("cpu")
PLAN = TrainPlan(Order("x", 1, 4, 2, 1000), Schedule("constant", 1e-3, 6), 6)


def stream(fails_at: int | None, events: list[str]) -> Iterator[Batch]:
    for step in range(6):
        if step == fails_at:
            raise OSError("the disk is gone")
        events.append(f"read {step}")
        yield Batch(step, 0, np.full((2, 5), step, dtype=np.uint16))


class Step:
    precision_name = "fp32"

    def __init__(self, events: list[str]) -> None:
        self.events = events

    def __call__(self, batch: dict[str, torch.Tensor], lr: float) -> StepResult:
        rows = batch["rows"]
        assert rows.dtype == torch.int64
        self.events.append(f"step {int(rows[0, 0])}")
        return StepResult(torch.tensor(1.0), torch.tensor(1.0), False)

    def weights_finite(self) -> bool:
        return True

    def loss_scale(self) -> None:
        return None

    def scaler_state(self) -> dict[str, Any]:
        return {}


def run(fails_at: int | None, stop_at: int | None = None) -> list[str]:
    """What happened, in order; `OSError` at the end where it came out of the loop."""
    events: list[str] = []
    state = RunState()
    hooks: Any = SimpleNamespace(
        log=lambda record: events.append(f"log {record['step']}"),
        stop_requested=lambda: state.step == stop_at,
        save=lambda state, rank_state: events.append(f"save {state.step}"),
    )
    options = LoopOptions(log_every=3, checkpoint_every=3)
    try:
        train(Step(events), stream(fails_at, events), PLAN, state, World.join(CPU), hooks, options)
    except OSError:
        events.append("OSError")
    finally:
        gc.unfreeze()
    return events


def test_the_next_batch_is_read_after_the_step_is_queued_and_before_its_loss_is_waited_for() -> None:
    events = run(None)
    assert events[:9] == ["read 0", "step 0", "read 1", "step 1", "read 2", "step 2", "read 3", "save 3", "log 3"]
    assert events[-3:] == ["step 5", "save 6", "log 6"], "nothing is read beyond the end"


def test_a_failing_read_does_not_cost_the_checkpoint_of_the_step_before() -> None:
    assert run(3)[-3:] == ["save 3", "log 3", "OSError"]


def test_a_run_asked_to_stop_waits_for_no_further_batch() -> None:
    events = run(None, stop_at=2)
    assert "save 3" in events and "read 3" not in events


def test_garbage_collection_leaves_alone_what_was_there_after_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    monkeypatch.setattr(gc, "unfreeze", lambda: counts.append(gc.get_freeze_count()))
    run(None)
    monkeypatch.undo()
    gc.unfreeze()
    assert counts[0] > 1000


def test_the_end_of_the_stream_and_its_errors_come_from_take() -> None:
    ahead = Ahead(stream(1, []), CPU)
    assert ahead.take()[0].step == 0
    ahead.fetch()
    ahead.fetch()
    with pytest.raises(OSError, match="the disk is gone"):
        ahead.take()
    with pytest.raises(StopIteration):
        Ahead(iter([]), CPU).take()
