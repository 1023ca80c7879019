"""`raygpt cluster`: check, start and end the clusters of cluster/*.yaml, and find machines that nobody ends."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from raygpt.config import Config
from raygpt.config.job import Call, Job
from raygpt.config.section import Section
from raygpt.errors import UserError

ACTIONS = {
    "prepare": "make what the file names in the account: roles, network (AWS; once)",
    "check": "look over a cluster's file before anything is paid for",
    "up": "check, `ray up`, and a table of what each phase took",
    "down": "`ray down`, and see that no machine and no process is left",
    "orphans": "list machines that raygpt launched and no cluster uses; --end ends them",
}


class Cluster(Section):
    """what is done, and to which cluster"""

    action: list[str] = Field([], description=f"{', '.join(ACTIONS)}, then the cluster's file")


DECLARATION = Job(
    "cluster",
    "check, start and end a cluster of cluster/*.yaml; find machines that nobody ends",
    ("cluster",),
    flags=("end",),
    words="cluster.action",
    own={"cluster": Cluster},
    place=70,
)


def run(config: Config, call: Call) -> int:
    words: list[str] = config.cluster.action  # type: ignore[attr-defined]
    if not words or words[0] not in ACTIONS:
        listed = "; ".join(f"{name}: {meaning}" for name, meaning in ACTIONS.items())
        raise UserError(f"raygpt cluster does one of these: {listed}.")
    action, files = words[0], words[1:]
    if action == "orphans":
        from raygpt.cluster.lambda_cloud.orphans import orphans

        return orphans(files[0] if files else None, end="end" in call.flags)
    if len(files) != 1 or not Path(files[0]).is_file():
        raise UserError(f"raygpt cluster {action} needs one cluster file, such as cluster/aws-g5.yaml.")
    if action == "check":
        from raygpt.cluster.check import check

        return check(files[0])
    if action == "prepare":
        from raygpt.cluster.check import prepare

        return prepare(files[0])
    if action == "up":
        from raygpt.cluster.up import up

        return up(files[0])
    from raygpt.cluster.down import down

    return down(files[0])
