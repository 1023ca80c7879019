"""`raygpt evaluate`: loss, perplexity and bits per byte of a model on token shards or raw text.

With --base and --tuned: what fine-tuning bought, as one page.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from raygpt import storage
from raygpt.config import Config
from raygpt.config.checks import base_tokenizer
from raygpt.config.job import Call, Job
from raygpt.config.section import Problem
from raygpt.errors import UserError

if TYPE_CHECKING:
    from raygpt.evaluate.held_out import HeldOut
    from raygpt.evaluate.subject import Subject
    from raygpt.train.evaluation import Evaluation


def _both_sides(config: Config) -> Iterator[Problem]:
    if bool(config.compare.base) != bool(config.compare.tuned):
        given, other = ("base", "tuned") if config.compare.base else ("tuned", "base")
        yield f"compare.{other}", f"is not set but compare.{given} is: a comparison needs both"


DECLARATION = Job(
    "evaluate",
    "validation loss, perplexity, bits per byte; --base and --tuned: what fine-tuning bought",
    ("run", "scale", "model", "data", "prepare", "eval", "train", "compare", "sample"),
    reads=("task", "tune"),
    aliases=(("base", "compare.base"), ("tuned", "compare.tuned")),
    checks=(_both_sides, base_tokenizer),
    place=70,
)


def run(config: Config, call: Call) -> int:
    from raygpt.evaluate.held_out import open_held_out
    from raygpt.evaluate.subject import open_subject

    if config.compare.base is not None:
        return run_comparison(config)
    if config.task.name:
        from raygpt.evaluate.classification import run_evaluation

        return run_evaluation(config)
    subject = open_subject(config)
    print(subject.describe(), flush=True)
    held_out = open_held_out(
        validation_uri(config, subject),
        subject.tokenizer,
        subset=config.prepare.subset,
        text_column=config.data.text_column or config.prepare.text_column,
        encoding_errors=config.prepare.encoding_errors,
        split_text=config.prepare.split_text,
        max_document_mb=config.prepare.max_document_mb,
        cache_bytes=int(config.data.cache_gb * 1e9),
    )
    print(f"Data {held_out.uri}: {held_out.reader.total_tokens:,} tokens, {held_out.bytes:,} bytes of text", flush=True)
    result = measure(config, subject, held_out)
    print(sentence(result))
    # the last line is for scripts
    print(json.dumps(as_dict(subject, held_out, result)), flush=True)
    return 0


def run_comparison(config: Config) -> int:
    """Compare compare.tuned with compare.base; the page and comparison.json go to compare.output."""
    from raygpt.evaluate.compare import compare
    from raygpt.evaluate.compare_figures import in_short
    from raygpt.evaluate.compare_report import PAGE, write_comparison
    from raygpt.evaluate.compare_subjects import open_both, output_folder

    base, tuned = open_both(config)
    target = output_folder(config, tuned)
    storage.check_writable(target, "compare.output" if config.compare.output else "the tuned run's folder")
    print(f"Base: {base.describe()}\nTuned: {tuned.describe()}", flush=True)
    comparison = compare(config, base, tuned)
    figures = write_comparison(comparison, config, target)
    print("\n".join(figures["headlines"]))
    for what, why in figures["notes"].items():
        print(f"Not measured ({what}): {why}")
    print(f"Page: {(target / PAGE).uri}")
    # the last line is for scripts
    print(json.dumps(in_short(figures) | {"page": (target / PAGE).uri}), flush=True)
    return 0


def validation_uri(config: Config, subject: Subject) -> str:
    """data.val as set, or that of the run's own config."""
    from raygpt.data.sources import shard_folders

    if config.data.val is not None:
        return config.data.val
    source = config if config.data.train is not None else subject.config
    if source is None or source.data.train is None:
        raise UserError("data.val is not set: name the shard folder or the text to evaluate on.")
    return shard_folders(source.data.train, source.data.val)[1]


def measure(config: Config, subject: Subject, held_out: HeldOut) -> Evaluation:
    """Evaluate with the settings of `config` and, where they say nothing, of the run."""
    from raygpt.evaluate.held_out import evaluate_held_out
    from raygpt.track.meter import Meter

    trained = subject.config or config
    seq_len = config.data.seq_len or trained.data.seq_len or subject.model.config.seq_len
    if seq_len > subject.model.config.seq_len:
        longest = subject.model.config.seq_len
        raise UserError(f"data.seq_len={seq_len} exceeds the model's context of {longest}: lower it or leave it out.")
    rows = None
    if config.eval.batches is not None:
        rows = max(1, config.eval.batches * trained.train.global_batch_tokens // seq_len)
    micro = config.train.micro_batch_size
    meter = Meter("evaluate", sys.stdout)
    try:
        return evaluate_held_out(
            subject,
            held_out,
            seq_len,
            batch_rows=micro if isinstance(micro, int) else None,
            max_rows=rows,
            on_progress=meter.show,
        )
    finally:
        meter.close()


def sentence(result: Evaluation) -> str:
    """The figures in one line for people."""
    bits = "" if result.bits_per_byte is None else f", {result.bits_per_byte:.4f} bits per byte"
    loss = f"Loss {result.loss:.4f} nats per token, perplexity {result.perplexity:.2f}"
    return f"{loss}{bits} over {result.tokens:,} tokens"


def as_dict(subject: Subject, held_out: HeldOut, result: Evaluation) -> dict[str, object]:
    """The figures by name; absent rather than guessed."""
    facts: dict[str, object] = {
        "loss": result.loss,
        "perplexity": result.perplexity,
        "bits_per_byte": result.bits_per_byte,
        "tokens": result.tokens,
        "rows": result.rows,
        "model": subject.origin,
        "step": subject.state.step if subject.state else None,
        "data": held_out.uri,
        "fingerprint": held_out.fingerprint,
    }
    return {name: value for name, value in facts.items() if value is not None}
