"""Speed of training, every figure a ratio taken in one run: `make bench`, or this script alone.

- step: our optimizer step beside a bare loop around transformers' GPT2LMHeadModel with torch AdamW, taking turns.
- ray_one, ray_two: the same loop under Ray Train beside a bare process and beside torchrun, taking turns; ray_one reads
  through Ray Data, ray_two like torchrun through the memory map, since two workers leave no core for readers.
- data_wait, checkpoint_stall: a 10M-parameter model streaming through Ray Data and saving asynchronously.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

from benchmarks.provenance import provenance

SMALL = {"n_layer": 4, "n_head": 4, "n_embd": 128, "seq_len": 64, "rows": 12}
TEN_MILLION = {"n_layer": 6, "n_head": 6, "n_embd": 384, "seq_len": 128, "rows": 16}


def compare_step(pairs: int = 15, steps: int = 20) -> dict[str, Any]:
    """Seconds per step of both, in blocks of `steps` taking turns."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from raygpt.model.gpt import GPT, GPTConfig
    from raygpt.train.optim import make_adamw
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
        make_adamw(model, lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95)),
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


def speed(records: list[dict[str, Any]]) -> float:
    """Median tokens/s after the first fifth."""
    speeds = [row["tokens_per_second"] for row in records if "tokens_per_second" in row]
    return statistics.median(speeds[len(speeds) // 5 :])


def alone(shards: str, shape: dict[str, int], steps: int, processes: int, folder: Path) -> list[dict[str, Any]]:
    out = folder / "alone.json"
    arguments = [str(ROOT / "benchmarks/loop_alone.py"), shards, str(out), f"--steps={steps}"]
    arguments += [f"--{key}={value}" for key, value in shape.items()]
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
    subprocess.run([*launcher, *arguments], check=True, capture_output=True)
    return json.loads(out.read_text())


def under_ray(shards: str, shape: dict[str, int], steps: int, workers: int, folder: Path, **more: str) -> list[dict]:
    from raygpt.settings import load_config
    from raygpt.storage import locate
    from raygpt.track.jsonl import read_metrics
    from raygpt.train.assignment import resolve
    from raygpt.train.trainer import run_training

    name = f"r{time.monotonic_ns()}"
    settings = {
        "run.name": name,
        "run.storage": str(folder),
        "data.train": shards,
        "data.val": shards,
        "model.preset": "nano",
        **{f"model.{key}": str(shape[key]) for key in ("n_layer", "n_head", "n_embd", "seq_len")},
        "optim.schedule": "constant",
        "optim.lr": "1e-3",
        "scale.num_workers": str(workers),
        "train.global_batch_tokens": str(shape["rows"] * shape["seq_len"]),
        "train.micro_batch_size": str(shape["rows"] // workers),
        "train.max_steps": str(steps),
        "train.log_every": "20",
        "train.checkpoint_every": "0",
        "eval.every": "0",
        "eval.batches": "1",
        "track.wandb": "off",
        "track.tensorboard": "false",
        **more,
    }
    config = load_config("pretrain", None, settings, {})
    with open(os.devnull, "w") as nowhere:
        run_training(config, resolve(config), "", nowhere)
    return read_metrics(locate(folder / name / "metrics.jsonl"))


def take_turns(left: Callable[[], list], right: Callable[[], list], pairs: int) -> dict[str, Any]:
    """Ratio of speeds left / right, the order of each pair alternating."""
    found: list[tuple[float, float]] = []
    for pair in range(pairs):
        if pair % 2:
            b, a = speed(right()), speed(left())
        else:
            a, b = speed(left()), speed(right())
        found.append((a, b))
        print(f"    {a:,.0f} / {b:,.0f} tok/s = {a / b:.3f}", flush=True)
    return {
        "tokens_per_second": statistics.median(a for a, _ in found),
        "reference_tokens_per_second": statistics.median(b for _, b in found),
        "ratio": statistics.median(a / b for a, b in found),
        "ratios": [round(a / b, 4) for a, b in found],
    }


def write_shards(folder: Path) -> str:
    from raygpt.data.shards import ShardWriter
    from raygpt.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer("bytes")
    writer = ShardWriter(str(folder / "shards"), "uint16", 2**20)
    writer.append(np.random.default_rng(0).integers(32, 127, 3_000_000).astype("<u2"))
    writer.finish(tokenizer.info, tokenizer.to_json(), 1, 3_000_000, ["random"])
    return writer.folder.uri


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", help="one of step, ray_one, ray_two, large")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/training.json")
    chosen = parser.parse_args()
    wanted = [chosen.only] if chosen.only else ["step", "ray_one", "ray_two", "large"]
    result: dict[str, Any] = json.loads(chosen.out.read_text()) if chosen.out.exists() else {}
    result |= provenance("torch", "ray")
    if "step" in wanted:
        print("step: ours beside transformers, one thread")
        result["step"] = compare_step()
        print(f"    {result['step']['speed_over_transformers']:.3f} times its speed")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if set(wanted) - {"step"}:
            from raygpt.config import Scale
            from raygpt.train.cluster import connect

            shards = write_shards(folder)
            connect(Scale(), workers_cpus=2)
        if "ray_one" in wanted:
            print("ray_one: one Ray worker beside one bare process")
            result["ray_one"] = take_turns(
                lambda: under_ray(shards, SMALL, 300, 1, folder),
                lambda: alone(shards, SMALL, 300, 1, folder),
                chosen.pairs,
            )
        if "ray_two" in wanted:
            print("ray_two: two Ray workers beside torchrun with two processes")
            result["ray_two"] = take_turns(
                lambda: under_ray(shards, SMALL, 300, 2, folder, **{"data.backend": "mmap"}),
                lambda: alone(shards, SMALL, 300, 2, folder),
                chosen.pairs,
            )
        if "large" in wanted:
            print("large: 10M parameters, Ray Data, a checkpoint every 15 steps")
            rows = under_ray(
                shards, TEN_MILLION, 60, 1, folder, **{"train.checkpoint_every": "15", "train.log_every": "1"}
            )
            steps = [row["step_seconds"] for row in rows[5:]]
            waits = [row["data_wait_seconds"] for row in rows[5:]]
            stalls = [row["checkpoint_stall_seconds"] for row in rows if "checkpoint_stall_seconds" in row]
            result["large"] = {
                "parameters": 10_700_000,
                "step_seconds": statistics.median(steps),
                "data_wait_fraction": sum(waits) / sum(steps),
                "checkpoint_stall_seconds": [round(stall, 4) for stall in stalls],
                "longest_stall_in_steps": max(stalls) / statistics.median(steps),
            }
            print(f"    {result['large']}")
    chosen.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
