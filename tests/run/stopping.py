"""One body for every job that trains and every way of stopping it: it saves, says why, and goes on to its end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from raygpt.classify.finetune import STATE, VALUES, train_classifier
from raygpt.config import Config
from raygpt.config.settings import config_with
from raygpt.parallel import checkpoint
from raygpt.parallel.pieces import TensorFile
from raygpt.run.frame import Outcome, run_location
from raygpt.storage import locate
from raygpt.track.jsonl import read_metrics
from raygpt.tune.plan import make_plan
from raygpt.tune.sweep import run_sweep
from tests.before.make import HERE, classifier_config, training_config
from tests.train.gloo_pool import GlooPool
from tests.train.running import Screen, run

JOBS = ("pretrain", "finetune", "classify", "tune", "tune of trainings")
WAYS = ("SIGINT", "SIGTERM", "budget")
ENDS = {"SIGINT": ("stopped", 130), "SIGTERM": ("stopped", 143), "budget": ("budget", 0)}
# per epoch of the sweep's two trials, one after the other
SWEEP = {"tune.space": {"optim.lr": {"grid": [1e-3, 3e-3]}}, "tune.concurrent": 1, "tune.show_every": 0.01}

# Of a millisecond each: a stop takes some two seconds to come through.
TRIAL_STEPS = 6000
# trials that are training jobs, so small that starting their workers takes longer than training them
TRAININGS = {
    **SWEEP, "task.name": None, "task.train": None, "model.init_from": "random", "data.tokenizer": "bytes",
    "data.backend": "mmap", "model.preset": "nano", "model.n_layer": 1, "model.n_embd": 16, "model.n_head": 2,
    "model.seq_len": 16, "scale.num_workers": 1, "train.epochs": None, "train.global_batch_tokens": 256,
    "train.micro_batch_size": 16, "train.checkpoint_every": 0, "train.max_steps": TRIAL_STEPS, "train.log_every": 50,
    "eval.every": TRIAL_STEPS // 10, "eval.batches": 1,
}  # fmt: skip

# what has been recorded of a run: (whose, step or epoch, its loss)
Records = list[tuple[str, int, float]]


@dataclass
class Job:
    """A job to be stopped once `mark` is printed. `config` is long, `rest(config, records)` such that it ends soon
    after those; `saved(folder)` is the last step or epoch that it could go on from."""

    config: Config
    start: Callable[[Config, Screen], Outcome]
    mark: str
    rest: Callable[[Config, Records], Config]
    records: Callable[[Path], Records]
    saved: Callable[[Path], int]
    whole: Callable[[Config, Records], bool]


def make_job(name: str, folder: Path, pool: GlooPool, sweep_config: Callable[..., Config] | None) -> Job:
    """One of JOBS, its data and models in `folder`. pretrain and finetune train on the pool's ranks."""
    for each in ("data", "task", "ddp"):
        shutil.copytree(HERE / each, folder / each)
    if name == "tune of trainings":
        assert sweep_config is not None
        data = {"data.train": str(folder / "data"), "data.val": str(folder / "data")}
        return Job(
            sweep_config({**TRAININGS, **data}),
            lambda config, screen: run_sweep(make_plan(config), "go on", screen),
            " 1 epochs",
            lambda config, _: config,
            trainings_records,
            trainings_saved,
            lambda config, found: [step for _, step, _ in found].count(TRIAL_STEPS) == 2,
        )
    if name == "tune":
        assert sweep_config is not None
        config = sweep_config(SWEEP)
        return Job(
            config,
            lambda config, screen: run_sweep(make_plan(config), "go on", screen),
            " 1 epochs",
            lambda config, _: config,
            sweep_records,
            sweep_saved,
            lambda config, found: len(found) == 6 and len({(trial, epoch) for trial, epoch, _ in found}) == 6,
        )
    if name == "classify":
        config = config_with(classifier_config(folder), {"train.epochs": 4, "run.name": "stopped"}, "test")
        return Job(
            config,
            lambda config, screen: train_classifier(config, "go on", screen),
            "epoch 1/4",
            lambda config, _: config,
            run_records,
            lambda folder: json.loads(TensorFile.open(locate(folder) / STATE).metadata[VALUES])["epoch"],
            lambda config, found: [step for _, step, _ in found] == [1, 2, 3, 4],
        )
    config = config_with(training_config(folder, "ddp"), {"run.name": "stopped", "train.max_steps": 100_000}, "test")
    if name == "finetune":
        config = config_with(config, {"model.init_from": str(folder / "ddp"), "optim.lr": 1e-4}, "test")
    return Job(
        config,
        partial(train_on, pool),
        "step 2/",
        lambda config, found: config_with(config, {"train.max_steps": found[-1][1] + 3}, "test"),
        run_records,
        newest_checkpoint,
        lambda config, found: [step for _, step, _ in found] == list(range(1, (config.train.max_steps or 0) + 1)),
    )


def stops_and_goes_on(job: Job, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one body."""
    config, stop = job.config, partial(os.kill, os.getpid(), getattr(signal, way, 0))
    if way == "budget":
        config = config_with(config, {"track.price_per_hour": 1.0, "track.max_cost_usd": 1.0}, "test")
        monkeypatch.setattr("raygpt.run.stop.BUDGET_LOOK_SECONDS", 0.02)
        stop = partial(an_hour_passes, monkeypatch)
    folder, screen = Path(run_location(config).path), Screen({job.mark: stop})
    outcome = job.start(config, screen)
    assert (outcome.outcome, outcome.exit_status) == ENDS[way], screen.getvalue()
    last = screen.getvalue().splitlines()[-1]
    why = "track.max_cost_usd is reached: stopped " if way == "budget" else "Stopped "
    assert last.startswith(why) and last.endswith(" To go on: go on"), last
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["outcome"], summary["stopped_by"]) == (ENDS[way][0], way)
    assert json.loads((folder / "attempts.json").read_text())[-1]["outcome"] == ENDS[way][0]
    assert not (folder / "lock.json").exists()
    kept = job.records(folder)
    # a trial may have saved an epoch more than its sweep has heard of
    assert kept and job.saved(folder) >= kept[-1][1] and not job.whole(config, kept)

    rest = job.rest(config_with(config, {"track.max_cost_usd": None}, "test"), kept)
    screen = Screen()
    outcome = job.start(rest, screen)
    assert (outcome.outcome, outcome.exit_status) == ("finished", 0), screen.getvalue()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["outcome"] == "finished" and "stopped_by" not in summary
    found = job.records(folder)
    assert [each for each in found if each in kept] == kept and job.whole(rest, found), (kept, found)


def an_hour_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the clock that a run's seconds are counted by."""
    later = SimpleNamespace(time=lambda: time.time() + 3600, sleep=time.sleep)
    monkeypatch.setattr("raygpt.run.lock.time", later)
    monkeypatch.setattr("raygpt.track.cost.time", later)


def train_on(pool: GlooPool, config: Config, screen: Screen) -> Outcome:
    return run(config, pool=pool, screen=screen, again="go on")[0]


def run_records(folder: Path) -> Records:
    return [("", row["step"], row["train_loss"]) for row in read_metrics(locate(folder / "metrics.jsonl"))]


def newest_checkpoint(folder: Path) -> int:
    newest = checkpoint.complete_checkpoints(locate(folder))[0]
    assert checkpoint.verify(newest) is None
    return checkpoint.step_of(newest.name)


def trainings_records(folder: Path) -> Records:
    """One trial after the other; no step of any is recorded twice."""
    found = []
    for each in sorted(
        folder.glob("runs/*"), key=lambda path: json.loads((path / "attempts.json").read_text())[0]["started"]
    ):
        records = [(each.name, step, loss) for _, step, loss in run_records(each)]
        assert len({step for _, step, _ in records}) == len(records)
        found += records
    return found


def trainings_saved(folder: Path) -> int:
    """The step in the checkpoint of the trial that ran last, which was stopped in the middle."""
    last = newest(folder.glob("runs/*"))
    step, summary = newest_checkpoint(last), json.loads((last / "summary.json").read_text())
    assert step == summary["steps"] < TRIAL_STEPS
    assert (summary["outcome"], summary["stopped_by"]) == ("stopped", "sweep")
    return step


def newest(paths: Iterable[Path]) -> Path:
    return max(paths, key=lambda path: path.stat().st_mtime)


def sweep_records(folder: Path) -> Records:
    files = sorted(
        folder.glob("search/*/result.json"), key=lambda path: json.loads(path.open().readline())["timestamp"]
    )
    rows = [(path.parent.name, json.loads(line)) for path in files for line in path.read_text().splitlines()]
    return [(trial, row["epoch"], row["train_loss"]) for trial, row in rows]


def sweep_saved(folder: Path) -> int:
    """The epoch in the state of the trial that ran last."""
    return json.loads(newest(folder.glob("search/*/checkpoint_*/state.json")).read_text())["epoch"]
