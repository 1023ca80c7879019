"""Whole sweeps on a small cluster: searches, schedulers, final runs, trackers, resources, trials that fail."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from raygpt.config import Config
from raygpt.config.job import Call
from raygpt.config.settings import load_config
from raygpt.errors import UserError
from raygpt.tune.plan import make_plan
from raygpt.tune.sweep import prepare_environment, run_sweep
from tests.drills.program import raygpt
from tests.run.stopping import an_hour_passes
from tests.train.running import Screen

prepare_environment()  # before the module's cluster starts


def sweep(config: Config, stream: io.StringIO | None = None) -> tuple[Path, dict[str, Any], list[dict[str, Any]], str]:
    """(folder, summary, trials, what was printed) of a sweep that ran to its end."""
    stream = stream or io.StringIO()
    assert run_sweep(make_plan(config), "raygpt tune ...", stream).exit_status == 0
    folder = Path(config.run.storage) / config.run.name
    return folder, read(folder / "summary.json"), read(folder / "sweep.json"), stream.getvalue()


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_grid_with_final_runs_ends_in_a_verdict_a_report_and_a_config_that_runs(
    ray_cluster: str, sweep_config: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    change = {"tune.top": 1, "tune.scheduler": "asha", "train.epochs": 4, "track.price_per_hour": 1.0}
    folder, summary, trials, printed = sweep(sweep_config(change))
    assert len(trials) == 4 and {trial["status"] for trial in trials} <= {"finished", "stopped early"}
    points = [(trial["params"]["optim.lr"], trial["params"]["task.batch_size"]) for trial in trials]
    assert sorted(points) == [(1e-5, 8), (1e-5, 16), (3e-3, 8), (3e-3, 16)]
    assert summary["epochs"] == sum(trial["epochs_spent"] for trial in trials) <= 16
    assert summary["epochs_by_rung"][0] == {"rung": 1, "trials": 4, "epochs": 4}
    assert summary["cost_usd"] == pytest.approx(summary["wall_seconds"] / 3600)
    final = summary["final"]
    assert len(final["selection"]["0"]["scores"]) == len(final["selection"]["1"]["scores"]) == 2
    assert final["params"]["optim.lr"] == 3e-3 and final["validation_examples"] == 60
    for metric in ("accuracy", "f1"):
        figures = final["validation"][metric]
        assert figures["best"]["low"] <= figures["best"]["mean"] <= figures["best"]["high"]
        gap = figures["best"]["mean"] - figures["baseline"]["mean"]
        assert figures["over_baseline"]["mean"] == pytest.approx(gap, abs=1e-6)
    assert ("beats the baseline on held-out seeds" in printed) == final["beats_baseline"]
    # validation is no part of the search: its records know nothing of it
    assert not any("val" in key for trial in trials for row in trial["history"] for key in row)
    page = (folder / "report.html").read_text()
    assert all(word in page for word in ("Leaderboard", "Budget by rung", "held-out seeds", "data:image/png"))
    assert {path.stem for path in (folder / "plots").iterdir()} >= {"curves", "parallel", "rungs"}
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder}/optuna.db")
    assert len(study.trials) == 4 and study.best_value == pytest.approx(summary["best_search_score"])

    best = yaml.safe_load((folder / "best.yaml").read_text())
    assert best["optim"]["lr"] == 3e-3 and "tune" not in best
    config = load_config("finetune", str(folder / "best.yaml"), {}, {})
    from raygpt.jobs.tune import finetune_task

    assert finetune_task(config, Call(frozenset({"dry_run"}), "")) == 0
    assert "4 epochs" in capsys.readouterr().out and not (folder.parent / "sweep-best").exists()
    assert finetune_task(config, Call(frozenset(), "")) == 0
    run = folder.parent / "sweep-best"
    scores = read(run / "summary.json")
    assert scores["validation"]["accuracy"] > 0.7 and len((run / "metrics.jsonl").read_text().splitlines()) == 4
    capsys.readouterr()
    from raygpt.jobs.evaluate import run as evaluate

    assert evaluate(load_config("evaluate", str(folder / "best.yaml"), {}, {}), Call(frozenset(), "")) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["accuracy"] == pytest.approx(scores["validation"]["accuracy"]) and line["examples"] == 60


def test_optuna_searches_in_its_own_storage_and_knows_what_mattered(
    ray_cluster: str, sweep_config: Callable[..., Config]
) -> None:
    space = {"optim.lr": {"loguniform": [1e-6, 1e-2]}, "optim.weight_decay": {"uniform": [0, 0.1]}}
    change = {"tune.space": space, "tune.search": "optuna", "tune.trials": 6, "train.epochs": 2}
    folder, summary, trials, _ = sweep(sweep_config(change))
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder}/optuna.db")
    values = sorted(trial.value for trial in study.trials)
    assert values == pytest.approx(sorted(trial["score"] for trial in trials)) and len(values) == 6
    assert all(trial.intermediate_values for trial in study.trials)
    assert set(summary["importance"]) <= set(space)


def check_scheduler(sweep_config: Callable[..., Config], change: dict[str, Any]) -> None:
    """A random search with this scheduler ends whole, its parameters in their ranges."""
    space = {"optim.lr": {"loguniform": [1e-5, 5e-3]}, "optim.weight_decay": {"uniform": [0.0, 0.1]}}
    fixed = {"tune.space": space, "tune.search": "random", "tune.interval": 2}
    _, summary, trials, _ = sweep(sweep_config({**fixed, **change}))
    assert len(trials) == change["tune.trials"] and summary["best_search_score"] > 0.4
    assert {trial["status"] for trial in trials} <= {"finished", "stopped early"}
    for trial in trials:
        assert 1e-5 <= trial["params"]["optim.lr"] <= 5e-3


def test_a_sweep_whose_trials_all_failed_ends_with_their_reason_and_exit_status_2(
    ray_cluster: str, sweep_config: Callable[..., Config], make_shards: Callable[..., str], tmp_path: Path
) -> None:
    shards = make_shards(5000)
    # each value is possible, none goes with rows of 16 tokens
    change = {
        "task.name": None, "task.train": None, "model.init_from": "random", "data.tokenizer": "bytes",
        "data.train": shards, "data.val": shards, "data.backend": "mmap", "model.preset": "nano",
        "model.n_layer": 1, "model.n_embd": 16, "model.n_head": 2, "model.seq_len": 16, "scale.num_workers": 1,
        "tune.space": {"train.global_batch_tokens": {"grid": [50, 70]}}, "tune.max_failures": 0,
        "train.epochs": None, "train.max_steps": 2,
    }  # fmt: skip
    sweep_config(change)
    printed = raygpt("tune", "--config", str(tmp_path / "sweep.yaml"), status=2)
    said = printed.splitlines()[-1]
    assert said.startswith("raygpt: all 2 trials of sweep ") and "Traceback" not in printed
    for value in (50, 70):
        assert f"train.global_batch_tokens={value} is no multiple of data.seq_len=16" in said
    folder = tmp_path / "sweep"
    assert not (folder / "best.yaml").exists() and read(folder / "attempts.json")[-1]["outcome"] == "failed"


def test_classifiers_that_all_fail_are_no_sweep(ray_cluster: str, sweep_config: Callable[..., Config]) -> None:
    # a ten-thousandth of a gigabyte beside the libraries is too little for any of them
    change = {"tune.space": {"optim.lr": {"grid": [1e-5, 3e-3]}}, "tune.memory_gb": 1e-4, "tune.max_failures": 0}
    with pytest.raises(UserError, match="all 2 trials of sweep .* failed: .*memory.*another run.name"):
        run_sweep(make_plan(sweep_config(change)), "", io.StringIO())


def test_a_trial_that_fits_no_node_is_refused_instead_of_waiting(
    ray_cluster: str, sweep_config: Callable[..., Config]
) -> None:
    with pytest.raises(UserError, match="tune.cpus_per_trial=64 is more than any node of the cluster has"):
        run_sweep(make_plan(sweep_config({"tune.cpus_per_trial": 64})), "", io.StringIO())


def test_a_finished_sweep_is_not_run_again_and_other_settings_are_refused(
    ray_cluster: str, sweep_config: Callable[..., Config]
) -> None:
    change = {"tune.space": {"optim.lr": {"grid": [1e-5, 3e-3]}}, "train.epochs": 1}
    folder, before, trials, _ = sweep(sweep_config(change))
    _, after, again, _ = sweep(sweep_config(change))
    assert again == trials and after["epochs"] == before["epochs"] == 2
    # a kill may leave the newest of Tune's snapshots empty: the one before knows the same trials
    snapshots = sorted((folder / "search").glob("experiment_state-*.json"))
    assert len(snapshots) == 2
    snapshots[-1].write_bytes(b"")
    _, after, again, printed = sweep(sweep_config(change))
    assert f"was cut off by a kill ({snapshots[-1].name}): going on from the one before" in printed
    assert again == trials and after["epochs"] == 2
    for snapshot in (folder / "search").glob("experiment_state-*.json"):
        snapshot.write_bytes(b"")
    with pytest.raises(UserError, match="is cut off.*delete .*/search to begin it anew, or give it another run.name"):
        run_sweep(make_plan(sweep_config(change)), "", io.StringIO())
    other = sweep_config({**change, "tune.space": {"optim.lr": {"grid": [1e-5, 4e-3]}}})
    with pytest.raises(UserError, match="was begun with other settings .tune.space."):
        run_sweep(make_plan(other), "", io.StringIO())


def test_a_spent_time_budget_ends_the_search(
    ray_cluster: str, sweep_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    space = {"optim.lr": {"grid": [1e-5, 2e-5, 3e-5]}}
    change = {"tune.space": space, "train.epochs": 1000, "tune.max_seconds": 3600.0, "tune.concurrent": 1}
    screen = Screen({" 1 epochs": lambda: an_hour_passes(monkeypatch)})
    _, summary, trials, _ = sweep(sweep_config({**change, "tune.show_every": 0.01}), screen)
    assert summary["outcome"] == "finished" and 1 <= summary["epochs"] < 100
    assert [trial["status"] for trial in trials] == ["stopped early"]
