"""What a sweep refuses before it starts anything, and how one ends of which nothing came. No cluster is needed."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raygpt.config import Config
from raygpt.config.settings import dump
from raygpt.errors import UserError
from raygpt.run.frame import check_unchanged
from raygpt.storage import locate
from raygpt.tune.plan import make_plan
from raygpt.tune.results import _is_whole
from raygpt.tune.sweep import run_sweep


def begun(config: Config) -> Path:
    """The folder of a sweep as a stopped driver leaves it."""
    folder = Path(config.run.storage) / config.run.name
    (folder / "search").mkdir(parents=True)
    (folder / "config.yaml").write_text(dump(config))
    return folder


def refused(config: Config) -> str:
    with pytest.raises(UserError) as caught:
        run_sweep(make_plan(config), "", io.StringIO())
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tune.top", 2),
        ("tune.seeds", 4),
        ("tune.baseline", {"optim.lr": 1e-4}),
        ("tune.trials", 3),
        ("tune.space", {"optim.lr": {"choice": [1e-5, 2e-3]}}),
        ("run.seed", 7),
        ("optim.weight_decay", 0.2),
    ],
)
def test_a_setting_that_the_results_hang_on_may_not_change_on_resume(
    sweep_config: Callable[..., Config], key: str, value: Any
) -> None:
    fixed = {"tune.search": "random", "tune.space": {"optim.lr": {"choice": [1e-5, 3e-3]}}}
    folder = begun(sweep_config(fixed))
    before = (folder / "config.yaml").read_text()
    said = refused(sweep_config({**fixed, key: value}))
    assert f"was begun with other settings ({key}): set them back" in said and "run.name" in said
    assert (folder / "config.yaml").read_text() == before
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "search"]


def test_settings_of_the_machine_may_change_on_resume(sweep_config: Callable[..., Config]) -> None:
    begun(sweep_config())
    check_unchanged(sweep_config({"tune.concurrent": 1, "tune.max_seconds": 60.0, "tune.resamples": 100}), "sweep")


def test_resume_must_and_never_are_kept(sweep_config: Callable[..., Config]) -> None:
    said = refused(sweep_config({"run.resume": "must"}))
    assert said.startswith("run.resume=must but ") and "has no sweep to go on with" in said
    folder = Path(begun(sweep_config()))
    assert f"run.resume=never but run {folder} exists already" in refused(sweep_config({"run.resume": "never"}))
    (folder / "search").rmdir()  # a folder that any other job has begun is taken as well
    assert "run.resume=never but run" in refused(sweep_config({"run.resume": "never"}))
    assert not (folder / "lock.json").exists()


@pytest.mark.parametrize(
    ("outcome", "whole"), [("finished", True), ("early", True), ("stopped", False), ("budget", False)]
)
def test_a_training_job_that_was_stopped_has_a_summary_and_is_not_whole(
    tmp_path: Path, outcome: str, whole: bool
) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"outcome": outcome, "steps": 20}))
    assert _is_whole(locate(str(tmp_path / "summary.json"))) is whole
    assert not _is_whole(locate(str(tmp_path / "none.json")))
