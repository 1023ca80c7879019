"""`track`: trackers and cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, field_validator

from raygpt.config.section import Problem, Section


class Track(Section):
    wandb: Literal["auto", "online", "offline", "off"] = Field("auto", description="W&B (auto: offline without a key)")
    wandb_project: str = Field("raygpt", description="W&B project")
    tensorboard: bool = Field(True, description="write TensorBoard event files into the run folder")
    price_per_hour: float | None = Field(
        None, description="USD per hour of the whole cluster; none: no cost shown", ge=0
    )
    max_cost_usd: float | None = Field(None, description="save and stop when the run has cost this much", gt=0)

    def problems(self) -> Iterator[Problem]:
        if self.max_cost_usd is not None and self.price_per_hour is None:
            yield "max_cost_usd", "needs track.price_per_hour"

    @field_validator("price_per_hour", mode="before")
    @classmethod
    def _auto_is_unknown(cls, value: Any) -> Any:
        return None if value == "auto" else value
