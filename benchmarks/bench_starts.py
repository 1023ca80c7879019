"""Where the seconds go between the start of a training run and its first step: `make bench`, or this script alone.

A run of the quick start's model with two workers, on a cluster that this process has started and let come to rest;
several runs one after another. Figures go to benchmarks/starts.json and starts.md.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["OMP_NUM_THREADS"] = "1"

import psutil

from benchmarks.bench_training import QUICKSTART, train, write_shards
from benchmarks.provenance import provenance


class Screen(io.StringIO):
    """Notes when the workers have said that they begin, and when the first step is there."""

    def __init__(self) -> None:
        super().__init__()
        self.at: dict[str, float] = {}

    def write(self, text: str) -> int:
        for phase, mark in (("model", "accumulation steps"), ("step", "step 1/")):
            if mark in text:
                self.at.setdefault(phase, time.time())
        return super().write(text)


def watch(found: dict[str, float], ended: threading.Event) -> None:
    """When the last worker's process started, and when the last one entered the training function."""
    seen: dict[int, float] = {}
    while not ended.wait(0.05):
        for process in psutil.Process().children(recursive=True):
            try:
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    seen.setdefault(process.pid, process.create_time())
            except psutil.Error:
                continue
        if seen:
            found["workers"] = max(seen.values())


def one_run(shards: str, folder: Path) -> dict[str, float]:
    screen, ended = Screen(), threading.Event()
    found: dict[str, float] = {}
    watcher = threading.Thread(target=watch, args=(found, ended))
    watcher.start()
    began = time.time()
    options = {
        **{f"model.{key}": str(QUICKSTART[key]) for key in ("n_layer", "n_head", "n_embd", "seq_len")},
        "scale.num_workers": "2",
        "train.global_batch_tokens": str(QUICKSTART["rows"] * QUICKSTART["seq_len"]),
        "train.max_steps": "20",
        "train.log_every": "1",
    }
    train(shards, folder, screen, options)
    ended.set()
    watcher.join()
    workers, model, step = found["workers"] - began, screen.at["model"] - began, screen.at["step"] - began
    return {"workers": workers, "model": model, "step": step}


def command_to_first_step(folder: Path) -> float:
    """Seconds from `raygpt quickstart` to its first training step: processes, corpus, tokenizer and tokens included."""
    import subprocess

    command = [sys.executable, "-u", "-m", "raygpt.cli", "quickstart", f"--run.storage={folder}", "--train.log_every=1"]
    began = time.monotonic()
    program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert program.stdout is not None
    for line in program.stdout:
        if line.startswith("step 1/"):
            seconds = time.monotonic() - began
            program.terminate()
            program.communicate()
            return seconds
    raise RuntimeError("the quick start ended before its first step")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=4)
    chosen = parser.parse_args()
    result: dict[str, Any] = provenance("torch", "ray")
    with tempfile.TemporaryDirectory() as name:
        result["quickstart_to_first_step"] = [round(command_to_first_step(Path(name) / f"q{i}"), 2) for i in range(2)]
        print(result["quickstart_to_first_step"], flush=True)
        from raygpt.cluster.connect import connect
        from raygpt.config import Scale

        shards = write_shards(f"{name}/shards")
        connect(Scale(), workers_cpus=2)
        time.sleep(5)
        result["runs"] = []
        for _ in range(chosen.runs):
            result["runs"].append({key: round(value, 2) for key, value in one_run(shards, Path(name)).items()})
            print(result["runs"][-1], flush=True)
            time.sleep(2)
    (ROOT / "benchmarks/starts.json").write_text(json.dumps(result, indent=2) + "\n")
    (ROOT / "benchmarks/starts.md").write_text(page(result))


def page(result: dict[str, Any]) -> str:
    first, later = result["runs"][0], result["runs"][1:]
    median = {key: statistics.median(run[key] for run in later) for key in first}
    rows = [
        ("Ray Train schedules the workers, and Ray starts their processes", first["workers"], median["workers"]),
        (
            "they import torch, Ray and raygpt, form a process group, build the model and rehearse it",
            first["model"] - first["workers"],
            median["model"] - median["workers"],
        ),
        (
            "first batch, first step, its record on the screen",
            first["step"] - first["model"],
            median["step"] - median["model"],
        ),
        ("**first step after**", first["step"], median["step"]),
    ]
    lines = [
        "# Starts",
        "",
        f"`{result['command']}` on {result['machine']}, {result['date']} (starts.json).",
        "",
        "A training run of two workers on a cluster that this process had started and left alone for five seconds. The "
        f"first run also pays for what a cluster does once; the later ones are the median of {len(later)}.",
        "",
        "| seconds | first run | later runs |",
        "|---|---|---|",
        *(f"| {what} | {a:.2f} | {b:.2f} |" for what, a, b in rows),
        "",
        "`raygpt quickstart` to its first training step, the start of Python and Ray, the corpus, its tokenizer and "
        f"its tokens included: {', '.join(str(value) for value in result['quickstart_to_first_step'])} s.",
        "",
        "What is left is the processor time of new processes: a worker imports for 2.1 s (torch 0.8, pandas and Ray "
        "Train 0.5, Ray 0.2, the rest of Ray Train's torch part 0.5), and Ray's mailbox, synchronisation and reader "
        "actors take one second each, on two cores. Not taken: `RAY_preload_python_modules` loads torch into every "
        "process of Ray, its small actors included, and Ray gives a process that ran a task to no actor, so that a "
        "pool cannot be warmed by tasks either.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
