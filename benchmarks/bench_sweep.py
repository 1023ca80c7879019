"""What early stopping saves and what Tune costs: a full grid against ASHA and Optuna on the same space, on real MRPC.

    .venv/bin/python benchmarks/bench_sweep.py [--base runs/small-base] [--repeats 3] [--examples 800] ...

For each repeat (its own seed) the grid runs every point to its end; then ASHA, and Optuna with ASHA, search the same
points. The figure is the epochs a search had spent when it first reached the grid's best score, over the grid's epochs.
Overhead is the wall time of the grid's search, less the time its trials trained, over the latter. Figures go to
benchmarks/sweep.json.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from raygpt.cli import JOBS
from raygpt.settings import load_config
from raygpt.storage import locate, write_text
from raygpt.train.cluster import connect
from raygpt.tune.plan import make_plan
from raygpt.tune.sweep import prepare_environment, run_sweep

GRID = {
    "optim.lr": {"grid": [3.0e-5, 1.0e-4, 3.0e-4, 1.0e-3]},
    "task.batch_size": {"grid": [16, 32]},
    "task.layer_decay": {"grid": [0.8, 1.0]},
}


def sweep(words: argparse.Namespace, folder: str, name: str, seed: int, **tune: Any) -> dict[str, Any]:
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
        "tune.space": json.dumps(GRID),
        "tune.metric": words.metric,
        "tune.top": "0",
        "tune.concurrent": str(words.concurrent),
        "scale.use_gpu": "false",
        "track.wandb": "off",
        **{f"tune.{key}": str(value) for key, value in tune.items()},
    }
    config = load_config("tune", None, options, {}, base=JOBS["tune"].base)
    began = time.perf_counter()
    assert run_sweep(make_plan(config), "", io.StringIO()) == 0
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default=str(ROOT / ".cache" / "bases" / "small-base"))
    parser.add_argument("--data", default=str(ROOT.parent / "shared" / "data" / "mrpc" / "glue"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--examples", type=int, default=800)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--max_tokens", type=int, default=64)
    parser.add_argument("--concurrent", type=int, default=2)
    parser.add_argument("--metric", default="accuracy")
    words = parser.parse_args()
    prepare_environment()
    config = load_config("tune", None, {}, {}, check=False, base=JOBS["tune"].base)
    print(connect(config.scale, workers_cpus=1))
    lower = "loss" in words.metric
    repeats = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(words.repeats):
            grid = sweep(words, folder, f"grid-{seed}", seed, search="grid", scheduler="none", trials=1)
            best = grid["summary"]["best_search_score"]
            row: dict[str, Any] = {"seed": seed, "grid_epochs": grid["summary"]["epochs"], "grid_best": best}
            spent = grid["summary"]["search_seconds"] * words.concurrent
            row["overhead"] = spent / grid["summary"]["trial_seconds"] - 1
            points = len(grid["trials"])
            for name, tune in (
                ("asha", {"search": "grid", "scheduler": "asha", "trials": 1}),
                ("optuna", {"search": "optuna", "scheduler": "asha", "trials": points}),
            ):
                found = sweep(words, folder, f"{name}-{seed}", seed, reduction_factor=4, **tune)
                reached = epochs_to_reach(found["trials"], best, lower)
                row[name] = {
                    "epochs": found["summary"]["epochs"],
                    "best": found["summary"]["best_search_score"],
                    "epochs_to_grid_best": reached,
                    "share_of_grid": None if reached is None else reached / row["grid_epochs"],
                    "share_of_grid_in_all": found["summary"]["epochs"] / row["grid_epochs"],
                }
            print(json.dumps(row), flush=True)
            repeats.append(row)
    figures = {
        "settings": {**vars(words), "grid": GRID, "base": Path(words.base).name, "data": "mrpc"},
        "repeats": repeats,
        "median_overhead": median(row["overhead"] for row in repeats),
    }
    for name in ("asha", "optuna"):
        # a search that never got there counts as the whole grid
        figures[f"median_share_{name}"] = median(row[name]["share_of_grid"] or 1.0 for row in repeats)
    write_text(locate(str(ROOT / "benchmarks" / "sweep.json")), json.dumps(figures, indent=2) + "\n")
    print(json.dumps({key: value for key, value in figures.items() if key.startswith("median")}))


if __name__ == "__main__":
    main()
