"""The training loop without Ray: one bare process, or several under torchrun. What Ray's overhead is measured against.

python benchmarks/loop_alone.py SHARDS OUT --n_layer=4 ... (see `options`)
torchrun --nproc-per-node=2 benchmarks/loop_alone.py SHARDS OUT ...
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from raygpt.data.order import Order
from raygpt.data.reader import TokenReader
from raygpt.data.stream import Source, batches, mapped_blocks
from raygpt.model.gpt import GPT, GPTConfig
from raygpt.parallel.checkpoint import RunState
from raygpt.parallel.distributed import World, parallel
from raygpt.train.loop import LoopOptions, train
from raygpt.train.optim import make_optimizer
from raygpt.train.plan import TrainPlan
from raygpt.train.precision import Precision
from raygpt.train.schedule import Schedule
from raygpt.train.step import TrainStep
from raygpt.train.warmup import rehearse


class Collect:
    """Hooks that only keep the records."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def log(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def stop_requested(self) -> bool:
        return False

    def save(self, state: RunState, rank_state: dict) -> None:
        return None


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("shards")
    parser.add_argument("out", type=Path)
    for name, default in (("n_layer", 4), ("n_head", 4), ("n_embd", 128), ("seq_len", 64), ("rows", 12)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--log_every", type=int, default=20)
    return parser.parse_args()


def main() -> None:
    chosen = options()
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    device = torch.device("cpu")
    world = World.join(device)
    reader = TokenReader(chosen.shards)
    manifest = reader.manifest
    order = Order(manifest.fingerprint, 1337, chosen.seq_len, chosen.rows, manifest.tokens)
    plan = TrainPlan(order, Schedule("constant", 1e-3, chosen.steps), chosen.steps)
    torch.manual_seed(1337)
    shape = dict(n_layer=chosen.n_layer, n_head=chosen.n_head, n_embd=chosen.n_embd, seq_len=chosen.seq_len)
    model = GPT(GPTConfig(vocab_size=manifest.tokenizer.vocab_size, **shape))
    optimizer = make_optimizer("adamw", model, lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95))
    wrapped, precision = parallel(model, world), Precision("fp32", device)
    micro = chosen.rows // world.size
    rehearse(wrapped, precision, world, micro, chosen.seq_len)
    step = TrainStep(wrapped, optimizer, precision, micro_batch_size=micro, grad_clip=1.0)
    hooks = Collect()
    source = Source(manifest.layout(chosen.shards), order, world.rank, world.size)
    stream = batches(source, mapped_blocks(source, 0, chosen.steps), 0, chosen.steps)
    train(step, stream, plan, RunState(), world, hooks, LoopOptions(log_every=chosen.log_every))
    if world.rank == 0:
        chosen.out.write_text(json.dumps(hooks.records))
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
