"""`eval`: evaluation during training and by `raygpt evaluate`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from raygpt.config.section import AlsoCalled, Problem, Section

TaskName = Literal["loss", "wikitext", "lambada", "hellaswag", "classification"]
HellaswagProtocol = Literal["build_nanogpt", "lm_eval", "lighteval"]


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
    samples: int = Field(
        0,
        description="texts that a training writes at every evaluation, from sample.prompt and as section `sample` has "
        "it, into samples.jsonl and the report",
        ge=0,
    )
    tasks: list[TaskName] = Field(
        [],
        description="what `raygpt evaluate` measures, such as hellaswag,lambada; empty: the tasks whose text is named "
        "here, and where none is the loss on data.val (for a classifier its scores)",
    )
    hellaswag: str | None = Field(
        None,
        description="HellaSwag's items: JSONL, parquet or the hub's data set; set for a training, it is asked at every "
        "evaluation",
    )
    lambada: str | None = Field(None, description="LAMBADA's passages: JSONL, parquet or the hub's data set")
    wikitext: str | None = Field(
        None, description="text that `wikitext` is measured on, as published: a file, parquet or the hub's data set"
    )
    protocols: list[HellaswagProtocol] = Field(
        ["build_nanogpt", "lm_eval", "lighteval"],
        description="ways of asking HellaSwag; in training only the first is",
        min_length=1,
    )
    chat: Annotated[bool, AlsoCalled(("apply_chat_template",))] = Field(
        False, description="put HellaSwag's contexts through the model's chat template, as lighteval does for Instruct"
    )
    limit: Annotated[int | None, AlsoCalled(("num_examples", "max_examples"))] = Field(
        None, description="first items of every task that are asked; none: all", ge=1
    )
    stride: int | None = Field(
        None,
        description="tokens by which the overlapping windows of `wikitext` move on; none: 512, or half of a shorter "
        "context (without overlap it is read as well)",
        ge=1,
    )
    batch_tokens: Annotated[int | None, AlsoCalled(("batch_size", "eval_batch_size"))] = Field(
        None, description="tokens of a pass over items, in padding too; none: by the device. It changes no answer", ge=1
    )
    endpoint: str | None = Field(
        None, description="measure a served model: its base URL ending in /v1, with log-probabilities of prompts"
    )
    model: str | None = Field(None, description="the served model's name there; none: the only one that is served")
    api_key_env: str | None = Field(
        None, description="environment variable that holds the endpoint's key, never the key"
    )
    output: Annotated[str | None, AlsoCalled(("output_path",))] = Field(
        None,
        description="folder of the evaluation of tasks; none: evaluation/ in the model's run, or else in run.storage",
    )

    @property
    def api_key(self) -> str | None:
        """The endpoint's key, read when it is needed and kept nowhere."""
        return (os.environ.get(self.api_key_env) or "").strip() or None if self.api_key_env else None

    @property
    def chosen_tasks(self) -> list[str]:
        """eval.tasks, each once, or those whose text is named."""
        named = [name for name in ("wikitext", "lambada", "hellaswag") if getattr(self, name)]
        return list(dict.fromkeys(self.tasks)) or named

    def problems(self) -> Iterator[Problem]:
        if self.endpoint is not None and (wrong := _wrong_url(self.endpoint)):
            yield "endpoint", wrong
        if self.api_key_env is not None and not self.api_key_env.isidentifier():
            yield "api_key_env", "must be the name of an environment variable: the key itself belongs in no setting"
        elif self.api_key_env is not None and self.api_key is None:
            yield "api_key_env", f"names {self.api_key_env}, which is not set in this environment"
        for key in ("model", "api_key_env"):
            if getattr(self, key) is not None and self.endpoint is None:
                yield key, "has no meaning without eval.endpoint: name a model of one's own with model.init_from"
        if len(set(self.protocols)) < len(self.protocols):
            yield "protocols", "names one twice: name each once"

    @field_validator("tasks", "protocols", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        many = [value] if isinstance(value, str) else value
        if not isinstance(many, list) or not all(isinstance(item, str) for item in many):
            return value
        return [part.strip() for item in many for part in item.split(",") if part.strip()]


def _wrong_url(url: str) -> str | None:
    """What is wrong with an endpoint's URL, which is never repeated where a key may stand in it: names of folders,
    config.yaml and evaluation.json have it as it is."""
    try:
        parts = urlsplit(url)
        secret = "@" in parts.netloc or bool(parts.query or parts.fragment)
    except ValueError:
        return "is no URL: write a base URL such as http://127.0.0.1:8000/v1"
    if secret or "@" in url or "?" in url:
        return (
            "holds a user, a password or a query, and what is in the URL ends up in files and names of folders: leave "
            "them out, and name the environment variable of a key with eval.api_key_env"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return f"is {url!r}: write a base URL such as http://127.0.0.1:8000/v1"
    return None
