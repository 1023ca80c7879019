"""Speed of training, every figure a ratio taken in one run: `make bench`, or this script alone.

- step: our optimizer step beside a bare loop around transformers' GPT2LMHeadModel with torch AdamW, taking turns.
- one, two, s3: the quick start's model for 600 steps of a run of 6,000 (so that data are left to be read), with one or
  two workers, and two reading from S3: through Ray Data beside the same run through the memory map, and beside
  torchrun on the memory map; runs take turns. Seconds are those of all 600 steps, the first one included; `wall` adds
  the start, from the call to step 600. `others` is the CPU time of every process but the workers (Ray, the reader, this
  driver; an S3 server not) over that of the workers, from step 100 to 600.
- steady: the same share with one and two workers from step 1,500 to 2,500, when the run has lasted for a minute.
- large: a 10M-parameter model streaming through Ray Data and saving asynchronously.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import psutil
import ray
import torch

from benchmarks.provenance import provenance

SMALL = {"n_layer": 4, "n_head": 4, "n_embd": 128, "seq_len": 64, "rows": 12}
QUICKSTART = {"n_layer": 3, "n_head": 4, "n_embd": 128, "seq_len": 64, "rows": 16}
STEPS = 600
TEN_MILLION = {"n_layer": 6, "n_head": 6, "n_embd": 384, "seq_len": 128, "rows": 16}


def compare_step(pairs: int = 15, steps: int = 20) -> dict[str, Any]:
    """Seconds per step of both, in blocks of `steps` taking turns."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from raygpt.model.gpt import GPT, GPTConfig
    from raygpt.train.optim import make_optimizer
    from raygpt.train.precision import Precision
    from raygpt.train.step import TrainStep

    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows_of_65 = torch.randint(0, 256, (SMALL["rows"], SMALL["seq_len"] + 1))
    rows = rows_of_65[:, :-1]
    shape = {key: SMALL[key] for key in ("n_layer", "n_head", "n_embd")}
    model = GPT(GPTConfig(vocab_size=257, seq_len=64, **shape))
    ours = TrainStep(
        model,
        make_optimizer("adamw", model, lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95)),
        Precision("fp32", torch.device("cpu")),
        micro_batch_size=SMALL["rows"],
        grad_clip=1.0,
    )
    theirs = GPT2LMHeadModel(
        GPT2Config(vocab_size=257, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **shape)
    )
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95))

    def their_step() -> None:
        loss = theirs(rows, labels=rows).loss  # it shifts inside: a row of 64 predicts 63, ours 64
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    left, right = [], []
    for pair in range(pairs + 1):
        for times, step in ((left, lambda: ours(rows_of_65, 1e-3)), (right, their_step)):
            begin = time.perf_counter()
            for _ in range(steps):
                step()
            if pair:
                times.append((time.perf_counter() - begin) / steps)
    ratio = statistics.median(b / a for a, b in zip(left, right))
    return {
        "ours_ms": 1e3 * statistics.median(left),
        "transformers_ms": 1e3 * statistics.median(right),
        "speed_over_transformers": ratio,
        "pairs": pairs,
    }


def alone(shards: str, workers: int, folder: Path) -> Run:
    """The same loop on the memory map without Ray: a bare process, or torchrun."""
    out = folder / "alone.json"
    launcher = [sys.executable]
    if workers > 1:
        launcher += ["-m", "torch.distributed.run", f"--nproc-per-node={workers}", "--standalone"]
    script = [str(ROOT / "benchmarks/loop_alone.py"), shards, str(out), f"--steps={STEPS}", "--log_every=20"]
    began = time.monotonic()
    subprocess.run(
        [*launcher, *script, *(f"--{key}={value}" for key, value in QUICKSTART.items())],
        check=True,
        capture_output=True,
    )
    return Run(seconds_of(json.loads(out.read_text())), time.monotonic() - began, None)


class Until(io.StringIO):
    """Where the driver prints; notes CPU times at step `first` and, at step `last`, presses Ctrl-C."""

    def __init__(self, apart: Set[int], first: int, last: int) -> None:
        super().__init__()
        self.apart, self.first, self.last = apart, first, last
        self.used: list[tuple[float, float]] = []
        self.reached = 0.0

    def write(self, text: str) -> int:
        if f"step {self.first}/" in text:
            self.used.append(cpu_seconds(self.apart))
        if f"step {self.last}/" in text and not self.reached:
            self.used.append(cpu_seconds(self.apart))
            self.reached = time.monotonic()
            os.kill(os.getpid(), signal.SIGINT)
        return super().write(text)


def cpu_seconds(apart: Set[int]) -> tuple[float, float]:
    """(of the training workers, of every other process of this run), without those below the pids `apart`."""
    workers = others = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            if apart & {process.pid, *(parent.pid for parent in process.parents())}:
                continue
            times = process.cpu_times()
            if "RayTrainWorker" in " ".join(process.cmdline()):
                workers += times.user + times.system
            else:
                others += times.user + times.system
    return workers, others


def under_ray(
    shards: str,
    workers: int,
    folder: Path,
    backend: str,
    apart: Set[int] = frozenset(),
    window: tuple[int, int] | None = None,
) -> Run:
    """The same model under Ray Train, stopped at STEPS of ten times as many, or at the end of `window`."""
    first, last = window or (100, STEPS)
    from raygpt.storage import locate
    from raygpt.track.jsonl import read_metrics

    options = {
        **{f"model.{key}": str(QUICKSTART[key]) for key in ("n_layer", "n_head", "n_embd", "seq_len")},
        "scale.num_workers": str(workers),
        "train.global_batch_tokens": str(QUICKSTART["rows"] * QUICKSTART["seq_len"]),
        "train.max_steps": str(10 * STEPS),
        "data.backend": backend,
    }
    screen = Until(apart, first, last)
    began = time.monotonic()
    name = train(shards, folder, screen, options)
    records = read_metrics(locate(folder / name / "metrics.jsonl"))
    (workers_before, others_before), (workers_after, others_after) = screen.used
    share = (others_after - others_before) / (workers_after - workers_before)
    return Run(seconds_of(records), screen.reached - began, share)


def train(shards: str, folder: Path, screen: io.StringIO, options: dict[str, str]) -> str:
    """Run a training job in this process; returns the run's name."""
    from raygpt.config.settings import load_config
    from raygpt.train.resolve import resolve
    from raygpt.train.trainer import run_training

    name = f"r{time.monotonic_ns()}"
    fixed = {
        "run.name": name,
        "run.storage": str(folder),
        "data.train": shards,
        "data.val": shards,
        "model.preset": "nano",
        "optim.schedule": "constant",
        "optim.lr": "1e-3",
        "train.log_every": "20",
        "train.checkpoint_every": "0",
        "eval.every": "0",
        "eval.batches": "1",
        "track.wandb": "off",
        "track.tensorboard": "false",
    }
    config = load_config("pretrain", None, {**fixed, **options}, {})
    run_training(config, resolve(config), "", screen)
    return name


def seconds_of(records: list[dict[str, Any]]) -> float:
    """Seconds of the steps up to STEPS, the first one included."""
    return sum(20 * row["step_seconds"] for row in records if "step_seconds" in row and row["step"] <= STEPS)


@dataclass
class Run:
    seconds: float
    wall: float
    others: float | None


def take_turns(ways: dict[str, Callable[[], Run]], rounds: int) -> dict[str, Any]:
    """Each way `rounds` times, in turns whose order alternates; the first way is compared with each of the others."""
    first = next(iter(ways))
    found: dict[str, list[Run]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways) if number % 2 == 0 else list(ways)[::-1]:
            found[name].append(ways[name]())
            run = found[name][-1]
            print(f"    {name}: {run.seconds:.2f} s, {run.wall:.1f} s with the start", flush=True)
    tokens = STEPS * QUICKSTART["rows"] * QUICKSTART["seq_len"]
    result: dict[str, Any] = {"tokens_per_second": round(tokens / statistics.median(r.seconds for r in found[first]))}
    for name in list(ways)[1:]:
        pairs = [
            (mine.seconds, theirs.seconds, mine.wall, theirs.wall) for mine, theirs in zip(found[first], found[name])
        ]
        result[f"of_{name}"] = round(statistics.median(theirs / mine for mine, theirs, _, _ in pairs), 4)
        result[f"of_{name}_each"] = [round(theirs / mine, 4) for mine, theirs, _, _ in pairs]
        result[f"of_{name}_with_start"] = round(statistics.median(theirs / mine for _, _, mine, theirs in pairs), 4)
    shares = [run.others for run in found[first] if run.others is not None]
    result["others_cpu_over_workers"] = round(statistics.median(shares), 4)
    result["wall_seconds"] = round(statistics.median(run.wall for run in found[first]), 2)
    print(f"    {result}", flush=True)
    return result


def write_shards(where: str) -> str:
    from raygpt.data.shards import ShardWriter
    from raygpt.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer("bytes")
    writer = ShardWriter(where, "uint16", 2**20)
    writer.append(np.random.default_rng(0).integers(32, 127, 6_500_000).astype("<u2"))
    writer.finish(tokenizer.info, tokenizer.to_json(), 1, 6_500_000, ["random"])
    return writer.folder.uri


def against_mmap_and_torchrun(shards: str, workers: int, folder: Path, rounds: int) -> dict[str, Any]:
    ways = {
        "ray": lambda: under_ray(shards, workers, folder, "ray"),
        "mmap": lambda: under_ray(shards, workers, folder, "mmap"),
        "torchrun": lambda: alone(shards, workers, folder),
    }
    return take_turns(ways, rounds)


def on_s3(shards: str, folder: Path, rounds: int) -> dict[str, Any]:
    """Two workers reading from an S3 server on the same two cores, its own processor time left out of `others`."""
    from tests import s3_server

    with s3_server.running(folder / "s3") as facts:
        os.environ.update(
            AWS_ACCESS_KEY_ID=facts["key"],
            AWS_SECRET_ACCESS_KEY=facts["secret"],
            AWS_ENDPOINT_URL=facts["endpoint"],
            AWS_DEFAULT_REGION=facts["region"],
            XDG_CACHE_HOME=str(folder / "cache"),
        )
        import boto3

        from raygpt.cluster.connect import connect
        from raygpt.config import Scale

        boto3.client("s3", endpoint_url=facts["endpoint"]).create_bucket(Bucket="bench")
        remote = write_shards("s3://bench/train")
        ray.shutdown()  # its processes know no credentials
        connect(Scale(), workers_cpus=2)
        apart = set(facts["pids"].values())
        ways = {
            "s3": lambda: under_ray(remote, 2, folder, "ray", apart),
            "mmap": lambda: under_ray(shards, 2, folder, "mmap", apart),
        }
        return take_turns(ways, rounds)


def large(shards: str, folder: Path) -> dict[str, Any]:
    """10M parameters through Ray Data, a checkpoint every 15 steps, every step recorded."""
    from raygpt.storage import locate
    from raygpt.track.jsonl import read_metrics

    options = {
        **{f"model.{key}": str(TEN_MILLION[key]) for key in ("n_layer", "n_head", "n_embd", "seq_len")},
        "scale.num_workers": "1",
        "train.global_batch_tokens": str(TEN_MILLION["rows"] * TEN_MILLION["seq_len"]),
        "train.max_steps": "60",
        "train.checkpoint_every": "15",
        "train.log_every": "1",
    }
    rows = read_metrics(locate(folder / train(shards, folder, io.StringIO(), options) / "metrics.jsonl"))
    steps = [row["step_seconds"] for row in rows if "step_seconds" in row]
    waits = [row["data_wait_seconds"] for row in rows if "data_wait_seconds" in row]
    stalls = [row["checkpoint_stall_seconds"] for row in rows if "checkpoint_stall_seconds" in row]
    return {
        "parameters": 10_700_000,
        "step_seconds": statistics.median(steps),
        "data_wait_fraction": sum(waits) / sum(steps),
        "checkpoint_stall_seconds": [round(stall, 4) for stall in stalls],
        "longest_stall_in_steps": max(stalls) / statistics.median(steps),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", help="one of step, one, two, large, steady, s3")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/training.json")
    chosen = parser.parse_args()
    wanted = [chosen.only] if chosen.only else ["step", "one", "two", "large", "steady", "s3"]
    result: dict[str, Any] = json.loads(chosen.out.read_text()) if chosen.out.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if set(wanted) - {"step"}:
            from raygpt.cluster.connect import connect
            from raygpt.config import Scale

            shards = write_shards(str(folder / "shards"))
            connect(Scale(), workers_cpus=2)
        for part in wanted:
            print(f"{part}:", flush=True)
            if part == "step":
                result[part] = compare_step()
            elif part == "large":
                result[part] = large(shards, folder)
            elif part == "steady":
                shares = {
                    name: under_ray(shards, workers, folder, "ray", window=(1500, 2500)).others
                    for name, workers in (("one", 1), ("two", 2))
                }
                result[part] = {f"{name}_others_cpu_over_workers": round(share, 4) for name, share in shares.items()}
                print(f"    {result[part]}", flush=True)
            elif part == "s3":
                result[part] = on_s3(shards, folder, chosen.rounds)
            else:
                result[part] = against_mmap_and_torchrun(shards, {"one": 1, "two": 2}[part], folder, chosen.rounds)
            result[part] = {**provenance("torch", "ray"), **result[part]}  # parts are measured anew one by one
            chosen.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
