"""PURE. The rungs of the ladder: what each one changes, and the training step that it makes of the same model.

Every rung keeps what the rungs below it changed; the last is the step as the trainer makes it. The order is that of
Karpathy's "Let's reproduce GPT-2" (build-nanogpt), with the fused loss on top.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from raygpt.capacity.micro_batch import LOSS_TOKENS
from raygpt.errors import UserError
from raygpt.hardware import choose_precision, prefer_attention
from raygpt.model.gpt import GPT, Attention, GPTConfig, initial_weights
from raygpt.train.optim import decay_groups, make_optimizer
from raygpt.train.precision import Precision
from raygpt.train.step import TrainStep
from raygpt.train.warmup import compile_for_training

LR, WEIGHT_DECAY, BETAS = 6e-4, 0.1, (0.9, 0.95)


@dataclass(frozen=True)
class Setting:
    """How a step is made. The defaults are the foot of the ladder: what PyTorch does when nothing is asked of it."""

    precision: str = "fp32"
    compile: bool = False
    attention: str = "explicit"  # or sdpa: torch's fused kernel
    padded_vocabulary: bool = False
    optimizer: str = "torch default"  # or fused
    loss_tokens: int = 0  # tokens whose logits exist at a time, in one function with the loss; 0: all logits at once


@dataclass(frozen=True)
class Rung:
    """One step of the ladder; `why_not` says where it means nothing, and its setting is the one below then."""

    name: str
    setting: Setting
    why_not: str = ""


class Unpadded(GPTConfig):
    """A shape whose embedding has exactly as many rows as the vocabulary has tokens."""

    @property
    def padded_vocab_size(self) -> int:
        return self.vocab_size


class ExplicitAttention(Attention):
    """Attention written out: all (B, H, T, T) scores exist. What flash attention saves (Dao et al., 2022)."""

    visible: Tensor  # (seq_len, seq_len) bool: which token sees which

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__(config, layer)
        visible = torch.ones(config.seq_len, config.seq_len, dtype=torch.bool).tril()
        self.register_buffer("visible", visible, persistent=False)

    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        """(B, T, C) -> (B, T, C). Without a cache: it is for training steps."""
        b, t, c = x.shape
        query, key, value = (
            part.view(b, t, self.n_head, c // self.n_head).transpose(1, 2) for part in self.c_attn(x).split(c, dim=2)
        )
        scores = query @ key.transpose(-2, -1) / math.sqrt(key.size(-1))
        scores = scores.masked_fill(~self.visible[:t, :t], float("-inf"))
        weights = F.dropout(F.softmax(scores, dim=-1), self.dropout, self.training)
        y = (weights @ value).transpose(1, 2).reshape(b, t, c)
        return F.dropout(self.c_proj(y), self.dropout, self.training)


def ladder(config: GPTConfig, device: torch.device, backend: str = "inductor", tokens: int = 0) -> list[Rung]:
    """All rungs for a device, `tokens` to a micro-batch; those that mean nothing there say why and are not measured."""
    rungs = [Rung("fp32", Setting())]

    def add(name: str, why_not: str = "", **changes: Any) -> None:
        below = rungs[-1].setting
        rungs.append(Rung(name, below if why_not else replace(below, **changes), why_not))

    add("tf32", _refusal("tf32", device), precision="tf32")
    half = "fp16" if device.type == "cuda" and _refusal("bf16", device) else "bf16"
    add(half, precision=half)
    add("compile", _no_compiler(device, backend), compile=True)
    add("flash attention", attention="sdpa")
    padded = config.padded_vocab_size
    nothing_to_pad = f"{padded} is a multiple of 128 already" if padded == config.vocab_size else ""
    add("padded vocabulary", nothing_to_pad, padded_vocabulary=True)
    add("fused optimizer", optimizer="fused")
    pieces = LOSS_TOKENS if device.type == "cuda" else max(1, tokens // 4)
    add(
        "fused loss",
        "the fused loss takes gradients before fp16's scale could reach them" if half == "fp16" else "",
        loss_tokens=min(pieces, tokens) if tokens else pieces,
    )
    return rungs


def _refusal(precision: str, device: torch.device) -> str:
    try:
        choose_precision(precision, device)
    except UserError as error:
        return str(error).partition(":")[0].replace(f"train.precision={precision}", precision)
    return ""


def _no_compiler(device: torch.device, backend: str) -> str:
    if backend == "inductor" and device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        return "torch.compile needs a C++ compiler on a CPU, and there is none"
    return ""


def build(config: GPTConfig, setting: Setting, device: torch.device, seed: int = 0) -> GPT:
    """The model of a rung. Every rung begins with the same weights, so that all first losses are one number."""
    shape = config if setting.padded_vocabulary else Unpadded(**asdict(config))
    model = GPT(shape, initialise=False)
    if setting.attention == "explicit":
        for layer, block in enumerate(model.h):
            block.attn = ExplicitAttention(shape, layer)  # type: ignore[union-attr]
    model.loss_tokens = setting.loss_tokens
    torch.manual_seed(seed)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in initial_weights(config):  # of the padded shape: the same random numbers for both
            parameters[name].copy_(value[: parameters[name].shape[0]])
    return model.to(device)


def make_step(model: GPT, setting: Setting, rows: int, device: torch.device, backend: str = "inductor") -> TrainStep:
    """The optimizer step of a rung over `rows` at once, not compiled yet: its first call compiles."""
    precision = Precision(setting.precision, device)
    optimizer: torch.optim.Optimizer
    if setting.optimizer == "fused":
        optimizer = make_optimizer("adamw", model, lr=LR, weight_decay=WEIGHT_DECAY, betas=BETAS)
    else:
        optimizer = torch.optim.AdamW(decay_groups(model, WEIGHT_DECAY), lr=LR, betas=BETAS)
    if setting.attention == "sdpa":
        prefer_attention(device)  # as the trainer does; compiling fixes the kernel
    if setting.compile:
        compile_for_training(model, blocks=False, backend=backend)
    return TrainStep(model, optimizer, precision, micro_batch_size=rows, grad_clip=1.0)
