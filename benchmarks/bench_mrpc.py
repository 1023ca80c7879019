"""The sweep of jobs/configs/mrpc-small.yaml, run as a user runs it: what it chose, and what that is worth.

    .venv/bin/python benchmarks/bench_mrpc.py [--storage .cache/sweeps] [--base .cache/bases/small-base]

A sweep that lies finished in the storage folder is read, not run again. The base comes from
`raygpt pretrain --config jobs/configs/small-base.yaml --run.storage=.cache/bases`. Figures go to
benchmarks/mrpc_small.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.provenance import provenance
from raygpt.storage import locate, write_text

KEPT = ("trials", "states", "epochs", "trial_seconds", "wall_seconds", "best_search_score", "final")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--storage", default=".cache/sweeps")
    parser.add_argument("--base", default=".cache/bases/small-base")
    words = parser.parse_args()
    command = ["tune", "--config", "jobs/configs/mrpc-small.yaml", f"--run.storage={words.storage}"]
    command.append(f"--model.init_from={words.base}")
    # Ray lowers its workers' priority: beside other work that would measure the other work
    environment = {**os.environ, "RAY_worker_niceness": "0"}
    subprocess.run([sys.executable, "-m", "raygpt.cli", *command], check=True, cwd=ROOT, env=environment)
    summary = json.loads((ROOT / words.storage / "mrpc-small" / "summary.json").read_text())
    figures = {
        **provenance("torch", "ray", "optuna"),
        "sweep": " ".join(["raygpt", *command]),
        **{key: summary[key] for key in KEPT},
    }
    write_text(locate(str(ROOT / "benchmarks" / "mrpc_small.json")), json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
