"""What is wrong with a config that no single key shows: what each section finds, and checks that cross sections.

A job names in its declaration the crossing checks that hold for it.
"""

from __future__ import annotations

from collections.abc import Iterator

from raygpt.config.job import Job
from raygpt.config.section import Problem, Section
from raygpt.config.tree import Config


def problems(config: Config, job: Job | None = None) -> list[Problem]:
    """(dotted key, what is wrong and the way out): of the sections that the job reads (without one: of all), and of
    the job's own checks."""
    found = []
    for name in type(config).model_fields:
        section = getattr(config, name)
        if isinstance(section, Section) and (job is None or name in job.all_sections):
            found += [(f"{name}.{key}", text) for key, text in section.problems()]
    for check in job.checks if job is not None else ():
        found += check(config)
    return found


def training_text(config: Config) -> Iterator[Problem]:
    """A language model is trained: on something, and for some length."""
    if not config.data.train:
        yield "data.train", "is not set: name a shard folder or raw text"
    if not config.train.lengths:
        yield (
            "train.max_steps",
            "is not set: set exactly one of train.max_steps, train.max_tokens, train.epochs",
        )


def classifier(config: Config) -> Iterator[Problem]:
    """A classifier is trained: on a task, in whole epochs."""
    if not config.task.train:
        yield "task.train", "is not set: name a CSV, TSV or JSONL file, a folder with train.*, or glue/mrpc"
    epochs = config.train.epochs
    if epochs is None or epochs != int(epochs):
        yield "train.epochs", "must be a whole number: classification trains in whole epochs"
    for key in ("max_steps", "max_tokens"):
        if getattr(config.train, key) is not None:
            yield f"train.{key}", "has no meaning for a classification task: set train.epochs"
    # one process, one optimizer, all weights
    if config.optim.name != "adamw":
        yield "optim.name", "must be adamw for a classification task"
    if config.model.lora_rank:
        yield "model.lora_rank", "has no meaning for a classification task, which trains all weights: leave it out"
    if config.train.strategy != "ddp":
        yield "train.strategy", "has no meaning for a classification task, which trains in one process: leave it out"


def base_tokenizer(config: Config) -> Iterator[Problem]:
    if config.data.tokenizer == "base" and config.model.init_from == "random":
        yield "data.tokenizer", "is base but model.init_from names no model: name a tokenizer"


def strategy(config: Config) -> Iterator[Problem]:
    """Adapters, DeepSpeed and elastic workers do not all go together."""
    sharded = config.train.strategy != "ddp"
    if config.model.lora_rank and config.model.init_from == "random":
        yield "model.lora_rank", "needs a model to adapt: set model.init_from, or model.lora_rank to 0"
    if config.model.lora_rank and sharded:
        yield "model.lora_rank", "needs train.strategy=ddp: adapters leave ZeRO nothing to share out"
    low, high = config.scale.worker_range
    if sharded and low != high:
        yield (
            "scale.num_workers",
            "must be one number with DeepSpeed: a resume may use another one, a run not change it",
        )
