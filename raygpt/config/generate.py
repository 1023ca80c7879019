"""`generate`: synthetic text from a teacher."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from raygpt.config.section import LARGEST_SEED, AlsoCalled, MayBeEmpty, Problem, Section

Filter = Literal["length", "repetition", "language", "refusal", "score"]


class Generate(Section):
    prompts: list[str] = Field(
        [],
        description="prompts, or texts and fields for the template: JSONL, CSV or parquet files, or a Hugging Face id",
    )
    subset: str | None = Field(None, description="subset of a Hugging Face dataset, such as sample-10BT")
    template: str = Field(
        "prompt",
        description="what a row becomes: prompt, instruction, topics, continue, tutorial, faq, table, math, or "
        "a file with a template of one's own",
    )
    options: dict[str, list[str]] = Field(
        {},
        description="lists that the template is crossed with, such as {audience: [children, experts], style: [plain]}",
    )
    system: Annotated[str | None, MayBeEmpty()] = Field(
        None, description="system message of chat prompts; none: the template's own, if any"
    )
    chat: bool | Literal["auto"] = Field(
        "auto", description="ask through the chat protocol (auto: as the template says)"
    )
    text_words: int | None = Field(
        None, description="words of a row's `text` that the template sees; none: all (continue: 100)", ge=1
    )
    id_column: str | None = Field(
        "id", description="column that names rows: two rows of one id are refused; none: rows have no names"
    )
    skip_bad_rows: bool = Field(
        False, description="leave out rows that are empty, lack a field or are too long, instead of asking nothing"
    )
    max_prompts: int | None = Field(None, description="ask only for the first so many rows; none: all", ge=1)
    samples_per_prompt: int = Field(1, description="answers to every prompt", ge=1)
    max_new_tokens: Annotated[int, AlsoCalled(("max_tokens",))] = Field(
        512, description="longest answer in tokens", ge=1
    )
    temperature: float = Field(0.7, description="0 picks the likeliest token every time", ge=0, le=2)
    top_p: float = Field(0.95, description="choose among tokens holding this share of probability", gt=0, le=1)
    stop: list[str] = Field([], description="texts that end an answer", max_length=4)
    seed: int = Field(0, description="seed of all answers", ge=0, le=LARGEST_SEED)
    concurrency: int = Field(64, description="requests under way at a time, over all endpoints", ge=1)
    requests_per_second: float | None = Field(
        None, description="limit over all endpoints; none: as fast as it goes", gt=0
    )
    tokens_per_minute: int | None = Field(
        None, description="limit of prompt and answer tokens over all endpoints; none: no limit", ge=1
    )
    timeout_seconds: float = Field(300.0, description="a request that takes longer is asked again", gt=0)
    retries: int = Field(6, description="times a request is asked again before its prompt is parked", ge=0)
    filters: list[Filter] = Field(
        ["length", "repetition", "language", "refusal"], description="what keeps a text out; may be empty"
    )
    min_characters: int = Field(50, description="length filter: shortest text", ge=0)
    max_characters: int = Field(100_000, description="length filter: longest text", ge=1)
    language: str = Field("en", description="language filter: ISO 639-1 code of what is kept")
    min_score: float = Field(
        3.0, description="score filter: least mark of 1 to 5 that the teacher gives a text", ge=1, le=5
    )
    dedup: Literal["none", "exact", "minhash"] = Field(
        "minhash", description="drop texts that are there already: exact, or nearly (minhash)"
    )
    dedup_threshold: float = Field(
        0.8, description="share of 5-word sequences in common from which texts are near", gt=0, le=1
    )
    decontaminate: list[str] = Field(
        [], description="files whose texts must not be learned from: HellaSwag or MRPC files, validation text, shards"
    )
    decontaminate_words: int = Field(
        8, description="longest match in words from which a text counts as contaminated", ge=3
    )
    include_prompt: bool = Field(
        False, description="documents hold prompt and answer; without it the answer alone (continue: always both)"
    )
    output: str | None = Field(
        None, description="folder that gets answers/, parked.jsonl, train/, val/, card.md; none: the run's folder"
    )
    val_fraction: float = Field(0.01, description="share of documents held out as val/", gt=0, lt=1)
    retry_parked: bool = Field(False, description="ask the parked prompts alone, once more")
    max_cost_usd: float | None = Field(None, description="stop when the teacher has cost this much", gt=0)

    @field_validator("prompts", "decontaminate", "stop", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    def problems(self) -> Iterator[Problem]:
        if self.min_characters > self.max_characters:
            yield "min_characters", "is larger than generate.max_characters: no text could be kept"
        if any(not text for text in self.stop):
            yield "stop", "holds an empty text, which would end every answer at once"
        if empty := [name for name, values in self.options.items() if not values]:
            yield "options", f"has an empty list for {empty[0]}: name something, or leave it out"
