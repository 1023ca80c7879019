"""What an interrupted `prepare` leaves behind so that the next one continues, below <output>/.prepare/:

    journal.json                    request and tokenizer
    tokenizer.json
    segment-0000000-0000000.json    what came since the segment before: shards, totals, files of open tokens
    segment-0000000-0000255.json    256 of them in one, so that few are read
    open-train-<sha256>.bin         tokens that were in no shard yet

A segment is written after the files it names, in one atomic step: whatever moment a run is killed at, the next one
starts from a state that was true. Nothing is written twice but for the 256 in one, so 100,000 shards cost 100,000 small
segments (S3 cannot append) instead of 625 GB.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import ray

from raygpt import storage
from raygpt.data.pipeline import Cursor
from raygpt.data.shards import TOKENIZER, Shard
from raygpt.data.tokenizer import Tokenizer
from raygpt.data.writing import SideWriter, Writing, open_name
from raygpt.errors import UserError
from raygpt.storage import Location

FOLDER = ".prepare"
NAME = "journal.json"
VERSION = 3
MERGED = 256  # segments in one
READ_THREADS = 16
_SEGMENT = re.compile(r"segment-(\d+)-(\d+)\.json")


@dataclass
class Side:
    """Totals of one side of the split so far."""

    documents: int = 0
    bytes: int = 0


@dataclass
class Account:
    """What became of the rows of some sources: `read` is all of them, `empty` those of white space.

    `train` and `val` are documents; where the tail of every document is held out it counts in both.
    """

    read: int = 0
    train: int = 0
    val: int = 0
    empty: int = 0


@dataclass
class Progress:
    """State of a preparation after some block: cursor in the corpus, totals, and accounts of both kinds of sources."""

    cursor: Cursor = field(default_factory=Cursor)
    completed: int = 0
    train: Side = field(default_factory=Side)
    val: Side = field(default_factory=Side)
    sources: Account = field(default_factory=Account)
    val_sources: Account = field(default_factory=Account)


@dataclass
class _Pending:
    """A state whose files are on their way: totals at that moment; per side shards cut and the open tokens' file."""

    progress: dict[str, Any]
    sides: dict[str, tuple[list[Writing], Writing | None]]

    @property
    def writings(self) -> list[Writing]:
        return [writing for cut, rest in self.sides.values() for writing in (*cut, *([rest] if rest else []))]


class Journal:
    """The journal of a running preparation: `record` notes a state, `settle` commits those whose files are there."""

    def __init__(
        self, output: Location, request: dict[str, Any], tokenizer: Tokenizer, writers: dict[str, SideWriter]
    ) -> None:
        self.output = output
        self.folder = output / FOLDER
        self.request = request
        self.tokenizer = tokenizer
        self.writers = writers
        self._pending: deque[_Pending] = deque()
        self._next = 0
        self._begun = False
        self._unmerged: list[dict[str, Any]] = []
        self._files: dict[str, list[str]] = {side: [] for side in writers}  # of open tokens, in force

    def restore(self) -> Progress:
        """Put the writers back to the last commit; returns its progress. UserError where its files do not fit."""
        try:
            _head(self.output)
            segments = _read_segments(self.folder)
            state = _merged([segment for _, _, segment in segments])
            for side, writer in self.writers.items():
                about = state["sides"][side]
                parts = [np.empty(0, writer.dtype)]
                for entry in about["open"]:
                    data = storage.read_bytes(self.folder / entry["name"])
                    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
                        raise ValueError(f"{entry['name']} has other contents")
                    parts.append(np.frombuffer(data, writer.dtype))
                writer.resume([Shard(**shard) for shard in about["shards"]], np.concatenate(parts))
                self._files[side] = [entry["name"] for entry in about["open"]]
            progress = _progress(state["progress"])
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, OSError, RecursionError) as error:
            raise _damaged(self.output, error) from error
        self._begun = True
        self._next = segments[-1][1] + 1
        self._unmerged = [segment for first, last, segment in segments if first == last]
        return progress

    def record(self, progress: Progress) -> None:
        """Note that everything up to `progress.cursor` is in the writers; open tokens are saved in the background."""
        sides = {}
        for side, writer in self.writers.items():
            cut, spans = writer.take_new()
            sides[side] = cut, writer.write_open(self.folder, spans) if spans else None
        self._pending.append(_Pending(asdict(progress), sides))

    def settle(self, limit_bytes: int) -> None:
        """Commit what is written, in order; wait while more than `limit_bytes` of files are on their way."""
        width = next(iter(self.writers.values())).dtype.itemsize
        while self._pending:
            first = self._pending[0].writings
            results = [writing.result for writing in first]
            on_the_way = sum(writing.tokens for pending in self._pending for writing in pending.writings) * width
            timeout = None if on_the_way > limit_bytes else 0
            if results and len(ray.wait(results, num_returns=len(results), timeout=timeout)[0]) < len(results):
                return
            self._commit(self._pending.popleft())

    def _commit(self, pending: _Pending) -> None:
        segment: dict[str, Any] = {"progress": pending.progress, "sides": {}}
        stale = []
        for side, (cut, rest) in pending.sides.items():
            shards = [self.writers[side].written(writing) for writing in cut]
            opened = []
            if rest is not None:
                digest = rest.wait()
                opened = [{"name": open_name(side, digest), "sha256": digest}]
            # without a cut the open tokens before stay open
            segment["sides"][side] = {
                "shards": [asdict(shard) for shard in shards],
                "open": opened,
                "continues": not shards,
            }
            if shards:
                stale += self._files[side]
                self._files[side] = []
            self._files[side] += [entry["name"] for entry in opened]
        self._begin()
        self._write(self._next, self._next, segment)
        self._unmerged.append(segment)
        self._next += 1
        if self._next % MERGED == 0:
            self._write(self._next - MERGED, self._next - 1, _merged(self._unmerged[-MERGED:]))
            self._unmerged = []
        for name in set(stale).difference(*self._files.values()):
            storage.delete(self.folder / name)

    def _begin(self) -> None:
        if self._begun:
            return
        tokenizer = self.tokenizer
        about = {"name": tokenizer.name, "eot_id": tokenizer.eot_id, "sha256": tokenizer.sha256}
        storage.write_bytes(self.folder / TOKENIZER, tokenizer.to_json())
        head = {"version": VERSION, "request": self.request, "tokenizer": about}
        storage.write_text(self.folder / NAME, json.dumps(head))
        self._begun = True

    def _write(self, first: int, last: int, segment: dict[str, Any]) -> None:
        storage.write_text(self.folder / f"segment-{first:07d}-{last:07d}.json", json.dumps(segment))


def _merged(segments: list[dict[str, Any]]) -> dict[str, Any]:
    """Consecutive segments as one."""
    if not segments:
        raise ValueError("no segment")
    sides: dict[str, Any] = {}
    for segment in segments:
        for side, new in segment["sides"].items():
            held = sides.setdefault(side, {"shards": [], "open": [], "continues": True})
            held["shards"] += new["shards"]
            if not new["continues"]:
                held["open"] = []
                held["continues"] = False
            held["open"] += new["open"]
    return {"progress": segments[-1]["progress"], "sides": sides}


def _read_segments(folder: Location) -> list[tuple[int, int, dict[str, Any]]]:
    """(first, last, segment) from the first one on without a gap, merged ones before those they hold."""
    longest: dict[int, int] = {}
    for entry in storage.list_folder(folder):
        if match := _SEGMENT.fullmatch(entry.base_name):
            first, last = int(match[1]), int(match[2])
            longest[first] = max(last, longest.get(first, 0))
    chain, number = [], 0
    while number in longest:
        chain.append((number, longest[number]))
        number = longest[number] + 1

    def read(bounds: tuple[int, int]) -> tuple[int, int, dict[str, Any]]:
        first, last = bounds
        return first, last, json.loads(storage.read_text(folder / f"segment-{first:07d}-{last:07d}.json"))

    with ThreadPoolExecutor(READ_THREADS) as pool:
        return list(pool.map(read, chain))


def _progress(saved: dict[str, Any]) -> Progress:
    return Progress(
        Cursor(**saved["cursor"]),
        saved["completed"],
        Side(**saved["train"]),
        Side(**saved["val"]),
        Account(**saved["sources"]),
        Account(**saved["val_sources"]),
    )


def read_request(output: Location) -> dict[str, Any] | None:
    """Request of the interrupted preparation, None where there is none."""
    record = _head(output)
    if record is None:
        return None
    if not isinstance(record.get("request"), dict):
        raise _damaged(output, ValueError("it names no request"))
    return record["request"]


def saved_tokenizer(output: Location) -> Tokenizer:
    """Tokenizer of the interrupted preparation, which for `train:<vocab_size>` exists nowhere else yet."""
    try:
        about = _head(output)["tokenizer"]  # type: ignore[index]
        return Tokenizer.from_json(storage.read_bytes(output / FOLDER / TOKENIZER), about["name"], about["eot_id"])
    except (KeyError, TypeError, AttributeError, FileNotFoundError) as error:
        raise _damaged(output, error) from error


def remove(output: Location) -> None:
    storage.delete(output / FOLDER)


def _head(output: Location) -> dict[str, Any] | None:
    try:
        record = json.loads(storage.read_text(output / FOLDER / NAME))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise _damaged(output, error) from error
    version = record.get("version") if isinstance(record, dict) else None
    if version != VERSION:
        raise _damaged(output, ValueError(f"version {version}"))
    return record


def _damaged(output: Location, error: Exception) -> UserError:
    return UserError(
        f"{(output / FOLDER).uri}: what the interrupted run left cannot be used ({error}): delete "
        f"prepare.output={output.uri} and start again."
    )
