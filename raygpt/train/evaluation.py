"""PURE. Loss of a model over a whole token stream, and what follows from it: perplexity and bits per byte.

The stream is cut into rows of `seq_len` that follow each other without overlap, every row predicting the token after
each of its own: all tokens but the very first are predicted exactly once, the rest of the last row included. Nothing
is sampled unless `max_rows` asks for it, so two runs of one model give one number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import nn

from raygpt.errors import UserError
from raygpt.model.head_loss import IGNORE_INDEX
from raygpt.scoring.losses import token_losses

# What an evaluation in training takes unless eval.batches says otherwise: of the tokens trained on since the one before
# this share, which costs a thirtieth of the time (a forward pass is a third of a step's work), but never fewer than
# these tokens: over a million the mean of losses that spread by 3 nats is right to 0.003.
SHARE = 0.1
FEWEST_TOKENS = 2**20


class TokenSource(Protocol):
    """What `raygpt.data.reader.TokenReader` and an array in memory have in common."""

    total_tokens: int

    def read(self, start: int, stop: int) -> np.ndarray:
        """(stop - start,) tokens."""

    def read_rows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """(len(starts), length) tokens."""


@dataclass(frozen=True)
class Evaluation:
    """`loss` in nats per token over `tokens` predicted tokens in `rows` rows.

    `bits_per_byte` compares models of different tokenizers: bits for the whole text over its UTF-8 bytes. It is None
    where only part of the stream was read or the number of bytes is not known.
    """

    loss: float
    perplexity: float
    tokens: int
    bits_per_byte: float | None
    rows: int


def rows_in_training(batches: int | None, *, seq_len: int, batch_rows: int, steps_between: int) -> int:
    """Rows that every evaluation of a run takes, the last one too, where its validation data has more.

    They are the same rows each time, so that losses of one run compare, and are evenly spaced. `batches` of
    `batch_rows` rows where eval.batches is set; else a SHARE of what `steps_between` two evaluations train on,
    FEWEST_TOKENS at least: a large validation set does not hold training up. `raygpt evaluate` takes all of it.
    """
    if batches is not None:
        return batches * batch_rows
    return max(math.ceil(FEWEST_TOKENS / seq_len), int(SHARE * steps_between * batch_rows))


def evaluate_tokens(
    model: nn.Module,
    reader: TokenSource,
    seq_len: int,
    batch_rows: int,
    device: torch.device | str = "cpu",
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    *,
    max_rows: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    reduce: Callable[..., list[float]] | None = None,
) -> Evaluation:
    """Loss over `reader`'s tokens in rows of `seq_len`, `batch_rows` at a time; `max_rows` takes evenly spaced ones.

    With several ranks each takes its part of the rows and `reduce(*values)` sums values over them: every rank returns
    the same. The model is called as `model(tokens, targets, reduction="none")`; it is put in eval mode meanwhile.
    Raises UserError for a stream with nothing to predict or with ids beyond the model's vocabulary.
    """
    total = reader.total_tokens
    if total < 2:
        raise UserError(f"the validation data has {total} tokens, too few to predict one: prepare more (data.val).")
    _check_vocabulary(model, reader)
    all_rows = -(-(total - 1) // seq_len)
    rows = np.arange(all_rows)
    if max_rows is not None and max_rows < all_rows:
        rows = np.arange(max_rows) * all_rows // max_rows
    mine = rows[rank * len(rows) // world_size : (rank + 1) * len(rows) // world_size]
    # every rank makes the same number of passes, the last one maybe on nothing: weights of ZeRO-3 take all ranks
    passes = math.ceil(math.ceil(len(rows) / world_size) / batch_rows)
    blocks = _batches(reader, mine, seq_len, batch_rows, passes)
    # float64: 10^8 float32 losses would lose digits
    sums, tokens = torch.zeros((), dtype=torch.float64, device=device), 0
    with closing(token_losses(model, blocks, device, autocast)) as losses:
        for block, each in losses:
            tokens += int(np.count_nonzero(block[:, 1:] != IGNORE_INDEX))
            sums += each.sum(dtype=torch.float64)
    loss_sum = float(sums)
    if reduce is not None:
        loss_sum, tokens_summed = reduce(loss_sum, float(tokens))
        tokens = round(tokens_summed)
    manifest = getattr(reader, "manifest", None)
    whole = len(rows) == all_rows
    return _evaluation(loss_sum, tokens, len(rows), manifest.bytes if manifest is not None and whole else None)


class ArrayTokens:
    """An array of tokens (n,) read like a shard folder."""

    def __init__(self, tokens: np.ndarray) -> None:
        self.tokens = tokens
        self.total_tokens = len(tokens)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.tokens[start:stop]

    def read_rows(self, starts: np.ndarray, length: int) -> np.ndarray:
        return self.tokens[starts[:, None] + np.arange(length)]


def _evaluation(loss_sum: float, tokens: int, rows: int, text_bytes: int | None) -> Evaluation:
    loss = loss_sum / tokens
    return Evaluation(
        loss=loss,
        perplexity=math.exp(loss) if loss < 700 else math.inf,
        tokens=tokens,
        bits_per_byte=loss_sum / math.log(2) / text_bytes if text_bytes else None,
        rows=rows,
    )


def _check_vocabulary(model: nn.Module, reader: TokenSource) -> None:
    manifest, config = getattr(reader, "manifest", None), getattr(model, "config", None)
    if manifest is None or config is None or manifest.tokenizer.vocab_size <= config.vocab_size:
        return
    raise UserError(
        f"the validation data was prepared with {manifest.tokenizer.name} ({manifest.tokenizer.vocab_size} tokens) but "
        f"the model knows {config.vocab_size}: prepare data.val with the model's own tokenizer."
    )


def _batches(reader: TokenSource, rows: np.ndarray, seq_len: int, batch_rows: int, passes: int) -> Iterator[np.ndarray]:
    """(n, seq_len + 1) int64 arrays of rows, read one ahead of where they are used; -100 after the stream's end.

    `passes` of them: where the rows do not suffice, the rest are one row of nothing.
    """
    chunks = [rows[begin : begin + batch_rows] for begin in range(0, len(rows), batch_rows)]
    nothing = np.full((1, seq_len + 1), IGNORE_INDEX, dtype=np.int64)
    if not chunks:
        yield from [nothing] * passes
        return
    with ThreadPoolExecutor(1, thread_name_prefix="evaluation-read") as pool:
        ahead = pool.submit(_read, reader, chunks[0], seq_len)
        for following in [*chunks[1:], None]:
            batch = ahead.result()
            if following is not None:
                ahead = pool.submit(_read, reader, following, seq_len)
            yield batch
    yield from [nothing] * (passes - len(chunks))


def _read(reader: TokenSource, rows: np.ndarray, seq_len: int) -> np.ndarray:
    starts = rows * seq_len
    full = starts[starts + seq_len < reader.total_tokens]
    batch = np.full((len(rows), seq_len + 1), IGNORE_INDEX, dtype=np.int64)
    if len(full):
        batch[: len(full)] = reader.read_rows(full, seq_len + 1)
    if len(full) < len(rows):
        tail = reader.read(int(starts[-1]), reader.total_tokens)
        batch[-1, : len(tail)] = tail
    return batch
