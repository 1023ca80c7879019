"""PURE. Long verbatim overlaps of texts with a token stream of any size: exact, in bounded memory.

Windows of a few tokens are hashed (polynomial hash modulo 2^64, as Rabin and Karp did); the stream goes by in blocks,
windows that any text has too are looked up in a bit table and then compared token by token, and neighbouring hits on
one diagonal are one longer overlap. Equal windows have equal hashes, so nothing is missed; hits are compared, so
nothing is invented.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

BASE = np.uint64(0x9E3779B97F4A7C15 | 1)
TABLE_BITS = 22
BLOCK_TOKENS = 2**22
# (stream position, window) pairs looked at together; where there are more the block is halved.
MOST_PAIRS = 2**22


class TokenStream(Protocol):
    """What `raygpt.data.reader.TokenReader` and an array in memory have in common."""

    total_tokens: int

    def read(self, start: int, stop: int) -> np.ndarray: ...


@dataclass(frozen=True)
class Overlap:
    """The longest run of tokens that a text shares with the stream: text[start : start + tokens] stands at `position`.

    0 tokens where no run of the shortest length looked for is shared. `covered` counts the text's tokens that lie in
    any shared run of at least `cover_tokens`.
    """

    tokens: int
    start: int
    position: int
    covered: int


def longest_overlaps(
    texts: Sequence[np.ndarray],
    stream: TokenStream,
    shortest: int,
    *,
    cover_tokens: int | None = None,
    block_tokens: int = BLOCK_TOKENS,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Overlap]:
    """The longest overlap of `shortest` tokens or more of each text (n,) with the stream; the first of equal ones."""
    search = _Search([np.asarray(text, np.int64) for text in texts], shortest)
    cover = max(shortest, cover_tokens or shortest)
    # a match that begins in a block lies whole in the block and what follows for the longest text's length
    best = [Overlap(0, 0, 0, 0)] * len(texts)
    covered = [np.zeros(len(text), bool) for text in texts]
    for begin in range(0, stream.total_tokens if search.windows else 0, block_tokens):
        stop = min(begin + block_tokens, stream.total_tokens)
        block = stream.read(begin, min(stop + search.longest, stream.total_tokens)).astype(np.int64)
        for text, start, position, length in search.matches(block, stop - begin):
            if length > best[text].tokens:
                best[text] = Overlap(length, start, begin + position, 0)
            if length >= cover:
                covered[text][start : start + length] = True
        if on_progress is not None:
            on_progress(stop, stream.total_tokens)
    return [Overlap(found.tokens, found.start, found.position, int(mask.sum())) for found, mask in zip(best, covered)]


def window_hashes(tokens: np.ndarray, length: int) -> np.ndarray:
    """(n - length + 1,) uint64 hash of every window of `length` tokens: sum of t[i + j] B^(length - 1 - j) mod 2^64.

    Built by doubling, so that it costs log2(length) passes: the hash of a window of a + b is hash_a B^b + hash_b.
    """
    if len(tokens) < length:
        return np.empty(0, np.uint64)
    single = tokens.astype(np.uint64) + np.uint64(1)
    hashes, have = single, 1
    for bit in bin(length)[3:]:
        hashes = hashes[: len(hashes) - have] * _power(have) + hashes[have:]
        have *= 2
        if bit == "1":
            hashes = hashes[:-1] * BASE + single[have : have + len(hashes) - 1]
            have += 1
    return hashes


def _power(exponent: int) -> np.uint64:
    return np.uint64(pow(int(BASE), exponent, 2**64))


class _Search:
    """Windows of all texts, end to end: window i is `shortest` tokens from `flat[at[i]]`, of text `text[i]`."""

    def __init__(self, texts: Sequence[np.ndarray], shortest: int) -> None:
        self.shortest = shortest
        self.longest = max(map(len, texts), default=0)
        self.flat = np.concatenate([*texts, np.empty(0, np.int64)])
        begins = np.cumsum([0, *map(len, texts)])
        counts = [max(0, len(text) - shortest + 1) for text in texts]
        self.text = np.repeat(np.arange(len(texts)), counts)
        self.start = np.concatenate([*(np.arange(count) for count in counts), np.empty(0, np.int64)])
        self.at = begins[self.text] + self.start
        hashes = np.concatenate([*(window_hashes(text, shortest) for text in texts), np.empty(0, np.uint64)])
        order = np.argsort(hashes, kind="stable")
        self.hashes = hashes[order]
        self.text, self.start, self.at = self.text[order], self.start[order], self.at[order]
        self.windows = len(hashes)
        self._table = np.zeros(2**TABLE_BITS, bool)
        self._table[_slot(self.hashes)] = True

    def matches(self, block: np.ndarray, core: int) -> list[tuple[int, int, int, int]]:
        """(text, start in it, position in block, length) of the matches that begin in block[:core]."""
        hashes = window_hashes(block, self.shortest)
        positions = np.flatnonzero(self._table[_slot(hashes)])
        first = np.searchsorted(self.hashes, hashes[positions], "left")
        times = np.searchsorted(self.hashes, hashes[positions], "right") - first
        found: list[tuple[int, int, int, int]] = []
        self._within(block, positions, first, times, 0, core, found)
        return found

    def _within(
        self,
        block: np.ndarray,
        positions: np.ndarray,
        first: np.ndarray,
        times: np.ndarray,
        low: int,
        high: int,
        found: list[tuple[int, int, int, int]],
    ) -> None:
        """Matches that begin in block[low:high], by halves where a looping text makes too many pairs."""
        inside = slice(*np.searchsorted(positions, [low, high + self.longest]))
        if times[inside].sum() > MOST_PAIRS and high - low > 1:
            middle = (low + high) // 2
            self._within(block, positions, first, times, low, middle, found)
            self._within(block, positions, first, times, middle, high, found)
            return
        count = times[inside]
        place = np.repeat(positions[inside], count)
        window = np.repeat(first[inside], count) + _counting(count)
        same = self._equal(block, place, window)
        place, window = place[same], window[same]
        if not len(place):
            return
        text, start = self.text[window], self.start[window]
        order = np.lexsort((place, place - start, text))
        text, start, place = text[order], start[order], place[order]
        goes_on = (np.diff(text) == 0) & (np.diff(place - start) == 0) & (np.diff(place) == 1)
        begins = np.flatnonzero(np.concatenate([[True], ~goes_on]))
        lengths = np.diff(np.append(begins, len(text))) - 1 + self.shortest
        mine = place[begins] < high
        columns = (text[begins][mine], start[begins][mine], place[begins][mine], lengths[mine])
        found += [tuple(map(int, row)) for row in zip(*columns)]  # type: ignore[misc]

    def _equal(self, block: np.ndarray, place: np.ndarray, window: np.ndarray) -> np.ndarray:
        same = np.ones(len(place), bool)
        at = self.at[window]
        for offset in range(self.shortest):
            same &= block[place + offset] == self.flat[at + offset]
        return same


def _slot(hashes: np.ndarray) -> np.ndarray:
    # the high bits of a product are its best mixed ones
    return (hashes >> np.uint64(64 - TABLE_BITS)).astype(np.int64)


def _counting(counts: np.ndarray) -> np.ndarray:
    """0, 1, … counts[0] - 1, 0, 1, … counts[1] - 1, …"""
    ends = np.cumsum(counts)
    return np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - counts, counts)
