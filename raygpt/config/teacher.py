"""`teacher`: the model that writes, or that a student learns from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from raygpt.config.section import AlsoCalled, Problem, Section


class Teacher(Section):
    engine: Literal["transformers", "raygpt", "vllm", "endpoint"] = Field(
        "transformers",
        description="transformers: any Hugging Face causal LM or GGUF file; raygpt: a run or checkpoint; vllm: "
        "through ray.serve.llm; endpoint: somebody else's, at teacher.endpoints",
    )
    model: str | None = Field(
        None,
        description="run, checkpoint, Hugging Face id or folder, GGUF file; for an endpoint its name there",
    )
    endpoints: list[str] = Field(
        [], description="base URLs ending in /v1; of several the next one takes over where one fails"
    )
    api_key_env: str | None = Field(
        None, description="environment variable that holds the endpoint's key, never the key"
    )
    replicas: int | tuple[int, int] = Field(1, description="copies of the model, or [min, max] to scale with the load")
    max_model_len: Annotated[int | None, AlsoCalled(("max_seq_len",))] = Field(
        None, description="longest prompt and answer in tokens; none: the model's own context", ge=2
    )
    max_sequences: Annotated[int, AlsoCalled(("max_num_seqs", "slots"))] = Field(
        8, description="sequences that a replica decodes together", ge=1
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="of the weights (auto: bf16 on a GPU that has it, fp16 on others, fp32 on a CPU)"
    )
    use_gpu: bool | Literal["auto"] = Field("auto", description="one GPU per replica (auto: when the cluster has any)")
    cpus_per_replica: float = Field(1, description="CPU cores of a replica; also its torch threads", gt=0)
    vllm: dict[str, Any] = Field({}, description="engine arguments handed to vLLM as they are")
    usd_per_million_input: float | None = Field(
        None, description="price of a million prompt tokens at the endpoint; none: no cost by tokens", ge=0
    )
    usd_per_million_output: float | None = Field(None, description="price of a million tokens it writes", ge=0)

    @property
    def replica_range(self) -> tuple[int, int]:
        """(fewest, most) replicas."""
        return (self.replicas, self.replicas) if isinstance(self.replicas, int) else self.replicas

    @property
    def api_key(self) -> str | None:
        """The key that the variable holds now, without space around it; None for none."""
        return (os.environ.get(self.api_key_env) or "").strip() or None if self.api_key_env else None

    @field_validator("endpoints", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    def problems(self) -> Iterator[Problem]:
        low, high = self.replica_range
        if not 1 <= low <= high:
            yield "replicas", "must be at least 1, and a range must go upwards"
        if self.engine == "endpoint" and not self.endpoints:
            yield "endpoints", "is empty: teacher.engine=endpoint needs a base URL ending in /v1"
        for url in self.endpoints:
            if not url.startswith(("http://", "https://")):
                yield "endpoints", f"holds {url!r}: write a base URL such as http://127.0.0.1:8000/v1"
        if self.api_key_env is not None and not self.api_key_env.isidentifier():
            yield "api_key_env", "must be the name of an environment variable: the key itself belongs in no setting"
