"""`raygpt evaluate`: loss, perplexity and bits per byte of a model on token shards or raw text.

With eval.tasks: HellaSwag, LAMBADA, WikiText and more, as a run (`raygpt.jobs.evaluate_tasks`). With --base and
--tuned: what fine-tuning bought, as one page. With --compare: several models side by side.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from raygpt import storage
from raygpt.config import Config
from raygpt.config.checks import base_tokenizer
from raygpt.config.job import Call, Job
from raygpt.config.section import Problem
from raygpt.errors import UserError

if TYPE_CHECKING:
    from raygpt.evaluate.arms import Arm
    from raygpt.evaluate.compare_settings import ComparisonSettings
    from raygpt.evaluate.documents import Documents
    from raygpt.evaluate.held_out import HeldOut
    from raygpt.evaluate.subject import Subject
    from raygpt.storage import Location
    from raygpt.train.evaluation import Evaluation


def _both_sides(config: Config) -> Iterator[Problem]:
    if bool(config.compare.base) != bool(config.compare.tuned):
        given, other = ("base", "tuned") if config.compare.base else ("tuned", "base")
        yield f"compare.{other}", f"is not set but compare.{given} is: a comparison needs both"
    if len(config.compare.models) == 1 and config.eval.endpoint is None:
        yield "compare.models", "names one model: name the one that it is held against first"
    if config.compare.models and config.compare.base:
        yield "compare.base", "is set beside compare.models: name that model first there"


def _endpoint_and_tasks(config: Config) -> Iterator[Problem]:
    wanted = config.eval
    if wanted.endpoint is not None and not wanted.chosen_tasks:
        yield "eval.endpoint", "is set but no task: name some with eval.tasks (wikitext, lambada, hellaswag)"
    if wanted.endpoint is not None and wanted.chat:
        yield "eval.chat", "has no meaning with eval.endpoint, which is asked for plain continuations: leave it out"
    if wanted.endpoint is not None:
        for name in {"loss", "classification"} & set(wanted.chosen_tasks):
            yield (
                "eval.tasks",
                f"has {name}, which needs the weights: a served model answers wikitext, lambada, hellaswag",
            )
    if wanted.chosen_tasks and config.compare.base:
        yield "compare.base", "is set beside eval.tasks: name both models with compare.models, the base first"


DECLARATION = Job(
    "evaluate",
    "loss, perplexity, HellaSwag and more of a model; --base and --tuned, or --compare: of several",
    ("run", "scale", "model", "data", "prepare", "eval", "train", "compare", "sample", "track"),
    reads=("task", "tune"),
    aliases=(
        ("base", "compare.base"),
        ("tuned", "compare.tuned"),
        ("compare", "compare.models"),
        ("tasks", "eval.tasks"),
    ),
    lists=("compare", "tasks"),
    checks=(_both_sides, _endpoint_and_tasks, base_tokenizer),
    place=70,
)


def run(config: Config, call: Call) -> int:
    from raygpt.evaluate.held_out import open_held_out
    from raygpt.jobs.evaluate_tasks import held_out_options, run_tasks

    if config.eval.chosen_tasks:
        return run_tasks(config, call)
    if config.compare.models:
        return run_side_by_side(config)
    if config.compare.base is not None:
        return run_comparison(config)
    if config.task.name:
        return run_classification(config)
    subject = chosen_subject(config)
    print(subject.describe(), flush=True)
    held_out = open_held_out(
        validation_uri(config, subject),
        subject.tokenizer,
        **held_out_options(config),
    )
    print(f"Data {held_out.uri}: {held_out.reader.total_tokens:,} tokens, {held_out.bytes:,} bytes of text", flush=True)
    result = measure(config, subject, held_out)
    print(sentence(result))
    # the last line is for scripts
    print(json.dumps(as_dict(subject, held_out, result)), flush=True)
    return 0


def chosen_subject(config: Config) -> Subject:
    """The model that a job looks at: model.init_from, or the newest checkpoint of the run run.storage/run.name."""
    from raygpt.evaluate.subject import open_subject, subject_uri
    from raygpt.run.frame import run_location

    uri = subject_uri(config.model.init_from, run_location(config))
    return open_subject(uri, **subject_options(config))


def subject_options(config: Config) -> dict[str, Any]:
    """What the settings say of how a model is opened."""
    return {
        "tokenizer": config.data.tokenizer,
        "use_gpu": config.scale.use_gpu,
        "precision": config.train.precision,
    }


def run_classification(config: Config) -> int:
    """Where task.name is set: the classifier on task.test, or else on the validation file."""
    from raygpt.evaluate.classification import labelled_file, score_classifier
    from raygpt.run.frame import run_location

    task, run = config.task, run_location(config)
    given = [storage.locate(config.model.init_from)] if config.model.init_from != "random" else []
    scores = score_classifier(
        [*given, run],
        labelled_file(task.test, task.train, task.val),
        text_columns=task.text_columns,
        label_column=task.label_column,
        resamples=config.tune.resamples,
        missing=f"run {run.uri} has no classifier in export/: run `raygpt finetune` on the task first, or name a "
        "classifier's folder with model.init_from.",
    )
    print(f"Model {scores.origin}\nData {scores.data}\n{scores.sentence()}")
    # the last line is for scripts
    print(json.dumps(scores.to_dict()), flush=True)
    return 0


def comparison_settings(config: Config) -> ComparisonSettings:
    """What the settings ask of a comparison."""
    from raygpt.evaluate.compare_settings import ComparisonSettings

    wanted, sample = config.compare, config.sample
    return ComparisonSettings(
        domain=wanted.domain or config.data.val,
        general=wanted.general,
        terms=wanted.terms,
        train=config.data.train,
        num_terms=wanted.num_terms,
        documents=wanted.documents,
        resamples=wanted.resamples,
        samples=wanted.samples,
        sample_tokens=wanted.sample_tokens,
        overlap_tokens=wanted.overlap_tokens,
        seq_len=config.data.seq_len,
        seed=config.run.seed,
        temperature=sample.temperature,
        top_k=sample.top_k,
        top_p=sample.top_p,
        domain_column=config.data.text_column,
        text_column=config.prepare.text_column,
        encoding_errors=config.prepare.encoding_errors,
        subset=config.prepare.subset,
        max_documents=config.prepare.max_documents,
        cache_bytes=int(config.data.cache_gb * 1e9),
    )


def run_comparison(config: Config) -> int:
    """Compare compare.tuned with compare.base; the page and comparison.json go to compare.output."""
    from raygpt.evaluate.compare import compare
    from raygpt.evaluate.compare_figures import in_short
    from raygpt.evaluate.compare_report import PAGE, write_comparison
    from raygpt.evaluate.compare_subjects import open_both, output_folder

    assert config.compare.base is not None and config.compare.tuned is not None
    base, tuned = open_both(config.compare.base, config.compare.tuned, config.run.storage, **subject_options(config))
    target = output_folder(config.compare.output, tuned)
    storage.check_writable(target, "compare.output" if config.compare.output else "the tuned run's folder")
    print(f"Base: {base.describe()}\nTuned: {tuned.describe()}", flush=True)
    comparison = compare(comparison_settings(config), base, tuned)
    figures = write_comparison(comparison, target)
    print("\n".join(figures["headlines"]))
    for what, why in figures["notes"].items():
        print(f"Not measured ({what}): {why}")
    print(f"Page: {(target / PAGE).uri}")
    # the last line is for scripts
    print(json.dumps(in_short(figures) | {"page": (target / PAGE).uri}), flush=True)
    return 0


def run_side_by_side(config: Config) -> int:
    """Compare compare.models with the first of them; the page and arms.json go to compare.output."""
    from raygpt.evaluate.arms import find_arms
    from raygpt.evaluate.arms_report import PAGE, in_short, lines, write_arms
    from raygpt.evaluate.compare_arms import ArmSettings, compare_arms
    from raygpt.evaluate.subject import open_subject

    wanted, sample = config.compare, config.sample
    settings = ArmSettings(
        samples=wanted.samples,
        sample_tokens=wanted.sample_tokens,
        resamples=wanted.resamples,
        seq_len=config.data.seq_len,
        seed=config.run.seed,
        temperature=sample.temperature,
        top_k=sample.top_k,
        top_p=sample.top_p,
    )
    arms = find_arms(wanted.models, config.run.storage)
    target = arms_folder(config, arms)
    storage.check_writable(target, "compare.output" if wanted.output else "the compared run's folder")
    texts, notes = held_out_texts(config, arms)
    options = subject_options(config)
    compared = compare_arms(settings, arms, texts, lambda uri: open_subject(uri, **options))
    figures = write_arms(compared, notes, target)
    print("\n".join(lines(figures)))
    for note in notes:
        print(note)
    print(f"Page: {(target / PAGE).uri}")
    # the last line is for scripts
    print(json.dumps(in_short(figures) | {"page": (target / PAGE).uri}), flush=True)
    return 0


def arms_folder(config: Config, arms: Sequence[Arm]) -> Location:
    """compare.output, or comparison/ in the folder of the last run that is compared."""
    if config.compare.output is not None:
        return storage.locate(config.compare.output)
    runs = [arm.run for arm in arms if arm.run is not None]
    if not runs:
        raise UserError("compare.output is not set, and no model of compare.models lies in a run: name a folder.")
    return runs[-1] / "comparison"


def held_out_texts(config: Config, arms: list[Arm]) -> tuple[dict[str, Documents], list[str]]:
    """({name: documents}, what is missing and why) of the texts that the models are compared on."""
    from raygpt.evaluate.arms import held_out
    from raygpt.evaluate.documents import open_documents

    found_real, found_synthetic = held_out(arms)
    chosen = {
        "real": config.compare.real or config.data.val or found_real,
        "synthetic": config.compare.synthetic or found_synthetic,
    }
    texts = {
        name: open_documents(
            uri,
            config.compare.documents,
            f"compare.{name}",
            subset=config.prepare.subset,
            text_column=config.data.text_column or config.prepare.text_column,
            encoding_errors=config.prepare.encoding_errors,
            cache_bytes=int(config.data.cache_gb * 1e9),
            max_documents=config.prepare.max_documents,
        )
        for name, uri in chosen.items()
        if uri is not None
    }
    if not texts:
        raise UserError("compare.real is not set, and no run of compare.models says what it held out: name text.")
    missing = [f"Not measured ({name} text): name it with --compare.{name}." for name in chosen if name not in texts]
    return texts, missing


def validation_uri(config: Config, subject: Subject) -> str:
    """data.val as set, or that of the run's own config."""
    from raygpt.evaluate import held_out

    return held_out.validation_uri(config.data.val, config.data.train, subject)


def measure(config: Config, subject: Subject, held_out: HeldOut) -> Evaluation:
    """Evaluate with the settings of `config` and, where they say nothing, of the run."""
    from raygpt.evaluate.held_out import evaluate_held_out, most_rows, rows_of
    from raygpt.track.meter import Meter

    seq_len = rows_of(config.data.seq_len, subject)
    micro = config.train.micro_batch_size
    meter = Meter("evaluate", sys.stdout)
    try:
        return evaluate_held_out(
            subject,
            held_out,
            seq_len,
            batch_rows=micro if isinstance(micro, int) else None,
            max_rows=most_rows(config.eval.batches, config.train.global_batch_tokens, seq_len, subject),
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
