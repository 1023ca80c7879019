"""`raygpt distill`: a student learns from a teacher, from text it wrote (sequence) or its probabilities (logits)."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from raygpt.config import Config
from raygpt.config.checks import base_tokenizer, strategy, training_text
from raygpt.config.job import Call, Job
from raygpt.config.section import Problem

if TYPE_CHECKING:
    from raygpt.train.resolve import RealText


def _whole(config: Config) -> Iterator[Problem]:
    """What each mode needs beside the text."""
    if config.distill.mode == "logits" and config.distill.teacher is None:
        yield "distill.teacher", "is not set: name the run, checkpoint, Hugging Face folder or id to learn from"


DECLARATION = Job(
    "distill",
    "train a student on what a teacher wrote, or on its probabilities",
    ("run", "scale", "model", "data", "prepare", "optim", "train", "eval", "track", "plan", "distill"),
    reads=("teacher",),
    flags=("dry_run",),
    checks=(training_text, _whole, strategy, base_tokenizer),
    place=45,
)


def run(config: Config, call: Call) -> int:
    return _sequence(config, call) if config.distill.mode == "sequence" else _logits(config, call)


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


def _logits(config: Config, call: Call) -> int:
    """Training on the teacher's probabilities for data.train."""
    raise NotImplementedError
