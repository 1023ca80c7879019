"""How long each phase from `ray up` to the first step took: a table for the log, `launch.json` in the run folder.

`raygpt cluster up` knows the machines' part and leaves it on the head as CLUSTER_FILE; the job's driver knows its own.
Both are a Launch, in one JSON form: `{"cluster_name", "began", "phases": [{"name", "seconds"}]}`.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

CLUSTER_FILE = Path("~/.raygpt/cluster.json")  # on the head
LAUNCH = "launch.json"  # in the run folder
# `raygpt cluster up`'s
API, BOOT, SETUP, RAY = "API", "boot", "setup", "Ray"
# a job's: upload until its driver runs; Python and settings; joining Ray; waiting for room; comparing the nodes; tokens
# and the memory plan; processes, weights and rehearsal; until the second step begins
SUBMIT, START, CONNECT, MACHINES, CHECK, DATA, WORKERS, FIRST_STEP = (
    "submit",
    "start",
    "connect",
    "machines",
    "environment check",
    "data",
    "workers",
    "first step",
)
SUBMITTED = "raygpt_submitted"  # in a Ray job's metadata: seconds since 1970 UTC, by the submitter's clock
LONGEST_SUBMIT = 3600.0  # seconds; more says that the two clocks differ


@dataclass(frozen=True)
class Phase:
    """One row of the table."""

    name: str
    seconds: float


@dataclass
class Launch:
    """Phases one after another from `began`, seconds since 1970 UTC. `mark` ends one and begins the next."""

    began: float
    phases: list[Phase] = field(default_factory=list)
    cluster_name: str = ""
    closed: bool = False

    @classmethod
    def of_this_process(cls) -> Launch:
        """The job's own, beginning where `raygpt submit` did or else where this process did."""
        born, now = psutil.Process().create_time(), time.time()
        launch = cls(born)
        submitted = _submitted()
        if submitted is not None and 0 < born - submitted < LONGEST_SUBMIT:
            launch.began = submitted
            launch.add(SUBMIT, born - submitted)
        launch.add(START, now - born)
        return launch

    @property
    def seconds(self) -> float:
        """All phases together."""
        return sum(phase.seconds for phase in self.phases)

    def mark(self, name: str) -> None:
        """The time since the last phase ended was this one. After `close` nothing is added any more: workers that are
        started again are no launch."""
        self.add(name, time.time() - self.began - self.seconds)

    def add(self, name: str, seconds: float) -> None:
        """A phase that somebody else has measured."""
        if not self.closed:
            self.phases.append(Phase(name, max(0.0, seconds)))

    def close(self) -> None:
        """The first step is done."""
        self.closed = True

    def to_json(self) -> dict[str, Any]:
        phases = [{"name": phase.name, "seconds": round(phase.seconds, 3)} for phase in self.phases]
        return {"cluster_name": self.cluster_name, "began": self.began, "phases": phases}

    @classmethod
    def from_json(cls, value: Any) -> Launch:
        """Raises ValueError for anything else than `to_json` gives."""
        try:
            phases = [Phase(str(item["name"]), float(item["seconds"])) for item in value["phases"]]
            return cls(float(value["began"]), phases, str(value.get("cluster_name", "")), closed=True)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no launch: {error}") from error


def write_cluster(launch: Launch, path: Path = CLUSTER_FILE) -> None:
    """Leave the phases of a cluster's start where the drivers of its jobs find them: in the head's home."""
    path = path.expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(launch.to_json()) + "\n")


def read_cluster(path: Path = CLUSTER_FILE) -> Launch | None:
    """How the cluster of this node was started; None where nobody wrote it down."""
    try:
        return Launch.from_json(json.loads(path.expanduser().read_text()))
    except (OSError, ValueError):
        return None


def table(job: Launch, cluster: Launch | None = None) -> str:
    """Rows with their seconds and a total. The time between the cluster's start and the job's counts nowhere."""
    rows = [("cluster", phase) for phase in cluster.phases] if cluster is not None else []
    rows += [("job", phase) for phase in job.phases]
    total = sum(phase.seconds for _, phase in rows)
    name = f" {cluster.cluster_name}" if cluster is not None and cluster.cluster_name else ""
    head = f"Launch{f' of cluster{name} and this job' if cluster is not None else ''}, seconds"
    lines = [f"  {phase.name:18s} {phase.seconds:8.1f}  {of}" for of, phase in rows]
    return "\n".join([head, *lines, f"  {'total':18s} {total:8.1f}"])


def record(job: Launch, cluster: Launch | None = None) -> dict[str, Any]:
    """What launch.json holds: the job's launch, with the cluster's under `cluster` where it is known."""
    whole = {**job.to_json(), "seconds": round(job.seconds, 3)}
    return {**whole, "cluster": cluster.to_json()} if cluster is not None else whole


def _submitted() -> float | None:
    try:
        metadata = json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])["metadata"]
        return float(metadata[SUBMITTED])
    except (KeyError, TypeError, ValueError):
        return None
