"""`sample`: what `raygpt sample` writes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from raygpt.config.section import MayBeEmpty, Section


class Sample(Section):
    prompt: Annotated[str, MayBeEmpty()] = Field("", description="text to go on from; empty: the start of a document")
    num_samples: int = Field(3, description="texts to write", ge=1)
    max_new_tokens: int = Field(200, description="longest text in tokens", ge=1)
    temperature: float = Field(0.8, description="0 picks the likeliest token every time", ge=0)
    top_k: int | None = Field(200, description="choose among this many likeliest tokens", ge=1)
    top_p: float | None = Field(None, description="choose among tokens holding this share of probability", gt=0, le=1)
