"""`raygpt pretrain`: train GPT-2 on token shards, or on raw text prepared on first use."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from raygpt import storage
from raygpt.config import Config
from raygpt.config.checks import base_tokenizer, strategy, training_text
from raygpt.config.job import Call, Job
from raygpt.errors import UserError

if TYPE_CHECKING:
    from raygpt.train.resolve import RealText, Resolved
    from raygpt.train.worker import MakeObjective

    # what else than to model language (None: nothing) a resolved job's workers learn, and the bytes it takes in each
    Objective = Callable[[Config, Resolved], tuple[MakeObjective, int]]

DECLARATION = Job(
    "pretrain",
    "train GPT-2 on token shards",
    ("run", "scale", "model", "data", "prepare", "optim", "train", "eval", "track", "sample", "plan"),
    flags=("dry_run", "print_deepspeed"),
    checks=(training_text, strategy, base_tokenizer),
    place=30,
)


def run(config: Config, call: Call, *, real: RealText | None = None, objective: Objective | None = None) -> int:
    """Train. `real` is text, shards or raw, that is mixed with data.train; `objective` what is learned instead."""
    from raygpt.jobs.prepare import raw_preparation, with_prepared_data, with_prepared_text
    from raygpt.train.resolve import resolve

    if "print_deepspeed" in call.flags:
        return print_deepspeed(config)
    if "dry_run" in call.flags:
        return dry_run(config, real=real, objective=objective)
    from raygpt.capacity.from_config import check_fit
    from raygpt.cluster import phases
    from raygpt.cluster.connect import connect, training_need
    from raygpt.train.trainer import run_training

    launch = phases.Launch.of_this_process()
    check_places(config)
    # mistakes come out before a cluster is started
    raw = raw_preparation(config) is not None or is_raw(config, real)
    job = None if raw else resolve(config, real)
    chosen = objective(config, job) if objective is not None and job is not None else None
    if job is None:
        check_before_data(config)
    print(connect(config.scale, training_need(config.scale), mark=launch.mark), flush=True)
    if job is None:
        config = with_prepared_data(config)
        job = resolve(config, with_prepared_text(config, real))
        chosen = objective(config, job) if objective is not None else None
    make, beside = chosen or (None, 0)
    check_objective(job, make)
    report = check_fit(config, job.model, job.run, teacher=beside) if job.done_steps < job.plan.total_steps else None
    rows = report.micro_batch_size if report is not None else None
    launch.mark(phases.DATA)
    done = run_training(config, job, call.command, planned_rows=rows, objective=make, launch=launch)
    return done.exit_status


def check_objective(job: Resolved, objective: MakeObjective | None) -> None:
    """UserError where the run has learned by another objective until now."""
    from raygpt.parallel import checkpoint
    from raygpt.train.worker import objective_name

    found = checkpoint.complete_checkpoints(job.run) if job.done_steps else []
    before, now = checkpoint.read_state(found[0]).objective if found else "", objective_name(objective)
    if before and before != now:
        raise UserError(
            f"run {job.run.uri} learned by {before} until step {job.done_steps} and would go on by {now}: go on with "
            f"`raygpt {'distill' if before == 'distillation' else 'pretrain'}`, or give this one a run.name of its own."
        )


def check_before_data(config: Config) -> tuple[int, int]:
    """(rows of a step, their tokens), after all that can be told while the text is not prepared: optimizer, run.resume,
    model and batch. Raises UserError."""
    from raygpt.jobs.plan import planned_model
    from raygpt.train.optim import check_name
    from raygpt.train.plan import batch_rows
    from raygpt.train.resolve import earlier_run

    check_name(config.optim.name, config.train.strategy)
    earlier = earlier_run(config)
    most = earlier.model["seq_len"] if earlier is not None else planned_model(config).seq_len
    seq_len = config.data.seq_len or config.model.seq_len or most
    return batch_rows(config.train.global_batch_tokens, seq_len, config.scale.worker_range), seq_len


def check_places(config: Config) -> None:
    """Fail early, in one sentence, where storage or data cannot be reached or W&B cannot be used."""
    from raygpt.run.frame import run_location
    from raygpt.track.wandb_run import choose_wandb_mode

    storage.check_writable(run_location(config), "run.storage")
    for key in ("train", "val"):
        uri = getattr(config.data, key)
        if uri is not None and uri.startswith("s3://") and not any(mark in uri for mark in "*?[,"):
            storage.check_readable(storage.locate(uri), f"data.{key}")
    choose_wandb_mode(config.track.wandb)


def print_deepspeed(config: Config) -> int:
    """Show what DeepSpeed would be started with. What follows from data, device or workers is worked out as far as
    the settings alone say it; the rest reads auto."""
    from raygpt.capacity.micro_batch import accumulation
    from raygpt.parallel.zero_config import deepspeed_config
    from raygpt.train.plan import batch_rows

    if config.train.strategy == "ddp":
        raise UserError("train.strategy=ddp uses no DeepSpeed: set it to zero1, zero2 or zero3.")
    micro, precision = config.train.micro_batch_size, config.train.precision
    seq_len = config.data.seq_len or config.model.seq_len
    steps: int | str = "auto"
    if isinstance(micro, int) and seq_len is not None:
        rows = batch_rows(config.train.global_batch_tokens, seq_len, config.scale.worker_range)
        steps = accumulation(rows, config.scale.worker_range[0], micro)
    shown = deepspeed_config(
        strategy=config.train.strategy,
        offload=config.train.offload,
        precision=precision,
        micro_batch_size=micro,
        grad_accum_steps=steps,
        grad_clip=config.optim.grad_clip,
        pin_memory=config.scale.use_gpu is not False,
        overrides=config.train.deepspeed,
    )
    print(json.dumps(shown, indent=2))
    return 0


def is_raw(config: Config, real: RealText | None) -> bool:
    """Whether distill.real is raw text. Raises UserError where it is not there."""
    from raygpt.data.corpus import expand_sources
    from raygpt.data.sources import is_prepared, raw_sources

    if real is None or is_prepared(real.uri):
        return False
    return bool(expand_sources(raw_sources(real.uri), config.prepare.subset, "distill.real"))


def dry_run(config: Config, *, real: RealText | None = None, objective: Objective | None = None) -> int:
    """Check everything that can be checked without starting: settings, arithmetic and, where it is there, the data."""
    from raygpt.data.sources import needs_preparing
    from raygpt.train.resolve import resolve

    assert config.data.train is not None
    raw = config.data.train if needs_preparing(config.data.train, config.data.val) else None
    if raw is None and real is not None and is_raw(config, real):
        raw = real.uri
    if raw is not None:
        rows, seq_len = check_before_data(config)
        print(f"Settings are sound: {rows} rows of {seq_len} tokens per step; {raw} is not prepared yet.")
        return 0
    job = resolve(config, real)
    if objective is not None:
        objective(config, job)
    print(describe(job))
    return 0


def describe(job: Resolved) -> str:
    """What the job would do, in one line."""
    return (
        f"Run {job.run.uri}: {job.plan.total_steps:,} steps of {job.plan.tokens_per_step:,} tokens from "
        f"{job.train_uri}, {job.model.num_parameters():,} parameters, starting at step {job.done_steps}."
    )
