"""`scale`: workers and the Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from raygpt.config.section import Problem, Section


class Scale(Section):
    num_workers: int | tuple[int, int] = Field(1, description="training workers, or [min, max] for an elastic run")
    use_gpu: bool | Literal["auto"] = Field("auto", description="one GPU per worker (auto: when the cluster has any)")
    cpus_per_worker: float = Field(1, description="CPU cores reserved per worker; also its torch threads", gt=0)
    watch_preemption: Literal["auto", "off"] = Field(
        "auto", description="save and go on elsewhere when a node is about to be taken away (auto: on joined clusters)"
    )
    preemption_file: str | None = Field(
        None, description="a path whose being there, on a node, is notice that the node will be taken away"
    )
    address: str | None = Field(None, description="Ray address (auto: a running cluster; none: start one here)")
    wait_minutes: float = Field(
        30, description="how long a job waits for room on a cluster, which grows for it where it can", ge=0
    )
    check_environment: Literal["refuse", "warn", "off"] = Field(
        "refuse", description="what to do where a node of the cluster has other packages than the one that starts"
    )

    def problems(self) -> Iterator[Problem]:
        low, high = self.worker_range
        if not 1 <= low <= high:
            yield "num_workers", "must be at least 1, and a range must go upwards"

    @property
    def worker_range(self) -> tuple[int, int]:
        """(fewest, most) workers."""
        return (self.num_workers, self.num_workers) if isinstance(self.num_workers, int) else self.num_workers
