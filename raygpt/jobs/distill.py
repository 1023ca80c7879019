"""`raygpt distill`: a student learns from a teacher: from text it wrote, or from its probabilities (logits)."""

from __future__ import annotations

from collections.abc import Iterator

from raygpt.config import Config
from raygpt.config.checks import base_tokenizer, strategy, training_text
from raygpt.config.job import Call, Job
from raygpt.config.section import Problem


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
    """Fine-tuning on synthetic shards, mixed with real ones."""
    raise NotImplementedError


def _logits(config: Config, call: Call) -> int:
    """Training on the teacher's probabilities for data.train."""
    raise NotImplementedError
