"""`raygpt finetune`: an existing GPT-2 and one's own documents, on pretrain's machinery with finetune.yaml's defaults.

With task.name set it trains a classifier instead, as the best.yaml of a sweep asks for.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from raygpt.config import Config
from raygpt.config.checks import base_tokenizer, classifier, strategy, training_text
from raygpt.config.job import Call, Job
from raygpt.config.section import Problem


def _base_and_data(config: Config) -> Iterator[Problem]:
    yield from classifier(config) if config.task.name else training_text(config)
    if config.model.init_from == "random":
        yield "model.init_from", "is not set: name the model to fine-tune (a run, a Hugging Face folder or id)"


DECLARATION = Job(
    "finetune",
    "fine-tune a GPT-2 on your own documents",
    ("run", "scale", "model", "data", "prepare", "optim", "train", "eval", "track", "sample", "plan"),
    reads=("task", "tune"),
    flags=("dry_run", "print_deepspeed"),
    base=str(Path(__file__).with_name("finetune.yaml")),
    checks=(_base_and_data, strategy, base_tokenizer),
    place=40,
)


def run(config: Config, call: Call) -> int:
    from raygpt.jobs import pretrain
    from raygpt.run.frame import run_location

    if config.task.name:
        from raygpt.jobs.tune import finetune_task

        return finetune_task(config, call)
    status = pretrain.run(config, call)
    if status == 0 and not call.flags & {"dry_run", "print_deepspeed"}:
        tuned = _best_or_newest(config)
        pair = [f"--base={config.model.init_from}", f"--tuned={tuned}"]
        print(f"What it bought: {shlex.join(['raygpt', 'evaluate', *pair])}")
        output = f"--export.output={(run_location(config) / 'export').uri}"
        print(
            f"Hugging Face folder: {shlex.join(['raygpt', 'export', f'--model.init_from={tuned}', output])}", flush=True
        )
    return status


def _best_or_newest(config: Config) -> str:
    """The checkpoint of the best evaluation where training went on past it, else the run."""
    from raygpt.parallel import checkpoint
    from raygpt.run.frame import run_location

    run = run_location(config)
    found = checkpoint.complete_checkpoints(run)
    best = checkpoint.read_state(found[0]).best_step if found else None
    steps = [checkpoint.step_of(where.name) for where in found]
    if best in steps[1:]:
        return (run / checkpoint.FOLDER / checkpoint.BEST).uri
    return run.uri
