"""`raygpt evaluate` with eval.tasks: an evaluation is a run, of one model or of each that is compared."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from raygpt import storage
from raygpt.config import Config
from raygpt.config.job import Call
from raygpt.config.places import check_outlasts
from raygpt.errors import UserError

if TYPE_CHECKING:
    from raygpt.evaluate.answering import ModelSource
    from raygpt.evaluate.task_run import Measured
    from raygpt.evaluate.task_workers import Workers
    from raygpt.evaluate.tasks import Task
    from raygpt.run.frame import Outcome
    from raygpt.storage import Location

EVALUATION = "evaluation"  # its folder in a model's run


def run_tasks(config: Config, call: Call) -> int:
    """Measure eval.tasks; with compare.models of each of them, side by side."""
    sources = [(_connected(source), folder) for source, folder in chosen_sources(config)]
    several = len(sources) > 1
    found: list[Measured] = []
    asked: dict[str, tuple[Task, list[Any]]] = {}
    for source, folder in sources:
        for task in chosen_tasks(config, source):
            if task.name not in asked or asked[task.name][0] != task:  # each its own classifier or held-out text
                asked[task.name] = task, task.read()
        outcome = measure_tasks(config, call, source, folder, list(asked.values()), found)
        if outcome.exit_status or len(found) < 1 or found[-1].folder.uri != folder.uri:
            print(json.dumps({"outcome": outcome.outcome, "evaluation": folder.uri}), flush=True)
            return outcome.exit_status
    return _compared(config, found) if several else _alone(found[0])


def _connected(source: ModelSource) -> ModelSource:
    """A served model as it is now; whether it can be asked at all is told before any folder is made."""
    from raygpt.evaluate.served import connect

    return source if source.served is None else connect(source)


def measure_tasks(
    config: Config,
    call: Call,
    source: ModelSource,
    folder: Location,
    asked: Sequence[tuple[Task, list[Any]]],
    found: list[Measured],
) -> Outcome:
    """One model's run, in `folder`; what it measured is added to `found`."""
    from raygpt.evaluate.task_parts import FOLDER
    from raygpt.evaluate.task_run import evaluate_tasks
    from raygpt.run.frame import check_start, run_job

    storage.check_writable(folder, "eval.output" if config.eval.output else "eval.output is not set, and the folder")
    own = _own_config(config, source, folder)
    check_start(own, lambda where: storage.exists(where / FOLDER), "evaluation")
    return run_job(
        own,
        lambda run: evaluate_tasks(run, source, asked, chosen_workers(config, source), found),
        again=call.command,
        stopping="finishing the items in hand",
    )


def _own_config(config: Config, source: ModelSource, folder: Location) -> Config:
    """The config as this one evaluation was: its folder is the run's, its model the checkpoint that was looked at."""
    return config.model_copy(
        update={
            "run": config.run.model_copy(update={"storage": folder.parent.uri, "name": folder.name}),
            "model": config.model.model_copy(update={"init_from": source.uri or config.model.init_from}),
            "eval": config.eval.model_copy(update={"output": folder.uri}),
            "compare": config.compare.model_copy(update={"models": []}),
        }
    )


def chosen_sources(config: Config) -> list[tuple[ModelSource, Location]]:
    """Every model that is measured, with the folder of its evaluation."""
    from raygpt.evaluate.answering import ModelSource, ServedModel, find_source
    from raygpt.evaluate.compare_subjects import check_run, model_uri
    from raygpt.evaluate.subject import subject_uri
    from raygpt.run.frame import run_location

    wanted = config.eval
    options: dict[str, Any] = {
        "use_gpu": config.scale.use_gpu,
        "precision": config.train.precision,
        "batch_tokens": wanted.batch_tokens,
        "chat": wanted.chat,
    }
    found: list[ModelSource] = []
    for name in config.compare.models:
        uri = model_uri("base", name, config.run.storage)
        check_run(uri, "models")
        found.append(find_source(uri, tokenizer=config.data.tokenizer, **options))
    if wanted.endpoint is not None:
        served = ServedModel(wanted.endpoint.rstrip("/"), wanted.model, wanted.api_key_env, config.data.seq_len)
        name = (wanted.model or wanted.endpoint.split("://")[1].split("/")[0]).rsplit("/", 1)[-1].replace(":", "-")
        found.append(ModelSource("", name, tokenizer=_named_tokenizer(config), served=served, **options))
    if not found:
        run = run_location(config)
        if set(wanted.chosen_tasks) == {"classification"}:
            uri = run.uri if config.model.init_from == "random" else config.model.init_from
        else:
            uri = subject_uri(config.model.init_from, run)
        found.append(find_source(uri, tokenizer=config.data.tokenizer, **options))
    if len({source.shown for source in found}) < len(found):
        raise UserError("compare.models names one model twice: name each once.")
    names = [source.name for source in found]
    told = [
        replace(source, name=f"{source.name}-{n}") if names.count(source.name) > 1 else source
        for n, source in enumerate(found, start=1)
    ]
    placed = [(source, _folder(config, source, len(told) > 1)) for source in told]
    for _, folder in placed:
        check_outlasts(folder.path, "eval.output")
    return placed


def _named_tokenizer(config: Config) -> str | None:
    """data.tokenizer where somebody set it: what it is by itself is nobody's word for a served model."""
    named = config.data.tokenizer
    return named if "tokenizer" in config.data.model_fields_set and named != "base" else None


def _folder(config: Config, source: ModelSource, several: bool) -> Location:
    """eval.output (of several models a folder in it each), evaluation/ in the model's run, or one in run.storage."""
    if config.eval.output is not None:
        where = storage.locate(config.eval.output)
        return where / source.name if several else where
    if source.run is not None:
        return storage.locate(source.run) / EVALUATION
    return storage.locate(config.run.storage) / f"{EVALUATION}-{source.name}"


def chosen_tasks(config: Config, source: ModelSource) -> list[Task]:
    """eval.tasks as plain descriptions. Raises UserError for one whose text is not named."""
    make: dict[str, Callable[[Config], Task]] = {
        "loss": partial(_loss, source=source),
        "wikitext": _wikitext,
        "lambada": _lambada,
        "hellaswag": _hellaswag,
        "classification": partial(_classification, source=source),
    }
    return [make[name](config) for name in config.eval.chosen_tasks]


def _loss(config: Config, source: ModelSource) -> Task:
    from raygpt.evaluate.text_tasks import LossTask

    micro = config.train.micro_batch_size
    return LossTask(
        _validation_uri(config, source),
        config.data.seq_len,
        config.eval.batches,
        config.train.global_batch_tokens,
        micro if isinstance(micro, int) else None,
        held_out_options(config),
    )


def _validation_uri(config: Config, source: ModelSource) -> str:
    """data.val as set, or what the model's own run held out, told without its weights."""
    from raygpt.evaluate.foreign import is_foreign
    from raygpt.evaluate.held_out import validation_uri
    from raygpt.evaluate.subject import Subject, Trained, background
    from raygpt.parallel.weights import open_weights

    if config.data.val is not None:
        return config.data.val
    state = None if is_foreign(source.uri) else open_weights(source.uri).state
    saved = background(source.uri)[1] if state is not None else None
    trained = None if saved is None else Trained.of(saved)
    known = SimpleNamespace(trained=trained, state=state, mixed=trained is not None and trained.real is not None)
    return validation_uri(None, config.data.train, cast(Subject, known))


def held_out_options(config: Config) -> dict[str, Any]:
    """How held-out text is read."""
    return {
        "subset": config.prepare.subset,
        "text_column": config.data.text_column or config.prepare.text_column,
        "encoding_errors": config.prepare.encoding_errors,
        "split_text": config.prepare.split_text,
        "max_document_mb": config.prepare.max_document_mb,
        "cache_bytes": int(config.data.cache_gb * 1e9),
    }


def _wikitext(config: Config) -> Task:
    from raygpt.evaluate.text_tasks import WikitextTask

    if config.eval.wikitext is None:
        raise UserError("eval.wikitext is not set: name WikiText's test file as published (wiki.test.raw).")
    return WikitextTask(config.eval.wikitext, config.eval.stride, config.eval.limit, config.data.seq_len)


def _lambada(config: Config) -> Task:
    from raygpt.evaluate.tasks import LambadaTask
    from raygpt.scoring.lambada import HUB_ID

    return LambadaTask(config.eval.lambada or HUB_ID, config.eval.limit)


def _hellaswag(config: Config) -> Task:
    from raygpt.evaluate.tasks import HellaswagTask
    from raygpt.scoring.hellaswag import HUB_ID

    wanted = config.eval
    return HellaswagTask(wanted.hellaswag or HUB_ID, tuple(wanted.protocols), wanted.limit, wanted.chat)


def _classification(config: Config, source: ModelSource) -> Task:
    from raygpt.evaluate.classification import labelled_file
    from raygpt.evaluate.classification_task import ClassificationTask, find_classifier
    from raygpt.run.frame import run_location

    task = config.task
    data = labelled_file(task.test, task.train, task.val)
    places = [source.uri]
    if source.run is not None:  # its checkpoint is a language model's, the classifier is the run's
        places.append(source.run)
    elif not config.compare.models:
        places.append(run_location(config).uri)
    return ClassificationTask(
        *find_classifier([place for place in places if place]),
        data,
        tuple(task.text_columns),
        task.label_column,
        config.tune.resamples,
        config.eval.limit,
    )


def chosen_workers(config: Config, source: ModelSource) -> Workers:
    """scale.num_workers of them on a cluster; one, unless a cluster is named, is this process, and a served model is
    asked from here whatever their number: what computes is elsewhere."""
    from raygpt.evaluate.task_workers import Workers

    scale = config.scale
    count = scale.worker_range[1]
    named = bool(scale.address) or os.environ.get("RAY_ADDRESS", "local") != "local"
    if source.served is not None or (count == 1 and not named):
        return Workers()

    def connected() -> bool:
        from raygpt.cluster.connect import connect, training_need, wants_gpu

        print(connect(scale, training_need(scale)), flush=True)
        return wants_gpu(scale)

    return Workers(count, scale.cpus_per_worker, connected)


def _alone(measured: Measured) -> int:
    """Print one model's table and, last, its figures for scripts."""
    from raygpt.evaluate.references import references
    from raygpt.evaluate.task_run import FIGURES
    from raygpt.evaluate.task_table import published, rows, table

    tasks = measured.figures["tasks"]
    print("\n".join(table(tasks)))
    every = rows(tasks)
    found = [each for name in tasks for each in references(name, [row.protocol for row in every if row.task == name])]
    print("\n".join(published(found)), end="\n" if found else "")
    print(f"Figures: {(measured.folder / FIGURES).uri}, answers beside it")
    told = {"model": measured.figures["model"]["uri"], "evaluation": measured.folder.uri}
    told |= {key: measured.figures["model"][key] for key in ("step", "parameters") if key in measured.figures["model"]}
    told |= tasks.get("loss", {}) | {name: figures for name, figures in tasks.items() if name != "loss"}
    if measured.figures["cost_usd"] is not None:
        told["cost_usd"] = measured.figures["cost_usd"]
    print(json.dumps(told), flush=True)
    return 0


def _compared(config: Config, measured: list[Measured]) -> int:
    """Print the table of all, write it beside its figures."""
    from raygpt.evaluate.task_compare import FIGURES, compare_measured, lines, write_compared

    compared = compare_measured(measured, resamples=config.compare.resamples, seed=config.run.seed)
    target = _target(config, measured)
    storage.check_writable(target, "compare.output")
    figures = write_compared(measured, compared, target)
    print("\n".join(lines(measured, compared)))
    print(f"Figures: {(target / FIGURES).uri}")
    told = {each["model"]["name"]: each["tasks"] for each in figures["models"]}
    print(json.dumps({"compare": told, "pairs": figures["pairs"], "figures": (target / FIGURES).uri}), flush=True)
    return 0


def _target(config: Config, measured: Sequence[Measured]) -> Location:
    """compare.output, or comparison/ beside the last model's evaluation."""
    if config.compare.output is not None:
        return storage.locate(config.compare.output)
    return measured[-1].folder.parent / "comparison"
