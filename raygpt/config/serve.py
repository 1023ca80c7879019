"""`serve`: the HTTP server of `raygpt serve`."""

from __future__ import annotations

import os
from collections.abc import Iterator

from pydantic import Field

from raygpt.config.section import Problem, Section


class Serve(Section):
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 lets the whole network in")
    port: int = Field(8000, description="port of the OpenAI protocol and of the page; 0: a free one", ge=0, le=65535)
    max_concurrent: int = Field(
        256,
        description="answers that a replica writes or has waiting; requests beyond are told to come again later",
        ge=1,
    )
    max_tokens: int = Field(4096, description="most tokens that a request may ask for", ge=1)
    max_body_mb: float = Field(4.0, description="largest request", gt=0)
    api_key_env: str | None = Field(
        None, description="environment variable that holds the key clients must send, never the key; none: no key"
    )
    page: bool = Field(True, description="serve the page at /")

    @property
    def api_key(self) -> str | None:
        """The key that the variable holds now, without space around it; None for none."""
        return (os.environ.get(self.api_key_env) or "").strip() or None if self.api_key_env else None

    def problems(self) -> Iterator[Problem]:
        if self.api_key_env is not None and not self.api_key_env.isidentifier():
            yield "api_key_env", "must be the name of an environment variable: the key itself belongs in no setting"
