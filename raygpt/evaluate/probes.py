"""PURE. How likely a model finds stretches of a document, given all that stands before them.

The context of a stretch is the document from its beginning (after an end-of-text token), or as many tokens of it as the
model reads at a time. The probability of a stretch is the product over its tokens; the rank of its first token is 1
when the model would have said it first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from raygpt.evaluate.document_losses import OnProgress
from raygpt.model.gpt import GPT
from raygpt.scoring.losses import batches, evaluating

# Positions whose logits exist at a time: 512 x 50,257 in fp32 are 100 MB.
LOGIT_ROWS = 512


@dataclass(frozen=True)
class Stretch:
    """Tokens [first, last] of document number `document`, both ends included."""

    document: int
    first: int
    last: int


@dataclass(frozen=True)
class Probed:
    """(stretches,) each: ln p of the whole stretch, and the rank of its first token, 1 the likeliest."""

    log_probability: np.ndarray
    rank: np.ndarray


def probe(
    model: GPT,
    documents: Sequence[np.ndarray],
    stretches: Sequence[Stretch],
    eot_id: int,
    seq_len: int,
    *,
    batch_tokens: int = 4096,
    device: torch.device | str = "cpu",
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    on_progress: OnProgress | None = None,
) -> Probed:
    """Probability and rank of every stretch; raises ValueError for one longer than `seq_len`.

    All stretches that lie within the first `seq_len` tokens of a document share one pass; each of the others has one
    of its own, so that none is judged with less context than the model can take.
    """
    log_probability, rank = np.zeros(len(stretches)), np.zeros(len(stretches), np.int64)
    rows = _rows(stretches, seq_len)
    done = 0
    with evaluating(model):
        for batch in batches(list(rows), lambda row: row[2] - row[1], batch_tokens):
            width = batch[0][2] - batch[0][1]
            block = np.full((len(batch), width), eot_id, dtype=np.int64)
            where: list[tuple[int, int]] = []  # (row, column) whose logits are wanted
            wanted: list[int] = []
            owner: list[tuple[int, bool]] = []  # (stretch, whether it is its first token)
            for at, row in enumerate(batch):
                document, begin, stop = row
                ids = documents[document]
                # input k of the row is token begin + k - 1 of the document, the end of text being number -1
                inputs = ids[max(0, begin - 1) : stop - 1]
                block[at, int(begin == 0) : int(begin == 0) + len(inputs)] = inputs
                for number in rows[row]:
                    stretch = stretches[number]
                    for token in range(stretch.first, stretch.last + 1):
                        where.append((at, token - begin))
                        wanted.append(int(ids[token]))
                        owner.append((number, token == stretch.first))
            losses, ranks = _read_off(model, block, where, wanted, device, autocast)
            for (number, first), loss, place in zip(owner, losses, ranks):
                log_probability[number] -= loss
                if first:
                    rank[number] = place
            done += len(batch)
            if on_progress is not None:
                on_progress(done, len(rows))
    return Probed(log_probability, rank)


def _rows(stretches: Sequence[Stretch], seq_len: int) -> dict[tuple[int, int, int], list[int]]:
    """Numbers of stretches by the row that serves them: (document, begin, stop).

    A row's inputs are what stands before tokens [begin, stop): it predicts those.
    """
    within: dict[int, list[int]] = defaultdict(list)
    rows: dict[tuple[int, int, int], list[int]] = {}
    for number, stretch in enumerate(stretches):
        if stretch.last - stretch.first >= seq_len:
            raise ValueError(f"a stretch of {stretch.last - stretch.first + 1} tokens is longer than {seq_len}")
        if stretch.last < seq_len:
            within[stretch.document].append(number)
        else:
            rows.setdefault((stretch.document, stretch.last + 1 - seq_len, stretch.last + 1), []).append(number)
    for document, numbers in within.items():
        rows[document, 0, max(stretches[number].last for number in numbers) + 1] = numbers
    return rows


def _read_off(
    model: GPT,
    block: np.ndarray,
    where: Sequence[tuple[int, int]],
    wanted: Sequence[int],
    device: torch.device | str,
    autocast: Callable[[], AbstractContextManager],
) -> tuple[np.ndarray, np.ndarray]:
    """(-ln p, rank) of the wanted token at each (row, column) of the inputs `block`."""
    losses, ranks = [], []
    with torch.no_grad(), autocast():
        hidden = model.hidden(torch.from_numpy(block).to(device))
        at = torch.tensor(where, device=device)
        targets = torch.tensor(wanted, device=device)
        for piece, target in zip(at.split(LOGIT_ROWS), targets.split(LOGIT_ROWS)):
            logits = model.lm_head(hidden[piece[:, 0], piece[:, 1]])[:, : model.config.vocab_size].float()
            mine = logits.gather(1, target[:, None])
            losses.append((logits.logsumexp(-1) - mine[:, 0]).cpu().numpy())
            ranks.append(((logits > mine).sum(-1) + 1).cpu().numpy())
    return np.concatenate(losses), np.concatenate(ranks)
