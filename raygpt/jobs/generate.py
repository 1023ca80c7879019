"""`raygpt generate`: synthetic text from a teacher, every answer paid for once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from raygpt import storage
from raygpt.config import Config
from raygpt.config.job import Call, Job
from raygpt.config.section import Problem
from raygpt.errors import UserError

if TYPE_CHECKING:
    from raygpt.distill.production import Production


def _something_to_ask(config: Config) -> Iterator[Problem]:
    generate, teacher = config.generate, config.teacher
    if teacher.engine != "endpoint" and teacher.endpoints:
        yield "teacher.endpoints", f"has no meaning with teacher.engine={teacher.engine}: set teacher.engine=endpoint"
    if not generate.prompts and not generate.options:
        yield "generate.prompts", "is not set: name files with prompts, or give generate.options lists to cross"
    if teacher.engine != "endpoint" and not teacher.model:
        yield "teacher.model", "is not set: name the model that writes, or set teacher.engine=endpoint"
    if teacher.api_key_env is not None and teacher.api_key is None:
        yield "teacher.api_key_env", f"names {teacher.api_key_env}, which is not set in this environment"
    if (key := teacher.api_key) is not None and not (key.isascii() and key.isprintable()):
        yield "teacher.api_key_env", f"names {teacher.api_key_env}, which holds what no HTTP header can"


def _a_limit_needs_a_price(config: Config) -> Iterator[Problem]:
    teacher, track = config.teacher, config.track
    by_tokens = teacher.usd_per_million_output is not None or teacher.usd_per_million_input is not None
    # auto asks the nodes of a cluster, when the run begins: for an endpoint that is asked from here there are none
    nobody = track.price_per_hour == "auto" and teacher.engine == "endpoint" and not cluster_named(config)
    if config.generate.max_cost_usd is not None and not by_tokens and (track.price_per_hour is None or nobody):
        yield (
            "generate.max_cost_usd",
            "needs a price to count with: set teacher.usd_per_million_output (and teacher.usd_per_million_input), or "
            "track.price_per_hour for a teacher of one's own",
        )


DECLARATION = Job(
    "generate",
    "synthetic text from a teacher, never paid for twice",
    ("run", "teacher", "generate", "data", "scale", "track"),
    reads=("serve", "model"),
    flags=("dry_run",),
    checks=(_something_to_ask, _a_limit_needs_a_price),
    place=55,
)


def run(config: Config, call: Call) -> int:
    from raygpt.distill.produce import produce
    from raygpt.distill.production import check_only
    from raygpt.run.frame import check_start, run_job

    production = resolve(config, call.command)
    if production.start_teacher is None and cluster_named(config):
        from raygpt.cluster.connect import connect

        print(connect(config.scale), flush=True)
    if "dry_run" in call.flags:
        print(check_only(production))
        return 0
    storage.check_writable(production.output, "generate.output" if config.generate.output else "run.storage")
    check_start(config, lambda folder: storage.exists(folder / "answers"), "answers")
    printed: dict[str, Any] = {}
    outcome = run_job(
        spending(config),
        lambda run: produce(production, run, printed),
        again=call.command,
        stopping="waiting for the answers under way, 30 s at most",
    )
    # the last line is for scripts
    print(json.dumps(printed), flush=True)
    return outcome.exit_status


def cluster_named(config: Config) -> bool:
    """Whether the nodes of a cluster shall ask; an endpoint alone is asked from here, without Ray."""
    return bool(config.scale.address) or os.environ.get("RAY_ADDRESS", "local") != "local"


def spending(config: Config) -> Config:
    """The config with generate.max_cost_usd as the budget of a teacher that is paid for by the hour."""
    teacher, limit = config.teacher, config.generate.max_cost_usd
    if limit is None or teacher.usd_per_million_output is not None or teacher.usd_per_million_input is not None:
        return config
    limit = min(limit, config.track.max_cost_usd or limit)
    return config.model_copy(update={"track": config.track.model_copy(update={"max_cost_usd": limit})})


def resolve(config: Config, command: str) -> Production:
    """The settings as plain arguments. Raises UserError for a template, tokenizer or test set that is not there."""
    from raygpt.data.tokenizer import load_tokenizer
    from raygpt.distill.client import Asking
    from raygpt.distill.documents import QualityOptions
    from raygpt.distill.limits import TokenPrice
    from raygpt.distill.production import Production
    from raygpt.distill.templates import load_template
    from raygpt.jobs.serve import running
    from raygpt.run.frame import run_location

    settings, teacher = config.generate, config.teacher
    if config.data.tokenizer == "base" or config.data.tokenizer.startswith("train:"):
        raise UserError(
            f"data.tokenizer={config.data.tokenizer} is no tokenizer for generated text: name gpt2, bytes or a folder, "
            "the student's own."
        )
    chat = None if settings.chat == "auto" else settings.chat
    template = load_template(settings.template, system=settings.system, chat=chat, text_words=settings.text_words)
    own = teacher.engine != "endpoint"
    # twice what the replicas decode at a time: the next ones are there when a place is free, none waits for long
    room = 2 * teacher.max_sequences * teacher.replica_range[1]
    asking = Asking(
        model=teacher.model or "",
        endpoints=tuple(teacher.endpoints),
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        stop=tuple(settings.stop),
        concurrency=min(settings.concurrency, room) if own and teacher.engine != "vllm" else settings.concurrency,
        timeout_seconds=settings.timeout_seconds,
        retries=settings.retries,
        rate=settings.requests_per_second,
        tokens_per_minute=settings.tokens_per_minute,
    )
    quality = QualityOptions(
        filters=tuple(settings.filters),
        min_characters=settings.min_characters,
        max_characters=settings.max_characters,
        language=settings.language,
        min_score=settings.min_score,
        dedup=settings.dedup,
        dedup_threshold=settings.dedup_threshold,
        decontaminate=tuple(settings.decontaminate),
        decontaminate_words=settings.decontaminate_words,
        val_fraction=settings.val_fraction,
    )
    quality.check()  # before a teacher is paid
    priced = teacher.usd_per_million_input is not None or teacher.usd_per_million_output is not None
    return Production(
        sources=tuple(settings.prompts),
        template=template,
        options={name: tuple(values) for name, values in settings.options.items()},
        subset=settings.subset,
        samples=settings.samples_per_prompt,
        id_column=settings.id_column,
        max_rows=settings.max_prompts,
        skip_bad_rows=settings.skip_bad_rows,
        seed=settings.seed,
        asking=asking,
        api_key=teacher.api_key,
        start_teacher=partial(running, config) if own else None,
        max_model_len=teacher.max_model_len,
        price=TokenPrice(teacher.usd_per_million_input or 0.0, teacher.usd_per_million_output or 0.0)
        if priced
        else None,
        max_cost_usd=settings.max_cost_usd if priced else None,
        limit="track.max_cost_usd" if settings.max_cost_usd is None else "generate.max_cost_usd",
        retry_parked=settings.retry_parked,
        output=storage.locate(settings.output) if settings.output else run_location(config),
        tokenizer=load_tokenizer(config.data.tokenizer),
        quality=quality,
        with_prompt=settings.include_prompt or template.continues,
        command=command,
    )
