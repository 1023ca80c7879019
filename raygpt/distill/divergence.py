"""PURE. How far a student's next token is from its teacher's, and what that tells the student's logits.

Both distributions are softened by a temperature T, and divergences multiplied by T² (Hinton et al., 2015), so that
gradients keep their size. Every function returns (losses (n,), errors (n, V)): T² times the divergence in nats of each
of n tokens, and its gradient with respect to the student's logits, in closed form: nothing of a vocabulary's width is
kept for a backward pass. V is the true vocabulary: padding columns are cut off before.

- `against_all`: the teacher's logits are there. Exact.
- `against_top`: of the teacher k tokens are known, and the mass of all others together. Both distributions are looked
  at through the same k + 1 buckets, so the divergence is one of true distributions: never negative, never more than the
  full one, and the full one at k = V. Without that bucket a truncated sum is negative most of the time, and a reverse
  divergence lets the mass leave the k tokens unpunished.
- `against_drawn`: tokens drawn from the teacher (RS-KD, Anshumann et al., 2025). An unbiased estimate of the forward
  divergence and of its gradient; one token's estimate may be below zero.

Nothing is clamped. A divergence is summed in the form sum p (log p - log q) - p + q, each term of which is at least
zero, also in fp32, and zero where p = q; the two sums that are added are both 1.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Divergence = Literal["forward", "reverse", "mixed"]
# Below this |log p - log q| a term is computed by its series, whose rest is 2e-6 of it; above, cancellation costs no
# more than 1e-4 of a term.
SERIES = 0.05


def against_all(
    logits: Tensor, teacher_logits: Tensor, temperature: float, divergence: Divergence
) -> tuple[Tensor, Tensor]:
    """Of (n, V) logits of both."""
    log_q = torch.log_softmax(logits / temperature, 1)
    log_p = torch.log_softmax(teacher_logits / temperature, 1)
    losses, errors = _buckets(log_q, log_p, divergence)
    return losses * temperature**2, errors * temperature


def against_top(
    logits: Tensor, ids: Tensor, log_probs: Tensor, temperature: float, divergence: Divergence
) -> tuple[Tensor, Tensor]:
    """Of (n, V) logits and the teacher's `ids` (n, k) int64 with `log_probs` (n, k + 1) at that temperature, the last
    of which is the mass of all other tokens. They need not be normalised to the last bit; of k = V the last one is
    ignored."""
    log_q = torch.log_softmax(logits / temperature, 1)
    top = log_q.gather(1, ids)
    if ids.size(1) == logits.size(1):
        losses, errors = _buckets(top, torch.log_softmax(log_probs[:, :-1].float(), 1), divergence)
        return losses * temperature**2, torch.zeros_like(log_q).scatter_(1, ids, errors) * temperature
    tail = log_q.scatter(1, ids, float("-inf")).logsumexp(1, keepdim=True)
    losses, errors = _buckets(torch.cat([top, tail], 1), torch.log_softmax(log_probs.float(), 1), divergence)
    # a bucket's error is shared out by what each of its tokens has of it
    spread = (log_q - tail).exp_().mul_(errors[:, -1:]).scatter_(1, ids, errors[:, :-1])
    return losses * temperature**2, spread * temperature


def against_drawn(logits: Tensor, ids: Tensor, log_probs: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Of (n, V) logits and tokens `ids` (n, m) int64, drawn from the teacher at that temperature, which gives them
    `log_probs` (n, m). Forward alone."""
    log_q = torch.log_softmax(logits / temperature, 1)
    losses = (log_probs.float() - log_q.gather(1, ids)).mean(1)
    share = torch.full(ids.shape, -1 / ids.size(1), dtype=log_q.dtype, device=ids.device)
    return losses * temperature**2, log_q.exp().scatter_add_(1, ids, share) * temperature


def cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The same of the next token itself, (n,) int64: loss and errors of a temperature of 1."""
    log_q = torch.log_softmax(logits, 1)
    losses = -log_q.gather(1, targets[:, None])[:, 0]
    ones = torch.full_like(targets[:, None], -1, dtype=log_q.dtype)
    return losses, log_q.exp_().scatter_add_(1, targets[:, None], ones)


def _buckets(log_q: Tensor, log_p: Tensor, divergence: Divergence) -> tuple[Tensor, Tensor]:
    """Of normalised log-probabilities (n, b): divergences (n,), and their gradients with respect to log q as logits."""
    p, q = log_p.exp(), log_q.exp()
    if divergence == "forward":
        return _terms(p, log_p, q, log_q).sum(1), q - p
    reverse = _terms(q, log_q, p, log_p).sum(1)
    gap = log_q - log_p
    errors = q * (gap - (q * gap).sum(1, keepdim=True))
    if divergence == "reverse":
        return reverse, errors
    return (_terms(p, log_p, q, log_q).sum(1) + reverse) / 2, (q - p + errors) / 2


def _terms(p: Tensor, log_p: Tensor, q: Tensor, log_q: Tensor) -> Tensor:
    """p (log p - log q) - p + q of each pair, at least 0."""
    gap = log_p - log_q
    square = gap * gap
    series = p * square * (0.5 - gap / 6 + square / 24)
    return torch.where(gap.abs() < SERIES, series, p * gap - p + q)
