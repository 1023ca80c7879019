"""`export`: what `raygpt export` writes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raygpt.config.section import Section


class Export(Section):
    output: str | None = Field(None, description="Hugging Face folder to write; none: export/ in the run folder")
    dtype: Literal["float32", "float16", "bfloat16"] = Field("float32", description="type of the written weights")
    shard_gb: float = Field(2, description="largest weight file; also about the memory that exporting takes", gt=0)
