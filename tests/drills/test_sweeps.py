"""Kills in the middle of a sweep: the same trials come out, and no more is spent than the interrupted epochs."""

# ruff: noqa: F811 - fixtures of tests/tune are imported by name
from __future__ import annotations

import io
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import torch

from raygpt.classify.shared import base_model, read_task
from raygpt.classify.tasks import encode
from raygpt.classify.training import EncodedTask, Recipe, Training
from raygpt.config import Config
from raygpt.config.settings import config_with
from raygpt.data.tokenizer import byte_tokenizer
from raygpt.parallel import checkpoint
from raygpt.storage import locate
from raygpt.tune.plan import make_plan
from raygpt.tune.sweep import run_sweep
from tests.drills.program import Program, raygpt
from tests.tune.conftest import sweep_config, tiny_base, tiny_task  # noqa: F401
from tests.tune.test_sweep import check_scheduler

pytestmark = pytest.mark.timeout(900)

SPACE = {"optim.lr": {"grid": [1e-5, 1e-3, 3e-3, 5e-3]}}
RANGES = {"optim.lr": {"loguniform": [1e-5, 5e-3]}, "optim.weight_decay": {"uniform": [0.0, 0.1]}}
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
    return {lr: train_here(config, {"optim.lr": lr}) for lr in SPACE["optim.lr"]["grid"]}


def train_here(config: Config, params: dict[str, Any]) -> list[float]:
    """The selection accuracy of every epoch of one configuration, trained in this process and in one go."""
    task = read_task(config)
    parts = [encode(part, task.labels, byte_tokenizer()) for part in (task.train, task.selection)]
    encoded = EncodedTask("ends", task.labels, parts[0], parts[1], None, byte_tokenizer().eot_id)
    recipe = Recipe.from_config(config_with(config, params, "test"))
    training = Training(base_model(config.model.init_from), encoded, recipe, torch.device("cpu"))
    return [record["accuracy"] for record in training.run()]


def start(config: Config, name: str) -> tuple[Program, Path]:
    file = Path(config.run.storage) / "sweep.yaml"
    return Program("tune", "--config", str(file), f"--run.name={name}"), Path(config.run.storage) / name


def go_on(config: Config, folder: Path) -> tuple[dict[float, list[float]], dict[str, Any]]:
    """The same command again, on the cluster of this process."""
    raygpt("tune", "--config", str(Path(config.run.storage) / "sweep.yaml"), f"--run.name={folder.name}")
    return outcome(folder)


def finish(program: Program, folder: Path) -> tuple[dict[float, list[float]], dict[str, Any]]:
    assert program.finish(600) == 0, program.output[-4000:]
    return outcome(folder)


def check_same(
    curves: dict[float, list[float]],
    summary: dict[str, Any],
    interrupted: int,
    rates: list[float] = SPACE["optim.lr"]["grid"],
) -> None:
    """A trial of each rate, all whole, and at most `interrupted` epochs more than they need."""
    assert sorted(curves) == rates
    assert all(len(curve) == EPOCHS for curve in curves.values())
    assert len(rates) * EPOCHS <= summary["epochs"] <= len(rates) * EPOCHS + interrupted, summary["epochs"]
    assert summary["states"] == {"finished": len(rates)}


@pytest.mark.long
def test_kill_9_of_the_driver_of_a_grid_ends_with_the_same_trials(
    ray_cluster: str, sweep_config: Callable[..., Config]
) -> None:
    config = sweep_config(SETTINGS)
    broken, folder = start(config, "broken")
    broken.wait_for(r"[23]/4 trials done", 300)
    curves, summary = kill_and_go_on(broken, config, folder)
    check_same(curves, summary, 4)
    assert curves == trained_here(config)


def test_kill_9_of_the_driver_at_half_time_leaves_optuna_whole(
    ray_cluster: str, sweep_config: Callable[..., Config]
) -> None:
    config = sweep_config({**SETTINGS, "tune.space": RANGES, "tune.search": "optuna", "tune.trials": 4})
    broken, folder = start(config, "optuna")
    broken.wait_for(r"[23]/4 trials done", 300)
    curves, summary = kill_and_go_on(broken, config, folder)
    check_all_trained(curves, summary)
    study = optuna.load_study(study_name="optuna", storage=f"sqlite:///{folder}/optuna.db")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 4
    trials = json.loads((folder / "sweep.json").read_text())
    for trial in trials[1:3]:  # one from before the kill, one from after it or across it
        assert [row["accuracy"] for row in trial["history"]] == train_here(config, trial["params"])


@pytest.mark.long
def test_kill_9_of_the_driver_leaves_a_population_in_step(
    ray_cluster: str, sweep_config: Callable[..., Config]
) -> None:
    change = {"tune.space": RANGES, "tune.search": "random", "tune.scheduler": "pbt", "tune.trials": 4}
    config = sweep_config({**SETTINGS, **change, "tune.interval": 3, "tune.concurrent": None})
    broken, folder = start(config, "pbt")
    broken.wait_for(r" (2[4-9]|3\d) epochs", 300)
    curves, summary = kill_and_go_on(broken, config, folder)
    check_all_trained(curves, summary)
    for trial in json.loads((folder / "sweep.json").read_text()):
        assert [row["epoch"] for row in trial["history"]] == list(range(1, EPOCHS + 1))


def kill_and_go_on(broken: Program, config: Config, folder: Path) -> tuple[dict[float, list[float]], dict[str, Any]]:
    """Kill a sweep, run it again and return its outcome; trials that had finished are as they were.

    Of one that ended less than five seconds before, Tune's snapshot may not know yet: its last epoch may run again.
    """
    broken.kill()
    ended = [path for path in folder.glob("search/*/result.json") if path.read_text().count("\n") == EPOCHS]
    whole = {path: path.read_text() for path in ended if time.time() - path.stat().st_mtime > 5}
    assert len(whole) < 4
    found = go_on(config, folder)
    assert all(path.read_text() == text for path, text in whole.items())
    return found


def check_all_trained(curves: dict[float, list[float]], summary: dict[str, Any]) -> None:
    """Four trials whole; each of the two that ran may repeat two epochs: the one it was in and one not saved yet."""
    assert len(curves) == 4 and all(len(curve) == EPOCHS for curve in curves.values())
    assert summary["states"] == {"finished": 4} and 4 * EPOCHS <= summary["epochs"] <= 4 * EPOCHS + 4


@pytest.mark.long
def test_a_killed_sweep_of_fine_tuning_jobs_goes_on_in_their_own_runs(
    ray_cluster: str, sweep_config: Callable[..., Config], make_shards: Callable[..., str], tmp_path: Path
) -> None:
    shards = make_shards(40_000)
    rates = [1e-5, 1e-3, 1e-2]
    config = sweep_config({
        "task.name": None, "task.train": None, "data.tokenizer": "bytes", "data.train": shards, "data.val": shards,
        "data.backend": "mmap", "data.seq_len": 32, "tune.job": "finetune", "scale.num_workers": 1,
        "tune.space": {"optim.lr": {"grid": rates}}, "tune.scheduler": "asha", "tune.grace": 4,
        "tune.concurrent": 1, "tune.show_every": 0.2, "train.epochs": None, "train.max_steps": 400,
        "train.global_batch_tokens": 256, "train.micro_batch_size": 8, "train.log_every": 50,
        "train.checkpoint_every": 50, "eval.every": 50, "eval.batches": 4,
    })  # fmt: skip
    broken, folder = start(config, "nested")
    # in the middle of the second trial
    broken.wait_for(r"(?s)1/3 trials done.*running\s+[2-6] ", 300)
    broken.kill()
    raygpt("tune", "--config", str(Path(config.run.storage) / "sweep.yaml"), f"--run.name={folder.name}")
    summary = json.loads((folder / "summary.json").read_text())
    trials = {trial["params"]["optim.lr"]: trial for trial in json.loads((folder / "sweep.json").read_text())}
    assert sorted(trials) == rates and set(summary["states"]) <= {"finished", "stopped early"}
    # of the last evaluations before the kill Tune's snapshot may not know: they are told again
    assert summary["states"]["finished"] >= 1 and summary["epochs"] <= 3 * 8 + 2
    for trial in trials.values():
        assert [row["step"] for row in trial["history"]] == [50 * n for n in range(1, len(trial["history"]) + 1)]
    # the same job on its own
    best = trials[summary["best_params"]["optim.lr"]]
    raygpt("finetune", "--config", str(folder / "best.yaml"), f"--run.storage={tmp_path}", "--run.name=alone")
    records = [json.loads(line) for line in (tmp_path / "alone" / "metrics.jsonl").read_text().splitlines()]
    expected = [record["val_loss"] for record in records if "val_loss" in record and record["step"]]
    assert [row["val_loss"] for row in best["history"]] == pytest.approx(expected[: len(best["history"])], abs=1e-6)


# A byte model so small that starting its workers takes longer than training it.
NESTED: dict[str, Any] = {
    "task.name": None, "task.train": None, "model.init_from": "random", "data.tokenizer": "bytes",
    "data.backend": "mmap", "model.preset": "nano", "model.n_layer": 1, "model.n_embd": 16, "model.n_head": 2,
    "model.seq_len": 16, "scale.num_workers": 1, "train.epochs": None, "train.global_batch_tokens": 256,
    "train.micro_batch_size": 16, "train.checkpoint_every": 0,
}  # fmt: skip


@pytest.mark.long
def test_a_training_job_that_asha_stops_trains_no_further(
    ray_cluster: str, sweep_config: Callable[..., Config], make_shards: Callable[..., str]
) -> None:
    """Checkpoint and summary written; and a trial lets go of its workers before the next one trains."""
    shards, steps = make_shards(40_000), 6000
    config = sweep_config({
        **NESTED, "data.train": shards, "data.val": shards, "tune.space": {"optim.lr": {"grid": [1e-2, 1e-5]}},
        "tune.scheduler": "asha", "tune.reduction_factor": 2, "tune.concurrent": 1, "train.max_steps": steps,
        "train.log_every": 50, "eval.every": 500, "eval.batches": 1,
    })  # fmt: skip
    with Watcher() as seen:
        raygpt("tune", "--config", str(Path(config.run.storage) / "sweep.yaml"))
    folder = Path(config.run.storage) / "sweep"
    trials = {trial["params"]["optim.lr"]: trial for trial in json.loads((folder / "sweep.json").read_text())}
    assert [trials[lr]["status"] for lr in (1e-2, 1e-5)] == ["finished", "stopped early"]
    assert json.loads((folder / "summary.json").read_text())["states"] == {"finished": 1, "stopped early": 1}
    ends, firsts, summaries = [], [], []
    for lr in (1e-2, 1e-5):
        run = folder / "runs" / trials[lr]["id"]
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        ends.append(records[-1]["step"])
        firsts.append(records[0]["time"] - records[0]["step"] * records[0]["step_seconds"])
        summaries.append(json.loads((run / "summary.json").read_text()))
        newest = checkpoint.complete_checkpoints(locate(run))[0]
        assert checkpoint.step_of(newest.name) == ends[-1] and checkpoint.verify(newest) is None
        assert json.loads((run / "attempts.json").read_text())[-1]["outcome"] == summaries[-1]["outcome"]
    assert ends[0] == steps and 500 <= ends[1] < steps, ends
    assert [summary["outcome"] for summary in summaries] == ["finished", "stopped"]
    assert [summary.get("stopped_by") for summary in summaries] == [None, "scheduler"]
    # a worker process and a placement group per trial, each gone when the next trial begins its first step
    for kind, spans in (("workers", seen.workers), ("placement groups", seen.groups)):
        assert len(spans) == 2, (kind, spans)
        for (_, last), first_step in zip(sorted(spans.values()), firsts[1:]):
            assert last < first_step, (kind, last, first_step)


class Watcher:
    """Looks which training workers and which of their placement groups there are, and when each was seen first and
    last, in seconds since 1970 UTC."""

    def __init__(self) -> None:
        self.workers: dict[Any, tuple[float, float]] = {}
        self.groups: dict[Any, tuple[float, float]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        import ray

        while not self._ended.wait(0.05):
            for process in _workers(os.getpid()):
                if "RayTrainWorker" in _title(process):
                    self._see(self.workers, process.pid)
            for name, group in ray.util.placement_group_table().items():
                # a trial's own has a tenth of a CPU, a worker group's a whole one
                if group["state"] == "CREATED" and any(bundle.get("CPU") == 1 for bundle in group["bundles"].values()):
                    self._see(self.groups, name)

    def _see(self, kind: dict[Any, tuple[float, float]], name: Any) -> None:
        now = time.time()
        kind[name] = (kind.get(name, (now, now))[0], now)


def test_training_jobs_on_raw_text_are_swept_with_workers_of_their_own_over_shards_made_once(
    ray_cluster: str, sweep_config: Callable[..., Config], tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Line {number} of a small text, enough for some batches.\n" for number in range(400)))
    sweep_config({
        **NESTED, "scale.num_workers": 2, "data.train": str(text), "prepare.val_split": "tail",
        "prepare.val_fraction": 0.1, "tune.space": {"optim.lr": {"grid": [1e-5, 1e-2]}}, "train.max_steps": 20,
        "train.log_every": 5, "eval.every": 10, "eval.batches": 1,
    })  # fmt: skip
    printed = raygpt("tune", "--config", str(tmp_path / "sweep.yaml"))
    assert printed.count("Prepared ") == 1 and len(list((tmp_path / "prepared").iterdir())) == 1
    folder = tmp_path / "sweep"
    trials, summary = (json.loads((folder / name).read_text()) for name in ("sweep.json", "summary.json"))
    assert [trial["status"] for trial in trials] == ["finished"] * 2
    assert summary["kind"] == "pretrain" and summary["best_params"] == {"optim.lr": 1e-2}
    for trial in trials:
        assert [row["step"] for row in trial["history"]] == [10, 20]
        run = folder / "runs" / trial["id"]
        assert trial["history"][-1]["val_loss"] == pytest.approx(
            json.loads((run / "summary.json").read_text())["val_loss"]
        )
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert {record["world_size"] for record in records if "world_size" in record} == {2}
    assert "raygpt pretrain --config" in (folder / "best.yaml").read_text()


def test_kill_9_of_a_trial_repeats_only_the_epoch_it_was_in(
    ray_cluster: str, sweep_config: Callable[..., Config]
) -> None:
    rates = SPACE["optim.lr"]["grid"][1:3]
    config = sweep_config({**SETTINGS, "tune.space": {"optim.lr": {"grid": rates}}, "tune.concurrent": 1})
    screen, killed = io.StringIO(), []

    def kill_the_second() -> None:
        deadline = time.monotonic() + 120
        while not re.search(r" 1[4-9] epochs", screen.getvalue()) and time.monotonic() < deadline:
            time.sleep(0.02)
        for process in _workers(os.getpid()):
            if "ImplicitFunc" in _title(process):
                process.send_signal(signal.SIGKILL)
                killed.append(process.pid)

    thread = threading.Thread(target=kill_the_second)
    thread.start()
    assert run_sweep(make_plan(config), "", screen).exit_status == 0
    thread.join()
    assert killed, screen.getvalue()
    curves, summary = outcome(Path(config.run.storage) / "sweep")
    check_same(curves, summary, 2, rates)
    assert curves[rates[1]] == train_here(config, {"optim.lr": rates[1]})


@pytest.mark.long
def test_ctrl_c_stops_and_the_same_command_goes_on(ray_cluster: str, sweep_config: Callable[..., Config]) -> None:
    config = sweep_config(SETTINGS)
    program, folder = start(config, "ctrl-c")
    program.wait_for(r"[1-3]/4 trials done", 300)
    program.signal(signal.SIGINT)
    assert program.finish(120) == 130, program.output[-3000:]
    assert "To go on: raygpt tune" in program.output
    curves, summary = go_on(config, folder)
    check_same(curves, summary, 4)


@pytest.mark.parametrize("scheduler", ["hyperband", "median"])
def test_the_other_schedulers_bring_a_sweep_to_its_end(
    ray_cluster: str, sweep_config: Callable[..., Config], scheduler: str
) -> None:
    check_scheduler(sweep_config, {"tune.scheduler": scheduler, "tune.trials": 4, "train.epochs": 4})


def _workers(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
