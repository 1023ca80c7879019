"""Duplicates among documents, decided by keys alone: the order in which documents come does not show.

Exact: equal text but for letter case, white space and the form of characters; the copy with the smallest key stays.

Near: documents whose sets of 5-word shingles have a Jaccard index of at least `threshold`. Documents are taken by
ascending key, and one is removed when it is near one that stays. So no two documents that stay are near each other,
and every removed one has a document that stays beside it (clusters of near duplicates, the usual rule, chain: they
also remove what is near nothing that stays). MinHash (Broder 1997) with banding finds the pairs that may be near,
each is compared exactly: what can go wrong is a missed pair, with the probability `Banding.missed` at the threshold.

In memory per million documents: 16 MB for exact duplicates and 8 MB a band for near ones, 200 MB at the threshold 0.8
(7 s to compare a million; datasketch's own index took 5,236 MB for as many, benchmarks/quality.json). Beside that, 8
bytes per word of the documents that share a band with another.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from raygpt.distill.words import folded

PERMUTATIONS = 128
SEED = 1
# A pair exactly at the threshold may be missed this often; more similar ones are missed more rarely.
MISSED = 1e-4
_SPACE = re.compile(r"\s+")


def exact_hash(text: str) -> np.ndarray:
    """(2,) uint64 hash of the text without letter case and with every white space as one blank."""
    normal = _SPACE.sub(" ", folded(text)).strip()
    return np.frombuffer(hashlib.blake2b(normal.encode("utf-8", "surrogatepass"), digest_size=16).digest(), "<u8")


@dataclass(frozen=True)
class Banding:
    """`bands` of `rows` MinHash values each: two documents are compared when they agree in all rows of a band."""

    threshold: float
    bands: int
    rows: int

    @property
    def missed(self) -> float:
        """Probability that a pair at the threshold shares no band."""
        return (1 - self.threshold**self.rows) ** self.bands


def banding(threshold: float) -> Banding:
    """The most rows, so the fewest needless comparisons, that miss a pair at the threshold in at most MISSED cases."""
    choices = [Banding(threshold, PERMUTATIONS // rows, rows) for rows in range(1, PERMUTATIONS + 1)]
    return next((choice for choice in reversed(choices) if choice.missed <= MISSED), choices[0])


def band_hashes(shingled: np.ndarray, plan: Banding) -> np.ndarray:
    """(bands,) uint64 of a document's shingles (n,)."""
    values = _signature(shingled)[: plan.bands * plan.rows].reshape(plan.bands, plan.rows)
    # polynomial mod 2^64 over the rows; what collides is compared all the same
    hashes = np.zeros(plan.bands, np.uint64)
    for row in range(plan.rows):
        hashes = (hashes ^ values[:, row].astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    return hashes


def _signature(shingled: np.ndarray) -> np.ndarray:
    sketch = _empty_sketch().copy()
    # the high half of a product is its best mixed one
    sketch.update_batch((shingled >> np.uint64(32)).astype(np.uint32))
    return sketch.hashvalues


@lru_cache(maxsize=1)
def _empty_sketch() -> Any:
    from datasketch import MinHash

    # a hash that Python does not salt: the same in every process
    return MinHash(PERMUTATIONS, seed=SEED, hashfunc=int, scheme="affine32")


def exact_duplicates(hashes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """(n,) int64: of each document the one that stays for it, itself where it stays. `hashes` is (n, 2) uint64."""
    order = np.lexsort((keys, hashes[:, 1], hashes[:, 0]))
    ordered = hashes[order]
    first = np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)]) if len(order) else np.empty(0, bool)
    stays = np.empty(len(order), np.int64)
    stays[order] = order[np.flatnonzero(first)][np.cumsum(first) - 1]
    return stays


@dataclass(frozen=True)
class Pair:
    """A removed document, the one that stays, and their Jaccard index."""

    removed: int
    stays: int
    jaccard: float


class NearDuplicates:
    """Documents 0..n-1 with their `bands` (n, bands) uint64 and keys (n,).

    `candidates` are those that share a band with another; `find` asks for their shingles.
    """

    def __init__(self, bands: np.ndarray, keys: np.ndarray, threshold: float) -> None:
        self.threshold = threshold
        self._rank = np.empty(len(keys), np.int64)
        self._rank[np.argsort(keys, kind="stable")] = np.arange(len(keys))
        documents, buckets, count = [], [], 0
        for column in bands.T:
            order = np.argsort(column, kind="stable")
            same = np.zeros(len(order) + 1, bool)  # as the one before
            same[1:-1] = column[order][1:] == column[order][:-1]
            shared, begins = same[1:] | same[:-1], ~same[:-1]
            documents.append(order[shared])
            buckets.append(count + np.cumsum(begins)[shared])
            count += len(order)
        self._documents = np.concatenate([*documents, np.empty(0, np.int64)])
        self._buckets = np.concatenate([*buckets, np.empty(0, np.int64)])
        self.candidates = np.unique(self._documents)

    def find(self, shingles_of: Callable[[int], np.ndarray]) -> list[Pair]:
        """The removed documents by ascending key."""
        order = np.argsort(self._rank[self._documents], kind="stable")
        documents, buckets = self._documents[order], self._buckets[order]
        staying: defaultdict[int, list[int]] = defaultdict(list)
        removed = []
        edges = np.flatnonzero(np.diff(documents, prepend=-1))
        for mine, document in zip(np.split(buckets, edges)[1:], documents[edges], strict=True):
            near = {other for bucket in mine.tolist() for other in staying.get(bucket, ())}
            pair = self._near(int(document), sorted(near, key=self._rank.__getitem__), shingles_of)
            if pair is not None:
                removed.append(pair)
                continue
            for bucket in mine.tolist():
                staying[bucket].append(int(document))
        return removed

    def _near(self, document: int, others: Iterable[int], shingles_of: Callable[[int], np.ndarray]) -> Pair | None:
        mine = shingles_of(document)
        for other in others:
            theirs = shingles_of(other)
            if min(len(mine), len(theirs)) / max(len(mine), len(theirs)) < self.threshold:
                continue
            if (found := jaccard(mine, theirs)) >= self.threshold:
                return Pair(document, other, found)
        return None


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Jaccard index of two sorted sets, not both empty."""
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)
