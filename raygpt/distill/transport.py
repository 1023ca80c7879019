"""PURE. What a teacher hands over of a token, and how that lies in a file.

| transport | a token | bytes of GPT-2 XL's |
|---|---|---|
| hidden | its last hidden state, (C,), from which the output matrix makes all logits: exact | 3,200 |
| topk | the k likeliest tokens with their log-probabilities, and that of all others together | 4 k + 2 |
| sampled | m tokens drawn from its distribution, with their log-probabilities | 4 m |

All logits would be 100,514 bytes in half precision. Numbers are little-endian halves (fp16: 11 bits, where bf16 has 8),
token ids uint16 where the vocabulary allows it, else uint32, as in token shards. What `topk` and `sampled` hand over
holds for one temperature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from raygpt.data.shards import token_dtype
from raygpt.distill.divergence import Divergence, against_all, against_drawn, against_top

States = dict[str, Tensor]  # what is handed over of N tokens: tensors with a row for each


@dataclass(frozen=True)
class Transport:
    """A way of handing over. `width` is the teacher's C, `vocab_size` the V that teacher and student share."""

    kind: Literal["hidden", "topk", "sampled"]
    width: int
    vocab_size: int
    temperature: float = 1.0
    top_k: int = 64
    samples: int = 12

    @property
    def record(self) -> np.dtype[Any]:
        """Of one token in a file."""
        ids = token_dtype(self.vocab_size)
        half = np.dtype("<f2")
        if self.kind == "hidden":
            return np.dtype([("hidden", half, (self.width,))])
        if self.kind == "topk":
            return np.dtype([("ids", ids, (self._k,)), ("log_probs", half, (self._k + 1,))])
        return np.dtype([("ids", ids, (self.samples,)), ("log_probs", half, (self.samples,))])

    @property
    def bytes_per_token(self) -> int:
        return self.record.itemsize

    @property
    def _k(self) -> int:
        return min(self.top_k, self.vocab_size)

    def take(self, logits: Tensor, generator: torch.Generator | None = None) -> States:
        """Of the teacher's logits (n, V): what topk and sampled hand over. Draws come from `generator`, by default
        torch's own."""
        log_p = torch.log_softmax(logits.float() / self.temperature, 1)
        if self.kind == "topk":
            found, ids = log_p.topk(self._k, 1)
            tail = log_p.scatter(1, ids, float("-inf")).logsumexp(1, keepdim=True)
            return {"ids": ids, "log_probs": torch.cat([found, tail], 1)}
        assert self.kind == "sampled"
        ids = torch.multinomial(log_p.exp(), self.samples, replacement=True, generator=generator)
        return {"ids": ids, "log_probs": log_p.gather(1, ids)}

    def compare(
        self, logits: Tensor, states: States, divergence: Divergence, output: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(losses (n,), errors (n, V)) of the student's logits (n, V) fp32 against n tokens' states; `output` (V
        or more, C) is the teacher's output matrix, which hidden states want. See divergence.py."""
        if self.kind == "hidden":
            assert output is not None
            with torch.autocast(logits.device.type, enabled=False):  # the student's
                teacher = (states["hidden"].to(output.dtype) @ output.t())[:, : self.vocab_size].float()
            return against_all(logits, teacher, self.temperature, divergence)
        if self.kind == "topk":
            return against_top(logits, states["ids"], states["log_probs"], self.temperature, divergence)
        assert divergence == "forward"
        return against_drawn(logits, states["ids"], states["log_probs"], self.temperature)

    def pack(self, states: States) -> np.ndarray:
        """(N,) records of N tokens' states."""
        records = np.empty(len(next(iter(states.values()))), self.record)
        for name in records.dtype.names or ():
            values = states[name].cpu()
            records[name] = (values.float() if values.is_floating_point() else values).numpy()
        return records

    def unpack(self, records: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays of records of any shape, by name: halves as they are, ids int64."""
        kinds = {
            name: np.dtype(np.int64) if name == "ids" else np.dtype(np.float16) for name in self.record.names or ()
        }
        return {name: records[name].astype(kind) for name, kind in kinds.items()}

    def empty(self, rows: int, tokens: int) -> dict[str, np.ndarray]:
        """States of rows of tokens that say nothing in particular, with the right shapes."""
        return self.unpack(np.zeros((rows, tokens), self.record))
