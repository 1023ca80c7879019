"""PURE. Rows of tokens that branch: several continuations after one beginning, which is computed once.

Shapes: B rows, T tokens of a row. A token sees its ancestors and itself, and stands as far from the beginning as it has
ancestors; what is not above it might as well not be there. So its logits are those of the plain row that leads to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


class TreePass:
    """Where the tokens of a pass stand and what they see, in the place of a cache: there is no past."""

    def __init__(self, positions: Tensor, mask: Tensor) -> None:
        """`positions` (B, T) int64; `mask` (B, 1, T, T) bool, true where a token sees another."""
        self.positions, self.mask = positions, mask

    def begin(self, tokens: int, device: torch.device) -> None:
        assert tokens == self.positions.size(1)

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        return key, value

    def advance(self) -> None:
        pass

    def rows(self, start: int, stop: int) -> TreePass:
        """That of some of the rows."""
        return TreePass(self.positions[start:stop], self.mask[start:stop])


@dataclass(frozen=True)
class Tree:
    """One row. `tokens` (T,) int64; `paths` lead to the end of each sequence it was made of, places in `tokens`.
    `runs` are (start, stop, parent): neighbours that follow each other, the first of them behind `parent` or -1."""

    tokens: np.ndarray
    paths: tuple[np.ndarray, ...]
    runs: tuple[tuple[int, int, int], ...]

    @property
    def branches(self) -> bool:
        """Whether it is more than one sequence from its first token to its last."""
        return len(self.runs) > 1


def grow(sequences: Sequence[np.ndarray]) -> Tree:
    """The tree of some sequences, none empty: what two of them begin with stands there once."""
    tokens: list[np.ndarray] = []
    paths: list[np.ndarray] = []
    runs: list[tuple[int, int, int]] = []
    size = 0
    for number, sequence in enumerate(sequences):
        shared, base = 0, np.empty(0, np.int64)
        for other, path in zip(sequences[:number], paths):
            if (length := _shared(sequence, other)) > shared:
                shared, base = length, path
        new = len(sequence) - shared
        if new:
            tokens.append(sequence[shared:])
            runs.append((size, size + new, int(base[shared - 1]) if shared else -1))
        paths.append(np.concatenate([base[:shared], np.arange(size, size + new)]))
        size += new
    return Tree(np.concatenate(tokens).astype(np.int64), tuple(paths), tuple(runs))


def layout(trees: Sequence[Tree]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens (B, T) and positions (B, T), int64, and mask (B, 1, T, T), bool, of trees as the rows of a batch.

    What fills a row up sees itself alone: a softmax over nothing would be NaN, and 0 times NaN is NaN.
    """
    width = max(len(tree.tokens) for tree in trees)
    tokens = np.zeros((len(trees), width), np.int64)
    positions = np.zeros((len(trees), width), np.int64)
    mask = np.zeros((len(trees), 1, width, width), bool)
    mask[:, 0] = np.eye(width, dtype=bool)
    lower = np.tri(width, dtype=bool)
    for row, tree in enumerate(trees):
        tokens[row, : len(tree.tokens)] = tree.tokens
        seen = mask[row, 0]
        for start, stop, parent in tree.runs:
            first = 0
            if parent >= 0:
                seen[start:stop] = seen[parent]
                first = positions[row, parent] + 1
            seen[start:stop, start:stop] = lower[: stop - start, : stop - start]
            positions[row, start:stop] = np.arange(first, first + stop - start)
    return tokens, positions, mask


def _shared(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens two sequences begin with alike."""
    length = min(len(one), len(other))
    differs = np.flatnonzero(one[:length] != other[:length])
    return int(differs[0]) if len(differs) else length
