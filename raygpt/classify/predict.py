"""What a classifier says of examples: the one loop over them, for the epochs of a training and for a file to score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from raygpt.classify.classifier import Classifier, pad_rows
from raygpt.classify.tasks import Encoded, assemble
from raygpt.scoring.losses import evaluating

BATCH_TOKENS = 8192
CPU = torch.device("cpu")


def predict(
    model: Classifier,
    part: Encoded,
    *,
    eot_id: int,
    max_tokens: int,
    swap: bool,
    device: torch.device = CPU,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> np.ndarray:
    """(N, K) float32 logits of a part in its order; of pairs in both orders, averaged, where `swap` is set.

    A row's logits do not hang on what shares its batch. The model is put in eval mode meanwhile.
    """
    orders = (False, True) if part.second is not None and swap else (False,)
    logits = [
        _logits(model, [assemble(part, at, eot_id, max_tokens, turned) for at in range(len(part))], device, autocast)
        for turned in orders
    ]
    return sum(logits) / len(orders)  # type: ignore[return-value]


def _logits(
    model: Classifier,
    rows: Sequence[np.ndarray],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager],
) -> np.ndarray:
    out = np.zeros((len(rows), model.num_labels), dtype=np.float32)
    order = np.argsort([len(row) for row in rows], kind="stable")
    start = 0
    with evaluating(model):
        while start < len(order):
            # sorted by length, so the rows of a batch are nearly as long as its last one
            longest = max(1, len(rows[order[min(start + 255, len(order) - 1)]]))
            chosen = order[start : start + max(1, BATCH_TOKENS // longest)]
            tokens = pad_rows([rows[at] for at in chosen], model.pad_id).to(device)
            with torch.no_grad(), autocast():
                out[chosen] = model(tokens).float().cpu().numpy()
            start += len(chosen)
    return out
