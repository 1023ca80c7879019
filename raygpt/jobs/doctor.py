"""`raygpt doctor`: what is wrong with this machine, or with a cluster, before anything is paid for."""

from __future__ import annotations

import os

from raygpt.config import Config
from raygpt.config.job import Call, Job

DECLARATION = Job(
    "doctor",
    "check this machine, or every node of a cluster, and say how to mend what is wrong",
    ("scale", "run", "track"),
    flags=("json",),
    place=65,
)


def run(config: Config, call: Call) -> int:
    from raygpt.cluster.doctor.examine import examine_cluster, examine_here
    from raygpt.cluster.doctor.finding import as_json, exit_status, merged, table

    address = config.scale.address or os.environ.get("RAY_ADDRESS")
    uri, wandb = config.run.storage, config.track.wandb
    joins = address is not None and address != "local"
    found = merged(examine_cluster(address, uri, wandb) if joins and address else examine_here(uri, wandb))
    print(table(found), flush=True)
    if "json" in call.flags:
        # the last line is for scripts
        print(as_json(found), flush=True)
    return exit_status(found)
