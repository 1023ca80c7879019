"""`raygpt quickstart`: the whole of raygpt in a few minutes, on text that every Python installation carries."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from raygpt import storage
from raygpt.config.checks import base_tokenizer
from raygpt.config.job import Call, Job
from raygpt.data.stdlib_corpus import place_corpus
from raygpt.storage import Location

if TYPE_CHECKING:
    from raygpt.config import Config
    from raygpt.config.job import Call
    from raygpt.evaluate.subject import Subject
    from raygpt.train.evaluation import Evaluation


DECLARATION = Job(
    "quickstart",
    "train a small GPT on this Python's own documentation",
    ("run", "scale", "model", "prepare", "data", "optim", "train", "eval", "track", "sample"),
    config=str(Path(__file__).with_name("quickstart.yaml")),
    checks=(base_tokenizer,),
    place=10,
)


def run(config: Config, call: Call) -> int:
    _say("The quick start takes one to three minutes on two cores. Ctrl-C stops it; the same command goes on.\n")
    _say("1/5 Corpus: documentation and sources of this Python's standard library")
    # in a process of its own: meanwhile this one loads torch, and a cluster starts
    with ProcessPoolExecutor(1, get_context("spawn")) as beside:
        placing = beside.submit(place_corpus, config.run.storage)

        from raygpt.cluster.connect import connect, training_need
        from raygpt.jobs.pretrain import check_places

        check_places(config)
        cluster = connect(config.scale, training_need(config.scale))
        import torch

        from raygpt.data.reader import TokenReader
        from raygpt.evaluate.held_out import open_held_out
        from raygpt.evaluate.yardsticks import yardsticks
        from raygpt.jobs.evaluate import chosen_subject, measure
        from raygpt.jobs.prepare import with_prepared_data
        from raygpt.jobs.sample import write_samples
        from raygpt.train.resolve import resolve
        from raygpt.train.trainer import run_training

        corpus = placing.result()
    _say(f"    {corpus}")

    _say("2/5 Tokens")
    _say(cluster)
    train_on_it = config.data.model_copy(update={"train": corpus, "val": None})
    config = with_prepared_data(config.model_copy(update={"data": train_on_it}))

    _say("\n3/5 Training")
    job = resolve(config)
    outcome = run_training(config, job, call.command)
    if outcome.outcome in ("stopped", "budget"):
        return outcome.exit_status

    _say("\n4/5 Evaluation and samples")
    # so small a model: where other processes share the cores, a second thread waits longer than it works
    torch.set_num_threads(1)
    subject = chosen_subject(config)
    held_out = open_held_out(job.val_uri, subject.tokenizer)
    result = measure(config, subject, held_out)
    train, val = TokenReader(job.train_uri), TokenReader(job.val_uri)
    known = yardsticks(train.read(0, train.total_tokens), val.read(0, val.total_tokens), job.train.tokenizer.vocab_size)
    samples = write_samples(config, subject, sys.stdout)

    _say("\n5/5 Report")
    page = report(subject, result, known, samples)
    _say(f"    {page.uri}\n")
    _say(comparison(result, known))
    _say(closing(result, known))
    _say("Yardsticks count training tokens: how often each occurs (unigram), and how often after each other (bigram).")
    _say("\nWhat to try next")
    for command, what in next_steps(config):
        _say(f"  {what}:\n    {command}")
    return 0


def report(subject: Subject, result: Evaluation, known: Mapping[str, float], samples: list[str]) -> Location:
    """Add what was found to the run's summary, where `raygpt report` finds it again, and write the page."""
    from raygpt.track.report import write_report

    assert subject.run is not None
    where = subject.run / "summary.json"
    if storage.exists(where):
        summary = json.loads(storage.read_text(where))
        summary |= {"bits_per_byte": result.bits_per_byte, "yardsticks": dict(known), "samples": samples}
        storage.write_text(where, json.dumps(summary, indent=2) + "\n")
    return write_report(subject.run, yardsticks=known, samples=samples)


def comparison(result: Evaluation, known: Mapping[str, float]) -> str:
    """A table of the model and its yardsticks on the same tokens."""
    # a yardstick's bits per byte: the same tokens over the same bytes
    per_nat = (result.bits_per_byte or math.nan) / result.loss
    rows = [*known.items(), ("this model", result.loss)]
    lines = [f"Validation: {result.tokens:,} tokens that were not trained on   nats/token  bits/byte  perplexity"]
    width = len(lines[0]) - len("  nats/token  bits/byte  perplexity")
    for name, loss in rows:
        lines.append(f"  {name:{width - 2}s}  {loss:10.4f}  {loss * per_nat:9.4f}  {math.exp(loss):10.2f}")
    return "\n".join(lines)


def closing(result: Evaluation, known: Mapping[str, float]) -> str:
    """Whether the model learned more than what its yardsticks know."""
    best = min(known, key=lambda name: known[name])
    gap = known[best] - result.loss
    if gap <= 0:
        return f"The {best} is not beaten yet: train on with a larger --train.max_steps."
    return f"The model is {gap:.2f} nats per token better than the {best}: it uses more than the token before."


def next_steps(config: Config) -> list[tuple[str, str]]:
    """(command, what it does), each of which works as it stands."""
    run = [f"--run.name={config.run.name}"]
    if config.run.storage != "runs":
        run.append(f"--run.storage={config.run.storage}")
    steps = max(1, config.train.max_steps or 1000)
    own_text = ["--data.train=my.txt", "--data.tokenizer=bytes", "--prepare.val_split=tail", "--model.preset=nano"]
    size = ["--train.max_steps=2000", "--train.global_batch_tokens=1024"]
    commands = [
        (["sample", *run, "--sample.prompt=def read("], "More text, after a beginning of yours"),
        (["evaluate", *run, "--data.val=my.txt"], "How well it knows another text"),
        (["export", *run], "A folder for Hugging Face transformers"),
        (["quickstart", "--run.name=longer", *run[1:], f"--train.max_steps={4 * steps}"], "Four times the training"),
        (["pretrain", "--run.name=mine", *run[1:], *own_text, *size], "A model of your own text"),
    ]
    return [(shlex.join([_program(), *words]), what) for words, what in commands]


def _program() -> str:
    # `make quickstart` runs it from an environment that is not activated
    beside = Path(sys.executable).with_name("raygpt")
    return "raygpt" if shutil.which("raygpt") or not beside.exists() else os.path.relpath(beside)


def _say(text: str) -> None:
    print(text, flush=True)
