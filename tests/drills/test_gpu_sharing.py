"""Two trials on one logical GPU: Ray counts halves, and a third trial waits."""

# ruff: noqa: F811 - fixtures of tests/tune are imported by name
from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raygpt.config import Config
from raygpt.tune.plan import make_plan
from raygpt.tune.sweep import prepare_environment, run_sweep
from tests.conftest import start_ray
from tests.tune.conftest import sweep_config, tiny_base, tiny_task  # noqa: F401


@pytest.fixture(scope="module")
def one_gpu() -> Iterator[None]:
    """A cluster of four CPUs and one GPU that exists by name only."""
    import ray

    prepare_environment()
    ray.shutdown()
    start_ray(cpus=4, gpus=1, object_store=200_000_000)
    yield
    ray.shutdown()


def test_halves_of_a_gpu_run_two_trials_at_a_time(one_gpu: None, sweep_config: Callable[..., Config]) -> None:
    config = sweep_config(
        {
            "tune.space": {"optim.lr": {"grid": [1e-5, 2e-5, 3e-5]}},
            "tune.gpus_per_trial": 0.5,
            "tune.show_every": 0.01,
            "train.epochs": 60,  # long enough for the second worker to have started
        }
    )
    stream = io.StringIO()
    assert run_sweep(make_plan(config), "", stream).exit_status == 0
    lines = [line for line in stream.getvalue().splitlines() if " running |" in line]
    assert max(int(line.split(" running")[0].split("| ")[-1]) for line in lines) == 2
    trials = json.loads((Path(config.run.storage) / "sweep" / "sweep.json").read_text())
    assert [trial["status"] for trial in trials] == ["finished"] * 3
