"""PURE. One token more for many sequences: what the batching loop asks of a model, with a cache and without.

A `Network` is a model of whatever origin: logits of tokens, and what it would remember of them. A `Decoder` keeps the
sequences of one in slots: `extend` takes the next tokens of one sequence (a prompt, piece by piece), `step` one token
of each that is being answered. Logits are (rows, V) float32 on the network's device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from raygpt.model.slots import LayerShape, SlotCache


class Network(ABC):
    """A language model in eval mode. All calls come from one thread, under inference_mode."""

    device: torch.device
    dtype: torch.dtype
    vocab_size: int  # width of its logits
    context: int  # most tokens of a sequence
    context_reason: str = "the model's own context"
    without_cache: str | None = None  # why `layers` is None

    @abstractmethod
    def layers(self) -> list[LayerShape] | None:
        """What each layer remembers of a token; None where nothing but a pass over the whole window is to be had."""

    @abstractmethod
    def logits(self, tokens: Tensor, cache: SlotCache | None, last: int) -> Tensor:
        """Logits (B, last, V) after the `last` newest of tokens (B, T) int64. With a cache, a pass has begun there:
        the tokens are added and the pass is ended."""

    @property
    def weight_bytes(self) -> int:
        return 0


class Decoder(ABC):
    """Sequences in `slots`, each of at most `capacity` tokens."""

    def __init__(self, network: Network, slots: int, capacity: int) -> None:
        self.network, self.slots, self.capacity = network, slots, capacity

    @property
    def cache_bytes(self) -> int:
        return 0

    def memory(self, rows: int) -> dict[str, int]:
        """Bytes by purpose, whatever is asked; `work` are the logits of `rows` tokens of a prompt that is scored."""
        return {
            "weight_bytes": self.network.weight_bytes,
            "cache_bytes": self.cache_bytes,
            "work_bytes": 2 * 4 * max(rows, self.slots) * self.network.vocab_size,
        }

    @abstractmethod
    def extend(self, slot: int, tokens: Sequence[int], last: int) -> Tensor:
        """(last, V) after the `last` newest of the next tokens of one sequence."""

    @abstractmethod
    def step(self, tokens: Mapping[int, int]) -> Tensor:
        """(slots, V) after the next token of every slot named; the other rows mean nothing."""

    @abstractmethod
    def clear(self, slot: int) -> None:
        """The slot's sequence has ended."""


class SlotDecoder(Decoder):
    """With a cache: a token costs a pass over one token per slot, always all slots (see raygpt.model.slots)."""

    def __init__(self, network: Network, layers: list[LayerShape], slots: int, capacity: int) -> None:
        super().__init__(network, slots, capacity)
        self._bytes = SlotCache.bytes(layers, slots, capacity)
        self._cache = SlotCache(layers, slots, capacity, network.device)

    @property
    def cache_bytes(self) -> int:
        return self._bytes

    def extend(self, slot: int, tokens: Sequence[int], last: int) -> Tensor:
        self._cache.extend(slot, len(tokens))
        return self.network.logits(_row(tokens, self.network), self._cache, max(last, 1))[0].float()

    def step(self, tokens: Mapping[int, int]) -> Tensor:
        column = torch.tensor([[tokens.get(slot, 0)] for slot in range(self.slots)], device=self.network.device)
        self._cache.step(tuple(tokens))
        return self.network.logits(column, self._cache, 1)[:, 0].float()

    def clear(self, slot: int) -> None:
        self._cache.clear(slot)


class WindowDecoder(Decoder):
    """Without one: every token is a pass over its whole sequence, one sequence at a time. Slow, for any model."""

    def __init__(self, network: Network, slots: int, capacity: int) -> None:
        super().__init__(network, slots, capacity)
        self._tokens: list[list[int]] = [[] for _ in range(slots)]

    def extend(self, slot: int, tokens: Sequence[int], last: int) -> Tensor:
        self._tokens[slot].extend(tokens)
        if not last:
            return torch.empty(0, self.network.vocab_size)
        return self.network.logits(_row(self._tokens[slot], self.network), None, last)[0].float()

    def step(self, tokens: Mapping[int, int]) -> Tensor:
        rows = torch.zeros(self.slots, self.network.vocab_size, device=self.network.device)
        for slot, token in tokens.items():
            rows[slot] = self.extend(slot, (token,), 1)[0]
        return rows

    def clear(self, slot: int) -> None:
        self._tokens[slot].clear()


def _row(tokens: Sequence[int], network: Network) -> Tensor:
    return torch.tensor([tokens], dtype=torch.int64, device=network.device)


def parameter_bytes(model: torch.nn.Module) -> int:
    """Bytes of the parameters, a shared one once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


# Logits that a cache and a plain pass may differ by, of the largest one.
TOLERANCE = {torch.float32: 1e-3}


@torch.inference_mode()
def decodes_alike(network: Network, layers: list[LayerShape]) -> str | None:
    """None where the slots give the logits of a plain pass over the same tokens, else what is the matter.

    A foreign model may place its tokens, or let them see each other, in a way of its own. Costs four passes over a few
    tokens.
    """
    tokens = [(7 * place + 3) % network.vocab_size for place in range(8)]
    plain = network.logits(_row(tokens, network), None, 1)[0, -1].float()
    decoder = SlotDecoder(network, layers, 2, 16)
    decoder.extend(0, tokens[:3], 1)
    decoder.extend(1, tokens[:4], 1)
    decoder.extend(1, tokens[4:7], 1)
    cached = decoder.step({0: tokens[3], 1: tokens[7]})[1]
    off = float((cached - plain).abs().max() / plain.abs().max())
    allowed = TOLERANCE.get(network.dtype, 0.05)
    return None if off <= allowed else f"its logits with a cache are off by {off:.2g} of the largest"
