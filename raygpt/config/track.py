"""`track`: trackers and cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from raygpt.config.section import Problem, Section


class Track(Section):
    wandb: Literal["auto", "online", "offline", "off"] = Field("auto", description="W&B (auto: offline without a key)")
    wandb_project: str = Field("raygpt", description="W&B project")
    tensorboard: bool = Field(True, description="write TensorBoard event files into the run folder")
    price_per_hour: float | Literal["auto"] | None = Field(
        "auto",
        description="USD per hour of the whole cluster; auto: of its nodes, where their machine types are known; none: "
        "no cost shown",
    )
    max_cost_usd: float | None = Field(None, description="save and stop when the run has cost this much", gt=0)

    def problems(self) -> Iterator[Problem]:
        if self.max_cost_usd is not None and self.price_per_hour is None:
            yield "max_cost_usd", "needs track.price_per_hour"
        if isinstance(self.price_per_hour, float) and not self.price_per_hour >= 0:
            yield "price_per_hour", "must be auto, none or 0 or more US dollars per hour"
