"""Kills in the middle of a sweep: the same trials come out, and no more is spent than the interrupted epochs."""

# ruff: noqa: F811 - fixtures of tests/tune are imported by name
from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from raygpt.config import Config
from raygpt.data.tasks import encode
from raygpt.data.tokenizer import byte_tokenizer
from raygpt.settings import config_with
from raygpt.tune.classify import EncodedTask, Recipe, Training
from raygpt.tune.plan import read_task
from raygpt.tune.trial import base_model
from tests.drills.program import Program
from tests.tune.conftest import sweep_config, tiny_base, tiny_task  # noqa: F401

pytestmark = pytest.mark.timeout(900)

SPACE = {"optim.lr": {"grid": [1e-5, 1e-3, 3e-3, 5e-3]}}
EPOCHS = 12
SETTINGS: dict[str, Any] = {
    "tune.space": SPACE,
    "train.epochs": EPOCHS,
    "tune.concurrent": 2,
    "tune.show_every": 0.2,
    "task.batch_size": 4,
}


def outcome(folder: Path) -> tuple[dict[float, list[float]], dict[str, Any]]:
    """({learning rate: accuracy of every epoch}, summary) of a finished sweep."""
    trials = json.loads((folder / "sweep.json").read_text())
    curves = {trial["params"]["optim.lr"]: [row["accuracy"] for row in trial["history"]] for trial in trials}
    return curves, json.loads((folder / "summary.json").read_text())


def trained_here(config: Config) -> dict[float, list[float]]:
    """The curves that training without Ray, in this process and in one go, gives."""
    task = read_task(config)
    parts = [encode(part, task.labels, byte_tokenizer()) for part in (task.train, task.selection)]
    encoded = EncodedTask("ends", task.labels, parts[0], parts[1], None, byte_tokenizer().eot_id)
    curves = {}
    for lr in SPACE["optim.lr"]["grid"]:
        recipe = Recipe.from_config(config_with(config, {"optim.lr": lr}, "test"))
        training = Training(base_model(config.model.init_from), encoded, recipe, torch.device("cpu"))
        curves[lr] = [record["accuracy"] for record in training.run()]
    return curves


def start(config: Config, name: str) -> tuple[Program, Path]:
    file = Path(config.run.storage) / "sweep.yaml"
    return Program("tune", "--config", str(file), f"--run.name={name}"), Path(config.run.storage) / name


def finish(program: Program, folder: Path) -> tuple[dict[float, list[float]], dict[str, Any]]:
    assert program.finish(600) == 0, program.output[-4000:]
    return outcome(folder)


def check_same(curves: dict[float, list[float]], summary: dict[str, Any], interrupted: int) -> None:
    """All four trials whole, and at most `interrupted` epochs more than the four need."""
    assert sorted(curves) == SPACE["optim.lr"]["grid"]
    assert all(len(curve) == EPOCHS for curve in curves.values())
    assert 4 * EPOCHS <= summary["epochs"] <= 4 * EPOCHS + interrupted, summary["epochs"]
    assert summary["states"] == {"finished": 4}


def test_kill_9_of_the_driver_at_half_time_ends_with_the_same_trials(sweep_config: Callable[..., Config]) -> None:
    config = sweep_config(SETTINGS)
    broken, folder = start(config, "broken")
    broken.wait_for("2/4 trials done", 300)
    time.sleep(1)
    broken.kill()
    done = {path.parent.name: path.read_text() for path in folder.glob("search/*/result.json")}
    finished = {name: text for name, text in done.items() if len(text.splitlines()) == EPOCHS}
    assert 2 <= len(finished) < 4
    again, folder = start(config, "broken")
    curves, summary = finish(again, folder)
    check_same(curves, summary, 4)
    assert curves == trained_here(config)
    for name, text in finished.items():  # finished trials were never run again
        assert (folder / "search" / name / "result.json").read_text() == text


@pytest.mark.long
def test_kill_9_of_a_trial_repeats_only_the_epoch_it_was_in(sweep_config: Callable[..., Config]) -> None:
    config = sweep_config({**SETTINGS, "tune.concurrent": 1})
    program, folder = start(config, "trial")
    program.wait_for("1/4 trials done", 300)
    deadline = time.monotonic() + 120
    while not (victims := [process for process in _workers(program.pid) if "ImplicitFunc" in _title(process)]):
        assert time.monotonic() < deadline, [_title(process) for process in _workers(program.pid)]
        time.sleep(0.1)
    time.sleep(1.5)
    victims[0].send_signal(signal.SIGKILL)
    curves, summary = finish(program, folder)
    check_same(curves, summary, 2)


def test_a_lost_node_costs_no_trial(sweep_config: Callable[..., Config]) -> None:
    """Two nodes of one CPU for trials; one dies while both run."""
    import ray
    from ray.cluster_utils import Cluster

    config = sweep_config(SETTINGS)
    ray.shutdown()
    head = {"num_cpus": 1, "object_store_memory": 150_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        node = cluster.add_node(num_cpus=1, object_store_memory=150_000_000)
        file = Path(config.run.storage) / "sweep.yaml"
        program = Program(
            "tune", "--config", str(file), "--run.name=node", f"--scale.address={cluster.address}",
            "--tune.cpus_per_trial=0.5", "--tune.concurrent=4",
        )  # fmt: skip
        program.wait_for("4 running", 300)
        time.sleep(3)
        cluster.remove_node(node, allow_graceful=False)
        curves, summary = finish(program, Path(config.run.storage) / "node")
        check_same(curves, summary, 4)
    finally:
        cluster.shutdown()


@pytest.mark.long
def test_ctrl_c_stops_and_the_same_command_goes_on(sweep_config: Callable[..., Config]) -> None:
    config = sweep_config(SETTINGS)
    program, folder = start(config, "ctrl-c")
    program.wait_for("1/4 trials done", 300)
    program.signal(signal.SIGINT)
    assert program.finish(120) == 130, program.output[-3000:]
    assert "To go on: raygpt tune" in program.output
    again, folder = start(config, "ctrl-c")
    curves, summary = finish(again, folder)
    check_same(curves, summary, 4)


def _workers(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
