"""PURE. The next token of one sequence from its logits, by random numbers of its own, and what it was worth."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from raygpt.serve.requests import Sampling

# Candidates that are sorted first for top_p: a whole vocabulary of 49,152 takes 3 ms of a core, these 0.2.
CANDIDATES = 256


def generator(sampling: Sampling) -> random.Random:
    """Python's own generator: one number a token, the same on every machine and version."""
    # None: from the system; Python takes -1 for 1
    return random.Random(None if sampling.seed is None else sampling.seed % 2**64)


def draw(logits: Tensor, sampling: Sampling, generator: random.Random) -> int:
    """A token from (V,) float32 logits. A function of these, the settings and the generator's state alone.

    top_k keeps the most probable tokens; top_p keeps the fewest most probable ones that together reach it, counted
    after temperature and top_k (as raygpt.model.generate.choose does). The most probable one is always kept.
    """
    if sampling.temperature < 1e-6:  # dividing by less overflows
        return int(logits.argmax())
    scaled = (logits - logits.max()) / sampling.temperature
    number = generator.random()
    if sampling.top_p >= 1.0 and sampling.top_k is None:
        return _inverse(scaled.softmax(dim=0), number)
    size = min(sampling.top_k or len(scaled), len(scaled))
    if sampling.top_k is not None or sampling.top_p >= 1.0:
        total = None  # probabilities among the top_k
    else:
        total = scaled.logsumexp(dim=0)
    first = min(size, CANDIDATES) if total is not None else size
    values, order = scaled.topk(first)
    kept = _nucleus(values, total, sampling.top_p)
    if kept is None:  # the candidates do not reach top_p
        values, order = scaled.sort(descending=True)
        kept = _nucleus(values, total, sampling.top_p) or len(values)
    return int(order[_inverse(values[:kept].softmax(dim=0), number)])


def _nucleus(values: Tensor, total: Tensor | None, top_p: float) -> int | None:
    """How many of the sorted `values` reach top_p; None where all of them do not."""
    probabilities = (values - (values.logsumexp(dim=0) if total is None else total)).exp()
    before = probabilities.cumsum(dim=0, dtype=torch.float64) - probabilities
    kept = int((before < top_p).sum())
    if kept == len(values) and total is not None and float(before[-1] + probabilities[-1]) < top_p:
        return None
    return max(kept, 1)


def _inverse(probabilities: Tensor, number: float) -> int:
    """Index at which the running sum passes `number` of the whole; never one of probability 0."""
    sums = probabilities.cumsum(dim=0, dtype=torch.float64)
    place = int(torch.searchsorted(sums, number * sums[-1], right=True))
    return min(place, len(sums) - 1)


def log_probabilities(logits: Tensor, chosen: list[int], top: int) -> list[tuple[float, list[tuple[int, float]]]]:
    """(log-probability, likeliest alternatives with theirs) of the chosen token of each row of (R, V) float32 logits,
    in nats, under the model's own distribution. The alternatives are `top` many and may hold the chosen one."""
    totals = logits.logsumexp(dim=-1)
    picked = (logits.gather(1, torch.tensor(chosen, device=logits.device)[:, None])[:, 0] - totals).tolist()
    if not top:
        return [(value, []) for value in picked]
    values, order = logits.topk(min(top, logits.size(1)), dim=-1)
    shown = zip(picked, order.tolist(), (values - totals[:, None]).tolist())
    return [(value, list(zip(ids, others))) for value, ids, others in shown]
