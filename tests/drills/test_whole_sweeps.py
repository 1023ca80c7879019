"""Sweeps that take long: on S3, of populations, with a W&B run per trial."""

# ruff: noqa: F811 - fixtures of tests/tune are imported by name
from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from raygpt.config import Config
from raygpt.storage import child, list_folder, locate, read_bytes
from raygpt.tune.plan import make_plan
from raygpt.tune.sweep import prepare_environment, run_sweep
from tests.track.test_trackers import offline_runs, wandb_history, wandb_records
from tests.tune.conftest import sweep_config, tiny_base, tiny_task  # noqa: F401
from tests.tune.test_sweep import check_scheduler, read, sweep

prepare_environment()  # before the module's cluster starts


@pytest.mark.long
def test_a_sweep_on_s3_leaves_everything_there_and_is_not_run_again(
    ray_cluster: str, sweep_config: Callable[..., Config], bucket: str, tmp_path: Path
) -> None:
    space = {"optim.lr": {"loguniform": [1e-5, 1e-2]}}
    change = {
        "tune.space": space,
        "tune.search": "optuna",
        "tune.trials": 2,
        "train.epochs": 1,
        "tune.top": 1,
        "tune.seeds": 1,
    }
    change |= {"run.storage": bucket, "track.wandb": "offline"}
    assert run_sweep(make_plan(sweep_config(change)), "", io.StringIO()).exit_status == 0
    folder = locate(f"{bucket}/sweep")
    here = tmp_path / "copy"
    for entry in list_folder(folder, recursive=True):
        if entry.is_file:
            target = here / entry.path.removeprefix(f"{folder.path}/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(read_bytes(child(folder, entry)))
    trials = read(here / "sweep.json")
    assert len(trials) == 2 and read(here / "summary.json")["final"]["validation_examples"] == 60
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{here}/optuna.db")
    assert sorted(trial.value for trial in study.trials) == pytest.approx(sorted(t["score"] for t in trials))
    assert len(offline_runs(here)) == 2 + 2  # the search, then the best and the baseline
    assert "Leaderboard" in (here / "report.html").read_text()
    best = yaml.safe_load((here / "best.yaml").read_text())
    assert best["run"]["storage"] == bucket
    before = read_bytes(folder / "sweep.json")
    assert run_sweep(make_plan(sweep_config(change)), "", io.StringIO()).exit_status == 0
    assert read_bytes(folder / "sweep.json") == before


@pytest.mark.parametrize("scheduler", ["pbt", "pb2"])
def test_a_population_brings_a_sweep_to_its_end(
    ray_cluster: str, sweep_config: Callable[..., Config], scheduler: str
) -> None:
    # one meeting of two: a member's every stretch starts a process
    check_scheduler(sweep_config, {"tune.scheduler": scheduler, "tune.trials": 2, "train.epochs": 3})


def test_one_wandb_run_per_trial_is_read_back_from_its_offline_files(
    ray_cluster: str, sweep_config: Callable[..., Config]
) -> None:
    space = {"optim.lr": {"grid": [1e-5, 3e-3]}}
    folder, _, trials, printed = sweep(sweep_config({"tune.space": space, "track.wandb": "offline"}))
    folders = offline_runs(folder)
    assert len(folders) == 2, printed
    runs = {run["id"]: run for run in map(read_wandb, folders)}
    for trial in trials:
        run = runs[f"sweep-{trial['id']}"]
        assert run["group"] == "sweep"
        assert run["config"]["params"]["optim.lr"] == trial["params"]["optim.lr"]
        assert [row["epoch"] for row in run["rows"]] == [1, 2, 3]
        for key in ("accuracy", "f1", "loss", "train_loss"):
            assert [row[key] for row in run["rows"]] == pytest.approx([row[key] for row in trial["history"]])
        assert run["summary"]["best_accuracy"] == pytest.approx(trial["score"])
        assert run["summary"]["status"] == "finished"


def read_wandb(folder: Path) -> dict[str, Any]:
    """Id, group, config, history and summary of an offline run's file."""
    found: dict[str, Any] = {"rows": wandb_history(folder), "summary": {}, "config": {}}
    for record in wandb_records(folder):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found |= {"id": record.run.run_id, "group": record.run.run_group}
            found["config"] |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "summary":
            for item in record.summary.update:
                found["summary"][item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
    return found


def test_a_trial_that_runs_out_of_memory_is_marked_and_the_others_go_on(
    ray_cluster: str, sweep_config: Callable[..., Config], tmp_path: Path
) -> None:
    rows = [f"{'abcdefghij'[i % 10] * 44},{i % 2}" for i in range(1200)]
    (tmp_path / "long.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    # 1,000 rows at once take half a gigabyte, eight a few megabytes
    change = {"tune.space": {"task.batch_size": {"grid": [8, 1000]}}, "tune.memory_gb": 0.2, "train.epochs": 1}
    change |= {"task.train": str(tmp_path / "long.csv")}
    folder, summary, trials, printed = sweep(sweep_config(change))
    by_size = {trial["params"]["task.batch_size"]: trial for trial in trials}
    assert by_size[1000]["status"] == "out of memory" and by_size[1000]["error"].startswith("out of memory")
    assert by_size[8]["status"] == "finished"
    assert f"trial {by_size[1000]['id']} out of memory" in printed
    assert summary["states"] == {"finished": 1, "out of memory": 1}
    assert "task.batch_size" in (folder / "report.html").read_text()


@pytest.mark.long
def test_four_trials_share_four_cores_and_never_more_run_at_once(
    ray_cluster: str, sweep_config: Callable[..., Config]
) -> None:
    # six logical CPUs, 1.5 per trial: four at a time
    space = {"optim.lr": {"grid": [1e-5, 2e-5, 3e-5, 4e-5, 5e-5, 6e-5]}}
    _, _, trials, printed = sweep(
        sweep_config({"tune.space": space, "tune.cpus_per_trial": 1.5, "tune.show_every": 0.01})
    )
    counts = Counter(
        int(line.split(" running")[0].split("| ")[-1]) for line in printed.splitlines() if " running |" in line
    )
    assert max(counts) <= 4 and len(trials) == 6
