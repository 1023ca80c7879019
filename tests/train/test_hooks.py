"""What a checkpoint counts has been recorded before the checkpoint counts."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from raygpt import storage
from raygpt.errors import UserError
from raygpt.model.tensorfile import TensorStream
from raygpt.parallel import checkpoint, saving
from raygpt.parallel.checkpoint import RunState
from raygpt.parallel.distributed import World
from raygpt.storage import Location, locate
from raygpt.train.hooks import RunHooks
from tests.train.running import settings


class Tensors:
    """A strategy with one weight."""

    background = True

    def tensor_files(self) -> dict[str, Any]:
        return {"model.safetensors": TensorStream.of({"w": torch.ones(3)})}


class Notes:
    """The wire to the driver."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Any]] = []

    def send(self, kind: str, value: Any) -> None:
        self.sent.append((kind, value))

    def stop_requested(self) -> bool:
        return False


@pytest.fixture
def hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunHooks:
    config = settings("x", tmp_path, train__keep_checkpoints="1")
    run, world = locate(tmp_path / "r"), World(0, 1, torch.device("cpu"))
    made = RunHooks(b"{}", config, run, world, Tensors(), RunState(), Notes(), "a")  # type: ignore[arg-type]

    def report(_: Any, name: str, store: Any) -> None:
        threading.Thread(target=store, args=(None, name), daemon=True).start()

    monkeypatch.setattr(made, "_report", report)
    return made


def steps(hooks: RunHooks) -> list[int | None]:
    return [checkpoint.step_of(where.name) for where in checkpoint.complete_checkpoints(hooks.run)]


def test_a_checkpoint_counts_once_the_record_of_its_step_is_kept(
    hooks: RunHooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    flush, commit = hooks.trackers.flush, saving.commit  # type: ignore[union-attr]
    monkeypatch.setattr(hooks.trackers, "flush", lambda wait=False: (order.append(f"flush {wait}"), flush(wait)))
    monkeypatch.setattr(saving, "commit", lambda *words: (order.append("commit"), commit(*words)))
    hooks.save(RunState(step=5), {})
    time.sleep(0.2)
    assert steps(hooks) == [] and order == []  # the loop logs a step's record after it has saved
    hooks.log({"step": 5, "train_loss": 1.0})
    assert hooks.stored.wait(10) and steps(hooks) == [5]
    assert order == ["flush True", "commit"]
    hooks.save(RunState(step=6), {})  # a step without a record: the next one has begun
    hooks.stop_requested()
    assert hooks.stored.wait(10) and steps(hooks) == [6]
    hooks.save(RunState(step=7), {})
    hooks.finish()
    assert steps(hooks) == [7]


def test_trouble_with_an_old_checkpoint_is_told_and_does_not_end_training(
    hooks: RunHooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(where: Location) -> None:
        if storage.exists(where):
            raise PermissionError("Permission denied")

    monkeypatch.setattr(storage, "delete", refuse)
    for step in (5, 6):
        hooks.save(RunState(step=step), {})
        hooks.log({"step": step, "train_loss": 1.0})
    assert hooks.stored.wait(10) and steps(hooks) == [6, 5]
    assert any("step_00000005 was not deleted" in str(note) for kind, note in hooks.link.sent if kind == "note")  # type: ignore[union-attr]


def test_closing_after_a_failure_hides_nothing(hooks: RunHooks, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise UserError("s3://… cannot be reached.")

    monkeypatch.setattr(hooks.trackers, "close", refuse)
    hooks.finish(failed=True)
    with pytest.raises(UserError):
        hooks.finish()


def test_a_checkpoint_whose_records_could_not_be_kept_does_not_count(hooks: RunHooks) -> None:
    assert hooks.trackers is not None
    hooks.trackers.metrics.problem = UserError("s3://… cannot be reached.")
    target = hooks.run / checkpoint.FOLDER / checkpoint.folder_name(5)
    saving.write_part(target, 0, 1, {"state.json": RunState(step=5).to_json().encode()}, attempt="a")
    hooks.recorded.set()
    with pytest.raises(UserError, match="cannot be reached"):
        hooks._commit(target, 5)
    assert steps(hooks) == []


def test_the_driver_hears_once_how_long_the_first_step_took(hooks: RunHooks) -> None:
    for _ in range(4):
        hooks.stop_requested()
        time.sleep(0.01)
    told = [value for kind, value in hooks.link.sent if kind == "first_step"]  # type: ignore[union-attr]
    assert len(told) == 1 and 0.01 <= told[0] < 60
    hooks.finish()
