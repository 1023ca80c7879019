"""W&B runs of a sweep, without the sweep: what becomes of trouble."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raygpt.storage import locate
from raygpt.tune.wandb_runs import WandbRuns
from tests.track.test_trackers import offline_runs, wandb_history


def trial(name: str, folder: Path, earlier: str = "") -> Any:
    """As much of Tune's as is read: id, config, last result, where its results are kept."""
    (folder / name).mkdir()
    (folder / name / "result.json").write_text(earlier)
    where = locate(folder / name)
    kept = SimpleNamespace(storage_filesystem=where.fs, trial_fs_path=where.path)
    return SimpleNamespace(trial_id=name, config={"optim.lr": 1e-3}, last_result={}, storage=kept)


def test_a_server_that_does_not_answer_is_asked_by_one_trial_and_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    real, asked = wandb.init, []

    def init(**options: Any) -> Any:
        asked.append(options["mode"])
        if options["mode"] == "online":
            raise wandb.errors.CommError("timed out")
        return real(**options)

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    sweep = tmp_path / "sweep"
    runs = WandbRuns(locate(sweep), "auto", "words", {}, "search")
    first = trial("one", tmp_path, '{"training_iteration": 1, "epoch": 1, "loss": 0.9}\n')  # of an earlier driver
    second = trial("two", tmp_path)
    for each in (first, second):
        runs.log(each, {"training_iteration": 2, "epoch": 2, "loss": 0.5})
        runs.finish(each, "finished")
    runs.close()
    assert asked == ["online", "offline", "offline"]
    assert len(runs.notes) == 1 and "did not answer (timed out), logging offline" in runs.notes[0]
    epochs = {path.name[-3:]: [row["epoch"] for row in wandb_history(path)] for path in offline_runs(sweep)}
    assert epochs == {"one": [1, 2], "two": [2]}


def test_trouble_with_one_run_is_the_end_of_all_and_not_of_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    def init(**_: Any) -> Any:
        raise OSError("No space left on device.")

    monkeypatch.setattr(wandb, "init", init)
    runs = WandbRuns(locate(tmp_path / "sweep"), "offline", "words", {}, "search")
    for name in ("one", "two"):
        runs.log(trial(name, tmp_path), {"training_iteration": 1, "epoch": 1})
    runs.close()
    assert runs.notes == ["W&B: No space left on device; the sweep goes on without it."]
