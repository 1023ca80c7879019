"""What a run of `raygpt generate` is asked for, who will answer, and all that can be told before asking."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from raygpt.data.tokenizer import Tokenizer
from raygpt.distill.answers import generation_name
from raygpt.distill.client import Asking
from raygpt.distill.documents import QualityOptions
from raygpt.distill.endpoints import choose_model, look
from raygpt.distill.generation import Counts, Generation, scan_here, scan_prompts
from raygpt.distill.limits import TokenPrice
from raygpt.distill.nodes import other_nodes, scan_on_nodes
from raygpt.distill.prompts import Prompts, open_prompts, questions
from raygpt.distill.templates import Template
from raygpt.errors import UserError
from raygpt.run.stop import StopToken
from raygpt.storage import Location

# Runs a teacher while its block does; gives its URL and how many GPUs it has.
StartTeacher = Callable[[StopToken, Callable[[str], None]], contextlib.AbstractContextManager[tuple[str, float]]]


@dataclass(frozen=True)
class Production:
    """The settings of a run, as plain values. `price` is None where tokens cost nothing by themselves; `limit` is the
    setting that limits the cost; `start_teacher` starts a teacher of one's own, where there are no endpoints."""

    sources: tuple[str, ...]
    template: Template
    asking: Asking
    output: Location
    tokenizer: Tokenizer
    quality: QualityOptions
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    subset: str | None = None
    samples: int = 1
    id_column: str | None = "id"
    max_rows: int | None = None
    skip_bad_rows: bool = False
    seed: int = 0
    api_key: str | None = field(default=None, repr=False)
    start_teacher: StartTeacher | None = None
    max_model_len: int | None = None
    price: TokenPrice | None = None
    max_cost_usd: float | None = None
    limit: str = "generate.max_cost_usd"
    retry_parked: bool = False
    with_prompt: bool = False
    command: str = ""


@dataclass(frozen=True)
class Teacher:
    """Who answers: the model's name and context, None where nobody says it; `problem` where it does not answer now."""

    model: str
    context: int | None
    problem: str | None = None


def find_teacher(production: Production) -> Teacher:
    """Look at the endpoints. Raises UserError for a model that one of them does not have and for a refused key."""
    asking = production.asking
    if production.start_teacher is not None:  # not before it is known that there is something to ask
        return Teacher(asking.model, production.max_model_len)
    try:
        served, silent = asyncio.run(look(asking.endpoints, production.api_key))
    except UserError as error:
        if not asking.model or "refuses" in str(error):
            raise
        return Teacher(asking.model, production.max_model_len, str(error))
    model, context = choose_model(asking.model or None, served)
    for sentence in silent:
        print(f"{sentence}: the others are asked.", flush=True)
    return Teacher(model, min(filter(None, (context, production.max_model_len)), default=None))


def open_generation(production: Production, teacher: Teacher, work: Path) -> Generation:
    """The generation that these settings ask for, with all its prompts read. Raises UserError for what cannot be asked,
    with file and line."""
    asking, template = production.asking, production.template
    sampling = {**asking.sampling, "seed": production.seed}
    name = generation_name(teacher.model, sampling, template.version)
    if teacher.context is not None and asking.max_new_tokens >= teacher.context:
        raise UserError(
            f"generate.max_new_tokens={asking.max_new_tokens:,} leaves no room for a prompt in the teacher's context "
            f"of {teacher.context:,} tokens: lower it."
        )
    prompts = open_prompts(
        production.sources,
        Prompts(
            (),
            template,
            name,
            production.options,
            production.samples,
            production.id_column,
            production.max_rows,
            teacher.context,
            asking.max_new_tokens,
            production.skip_bad_rows,
        ),
        production.subset,
    )
    about = {"generation": name, "model": teacher.model, "sampling": sampling, "template": template.version}
    asked = partial(questions, prompts)
    generation = Generation(name, asked, production.output, about, work / "questions", asking.max_new_tokens)
    scan_prompts(prompts, generation, work / "ids", scan_on_nodes if other_nodes() else scan_here)
    return generation


def check_only(production: Production) -> str:
    """All that can be told without asking, in one line. Raises UserError for everything that is wrong."""
    with tempfile.TemporaryDirectory(prefix="raygpt-") as folder:
        teacher = find_teacher(production)
        generation = open_generation(production, teacher, Path(folder))
        counts = generation.settle(write=False)
        return f"{described(counts)}; generation {generation.name} of {teacher.model}; nothing was asked."


def described(counts: Counts) -> str:
    """`1,200 rows, 2,400 prompts: 800 answered, 3 parked, 1,597 to ask`."""
    more = f" ({counts.repeated:,} more of them repeat one)" if counts.repeated else ""
    left_out = f", {counts.bad_rows:,} left out," if counts.bad_rows else ","
    return (
        f"{counts.rows:,} rows{left_out} {counts.total:,} prompts{more}: {counts.answered:,} answered, "
        f"{counts.parked:,} parked, {counts.to_ask:,} to ask"
    )
