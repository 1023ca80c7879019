"""A family of models in one file: the next token from the last one alone, through a hidden layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raygpt.model import registry
from raygpt.model.architecture import Architecture, LanguageModel, Work


@dataclass(frozen=True)
class ToyConfig:
    architecture: ClassVar[str] = "toy"
    vocab_size: int
    seq_len: int
    n_embd: int

    def num_parameters(self) -> int:
        return 2 * self.vocab_size * self.n_embd

    def flops_per_token(self, seq_len: int | None = None) -> int:
        return 6 * self.vocab_size * self.n_embd

    def describe(self) -> str:
        return f"one layer, width {self.n_embd}"

    def to_dict(self) -> dict[str, Any]:
        return {"architecture": self.architecture, **asdict(self)}


class Toy(LanguageModel):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.n_embd)
        self.out = nn.Linear(config.n_embd, config.vocab_size, bias=False)

    def forward(self, tokens: Tensor, targets: Tensor | None = None, reduction: str = "mean") -> Tensor:
        logits = self.out(self.embed(tokens).tanh())
        if targets is None:
            return logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.reshape(-1), reduction=reduction)
        return loss.view_as(targets) if reduction == "none" else loss


class ToyFamily(Architecture):
    name = "toy"
    presets: ClassVar = {"toy-small": {"n_embd": 16, "seq_len": 16}}
    overrides = ("vocab_size", "seq_len", "n_embd")
    no_export = "transformers has no such model"

    def config(self, values: Mapping[str, Any]) -> ToyConfig:
        return ToyConfig(**values)

    def build(self, config: ToyConfig, activation_checkpointing: bool = False) -> Toy:
        return Toy(config)

    def initial_weights(self, config: ToyConfig) -> Iterator[tuple[str, Tensor]]:
        for name, shape in self.shapes(config).items():
            yield name, torch.empty(shape).normal_(0.0, 0.5)

    def forward_memory(self, config: ToyConfig, work: Work) -> dict[str, int]:
        return {"activations": 4 * work.tokens * config.n_embd, "logits": 12 * work.tokens * config.vocab_size}


registry.register(ToyFamily())
