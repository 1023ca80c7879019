"""What early stopping saves and what Tune costs: a full grid against ASHA and Optuna on the same space, on real MRPC.

    .venv/bin/python benchmarks/bench_sweep.py [--base runs/small-base] [--repeats 3] [--examples 300] ...

For each repeat (a seed of its own, from --first_seed on) the grid runs every point to its end; then ASHA, and Optuna
with ASHA, search the same points. The figure is the epochs that a search had spent when it first reached the grid's
best score, over the grid's epochs; beside it, all the epochs that the search spent. The score is the loss on the
selection part, whose best is not a matter of ties; what each search's pick has in accuracy stands beside it.
Told are the epochs until the grid's best was reached exactly, and until it was reached within one standard deviation
of a grid point's score over the repeats' seeds (`seed_noise`). The second bar was chosen after seeds 0 to 2 had shown
that the first is met in one repeat of three; the figures kept are therefore those of seeds 3 to 5.
Overhead is measured on a search of its own, with the whole training part and one trial at a time: its wall time from
the start of Tune to its end, less the time in which trials trained, over the latter. `overhead_while_running` leaves
out what comes before the first epoch begins and after the last has ended. Figures go to benchmarks/sweep.json.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
import time
from math import sqrt
from pathlib import Path
from statistics import mean, median, variance
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.provenance import provenance
from raygpt.cluster.connect import connect
from raygpt.config.settings import load_config
from raygpt.jobs import find_jobs
from raygpt.storage import locate, write_text
from raygpt.tune.plan import make_plan
from raygpt.tune.sweep import prepare_environment, run_sweep

GRID = {
    "optim.lr": {"grid": [3.0e-5, 1.0e-4, 3.0e-4, 1.0e-3]},
    "task.batch_size": {"grid": [16, 32]},
    "task.layer_decay": {"grid": [0.8, 1.0]},
}
OVERHEAD = {"optim.lr": {"grid": [3.0e-5, 1.0e-4, 3.0e-4, 1.0e-3]}}


def sweep(
    words: argparse.Namespace,
    folder: str,
    name: str,
    seed: int,
    space: dict[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Summary, trials and wall seconds of one sweep."""
    options: dict[str, str] = {
        "run.storage": folder,
        "run.name": name,
        "run.seed": str(seed),
        "model.init_from": words.base,
        "task.name": "mrpc",
        "task.train": words.data,
        "task.train_examples": str(words.examples),
        "task.max_tokens": str(words.max_tokens),
        "task.swap_eval": "false",
        "train.epochs": str(words.epochs),
        "tune.space": json.dumps(space or GRID),
        "tune.metric": words.metric,
        "tune.top": "0",
        "tune.concurrent": str(words.concurrent),
        "scale.use_gpu": "false",
        "track.wandb": "off",
        **{key.replace("__", "."): str(value) for key, value in changes.items()},
    }
    config = load_config("tune", None, options, {}, base=find_jobs()["tune"].base)
    began = time.perf_counter()
    assert run_sweep(make_plan(config), "", io.StringIO()).exit_status == 0
    seconds = time.perf_counter() - began
    home = Path(folder) / name
    summary = json.loads((home / "summary.json").read_text())
    trials = json.loads((home / "sweep.json").read_text())
    print(f"{name}: {summary['epochs']} epochs, best {summary['best_search_score']:.4f}, {seconds:.0f} s", flush=True)
    return {"summary": summary, "trials": trials, "seconds": seconds}


def epochs_to_reach(trials: list[dict[str, Any]], score: float, lower_is_better: bool) -> int | None:
    """Epochs spent, in the order they ended, when some trial first had the score; None if none did."""
    rows = [(row["timestamp_end"], row[trial["metric"]]) for trial in trials for row in trial["history"]]
    for count, (_, value) in enumerate(sorted(rows), 1):
        if value <= score if lower_is_better else value >= score:
            return count
    return None


def seed_noise(grids: list[list[dict[str, Any]]]) -> float:
    """Standard deviation of a grid point's best score over the seeds, pooled over the points."""
    scores: dict[str, list[float]] = {}
    for trials in grids:
        for trial in trials:
            scores.setdefault(json.dumps(trial["params"], sort_keys=True), []).append(trial["score"])
    return sqrt(mean(variance(values) for values in scores.values())) if len(grids) > 1 else 0.0


def accuracy_of_best(trials: list[dict[str, Any]], metric: str) -> float:
    """Selection accuracy at the epoch with the best loss (or accuracy) of all."""
    rows = [row for trial in trials for row in trial["history"]]
    best = min(rows, key=lambda row: row[metric]) if "loss" in metric else max(rows, key=lambda row: row[metric])
    return float(best["accuracy"])


def overhead(summary: dict[str, Any], trials: list[dict[str, Any]]) -> dict[str, float]:
    """Time beside the training over the time of training, of trials that ran one after the other."""
    epochs = sorted((row["timestamp_end"], row["epoch_seconds"]) for trial in trials for row in trial["history"])
    trained = sum(seconds for _, seconds in epochs)
    running = epochs[-1][0] - (epochs[0][0] - epochs[0][1])
    return {
        "overhead": summary["search_seconds"] / trained - 1,
        "overhead_while_running": running / trained - 1,
        "overhead_epoch_seconds": trained / len(epochs),
        "overhead_seconds": summary["search_seconds"] - trained,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default=str(ROOT / ".cache" / "bases" / "small-base"))
    parser.add_argument("--data", default=str(ROOT.parent / "shared" / "data" / "mrpc" / "glue"))
    parser.add_argument("--first_seed", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--examples", type=int, default=300)
    parser.add_argument("--overhead_epochs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--max_tokens", type=int, default=64)
    parser.add_argument("--concurrent", type=int, default=2)
    parser.add_argument("--metric", default="loss")
    words = parser.parse_args()
    prepare_environment()
    config = load_config("tune", None, {}, {}, check=False, base=find_jobs()["tune"].base)
    print(connect(config.scale, workers_cpus=1))
    lower = "loss" in words.metric
    repeats: list[dict[str, Any]] = []
    found: dict[str, list[list[dict[str, Any]]]] = {"grid": [], "asha": [], "optuna": []}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(words.first_seed, words.first_seed + words.repeats):
            grid = sweep(
                words, folder, f"grid-{seed}", seed, tune__search="grid", tune__scheduler="none", tune__trials=1
            )
            best = grid["summary"]["best_search_score"]
            found["grid"].append(grid["trials"])
            row: dict[str, Any] = {"seed": seed, "grid_epochs": grid["summary"]["epochs"], "grid_best": best}
            row["grid_accuracy"] = accuracy_of_best(grid["trials"], words.metric)
            alone = sweep(
                words, folder, f"alone-{seed}", seed, OVERHEAD, tune__search="grid", tune__scheduler="none",
                tune__trials=1, tune__concurrent=1, task__train_examples="none", train__epochs=words.overhead_epochs,
            )  # fmt: skip
            row |= overhead(alone["summary"], alone["trials"])
            points = len(grid["trials"])
            for name, tune in (
                ("asha", {"tune__search": "grid", "tune__trials": 1}),
                ("optuna", {"tune__search": "optuna", "tune__trials": points}),
            ):
                one = sweep(
                    words, folder, f"{name}-{seed}", seed, tune__scheduler="asha", tune__reduction_factor=4, **tune
                )
                found[name].append(one["trials"])
                row[name] = {
                    "epochs": one["summary"]["epochs"],
                    "best": one["summary"]["best_search_score"],
                    "accuracy": accuracy_of_best(one["trials"], words.metric),
                    "share_of_grid_in_all": one["summary"]["epochs"] / row["grid_epochs"],
                }
            print(json.dumps(row), flush=True)
            repeats.append(row)
    noise = seed_noise(found["grid"])
    for name in ("asha", "optuna"):
        for row, trials in zip(repeats, found[name]):
            for key, slack in (("exactly", 0.0), ("within_noise", noise)):
                goal = row["grid_best"] + (slack if lower else -slack)
                reached = epochs_to_reach(trials, goal, lower)
                row[name][f"share_of_grid_{key}"] = None if reached is None else reached / row["grid_epochs"]
    figures = {
        **provenance("torch", "ray", "optuna"),
        "settings": {**vars(words), "grid": GRID, "base": Path(words.base).name, "data": "mrpc"},
        "seed_noise": noise,
        "repeats": repeats,
        "median_overhead": median(row["overhead"] for row in repeats),
        "median_overhead_while_running": median(row["overhead_while_running"] for row in repeats),
    }
    for name in ("asha", "optuna"):
        for key in ("exactly", "within_noise"):
            # a search that never got there counts as the whole grid
            shares = [row[name][f"share_of_grid_{key}"] or 1.0 for row in repeats]
            figures[f"median_share_{name}_{key}"] = median(shares)
    write_text(locate(str(ROOT / "benchmarks" / "sweep.json")), json.dumps(figures, indent=2) + "\n")
    print(json.dumps({key: value for key, value in figures.items() if key.startswith("median")}))


if __name__ == "__main__":
    main()
