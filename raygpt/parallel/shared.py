"""PURE. Whether all ranks see the same folders: what each node would write to its own disk makes no checkpoint."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Mapping
from typing import Protocol

from raygpt import storage
from raygpt.errors import UserError
from raygpt.parallel.distributed import World
from raygpt.storage import Location


class Shards(Protocol):
    """What is needed of `raygpt.data.shards.Layout`."""

    @property
    def uri(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...


def check_shared(run: Location, written: str, shards: Mapping[str, Shards], world: World) -> None:
    """See that every rank finds in a local run folder the file `written` by the driver and what rank 0 writes there,
    and the same tokens in the local folders of `shards`, which are named by their setting (copies on every node will
    do). All ranks call it together.

    Raises UserError on every rank, naming the setting and a rank that sees something else.
    """
    problems: list[str | None] = [_run_problem(run, written, world)]
    problems += [_shards_problem(setting, folder) for setting, folder in shards.items()]
    host = socket.gethostname()
    for rank, (where, seen) in enumerate(world.gather((host, problems))):
        for problem in seen:
            if problem is not None:
                raise UserError(problem.format(who=f"worker {rank} on host {where}"))


def _run_problem(run: Location, written: str, world: World) -> str | None:
    if not run.is_local:
        return None
    refused = None
    mark = f".seen-by-all-{world.broadcast(uuid.uuid4().hex)}"
    if world.rank == 0:
        try:
            storage.write_bytes(run / mark, mark.encode())
        except UserError as error:
            refused = str(error)
    world.broadcast(None)  # it is written
    try:
        seen = storage.read_bytes(run / mark) == mark.encode() and storage.is_file(run / written)
    except (FileNotFoundError, UserError):
        seen = False
    world.gather(None)  # all have looked
    if world.rank == 0:
        storage.delete(run / mark)
    if refused is not None:
        return f"run.storage cannot be written to by {{who}}: {_quoted(refused)}"
    if seen:
        return None
    return (
        f"run.storage={_quoted(run.parent.uri)} is not one folder for the driver and all workers: {{who}} does not "
        "see what the others write there; name a folder that all nodes share, or an s3:// URI."
    )


def _shards_problem(setting: str, folder: Shards) -> str | None:
    where = storage.locate(folder.uri)
    if not where.is_local:
        return None
    try:
        # the text is searched, not parsed: of 100,000 shards that takes 2 s on every rank
        if folder.fingerprint.encode() in storage.read_bytes(where / "manifest.json"):
            return None
        what = "finds other tokens there"
    except (FileNotFoundError, UserError):
        what = "does not find it"
    return (
        f"{setting}={_quoted(folder.uri)} is not the same for all workers: {{who}} {what}; name a folder that all "
        "nodes share or an s3:// URI, or copy it to the same path on every node."
    )


def _quoted(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
