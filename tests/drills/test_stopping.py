"""Kills and key presses on the real program: nothing is lost but steps, nothing is damaged, nothing is left behind."""

# ruff: noqa: F811 - fixtures of tests/tune are imported by name
from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from raygpt.config import Config
from raygpt.parallel import checkpoint
from raygpt.storage import locate
from raygpt.track.jsonl import read_metrics
from raygpt.tune.plan import make_plan
from raygpt.tune.sweep import run_sweep
from tests.drills.program import Program, raygpt
from tests.run.stopping import (
    JOBS,
    TRAININGS,
    WAYS,
    an_hour_passes,
    make_job,
    stops_and_goes_on,
    trainings_saved,
)
from tests.run.test_jobs import IN_MAKE_TEST
from tests.train.gloo_pool import GlooPool
from tests.train.running import Screen
from tests.tune.conftest import sweep_config, tiny_base, tiny_task  # noqa: F401

SMALL = {
    "model.preset": "nano",
    "model.n_layer": "4",
    "model.n_embd": "64",
    "model.seq_len": "32",
    "model.dropout": "0.1",
    "scale.num_workers": "2",
    "train.global_batch_tokens": "1024",
    "train.micro_batch_size": "1",  # slow enough to be killed at a chosen step
    "train.log_every": "1",
    "train.checkpoint_every": "10",
    "train.log_batch_digest": "true",
    "eval.every": "10",
    "eval.batches": "2",
    "track.wandb": "off",
    "track.tensorboard": "false",
}
STEPS = 70  # of a run whose driver is killed twice: its workers go on for up to twenty steps until Ray ends them
# where a signal meets the driver it matters little how many workers there are: each takes seconds to start
ALONE = {"scale.num_workers": "1", "train.checkpoint_every": "2"}

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    import numpy as np

    from raygpt.data.shards import ShardWriter
    from raygpt.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer("bytes")
    ids = np.random.default_rng(5).integers(97, 123, 40_000).astype("<u2")
    ids[::50] = tokenizer.eot_id
    writer = ShardWriter(str(tmp_path_factory.mktemp("data")), "uint16", 9_999)
    writer.append(ids)
    writer.finish(tokenizer.info, tokenizer.to_json(), 800, 39_200, ["memory"])
    return writer.folder.uri


def words(shards: str, storage: Path, name: str, steps: int, **changes: str) -> list[str]:
    options = {**SMALL, "data.train": shards, "data.val": shards, "run.storage": str(storage), "run.name": name}
    options |= {"train.max_steps": str(steps)} | {key.replace("__", "."): value for key, value in changes.items()}
    return ["pretrain", *(f"--{key}={value}" for key, value in options.items())]


def rows(storage: Path, name: str, key: str) -> dict[int, object]:
    return {row["step"]: row[key] for row in read_metrics(locate(storage / name / "metrics.jsonl")) if key in row}


def test_kill_9_of_the_driver_twice_in_a_row_gives_the_unbroken_run(
    ray_cluster: str, shards: str, tmp_path: Path
) -> None:
    raygpt(*words(shards, tmp_path, "whole", STEPS))
    for shown in (rf"step 12/{STEPS}", rf"step \d+/{STEPS}"):
        broken = Program(*words(shards, tmp_path, "broken", STEPS))
        broken.wait_for(shown, 180)
        broken.kill()
    assert "Going on from step" in raygpt(*words(shards, tmp_path, "broken", STEPS))
    for key in ("batch_digest", "train_loss", "val_loss"):
        assert rows(tmp_path, "broken", key) == rows(tmp_path, "whole", key), key
    for part in ("model-00000.safetensors", "model-00001.safetensors"):
        left, right = (tmp_path / name / f"checkpoints/step_{STEPS:08d}" / part for name in ("whole", "broken"))
        assert left.read_bytes() == right.read_bytes()


def test_ctrl_c_in_a_terminal_saves_and_says_how_to_go_on(shards: str, tmp_path: Path) -> None:
    program = Program(*words(shards, tmp_path, "r", 100_000, **ALONE), terminal=True)
    program.wait_for("step 3/100000", 180)
    program.press_ctrl_c()
    assert program.finish() == 130
    assert "finishing this step and saving" in program.output
    assert "checkpoint saved in" in program.output and "To go on: raygpt pretrain --" in program.output
    assert "Traceback" not in program.output
    newest = checkpoint.complete_checkpoints(locate(tmp_path / "r"))[0]
    assert checkpoint.verify(newest) is None
    assert checkpoint.step_of(newest.name) == max(rows(tmp_path, "r", "step"))


def test_a_second_ctrl_c_leaves_at_once_and_takes_ray_along(shards: str, tmp_path: Path) -> None:
    program = Program(*words(shards, tmp_path, "r", 100_000, **ALONE), terminal=True)
    program.wait_for("step 5/100000", 180)
    children = psutil.Process(program.pid).children(recursive=True)
    program.press_ctrl_c()
    program.wait_for("finishing this step", 10)
    time.sleep(0.4)  # a second press, not a key held down
    program.press_ctrl_c()
    assert program.finish(5) == 130
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    newest = checkpoint.complete_checkpoints(locate(tmp_path / "r"))[0]
    assert checkpoint.verify(newest) is None


@pytest.mark.long  # and every job is stopped by SIGTERM below
def test_sigterm_saves_like_ctrl_c(shards: str, tmp_path: Path) -> None:
    program = Program(*words(shards, tmp_path, "r", 100_000, **ALONE))
    program.wait_for("step 5/100000", 180)
    program.signal(signal.SIGTERM)
    assert program.finish() == 143
    assert "To go on: raygpt pretrain --" in program.output
    newest, before = checkpoint.complete_checkpoints(locate(tmp_path / "r"))[:2]
    assert checkpoint.step_of(newest.name) == max(rows(tmp_path, "r", "step"))
    assert checkpoint.verify(newest) is None and checkpoint.verify(before) is None


@pytest.mark.long  # make test has it within one process
def test_a_run_in_use_is_refused_while_it_lives(shards: str, tmp_path: Path) -> None:
    first = Program(*words(shards, tmp_path, "r", 100_000))
    first.wait_for("step 3/100000", 180)
    second = Program(*words(shards, tmp_path, "r", 100_000))
    assert second.finish() == 2
    assert f"in use by process {first.pid}" in second.output and "Traceback" not in second.output
    first.signal(signal.SIGTERM)
    first.finish()


@pytest.mark.parametrize(
    ("name", "way"),
    [
        # trainings are asked to stop over one wire whoever wishes it, and each of these takes a minute
        pytest.param(name, way, marks=[pytest.mark.long] * (name == "tune of trainings"))
        for name in JOBS
        for way in WAYS
        if (name, way) not in IN_MAKE_TEST
    ],
)
def test_every_job_stopped_in_every_way_saves_says_why_and_goes_on(
    name: str,
    way: str,
    ray_cluster: str,
    gloo: GlooPool,
    sweep_config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stops_and_goes_on(make_job(name, tmp_path, gloo, sweep_config), way, monkeypatch)


def test_trials_that_train_when_the_search_s_time_is_over_save_and_are_no_failures(
    ray_cluster: str, shards: str, sweep_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = sweep_config({**TRAININGS, "data.train": shards, "data.val": shards, "tune.max_seconds": 3600.0})
    screen = Screen({" 1 epochs": lambda: an_hour_passes(monkeypatch)})
    assert run_sweep(make_plan(config), "", screen).outcome == "finished", screen.getvalue()
    folder = Path(config.run.storage) / "sweep"
    assert json.loads((folder / "summary.json").read_text())["states"] == {"stopped early": 1}
    assert trainings_saved(folder) > 0
