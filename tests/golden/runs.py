"""Six small runs whose every loss is on record: whoever moves code must leave them equal to the bit.

`python -m tests.golden.runs --record` writes golden.json anew; do so only where a change is meant, and say which:
elastic, when the dropout that follows a change of the worker count no longer repeated that of the first steps.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raygpt.classify.tasks import Encoded
from raygpt.classify.training import EncodedTask, Recipe, Training
from raygpt.config import Config
from raygpt.config.settings import load_config
from raygpt.model.gpt import GPT, GPTConfig
from tests import conftest
from tests.train.gloo_pool import GlooPool
from tests.train.running import CUT_ALL, forget_after, letters, run, settings

assert conftest  # it sets environment and threads: one thread, so that sums have one order
FILE = Path(__file__).with_name("golden.json")
Rows = list[dict[str, Any]]

SHAPE = {
    "model__n_layer": "2",
    "model__n_head": "2",
    "model__n_embd": "32",
    "model__seq_len": "16",
    "model__dropout": "0.1",
}
TRAINING = {
    "run__seed": "1337",
    "optim__lr": "3e-3",
    "optim__warmup_steps": "4",
    "train__max_steps": "15",
    "train__global_batch_tokens": "512",
    "train__micro_batch_size": "8",
    "train__precision": "fp32",
    "train__log_every": "1",
    "train__checkpoint_every": "5",
    "train__keep_checkpoints": "3",
    "train__log_batch_digest": "true",
    "eval__every": "5",
    "data__backend": "mmap",
    "scale__cpus_per_worker": "1",  # its threads as well
}


def _settings(folder: Path, **changes: str) -> Config:
    if not (folder / "data").exists():
        letters(folder / "data")
    return settings(str(folder / "data"), folder, **{**SHAPE, **TRAINING, **changes})


def ddp(pool: GlooPool, folder: Path) -> Rows:
    return _exact(run(_settings(folder, scale__num_workers="2"), pool=pool)[1])


def zero3(pool: GlooPool, folder: Path) -> Rows:
    cut = {"train__strategy": "zero3", "train__offload": "all", "train__deepspeed": CUT_ALL}
    return _exact(run(_settings(folder, scale__num_workers="2", **cut), pool=pool)[1])


def fp16(pool: GlooPool, folder: Path) -> Rows:
    return _exact(run(_settings(folder, scale__num_workers="2", train__precision="fp16"), pool=pool)[1])


def lora(pool: GlooPool, folder: Path) -> Rows:
    """Adapters on a base of five steps."""
    run(_settings(folder, run__name="base", train__max_steps="5"), pool=pool)
    adapters = {"model__lora_rank": "4", "model__lora_dropout": "0.1", "eval__first": "true"}
    config = _settings(folder, model__init_from=str(folder / "base"), **adapters)
    return _exact(run(config, pool=pool)[1])


def elastic(pool: GlooPool, folder: Path) -> Rows:
    """One worker to step 5, two to step 10, one again."""
    rows: Rows = []
    for workers, forget in (("1", 5), ("2", 10), ("1", None)):
        _, rows, text = run(_settings(folder, scale__num_workers=workers), pool=pool)
        assert rows[-1]["step"] == 15 and rows[-1]["world_size"] == int(workers)
        assert (rows[0]["world_size"] == 1) and ("Going on from" in text) == (workers == "2" or forget is None)
        if forget is not None:
            forget_after(folder / "r", forget)
    return _exact(rows)


def classification(_: GlooPool, __: Path) -> Rows:
    """Four epochs of four steps in this process; a record per epoch with the sha256 of all weights after it."""
    config = load_config(
        "tune",
        None,
        {
            "train.epochs": "4",
            "train.precision": "fp32",
            "task.batch_size": "16",
            "task.label_smoothing": "0.05",
            "task.layer_decay": "0.9",
            "task.reinit_layers": "1",
            "optim.lr": "3e-3",
            "optim.warmup_fraction": "0.1",
            "model.dropout": "0.1",
        },
        {},
        check=False,
    )
    torch.manual_seed(0)
    base = GPT(GPTConfig(257, seq_len=24, n_layer=2, n_head=2, n_embd=32))
    task = EncodedTask("ends", ["0", "1"], _pairs(1, 64), _pairs(2, 32), None, eot_id=256)
    training = Training(base, task, Recipe.from_config(config), torch.device("cpu"))
    rows = []
    for record in training.run():
        weights = hashlib.sha256()
        for name, value in sorted(training.model.state_dict().items()):
            weights.update(name.encode() + value.contiguous().numpy().tobytes())
        figures = {key: float(record[key]).hex() for key in ("train_loss", "accuracy", "loss")}
        rows.append({"step": int(record["epoch"]), **figures, "weights": weights.hexdigest()})
    return rows


RUNS: dict[str, Callable[[GlooPool, Path], Rows]] = {
    "ddp": ddp,
    "zero3": zero3,
    "fp16": fp16,
    "lora": lora,
    "classification": classification,
    "elastic": elastic,
}


def machine() -> dict[str, str]:
    """What the last bit of a sum hangs on."""
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo().splitlines() if line.startswith("model name")]
    return {
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cpu": names[0] if names else platform.processor(),
    }


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def _pairs(seed: int, count: int) -> Encoded:
    """Pairs of three to eight letters; the class is whether the second begins with an `a`."""
    random = np.random.default_rng(seed)
    first, second = (
        [random.integers(97, 101, random.integers(3, 9)).astype(np.int32) for _ in range(count)] for _ in range(2)
    )
    return Encoded(first, second, np.array([int(ids[0] == 97) for ids in second], dtype=np.int64))


def _exact(rows: Rows) -> Rows:
    """Of every record what must not change, floats as float.hex() has them."""
    out = []
    for row in rows:
        kept: dict[str, Any] = {"step": row["step"]}
        kept |= {key: float(row[key]).hex() for key in ("train_loss", "grad_norm", "val_loss") if key in row}
        out.append(kept | {key: row[key] for key in ("batch_digest",) if key in row})
    return out


def record() -> None:
    """Write golden.json, a line per record."""
    pool = GlooPool()
    try:
        lines = []
        for name, start in RUNS.items():
            with tempfile.TemporaryDirectory() as folder:
                rows = [json.dumps(row) for row in start(pool, Path(folder))]
            lines.append(f"  {json.dumps(name)}: [\n   " + ",\n   ".join(rows) + "\n  ]")
    finally:
        pool.close()
    FILE.write_text(
        f'{{\n "machine": {json.dumps(machine())},\n "runs": {{\n' + ",\n".join(lines) + "\n }\n}\n", encoding="utf-8"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", required=True, help="write golden.json anew")
    parser.parse_args()
    record()
