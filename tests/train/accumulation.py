"""Relative error of a gradient that ZeRO adds up from 32 micro-batches in bf16; run as a process, prints one per case.

The reference is the same bf16 model's gradient of every micro-batch, added in fp32.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial

import torch

from raygpt.model.gpt import GPT, GPTConfig, initial_weights
from raygpt.parallel.zero import ZeroEngine
from raygpt.parallel.zero_config import deepspeed_config
from raygpt.train.optim import make_optimizer

COUNT = 32
CONFIG = GPTConfig(vocab_size=100, seq_len=16, n_layer=2, n_head=2, n_embd=32)
CPU = torch.device("cpu")


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, 100, (2, 17), generator=generator) for _ in range(COUNT)]


def reference() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = GPT(CONFIG, initialise=False)
    with torch.no_grad():
        for name, value in initial_weights(CONFIG):
            model.get_parameter(name).copy_(value)
    model = model.to(torch.bfloat16)
    total = {name: torch.zeros(value.shape) for name, value in model.named_parameters()}
    for rows in batches():
        (model(rows[:, :-1], rows[:, 1:]) / COUNT).backward()
        for name, value in model.named_parameters():
            total[name] += value.grad.float()
            value.grad = None
    return total


def error(strategy: str, offload: str, want: dict[str, torch.Tensor]) -> float:
    common = dict(strategy=strategy, offload=offload, precision="bf16", micro_batch_size=2, grad_accum_steps=COUNT)
    make = partial(make_optimizer, "adamw", lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95))
    engine = ZeroEngine(
        CONFIG, CPU, deepspeed_config(grad_clip=0.0, **common), make, precision="bf16", activation_checkpointing=False
    )
    torch.manual_seed(0)
    engine.fill(initial_weights(CONFIG))
    losses = [partial(lambda rows: engine.engine(rows[:, :-1], rows[:, 1:]) / COUNT, rows) for rows in batches()]
    engine.step(losses, 1e-3)
    wrong = size = 0.0
    for piece in engine.pieces():
        # after one step the first moment is a tenth of the gradient
        got, right = piece.values["exp_avg"] * 10, want[piece.name].flatten()[piece.start : piece.stop]
        wrong, size = wrong + float((got - right).square().sum()), size + float(right.square().sum())
    return (wrong / size) ** 0.5


if __name__ == "__main__":
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[1], RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    sums = reference()
    print(json.dumps({f"{s} {o}": error(s, o, sums) for s, o in (case.split(":") for case in sys.argv[2:])}))
