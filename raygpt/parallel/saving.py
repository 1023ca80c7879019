"""PURE. Writing a checkpoint: every rank its files and its part, then rank 0 the index that makes them count."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from raygpt import storage
from raygpt.errors import UserError
from raygpt.model.tensorfile import TensorStream, write_tensors
from raygpt.parallel import index
from raygpt.parallel.index import Index
from raygpt.storage import Location

LONGEST_PAUSE = 2.0  # seconds between two looks for the parts of the others; each is one LIST


class GivenUp(Exception):
    """The others' parts are not waited for any longer."""


def new_attempt() -> str:
    """Id of one start of a group of workers; rank 0 draws it."""
    return uuid.uuid4().hex[:12]


def write(where: Location, files: Mapping[str, bytes | TensorStream]) -> None:
    """A whole checkpoint by one process."""
    attempt = new_attempt()
    write_part(where, 0, 1, files, attempt=attempt)
    commit(where, 1, attempt)


def write_part(
    where: Location, rank: int, world_size: int, files: Mapping[str, bytes | TensorStream], *, attempt: str
) -> None:
    """Write one rank's files into a checkpoint folder, what they are goes last; the folder counts after `commit`.

    Tensors go to their file one after another, hashed on the way: nothing is held twice.
    """
    try:
        if rank == 0:
            unmark(where)  # a damaged checkpoint of the same step is being replaced: until the end it must not count
        facts = {}
        places = []
        for name, content in files.items():
            with _replacing(where, name, rank) as file:
                if isinstance(content, bytes):
                    file.write(content)
                    facts[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                else:
                    written = write_tensors(file, content.specs, content.values(), content.metadata)
                    facts[name] = {"bytes": written.bytes, "sha256": written.sha256}
                    places += index.places_of(name, content)
        with _replacing(where, index.part_name(rank, attempt), rank) as file:
            file.write(Index(world_size, facts, places, attempt).to_json().encode())
    except OSError as error:
        raise storage.explain(error, where) from error


def commit(where: Location, world_size: int, attempt: str, give_up: Callable[[], bool] = lambda: False) -> None:
    """Wait for the parts of all ranks of this attempt and write the index; rank 0 does it.

    The parts come through the storage: this runs in a thread beside training, whose collectives must not be disturbed.
    One LIST for each look, one read for each part. Raises GivenUp when `give_up` says so before all are there, and
    UserError when a file has another size than the rank that wrote it says.
    """
    names = [index.part_name(rank, attempt) for rank in range(world_size)]
    pause = 0.02
    while True:
        sizes = {entry.base_name: entry.size for entry in storage.list_folder(where)}
        if sizes.keys() >= set(names):
            break
        if give_up():
            raise GivenUp(where.uri)
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
    whole = index.joined(Index.from_json(storage.read_text(where / name)) for name in names)
    for name, facts in whole.files.items():
        if sizes.get(name) != facts["bytes"]:
            raise UserError(
                f"{(where / name).uri} has {sizes.get(name, 'no')} bytes instead of {facts['bytes']}: another process "
                "writes into this run; end it and start the run again."
            )
    storage.write_text(where / index.NAME, whole.to_json())


def unmark(where: Location) -> None:
    """From here on the folder is an unfinished checkpoint, never a damaged one."""
    for name in (index.NAME, index.manifest_name(0)):
        try:
            storage.delete(where / name)
        except FileNotFoundError:
            pass  # another process was faster


@contextmanager
def _replacing(where: Location, name: str, rank: int) -> Iterator[BinaryIO]:
    """A file to write that takes its name only when it is whole: by renaming here, by the end of the upload on S3."""
    if not where.is_local:
        with where.fs.open_output_stream((where / name).path) as stream:
            yield stream
        return
    folder = Path(where.path)
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{name}.{rank}.{os.getpid()}"
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, folder / name)
    finally:
        aside.unlink(missing_ok=True)
