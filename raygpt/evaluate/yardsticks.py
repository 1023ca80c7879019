"""PURE. What a validation loss is worth: the cross-entropy of the same tokens under counts of the training tokens.

A model below the unigram figure has learned more than how frequent each token is; below the bigram figure, more than
which token follows which. Both are honest held-out figures: the validation tokens are never counted.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

# Tokens looked at in one piece: int64 copies of it stay near 128 MB.
CHUNK = 2**24
# Up to this many possible pairs a table of all of them is smaller and faster than a sorted list.
DENSE_PAIRS = 2**24
# Tried weights of the unigram in the bigram, in tokens.
WEIGHTS = np.geomspace(0.1, 1e6, 57)
HELD_OUT = 0.1


def unigram_entropy(train_tokens: np.ndarray, val_tokens: np.ndarray, vocab_size: int) -> float:
    """Nats per token of val_tokens[1:] under p(b) = (count(b) + 1) / (total + vocab_size) of train_tokens (n,).

    The first validation token is left out because a model has nothing to predict it from either.
    """
    _check(train_tokens, val_tokens)
    val = _counts(val_tokens[1:], vocab_size)
    return float(-(val @ np.log(_unigram(train_tokens, vocab_size))) / val.sum())


def bigram_entropy(train_tokens: np.ndarray, val_tokens: np.ndarray, vocab_size: int) -> float:
    """Nats per token of val_tokens[1:] given the token before, under counts of pairs in train_tokens (n,).

    p(b | a) = (count(a, b) + w p(b)) / (count(a) + w), with p(b) the unigram above: the less often a was seen, the more
    the unigram decides (a Dirichlet prior, MacKay and Peto 1995). The one weight w is chosen on the training tokens
    alone: counts of their first 90 %, least loss on their last 10 %; then all of them are counted.
    """
    _check(train_tokens, val_tokens)
    if len(train_tokens) < 20:
        weight = 1.0
    else:
        cut = len(train_tokens) - round(len(train_tokens) * HELD_OUT)
        tuning = _Bigram(train_tokens[:cut], vocab_size)
        pairs, times = _pair_counts(train_tokens[cut - 1 :], vocab_size)
        weight = float(min(WEIGHTS, key=lambda candidate: tuning.loss(pairs, times, float(candidate))))
    pairs, times = _pair_counts(val_tokens, vocab_size)
    return _Bigram(train_tokens, vocab_size).loss(pairs, times, weight)


def yardsticks(train_tokens: np.ndarray, val_tokens: np.ndarray, vocab_size: int) -> dict[str, float]:
    """Both figures in nats per token, by the names a report shows."""
    return {
        "unigram entropy": unigram_entropy(train_tokens, val_tokens, vocab_size),
        "bigram entropy": bigram_entropy(train_tokens, val_tokens, vocab_size),
    }


class _Bigram:
    """Counts of tokens and of pairs. A pair (a, b) is the number a * vocab_size + b."""

    def __init__(self, tokens: np.ndarray, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.unigram = _unigram(tokens, vocab_size)
        # how often each token has a follower
        self.before = _counts(tokens[:-1], vocab_size)
        self.pairs, self.times = _pair_counts(tokens, vocab_size)

    def loss(self, pairs: np.ndarray, times: np.ndarray, weight: float) -> float:
        """Mean -ln p(b | a) over `pairs` (m,), each `times` (m,)."""
        at = np.minimum(np.searchsorted(self.pairs, pairs), max(len(self.pairs) - 1, 0))
        seen = np.where(self.pairs[at] == pairs, self.times[at], 0) if len(self.pairs) else np.zeros(len(pairs))
        first, second = np.divmod(pairs, self.vocab_size)
        probability = (seen + weight * self.unigram[second]) / (self.before[first] + weight)
        return float(-(times @ np.log(probability)) / times.sum())


def _check(train_tokens: np.ndarray, val_tokens: np.ndarray) -> None:
    if len(train_tokens) < 1 or len(val_tokens) < 2:
        raise ValueError(f"{len(train_tokens)} training and {len(val_tokens)} validation tokens: 1 and 2 are needed")


def _unigram(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """(vocab_size,) probabilities with one added to every count, so that no token is impossible."""
    return (_counts(tokens, vocab_size) + 1) / (len(tokens) + vocab_size)


def _counts(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """(vocab_size,) int64."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for begin in range(0, len(tokens), CHUNK):
        counts += np.bincount(tokens[begin : begin + CHUNK], minlength=vocab_size)
    return counts


def _pair_codes(tokens: np.ndarray, vocab_size: int) -> Iterator[np.ndarray]:
    for begin in range(0, len(tokens) - 1, CHUNK):
        piece = tokens[begin : begin + CHUNK + 1].astype(np.int64)
        yield piece[:-1] * vocab_size + piece[1:]


def _pair_counts(tokens: np.ndarray, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted numbers of the neighbouring pairs that occur (m,) int64 and how often each does (m,) int64."""
    if vocab_size**2 <= DENSE_PAIRS:
        table = np.zeros(vocab_size**2, dtype=np.int64)
        for codes in _pair_codes(tokens, vocab_size):
            table += np.bincount(codes, minlength=vocab_size**2)
        found = np.flatnonzero(table)
        return found, table[found]
    pairs, times = np.empty(0, np.int64), np.empty(0, np.int64)
    for codes in _pair_codes(tokens, vocab_size):
        more, often = np.unique(codes, return_counts=True)
        pairs, where = np.unique(np.concatenate([pairs, more]), return_inverse=True)
        times = np.bincount(where, weights=np.concatenate([times, often]), minlength=len(pairs)).astype(np.int64)
    return pairs, times
