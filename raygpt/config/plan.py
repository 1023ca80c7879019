"""`plan`: the machine that `raygpt plan` asks about."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raygpt.config.section import Section


class Plan(Section):
    gpu: str | None = Field(None, description="GPU to plan for, such as V100, or cpu; none: what the cluster has")
    gpu_memory_gb: float | None = Field(None, description="memory of one GPU in GB; none: that of the GPU", gt=0)
    gpus_per_host: int | None = Field(None, description="workers on one machine; none: all there are", ge=1)
    host_memory_gb: float | None = Field(None, description="memory of one machine in GB; none: this machine's", gt=0)
    disk_gb: float | None = Field(None, description="room for checkpoints in GB; none: what is free", gt=0)
    check: Literal["refuse", "warn", "off"] = Field(
        "refuse", description="what a training job does when it will not fit: refuse, warn, or not look"
    )
