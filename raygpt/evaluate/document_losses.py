"""PURE. What every token of every document costs a model, each document by itself.

A document has an end-of-text token before it, as in training, and is read in rows of the model's context that follow
each other: all of its tokens are predicted exactly once. Rows of about one length share a batch, so that short
documents do not wait for long ones; what pads a row costs nothing (-100).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from raygpt.errors import UserError
from raygpt.model.head_loss import IGNORE_INDEX
from raygpt.scoring.losses import batches, token_losses

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class DocumentLosses:
    """`surprisals[i]` is (tokens of document i,) float32: -ln p of each given what stands before it in its row."""

    surprisals: list[np.ndarray]

    @property
    def nats(self) -> np.ndarray:
        """(documents,) float64 sums."""
        return np.array([losses.sum(dtype=np.float64) for losses in self.surprisals])

    @property
    def tokens(self) -> np.ndarray:
        """(documents,) int64."""
        return np.array([len(losses) for losses in self.surprisals], dtype=np.int64)


def document_losses(
    model: nn.Module,
    documents: Sequence[np.ndarray],
    eot_id: int,
    seq_len: int,
    *,
    batch_tokens: int = 4096,
    device: torch.device | str = "cpu",
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    on_progress: OnProgress | None = None,
) -> DocumentLosses:
    """Losses of `documents` ((n,) ids each, without end of text) in rows of `seq_len`, `batch_tokens` in one pass.

    The model is called as `model(tokens, targets, reduction="none")` and put in eval mode meanwhile. Raises UserError
    for ids beyond the model's vocabulary.
    """
    _check_ids(model, documents)
    surprisals = [np.zeros(len(ids), np.float32) for ids in documents]
    rows = [(n, start) for n, ids in enumerate(documents) for start in range(0, len(ids), seq_len)]
    total, done = sum(map(len, documents)), 0
    made = batches(rows, lambda row: min(seq_len, len(documents[row[0]]) - row[1]), batch_tokens)
    blocks = (_block(documents, batch, eot_id, seq_len) for batch in made)
    with closing(token_losses(model, blocks, device, autocast)) as losses:
        for batch, (_, each) in zip(made, losses):
            for line, (n, start) in zip(each.cpu().numpy(), batch):
                piece = surprisals[n][start : start + seq_len]
                piece[:] = line[: len(piece)]
                done += len(piece)
            if on_progress is not None:
                on_progress(done, total)
    return DocumentLosses(surprisals)


def _block(documents: Sequence[np.ndarray], batch: Sequence[tuple[int, int]], eot_id: int, seq_len: int) -> np.ndarray:
    """(rows, longest + 1) int64: what stands before each row's first token, its tokens, and IGNORE_INDEX after them.
    Rows are (document, first token), the longest first."""
    width = min(seq_len, len(documents[batch[0][0]]) - batch[0][1])
    block = np.full((len(batch), width + 1), IGNORE_INDEX, dtype=np.int64)
    for line, (n, start) in zip(block, batch):
        piece = documents[n][start : start + width]
        line[0] = documents[n][start - 1] if start else eot_id
        line[1 : 1 + len(piece)] = piece
    return block


def _check_ids(model: nn.Module, documents: Sequence[np.ndarray]) -> None:
    config = getattr(model, "config", None)
    largest = max((int(ids.max()) for ids in documents if len(ids)), default=0)
    if config is not None and largest >= config.vocab_size:
        raise UserError(
            f"the text has token {largest} but the model knows only {config.vocab_size:,}: its tokenizer is not the "
            "one it was trained with."
        )
