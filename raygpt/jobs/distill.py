"""`raygpt distill`: a student learns from a teacher, from text it wrote (sequence) or its probabilities (logits)."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from raygpt.config import Config
from raygpt.config.checks import base_tokenizer, strategy, training_text
from raygpt.config.job import Call, Job
from raygpt.config.section import Problem
from raygpt.errors import UserError

if TYPE_CHECKING:
    from raygpt.distill.teacher_states import MakeDistillation, TeacherSource
    from raygpt.distill.transport import Transport
    from raygpt.train.resolve import RealText, Resolved


def _text_and_teacher(config: Config) -> Iterator[Problem]:
    if config.distill.store is None:
        yield from training_text(config)
    elif not config.data.train:
        yield "data.train", "is not set: name the shard folder or raw text whose states distill.store gets"
    if config.distill.mode == "logits" and config.distill.teacher is None:
        yield "distill.teacher", "is not set: name the run, checkpoint, Hugging Face folder or id to learn from"
    if config.distill.mode == "logits" and config.distill.real is not None:
        yield "distill.real", "is mixed in with distill.mode=sequence alone: at logit level name all text in data.train"


DECLARATION = Job(
    "distill",
    "train a student on what a teacher wrote, or on its probabilities",
    ("run", "scale", "model", "data", "prepare", "optim", "train", "eval", "track", "sample", "plan", "distill"),
    reads=("teacher",),
    flags=("dry_run",),
    checks=(_text_and_teacher, strategy, base_tokenizer),
    place=45,
)


def run(config: Config, call: Call) -> int:
    if config.distill.mode == "sequence":
        return _sequence(config, call)
    return _logits(config, call) if config.distill.store is None else _store(config, call)


def _sequence(config: Config, call: Call) -> int:
    """Training on text that the teacher wrote, mixed with real text."""
    from raygpt.jobs import pretrain
    from raygpt.run.frame import run_location

    status = pretrain.run(config, call, real=real_text(config))
    if status == 0 and "dry_run" not in call.flags:
        names = [] if config.model.init_from == "random" else [config.model.init_from]
        compared = shlex.join(["raygpt", "evaluate", "--compare", *names, run_location(config).uri])
        print(f"What it bought: {compared} TEACHER", flush=True)
    return status


def real_text(config: Config) -> RealText | None:
    """What is mixed with data.train, as the section says."""
    from raygpt.train.resolve import RealText

    settings = config.distill
    if settings.real is None:
        return None
    end = settings.real_fraction if settings.real_fraction_end is None else settings.real_fraction_end
    return RealText(settings.real, settings.real_fraction, end)


# --- mode=logits ----------------------------------------------------------------------------------------------------


def _logits(config: Config, call: Call) -> int:
    """Pretraining's run with another objective: the order, checkpoints and strategies are the same."""
    from raygpt.distill.stored import is_stored, read_states_manifest
    from raygpt.distill.teacher_states import check_found
    from raygpt.jobs import pretrain

    assert config.distill.teacher is not None
    # before raw text is prepared, which takes as long as there is text
    if is_stored(config.distill.teacher):
        read_states_manifest(config.distill.teacher)
    else:
        check_found(config.distill.teacher)
    return pretrain.run(config, call, objective=distillation)


def distillation(config: Config, job: Resolved) -> tuple[MakeDistillation, int]:
    """(what makes a worker's objective, bytes that its teacher takes there). UserError for a teacher that cannot be."""
    from raygpt.distill.stored import check_states, is_stored, read_states_manifest
    from raygpt.distill.teacher_states import MakeDistillation, teacher_bytes

    settings = config.distill
    assert settings.teacher is not None
    if is_stored(settings.teacher):
        manifest = read_states_manifest(settings.teacher)
        wanted = _transport(config, manifest.transport.width, job.model.vocab_size)
        check_states(settings.teacher, manifest, job.train, wanted, job.model.vocab_size, job.train_uri)
        cache = int(config.data.cache_gb * 1e9)
        make = MakeDistillation(wanted, settings.alpha, settings.divergence, stored=settings.teacher, cache_bytes=cache)
    else:
        teacher = _teacher_until_now(job) or settings.teacher
        source = _source(config, job.train_uri, seq_len=job.plan.order.seq_len, student=job.model, teacher=teacher)
        wanted = _transport(config, source.width, job.model.vocab_size)
        make = MakeDistillation(wanted, settings.alpha, settings.divergence, teacher=source)
    return make, teacher_bytes(make)


def _teacher_until_now(job: Resolved) -> str:
    """Where the weights lie that the run has learned from; empty for one that begins. A teacher that is named as a run
    may have trained on since. UserError where they are gone."""
    from raygpt import storage
    from raygpt.parallel import checkpoint

    found = checkpoint.complete_checkpoints(job.run) if job.done_steps else []
    teacher = checkpoint.read_state(found[0]).teacher if found else ""
    where = storage.locate(teacher) if teacher else None
    if where is not None and checkpoint.step_of(where.name) is not None and not checkpoint.is_finished(where):
        raise UserError(
            f"run {job.run.uri} learned from {teacher}, which is gone: put it back, or begin anew under another "
            "run.name."
        )
    return teacher


def _source(
    config: Config, train: str, *, seq_len: int, student: object = None, teacher: str | None = None
) -> TeacherSource:
    from raygpt import storage
    from raygpt.data.shards import TOKENIZER, load_manifest
    from raygpt.distill.teacher_states import find_teacher

    assert config.distill.teacher is not None
    return find_teacher(
        teacher or config.distill.teacher,
        load_manifest(train).tokenizer,
        storage.read_bytes(storage.locate(train) / TOKENIZER),
        precision=config.teacher.precision,
        seq_len=seq_len,
        student=student,
    )


def _transport(config: Config, width: int, vocab_size: int) -> Transport:
    from raygpt.distill.transport import Transport

    settings = config.distill
    return Transport(
        settings.transport, width, vocab_size, settings.temperature, top_k=settings.top_k, samples=settings.samples
    )


def _store(config: Config, call: Call) -> int:
    """Write the teacher's states of data.train; train nothing."""
    from raygpt import storage
    from raygpt.cluster.connect import connect, training_need, wants_gpu
    from raygpt.data.shards import load_manifest
    from raygpt.data.sources import shard_folders
    from raygpt.distill.store_run import Workers, store_states
    from raygpt.distill.storing import StatesPlan, begun, teacher_digest
    from raygpt.jobs.prepare import with_prepared_data
    from raygpt.parallel import checkpoint
    from raygpt.run.frame import check_start, run_job, run_location

    settings = config.distill
    assert settings.store is not None and settings.teacher is not None
    if config.scale.worker_range[0] != config.scale.worker_range[1]:
        raise UserError("scale.num_workers must be one number with distill.store: a rerun may use another one.")
    storage.check_writable(storage.locate(settings.store), "distill.store")
    if checkpoint.complete_checkpoints(run_location(config)):
        raise UserError(
            f"run {run_location(config).uri} is a training run: give the writing of distill.store another run.name."
        )
    folder = storage.locate(settings.store)
    check_start(config, lambda _: begun(folder), "stored states")
    print(connect(config.scale, training_need(config.scale)), flush=True)
    prepared = with_prepared_data(config)
    train, _ = shard_folders(prepared.data.train, prepared.data.val)
    source = _source(config, train, seq_len=1)
    plan = StatesPlan(
        load_manifest(train).layout(train),
        storage.locate(settings.store).uri,
        source.uri,
        teacher_digest(source.weights()),
        _transport(config, source.width, source.vocab_size),
        source.seq_len if config.data.seq_len is None else min(source.seq_len, 2 * config.data.seq_len),
        config.run.seed,
    )
    workers = Workers(
        config.scale.worker_range[1], wants_gpu(config.scale), config.scale.cpus_per_worker, config.train.max_failures
    )
    return run_job(
        config,
        lambda run: store_states(run, plan, source, workers),
        again=call.command,
        stopping="finishing the parts in hand",
    ).exit_status
