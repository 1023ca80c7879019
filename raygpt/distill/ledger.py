"""Which of many questions are to be asked: those whose key is neither stored nor asked further up already.

Keys are sorted out by their first digits into 64 files of a local folder, and settled file by file: memory holds one of
them (24 bytes for each of N / 64 questions) however many there are. What comes out is a byte per question in a
memory-mapped file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

TO_ASK, ANSWERED, PARKED, REPEATED = range(4)
PARTITIONS = 64
BLOCK = 16_384  # keys sorted out at a time
_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("value", "<i8")])


class Ledger:
    """Keys are 32 hex digits. `add` numbers questions from 0 on in the order of the calls; `know` says what is stored.
    `settle` once, at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.total = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._waiting: dict[str, list[np.ndarray]] = {"asked": [], "known": []}
        self._held = 0

    def add(self, keys: Sequence[str], values: Sequence[int] | None = None) -> None:
        """The next questions. `values` stand for them in `repeats`, by default their numbers."""
        numbers = range(self.total, self.total + len(keys)) if values is None else values
        self.total += len(keys)
        self._put("asked", keys, numbers)

    def know(self, keys: Sequence[str], state: int) -> None:
        """Keys that are stored, ANSWERED or PARKED; of one that is both, ANSWERED counts."""
        self._put("known", keys, [state] * len(keys))

    def settle(self) -> np.ndarray:
        """(total,) uint8: TO_ASK, ANSWERED, PARKED, or REPEATED for every question whose key came before."""
        self._flush()
        states = np.memmap(self.folder / "states", np.uint8, "w+", shape=(max(1, self.total),))
        for partition in range(PARTITIONS):
            asked = self._load("asked", partition)
            if not asked.size:
                continue
            known = self._load("known", partition)
            known = known[np.argsort(known, order=("high", "low", "value"))]
            found = np.full(asked.size, TO_ASK, np.uint8)
            if known.size:  # the first of equal keys has the lowest state: ANSWERED before PARKED
                at = np.searchsorted(_pairs(known), _pairs(asked))
                within = np.minimum(at, known.size - 1)
                same = (known["high"][within] == asked["high"]) & (known["low"][within] == asked["low"])
                found[same] = known["value"][within][same]
            order = np.argsort(asked, order=("high", "low", "value"))
            again = _same_as_before(asked[order])
            found[order[again]] = REPEATED
            states[asked["value"]] = found
        return states[: self.total]

    def repeats(self) -> Iterator[tuple[int, int]]:
        """(value of the first, value of the second) of every key that was added again."""
        self._flush()
        for partition in range(PARTITIONS):
            asked = self._load("asked", partition)
            asked = asked[np.argsort(asked, order=("high", "low", "value"))]
            for at in np.flatnonzero(_same_as_before(asked)):
                yield int(asked["value"][at - 1]), int(asked["value"][at])

    def keys(self) -> Iterator[str]:
        """Every key that was added, once, in alphabetical order."""
        self._flush()
        for partition in range(PARTITIONS):
            asked = self._load("asked", partition)
            pairs = np.unique(_pairs(asked))
            raw = np.empty((pairs.size, 2), ">u8")  # as they are written
            raw[:, 0], raw[:, 1] = pairs["high"], pairs["low"]
            text = raw.tobytes().hex()
            yield from (text[at : at + 32] for at in range(0, len(text), 32))

    def _put(self, kind: str, keys: Sequence[str], values: Sequence[int]) -> None:
        if not len(keys):
            return
        records = np.empty(len(keys), _RECORD)
        raw = np.frombuffer(bytes.fromhex("".join(keys)), ">u8").reshape(-1, 2)
        records["high"], records["low"], records["value"] = raw[:, 0], raw[:, 1], values
        self._waiting[kind].append(records)
        self._held += len(keys)
        if self._held >= BLOCK:
            self._flush()

    def _flush(self) -> None:
        for kind, blocks in self._waiting.items():
            if not blocks:
                continue
            records = np.concatenate(blocks)
            partitions = (records["high"] >> np.uint64(58)).astype(np.int64)
            order = np.argsort(partitions, kind="stable")
            records, partitions = records[order], partitions[order]
            bounds = np.searchsorted(partitions, np.arange(PARTITIONS + 1))
            for partition in np.unique(partitions):
                with open(self._path(kind, partition), "ab") as file:
                    file.write(records[bounds[partition] : bounds[partition + 1]].tobytes())
            blocks.clear()
        self._held = 0

    def _load(self, kind: str, partition: int) -> np.ndarray:
        path = self._path(kind, partition)
        return np.fromfile(path, _RECORD) if path.exists() else np.empty(0, _RECORD)

    def _path(self, kind: str, partition: int) -> Path:
        return self.folder / f"{kind}-{partition:03d}"


def _pairs(records: np.ndarray) -> np.ndarray:
    """Keys alone, which compare by both halves."""
    pairs = np.empty(records.size, [("high", "<u8"), ("low", "<u8")])
    pairs["high"], pairs["low"] = records["high"], records["low"]
    return pairs


def _same_as_before(records: np.ndarray) -> np.ndarray:
    """(n,) bool of sorted records: whether the key is that of the record before."""
    same = np.zeros(records.size, bool)
    same[1:] = (records["high"][1:] == records["high"][:-1]) & (records["low"][1:] == records["low"][:-1])
    return same
