"""`benchmark`: what `raygpt benchmark` measures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from raygpt.config.section import Problem, Section


class Benchmark(Section):
    case: Literal["ladder", "step", "finetune"] = Field(
        "ladder",
        description="ladder: the training step from plain fp32 to the trainer's own, one change at a time, then on "
        "1…scale.num_workers workers; step: on workers alone; finetune: a whole fine-tuning with its resources",
    )
    repeats: int = Field(5, description="times that each speed of ladder and step is measured, in turns", ge=1)
    steps: int = Field(20, description="most steps of one such measurement, one number for all rungs", ge=3)
    seconds: float = Field(10, description="fewer steps where they would take longer than this", gt=0)
    machine: str | None = Field(
        None,
        description="machine type of the price table for $ per token; a row costs the share of it that its workers use",
    )
    sample_seconds: float = Field(2, description="how often every node's resources are looked at (finetune)", gt=0)
    compare: list[str] = Field(
        [], description="result files to put side by side instead of measuring, the first being what others are held to"
    )

    def problems(self) -> Iterator[Problem]:
        if len(self.compare) == 1:
            yield "compare", "names one result: name the one that it is held to first, then others"
