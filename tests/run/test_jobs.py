"""Every job that trains refuses the same things in the same words: each is asked for what its folder forbids."""

# ruff: noqa: F811 - fixtures of tests/tune are imported by name
from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raygpt import storage
from raygpt.classify.finetune import train_classifier
from raygpt.config import Config
from raygpt.config.settings import config_with, dump
from raygpt.errors import UserError
from raygpt.run.frame import run_location
from raygpt.run.lock import RunLock
from raygpt.train.resolve import resolve
from raygpt.train.trainer import run_training
from raygpt.tune.plan import make_plan
from raygpt.tune.sweep import run_sweep
from tests.before.make import HERE, classifier_config, training_config
from tests.run.stopping import make_job, stops_and_goes_on
from tests.train.gloo_pool import GlooPool
from tests.tune.conftest import sweep_config, tiny_base, tiny_task  # noqa: F401

# One way of stopping a job; tests/drills/test_stopping.py has the rest.
ON_THE_POOL = [("pretrain", "budget"), ("finetune", "SIGINT")]
ON_RAY = [("classify", "SIGTERM"), ("tune", "SIGINT")]
IN_MAKE_TEST = ON_THE_POOL + ON_RAY


@pytest.mark.parametrize(("name", "way"), ON_THE_POOL)
def test_a_stopped_training_saves_says_why_and_goes_on(
    name: str, way: str, gloo: GlooPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops_and_goes_on(make_job(name, tmp_path, gloo, None), way, monkeypatch)


@pytest.mark.parametrize(("name", "way"), ON_RAY)
def test_a_stopped_search_or_classifier_does_the_same(
    name: str,
    way: str,
    ray_cluster: str,
    gloo: GlooPool,
    sweep_config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stops_and_goes_on(make_job(name, tmp_path, gloo, sweep_config), way, monkeypatch)


def train(config: Config) -> object:
    return run_training(config, resolve(config), "", io.StringIO())


@pytest.fixture(params=["pretrain", "finetune", "classify", "tune"])
def job(
    request: pytest.FixtureRequest, tmp_path: Path, sweep_config: Callable[..., Config]
) -> tuple[Config, Callable[[Config], Any]]:
    """(config of a run that was begun, what starts it)."""
    for name in ("data", "task", "ddp", "classifier"):
        shutil.copytree(HERE / name, tmp_path / name)
    if request.param == "tune":
        config = sweep_config()
        folder = run_location(config)
        storage.write_text(folder / "config.yaml", dump(config))
        (Path(folder.path) / "search").mkdir()
        return config, lambda config: run_sweep(make_plan(config), "", io.StringIO())
    if request.param == "classify":
        config = classifier_config(tmp_path)
        storage.write_text(run_location(config) / "config.yaml", dump(config))
        return config, lambda config: train_classifier(config, "", io.StringIO())
    config = training_config(tmp_path, "ddp")
    if request.param == "finetune":
        config = config_with(config, {"model.init_from": str(tmp_path / "ddp")}, "test")
    return config, train


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"run.resume": "never"}, r"run.resume=never but run .* exists already: choose another run.name"),
        ({"run.resume": "must", "run.name": "other"}, r"run.resume=must but .*/other has no .*: check run.storage"),
        ({"run.seed": 7}, r"run.seed.*(set it back|set them back)"),
        ({}, r"is in use by process \d+ on .*: stop that one first, or choose another run.name"),
    ],
)
def test_what_a_folder_forbids_is_refused(
    job: tuple[Config, Callable[[Config], Any]], change: dict[str, Any], says: str
) -> None:
    config, start = job
    holder = RunLock(run_location(config))
    if not change:
        holder.acquire()
    with pytest.raises(UserError, match=says):
        start(config_with(config, change, "test"))
    holder.release("stopped")
