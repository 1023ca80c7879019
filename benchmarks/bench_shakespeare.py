"""nanoGPT's CPU quick start by jobs/configs/shakespeare-bytes.yaml: validation loss and wall-clock, first step to last.

python benchmarks/bench_shakespeare.py ../shared/data/shakespeare/input.txt
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.provenance import provenance

# What the weights of nanoGPT's published run score over the whole validation part, and its time on 2 cores.
REFERENCE = {"val_loss": 1.898, "seconds": 74.0}


def main() -> None:
    text = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT.parent / "shared/data/shakespeare/input.txt"
    raygpt = [sys.executable, "-m", "raygpt.cli"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        run = [f"--run.storage={folder}", "--run.name=r"]
        config = f"--config={ROOT / 'jobs/configs/shakespeare-bytes.yaml'}"
        train = [*raygpt, "pretrain", config, f"--data.train={text}", "--track.wandb=off", *run]
        subprocess.run(train, check=True, env=env)
        rows = [json.loads(line) for line in (Path(folder) / "r/metrics.jsonl").read_text().splitlines()]
        done = subprocess.run([*raygpt, "evaluate", *run], check=True, env=env, capture_output=True, text=True)
        evaluation = json.loads(done.stdout.splitlines()[-1])
        summary = json.loads((Path(folder) / "r/summary.json").read_text())
    # the first record stands at its last step: the steps before it are added at its own pace
    first = rows[0]
    seconds = rows[-1]["time"] - first["time"] + first["step"] * first["step_seconds"]
    result = {
        "val_loss": evaluation["loss"],
        "bits_per_byte": evaluation["bits_per_byte"],
        "tokens_evaluated": evaluation["tokens"],
        "seconds_first_to_last_step": round(seconds, 1),
        "step_milliseconds": 768e3 / summary["tokens_per_second"],
        "reference": REFERENCE,
        **provenance("torch", "ray"),
    }
    print(json.dumps(result, indent=2))
    (ROOT / "benchmarks/shakespeare.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
