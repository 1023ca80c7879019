"""`optim`: optimizer and learning rate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from raygpt.config.section import AlsoCalled, Fixed, Problem, Section


class Optim(Section):
    alternatives: ClassVar = (("warmup_steps", "warmup_fraction"),)
    # a training run may go on with another learning rate; trials of one sweep start from one
    fixed_whole: ClassVar = (Fixed(("sweep",), "its trials are compared under it"),)

    name: Annotated[str, Fixed(("train",), "what is remembered of the gradients is its own")] = Field(
        "adamw", description="optimizer, one of those in raygpt/train/optim"
    )
    lr: Annotated[float, AlsoCalled(("learning_rate", "max_lr", "peak_lr"))] = Field(
        6e-4, description="peak learning rate; never scaled by the worker count", gt=0
    )
    weight_decay: float = Field(0.1, description="decay of matrices; vectors have none", ge=0)
    betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW's averaging factors")
    eps: Annotated[float, AlsoCalled(("epsilon", "adam_epsilon"))] = Field(1e-8, description="AdamW's epsilon", gt=0)
    schedule: Annotated[
        Literal["cosine", "wsd", "linear", "constant"], AlsoCalled(("lr_scheduler_type", "scheduler"))
    ] = Field("cosine", description="learning-rate schedule")
    warmup_steps: int | None = Field(None, description="steps of linear warm-up", ge=0)
    warmup_fraction: float | None = Field(None, description="warm-up as a share of all steps", ge=0, lt=1)
    decay_fraction: float = Field(0.2, description="share of all steps in the final decay of wsd", gt=0, le=1)
    min_lr_ratio: float = Field(0.1, description="last learning rate over the peak", ge=0, le=1)
    grad_clip: Annotated[float, AlsoCalled(("max_grad_norm", "clip_grad_norm", "gradient_clip_val"))] = Field(
        1.0, description="largest gradient norm; 0 turns clipping off", ge=0
    )

    def problems(self) -> Iterator[Problem]:
        if self.warmup_steps is not None and self.warmup_fraction is not None:
            yield "warmup_steps", "and optim.warmup_fraction are both set: keep one"
        if self.schedule == "wsd" and (self.warmup_fraction or 0) + self.decay_fraction > 1:
            yield "decay_fraction", "and optim.warmup_fraction together exceed the run: lower one"
        if not all(0 <= beta < 1 for beta in self.betas):
            yield "betas", "must both lie in [0, 1)"
