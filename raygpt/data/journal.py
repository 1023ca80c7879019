"""What an interrupted `prepare` leaves behind so that the next one continues: <output>/.prepare/journal.json.

The journal is written after the shards it names, in one atomic step, and carries the tokens that were in no shard
yet: whatever moment a run is killed at, the next one starts from a state that was true.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from raygpt import storage
from raygpt.data.pipeline import Cursor
from raygpt.data.shards import TOKENIZER, Shard, ShardWriter
from raygpt.data.tokenizer import Tokenizer
from raygpt.errors import UserError
from raygpt.storage import Location

FOLDER = ".prepare"
NAME = "journal.json"
VERSION = 2


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


def commit(
    output: Location, request: dict[str, Any], tokenizer: Tokenizer, progress: Progress, writers: dict[str, ShardWriter]
) -> None:
    """Record that everything up to `progress.cursor` is in the shards of `writers` or in the open tokens saved here."""
    folder = output / FOLDER
    before = {entry.base_name for entry in storage.list_folder(folder)}
    record: dict[str, Any] = {"version": VERSION, "request": request, "progress": asdict(progress), "sides": {}}
    record["tokenizer"] = {"name": tokenizer.name, "eot_id": tokenizer.eot_id, "sha256": tokenizer.sha256}
    keep = {NAME, TOKENIZER}
    if TOKENIZER not in before:
        storage.write_bytes(folder / TOKENIZER, tokenizer.to_json())
    for side, writer in writers.items():
        data = writer.pending().tobytes()
        digest = hashlib.sha256(data).hexdigest()
        # named by content: the journal in force keeps its own until the new one replaces it
        name = f"open-{side}-{digest[:16]}.bin"
        if name not in before:
            storage.write_bytes(folder / name, data)
        keep.add(name)
        record["sides"][side] = {
            "shards": [asdict(shard) for shard in writer.shards],
            "open": {"name": name, "sha256": digest},
        }
    storage.write_text(folder / NAME, json.dumps(record))
    for name in before - keep:
        storage.delete(folder / name)


def read_request(output: Location) -> dict[str, Any] | None:
    """Request of the interrupted preparation, None where there is none."""
    record = _read(output)
    return None if record is None else record["request"]


def saved_tokenizer(output: Location) -> Tokenizer:
    """Tokenizer of the interrupted preparation, which for `train:<vocab_size>` exists nowhere else yet."""
    try:
        about = _read(output)["tokenizer"]  # type: ignore[index]
        return Tokenizer.from_json(storage.read_bytes(output / FOLDER / TOKENIZER), about["name"], about["eot_id"])
    except (KeyError, TypeError, FileNotFoundError) as error:
        raise _damaged(output, error) from error


def restore(output: Location, writers: dict[str, ShardWriter]) -> Progress:
    """Put the writers back to the last commit; returns its progress.

    Raises UserError when there is none or its files do not fit it.
    """
    try:
        record = _read(output)
        saved = record["progress"]  # type: ignore[index]
        for side, writer in writers.items():
            state = record["sides"][side]  # type: ignore[index]
            data = storage.read_bytes(output / FOLDER / state["open"]["name"])
            if hashlib.sha256(data).hexdigest() != state["open"]["sha256"]:
                raise ValueError(f"{state['open']['name']} has other contents")
            writer.resume([Shard(**shard) for shard in state["shards"]], np.frombuffer(data, writer.dtype))
        return Progress(
            Cursor(**saved["cursor"]),
            saved["completed"],
            Side(**saved["train"]),
            Side(**saved["val"]),
            Account(**saved["sources"]),
            Account(**saved["val_sources"]),
        )
    except (KeyError, TypeError, ValueError, FileNotFoundError) as error:
        raise _damaged(output, error) from error


def remove(output: Location) -> None:
    storage.delete(output / FOLDER)


def _read(output: Location) -> dict[str, Any] | None:
    try:
        record = json.loads(storage.read_text(output / FOLDER / NAME))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise _damaged(output, error) from error
    if record.get("version") != VERSION:
        raise _damaged(output, ValueError(f"version {record.get('version')}"))
    return record


def _damaged(output: Location, error: Exception) -> UserError:
    return UserError(
        f"{(output / FOLDER).uri}: what the interrupted run left cannot be used ({error}): delete "
        f"prepare.output={output.uri} and start again."
    )
