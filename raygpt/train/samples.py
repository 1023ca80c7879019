"""PURE. Texts that a model writes while it trains, on all ranks: weights of ZeRO-3 take all of them for every token."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from raygpt.data.tokenizer import Tokenizer
from raygpt.model.generate import choose
from raygpt.scoring.losses import evaluating, uncompiled


@dataclass(frozen=True)
class SampleWriter:
    """Writes `count` texts of `tokens` new tokens at most after `prompt`, the same draws every time. `context` is the
    model's. The model is called for logits of the whole window, as whatever wraps it in training answers."""

    tokenizer: Tokenizer
    prompt: str
    count: int
    tokens: int
    context: int
    temperature: float = 0.8
    top_k: int | None = 200
    top_p: float | None = None
    seed: int = 0

    def write(
        self,
        model: nn.Module,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ) -> list[str]:
        """The texts, the prompt included, up to where the model ends them. As many passes as there are tokens, whatever
        is drawn: on every rank the same."""
        eot = self.tokenizer.eot_id
        given = [int(token) for token in self.tokenizer.encode(self.prompt)] if self.prompt else []
        rows = torch.tensor([given or [eot]] * self.count, device=device)
        start = rows.size(1) - len(given)
        generator = torch.Generator(device).manual_seed(self.seed)
        with evaluating(model), uncompiled(), torch.no_grad():
            for _ in range(self.tokens):
                with autocast():
                    logits = model(rows[:, -self.context :])[:, -1].float().nan_to_num()
                drawn = choose(
                    logits, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, generator=generator
                )
                rows = torch.cat([rows, drawn], dim=1)
        return [self._text(row[start:].tolist(), len(given)) for row in rows]

    def _text(self, ids: list[int], given: int) -> str:
        ends = [place for place, token in enumerate(ids) if token == self.tokenizer.eot_id and place >= given]
        return self.tokenizer.decode(ids[: ends[0]] if ends else ids)
