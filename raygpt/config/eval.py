"""`eval`: evaluation during training and by `raygpt evaluate`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from raygpt.config.section import AlsoCalled, Section


class Eval(Section):
    every: Annotated[int, AlsoCalled(("eval_steps", "eval_interval"))] = Field(
        250, description="steps between evaluations; 0: only at the end", ge=0
    )
    batches: Annotated[int | None, AlsoCalled(("eval_iters",))] = Field(
        None,
        description="global batches per evaluation in training, evenly spaced; none: a tenth of what is trained on "
        "between two, a million tokens at least (`raygpt evaluate` takes all)",
        ge=1,
    )
    first: bool = Field(False, description="evaluate before the first step: where training starts from")
    patience: int | None = Field(
        None, description="stop after this many evaluations in a row without a better loss; none: never", ge=1
    )
    min_delta: float = Field(0.0, description="nats per token by which a loss must be better to count as better", ge=0)
