"""PURE. A seeded permutation of [0, size) whose value at any place is found by itself, in no memory.

A Feistel network permutes the smallest power of two that holds `size`; values beyond `size` are permuted again until
they fall inside (cycle walking), which keeps it a permutation (Black and Rogaway, "Ciphers with arbitrary finite
domains", 2002). A sorted array of 5e12 / 1024 / 64 entries would take 0.6 GB and half a minute in every process.
Integer arithmetic alone: the same on every machine, for ever.
"""

from __future__ import annotations

import numpy as np

ROUNDS = 8  # four of each half; from five of balanced halves on, a Feistel network resists far more than a test can see


class Permutation:
    """Callable on int64 arrays of any shape. `seed` is at least 64 bytes: a key of 8 for each round."""

    def __init__(self, size: int, seed: bytes) -> None:
        if size < 1 or len(seed) < 8 * ROUNDS:
            raise ValueError(f"a permutation of {size} with a seed of {len(seed)} bytes")
        self.size = size
        bits = max(2, (size - 1).bit_length())
        self._low = np.uint64(bits // 2)
        self._low_mask = np.uint64((1 << (bits // 2)) - 1)
        self._high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
        self._keys = np.frombuffer(seed[: 8 * ROUNDS], dtype="<u8").astype(np.uint64)

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """Value at each place."""
        return self._walk(places, range(ROUNDS))

    def inverse(self, values: np.ndarray) -> np.ndarray:
        """Place of each value."""
        return self._walk(values, range(ROUNDS - 1, -1, -1))

    def _walk(self, points: np.ndarray, rounds: range) -> np.ndarray:
        flat = np.asarray(points).astype(np.uint64).ravel()
        if flat.size and int(flat.max()) >= self.size:
            raise IndexError(f"{int(flat.max())} in a permutation of {self.size}")
        out = self._network(flat, rounds)
        outside = np.flatnonzero(out >= self.size)
        while outside.size:
            out[outside] = self._network(out[outside], rounds)
            outside = outside[out[outside] >= self.size]
        return out.astype(np.int64).reshape(np.shape(points))

    def _network(self, points: np.ndarray, rounds: range) -> np.ndarray:
        low, high = points & self._low_mask, points >> self._low
        for number in rounds:
            if number % 2:
                high = high ^ (_mixed(low, self._keys[number]) & self._high_mask)
            else:
                low = low ^ (_mixed(high, self._keys[number]) & self._low_mask)
        return (high << self._low) | low


def _mixed(half: np.ndarray, key: np.uint64) -> np.ndarray:
    # the finaliser of splitmix64 (Steele, Lea and Flood, 2014): every bit of the half moves every bit of the result
    mixed = half ^ key
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
