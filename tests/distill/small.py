"""Small teachers and students over one vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from raygpt.distill.objective import Blend, Distillation
from raygpt.distill.teacher_states import OnlineTeacher
from raygpt.distill.transport import Transport
from raygpt.model.gpt import GPT, GPTConfig

VOCAB, SEQ_LEN = 37, 8


def model(seed: int, width: int = 16, *, spread: float = 0.3, **shape: Any) -> GPT:
    """A model whose distributions are far from even."""
    torch.manual_seed(seed)
    made = GPT(
        GPTConfig(**{"vocab_size": VOCAB, "seq_len": SEQ_LEN, "n_layer": 1, "n_head": 2, "n_embd": width, **shape})
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape) * spread)
        made.wte.weight[made.config.vocab_size :] = 0  # padding
    return made


def rows(seed: int, count: int = 6) -> Tensor:
    return torch.randint(0, VOCAB, (count, SEQ_LEN + 1), generator=torch.Generator().manual_seed(seed))


def distillation(teacher: GPT, *, alpha: float = 0.7, divergence: Any = "forward", **transport: Any) -> Distillation:
    transport = {"kind": "hidden", "width": teacher.config.n_embd, "vocab_size": VOCAB, **transport}
    beside = OnlineTeacher(teacher, Transport(**transport), torch.float32, torch.device("cpu"))
    blend = Blend(beside.transport, alpha, divergence)
    return Distillation(blend, output=beside.output, teacher=beside, piece_tokens=5)
