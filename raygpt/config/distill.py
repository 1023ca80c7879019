"""`distill`: a student learns from a teacher."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from raygpt.config.section import Fixed, Kind, Problem, Section

_TRAIN: tuple[Kind, ...] = ("train",)
_LOSS = "the loss would be another one"
_ORDER = "the order of the data follows from it"


class Distill(Section):
    mode: Annotated[Literal["sequence", "logits"], Fixed(_TRAIN, _LOSS)] = Field(
        "sequence", description="sequence: train on text that the teacher wrote; logits: match its probabilities"
    )
    teacher: Annotated[str | None, Fixed(_TRAIN, _LOSS)] = Field(
        None,
        description="logits: run, checkpoint, Hugging Face id or folder with the student's vocabulary, or a folder of "
        "stored teacher states",
    )
    store: str | None = Field(
        None, description="folder to write the teacher's states of data.train to, instead of training a student"
    )
    transport: Annotated[Literal["hidden", "topk", "sampled"], Fixed(_TRAIN, _LOSS)] = Field(
        "hidden",
        description="what the teacher hands over of a token: hidden: its last state, exact; topk: its top_k likeliest "
        "tokens and the rest in one; sampled: distill.samples drawn tokens, unbiased",
    )
    top_k: Annotated[int, Fixed(_TRAIN, _LOSS)] = Field(64, description="transport topk: tokens handed over", ge=1)
    samples: Annotated[int, Fixed(_TRAIN, _LOSS)] = Field(12, description="transport sampled: tokens drawn", ge=1)
    alpha: Annotated[float, Fixed(_TRAIN, _LOSS)] = Field(
        0.5, description="weight of the divergence; the rest is that of the next token", ge=0, le=1
    )
    temperature: Annotated[float, Fixed(_TRAIN, _LOSS)] = Field(
        1.0, description="both distributions are softened by it, and the divergence multiplied by its square", gt=0
    )
    divergence: Annotated[Literal["forward", "reverse", "mixed"], Fixed(_TRAIN, _LOSS)] = Field(
        "forward", description="forward: KL(teacher, student); reverse: KL(student, teacher); mixed: half of each"
    )
    real: Annotated[str | None, Fixed(_TRAIN, _ORDER)] = Field(
        None, description="shard folder or raw files of real text that is mixed with data.train"
    )
    real_fraction: Annotated[float, Fixed(_TRAIN, _ORDER)] = Field(
        0.0, description="share of every batch that is real text, from distill.real", ge=0, lt=1
    )
    real_fraction_end: Annotated[float | None, Fixed(_TRAIN, _ORDER)] = Field(
        None, description="that share at the last step, reached in a straight line; none: it stays", ge=0, le=1
    )

    def problems(self) -> Iterator[Problem]:
        if self.mode == "sequence" and self.teacher is not None:
            yield (
                "teacher",
                "is for distill.mode=logits: set that, or leave distill.teacher out, for a sequence is learned from "
                "data.train",
            )
        wanted = self.real_fraction > 0 or bool(self.real_fraction_end)
        if wanted and self.real is None:
            yield "real", "is not set: name the real text that distill.real_fraction asks for"
        if self.transport == "sampled" and self.divergence != "forward":
            yield "divergence", "must be forward with distill.transport=sampled, whose draws estimate no other"
        if self.store is not None and self.mode != "logits":
            yield "store", "is for distill.mode=logits: set it, or leave distill.store out"
        if self.real is not None and not wanted:
            yield "real_fraction", "is 0: set the share of a batch that comes from distill.real"
