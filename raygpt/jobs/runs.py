"""`raygpt runs`: the runs below a storage place, how each stands and what it has cost."""

from __future__ import annotations

import json

from pydantic import Field

from raygpt.config import Config
from raygpt.config.job import Call, Job
from raygpt.config.section import Section
from raygpt.errors import UserError


class Runs(Section):
    """which runs are listed"""

    uri: list[str] = Field([], description="folder or s3:// URI that holds runs (none: run.storage)")


DECLARATION = Job(
    "runs",
    "list runs with their state, loss, cost, age and host",
    ("run", "runs"),
    flags=("json",),
    words="runs.uri",
    own={"runs": Runs},
    place=72,
)


def run(config: Config, call: Call) -> int:
    import time

    from raygpt.run.listing import list_runs, table
    from raygpt.storage import locate

    places: list[str] = config.runs.uri or [config.run.storage]  # type: ignore[attr-defined]
    if len(places) > 1:
        raise UserError(f"raygpt runs lists one place at a time, and was given {len(places)}.")
    where = locate(places[0])
    found = list_runs(where)
    if "json" in call.flags:
        print(json.dumps([each.to_json() for each in found], indent=1))
    elif found:
        print(table(found, time.time()))
    else:
        print(f"No runs in {where.uri}.")
    return 0
