"""PURE. A key-value cache of several sequences of different lengths, each in a slot of its own.

Shapes: S slots, H key-value heads, D width of a head, T tokens of a pass. A pass is either `extend(slot, T)`, T more
tokens of one sequence (batch 1), or `step(slots)`, one more token in every slot (batch S, those not named are carried
along and their results mean nothing). Between the two `update` stores keys and values and gives back those to attend
to, `positions` and `mask` say where the tokens stand and what they see; `advance` ends the pass.

What a sequence is computed by depends on itself and on nothing else: a step has all S rows whoever is there, and
attention looks at a row's own keys (on a CPU), or at keys in blocks within which the order of adding is the same (on a
GPU). So its numbers are the same to the bit whoever shares the batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

KEY_BLOCK = 128  # keys of a step are a multiple of it


@dataclass(frozen=True)
class LayerShape:
    """What one layer remembers of a token: keys (heads, key_width) and values (heads, value_width)."""

    heads: int
    key_width: int
    value_width: int
    dtype: torch.dtype

    @property
    def token_bytes(self) -> int:
        return self.heads * (self.key_width + self.value_width) * self.dtype.itemsize


class SlotCache:
    """Keys and values of up to `slots` sequences of at most `capacity` tokens. Memory is taken at once, by zeros."""

    def __init__(self, layers: Sequence[LayerShape], slots: int, capacity: int, device: torch.device) -> None:
        self.slots, self.capacity, self.device = slots, capacity, device
        self.lengths = [0] * slots  # tokens held
        # Zeros and not whatever was there: what is masked is multiplied by 0, and 0 times NaN is NaN.
        self._keys = [_zeros(slots, layer, layer.key_width, capacity, device) for layer in layers]
        self._values = [_zeros(slots, layer, layer.value_width, capacity, device) for layer in layers]
        self._rows = torch.arange(slots, device=device)
        self._columns = torch.arange(capacity, device=device)
        self._slot: int | None = None  # None in a step
        self._moving: tuple[int, ...] = ()
        self._new = 0  # tokens per row of this pass
        self._seen = 0  # keys that a row may look at
        self.positions = self._rows[:, None]  # (B, T) int64
        self.mask = torch.empty(0)  # (B, 1, T, keys) bool, true where a token sees a key

    @staticmethod
    def bytes(layers: Iterable[LayerShape], slots: int, capacity: int) -> int:
        """What the cache takes."""
        return slots * capacity * sum(layer.token_bytes for layer in layers)

    def extend(self, slot: int, tokens: int) -> None:
        """Begin a pass of the next `tokens` of one sequence."""
        start = self.lengths[slot]
        assert start + tokens <= self.capacity
        self._slot, self._moving, self._new, self._seen = slot, (slot,), tokens, start + tokens
        self.positions = self._columns[None, start : self._seen]
        self.mask = (self._columns[None, : self._seen] <= self.positions[0, :, None])[None, None]

    def step(self, slots: Sequence[int]) -> None:
        """Begin a pass of one token in every slot; `slots` are those that count."""
        longest = max(self.lengths[slot] for slot in slots)
        assert longest < self.capacity
        self._slot, self._moving, self._new = None, tuple(slots), 1
        self._seen = min(-(-(longest + 1) // KEY_BLOCK) * KEY_BLOCK, self.capacity)
        # A slot that does not count writes where its own next token will overwrite it; a full one has none, and ends.
        places = [min(length, self.capacity - 1) for length in self.lengths]
        self.positions = torch.tensor(places, device=self.device)[:, None]
        self.mask = (self._columns[None, : self._seen] <= self.positions)[:, None, None]

    def begin(self, tokens: int, device: torch.device) -> None:
        """What a model says when the pass reaches it: nothing is left to do, its shape was told before."""
        assert tokens == self._new

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys (B, H, T, D) and values of this pass; both with those before them, (B, H, keys, D), as views."""
        both = []
        for buffer, new in ((self._keys[layer], key), (self._values[layer], value)):
            if self._slot is not None:
                rows = buffer[self._slot : self._slot + 1]
                rows[:, :, self._seen - self._new : self._seen] = new
            else:
                rows = buffer
                rows[self._rows, :, self.positions[:, 0]] = new[:, :, 0]
            both.append(rows[:, :, : self._seen])
        return both[0], both[1]

    def advance(self) -> None:
        """End the pass: its tokens are held now."""
        for slot in self._moving:
            self.lengths[slot] += self._new

    def clear(self, slot: int) -> None:
        """Forget a sequence. What it left is overwritten, so that no NaN of its reaches the next one."""
        for buffer in (*self._keys, *self._values):
            buffer[slot, :, : self.lengths[slot] + 1].zero_()
        self.lengths[slot] = 0


def _zeros(slots: int, layer: LayerShape, width: int, capacity: int, device: torch.device) -> Tensor:
    return torch.zeros(slots, layer.heads, capacity, width, dtype=layer.dtype, device=device)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None = None) -> Tensor:
    """Attention (B, Q, T, D) of queries (B, Q, T, D) over a SlotCache's keys (B, H, keys, D), Q a multiple of H.

    A step on a CPU goes row by row, each over its own keys: torch's kernel adds 300 keys in another order when others
    are masked behind them, and 8 rows of 50 tokens take 0.12 ms so instead of 0.38 in a block of 512.
    """
    rows, heads, tokens, width = query.shape
    shared = heads // key.size(1)  # query heads to a key head
    if tokens == 1:
        packed = query.view(rows, key.size(1), shared, width)  # no copies of the keys for the heads that share them
        if query.device.type != "cpu":
            out = F.scaled_dot_product_attention(packed, key, value, attn_mask=mask, scale=scale)
        else:
            lengths = mask.sum(dim=-1).flatten().tolist()
            parts = [
                F.scaled_dot_product_attention(
                    packed[row, None], key[row, None, :, :n], value[row, None, :, :n], scale=scale
                )
                for row, n in enumerate(lengths)
            ]
            out = torch.cat(parts)
        return out.view(rows, heads, 1, value.size(-1))
    if shared > 1:
        key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
