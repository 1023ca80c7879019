"""Independent references: transformers' GPT2LMHeadModel, and the loss as a plain loop in float64."""

from __future__ import annotations

import math
import os
from typing import Any

import torch
from torch import Tensor

from raygpt.parallel.weights import load_weights


def transformers_gpt2(seed: int = 0, **shape: Any) -> Any:
    """A GPT2LMHeadModel in eval mode whose every weight, biases and norms included, is far from trivial."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(bos_token_id=0, eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **shape)
    model = GPT2LMHeadModel(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def load_model(source: str | os.PathLike[str], **options: Any) -> Any:
    """The model of a folder or id as every job loads it."""
    return load_weights(os.fspath(source), **options)[0]


def loss_by_hand(logits: Tensor, targets: Tensor) -> list[list[float | None]]:
    """Nats per token, row by row, computed in Python's float64; None where the target is -100."""
    losses: list[list[float | None]] = []
    for row, wanted in zip(logits.tolist(), targets.tolist()):
        line: list[float | None] = []
        for scores, target in zip(row, wanted):
            if target == -100:
                line.append(None)
                continue
            top = max(scores)
            line.append(top + math.log(sum(math.exp(s - top) for s in scores)) - scores[target])
        losses.append(line)
    return losses
