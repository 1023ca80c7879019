"""`plan`: the machine, or the clusters, that `raygpt plan` asks about."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from raygpt.config.section import Problem, Section


class Plan(Section):
    gpu: str | None = Field(None, description="GPU to plan for, such as V100, or cpu; none: what the cluster has")
    gpu_memory_gb: float | None = Field(None, description="memory of one GPU in GB; none: that of the GPU", gt=0)
    gpus_per_host: int | None = Field(None, description="workers on one machine; none: all there are", ge=1)
    host_memory_gb: float | None = Field(None, description="memory of one machine in GB; none: this machine's", gt=0)
    disk_gb: float | None = Field(None, description="room for checkpoints in GB; none: what is free", gt=0)
    check: Literal["refuse", "warn", "off"] = Field(
        "refuse", description="what a training job does when it will not fit: refuse, warn, or not look"
    )
    cluster: list[str] = Field(
        [], description="files of `ray up` to compare: does it fit, how long and how much (--cluster a.yaml b.yaml)"
    )
    price_per_hour: float | None = Field(
        None, description="USD per hour of the whole cluster, in place of what its machines cost", ge=0
    )
    hours: float | None = Field(None, description="hours that you reckon with: what they cost, beside the plan", gt=0)
    tokens_per_second: float | None = Field(
        None, description="speed of all workers that you measured, in place of the expected one", gt=0
    )
    mfu: float | None = Field(
        None,
        description="share of the GPU's peak to reckon with; none: a measured result, else a stated one",
        gt=0,
        le=1,
    )
    measured: list[str] = Field(["benchmarks"], description="result files, or folders of them, with measured speeds")

    def problems(self) -> Iterator[Problem]:
        for key in ("gpu", "gpu_memory_gb", "gpus_per_host", "host_memory_gb"):
            if self.cluster and getattr(self, key) is not None:
                yield key, "has no meaning with plan.cluster, whose machines are known: leave one of the two out"
