"""`raygpt benchmark`: speed rung by rung and worker by worker, or a whole fine-tuning with its resources over time.

With --compare: results side by side. `python -m raygpt.bench` measures the ladder on a machine that has torch alone.
"""

from __future__ import annotations

import math
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raygpt import storage
from raygpt.config import Config
from raygpt.config.checks import base_tokenizer, strategy, training_text
from raygpt.config.job import Call, Job
from raygpt.config.section import Problem
from raygpt.errors import UserError

if TYPE_CHECKING:
    from raygpt.bench.result import Result, Row
    from raygpt.model.gpt import GPTConfig
    from raygpt.run.frame import Outcome, Run
    from raygpt.storage import Location
    from raygpt.train.resolve import Resolved


def _fine_tuning(config: Config) -> Iterator[Problem]:
    if config.benchmark.case == "finetune" and config.data.train is not None:
        yield from training_text(config)


def _elastic(config: Config) -> Iterator[Problem]:
    low, high = config.scale.worker_range
    if config.benchmark.case != "finetune" and low != high:
        yield "scale.num_workers", "must be one number: speeds are measured on 1…num_workers workers"


DECLARATION = Job(
    "benchmark",
    "measure training: the step rung by rung and worker by worker, or a fine-tuning with its resources",
    ("run", "scale", "model", "data", "prepare", "optim", "train", "eval", "track", "plan", "benchmark"),
    base=str(Path(__file__).with_name("benchmark.yaml")),
    aliases=(("compare", "benchmark.compare"),),
    lists=("compare",),
    checks=(_fine_tuning, _elastic, strategy, base_tokenizer),
    place=75,
)
RESULT, PLOTS = "benchmark.json", "plots"


def run(config: Config, call: Call) -> int:
    if config.benchmark.compare:
        return compare_results(config.benchmark.compare)
    if config.benchmark.case == "finetune":
        return finetune(config, call)
    from raygpt.run.frame import run_job, run_location

    storage.check_writable(run_location(config), "run.storage")
    price = price_per_hour(config)
    shape = measured_model(config)
    return run_job(
        config,
        lambda run: measure_speeds(run, shape, price, shlex.split(call.command)),
        again=call.command,
        stopping="keeping what has been measured",
    ).exit_status


def compare_results(names: list[str]) -> int:
    """Print the results side by side, and what has been published for the last of them."""
    from raygpt.bench.anchors import beside
    from raygpt.bench.compare import compare

    results = [read_result(name) for name in names]
    print(compare(results, names))
    print(beside(results[-1]), end="")
    return 0


def read_result(name: str) -> Result:
    """A result file, or that of a benchmark's run folder, by path or URI. Raises UserError."""
    from raygpt.bench.result import from_json

    where = storage.locate(name)
    if storage.exists(where / RESULT):
        where = where / RESULT
    try:
        return from_json(storage.read_text(where), where.uri)
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{name} cannot be read: name a result of raygpt benchmark, or its run folder.") from None


def price_per_hour(config: Config) -> float | None:
    """US dollars of all workers' machines together: track.price_per_hour as a number, or benchmark.machine's."""
    from raygpt import prices

    if config.benchmark.machine is not None:
        return prices.machine(config.benchmark.machine).price
    price = config.track.price_per_hour
    return float(price) if isinstance(price, (int, float)) else None


def measured_model(config: Config) -> GPTConfig:
    """The shape that the settings name, with GPT-2's vocabulary unless they say another. Raises UserError for another
    architecture: the ladder changes parts that only gpt2 has."""
    from raygpt.jobs.plan import GPT2_VOCABULARY, planned_model
    from raygpt.model.gpt import GPTConfig

    size = config.model.vocab_size or GPT2_VOCABULARY
    model = config.model.model_copy(update={"vocab_size": size})
    shape = planned_model(config.model_copy(update={"model": model}))
    if not isinstance(shape, GPTConfig):
        raise UserError(
            f"model.preset={config.model.preset} is of another architecture: the ladder needs one of gpt2's."
        )
    return replace(shape, seq_len=config.data.seq_len or shape.seq_len, dropout=0.0)


def measure_speeds(run: Run, shape: GPTConfig, price: float | None, command: list[str]) -> Outcome:
    """The cases ladder and step: rungs on one worker, then Ray Train and torchrun on 1…scale.num_workers."""
    from raygpt.bench.__main__ import worker_words
    from raygpt.bench.ladder import LadderSettings
    from raygpt.bench.launchers import ladder_on_cluster, most_on_a_node, torchrun_launcher
    from raygpt.bench.result import Result
    from raygpt.bench.scaling import scaling_rows
    from raygpt.bench.under_ray import ray_launcher
    from raygpt.cluster.connect import connect, training_need, wants_gpu
    from raygpt.run.frame import FINISHED, STOPPED, Outcome

    config, wanted = run.config, run.config.benchmark
    run.say(connect(config.scale, training_need(config.scale)))
    use_gpu, cpus, most = wants_gpu(config.scale), config.scale.cpus_per_worker, config.scale.worker_range[1]
    rows = config.train.micro_batch_size
    settings = LadderSettings(
        rows=rows if isinstance(rows, int) else 8,
        repeats=wanted.repeats,
        steps=wanted.steps,
        seconds=wanted.seconds,
        price_per_hour=price,
    )
    run.say(
        f"Model {config.model.preset}: {shape.num_parameters():,} parameters, {settings.rows} rows of {shape.seq_len} "
        f"tokens, {settings.repeats} repeats"
    )
    found: list[Row] = []
    facts: dict[str, Any] = {}

    def keep(rungs: list[Row], provenance: dict[str, Any]) -> None:
        found[:], facts["of the ladder"] = rungs, provenance
        write_result(Result("ladder", found, provenance), run.folder)

    def stopped() -> bool:
        return run.stop.requested

    if wanted.case == "ladder":
        ladder_on_cluster(
            shape, settings, use_gpu=use_gpu, cpus=cpus, command=command, say=run.say, keep=keep, stopped=stopped
        )
    provenance = facts.get("of the ladder") or _provenance(command, use_gpu)
    if not stopped():
        words = [*worker_words(shape, settings, _device(use_gpu), int(cpus) or 1)]
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            launch = (
                {"torchrun": torchrun_launcher(use_gpu, cpus, stopped)} if most_on_a_node(use_gpu, cpus) >= most else {}
            )
            if not launch:
                run.say(f"No node has room for {most} workers: torchrun, which is measured on one node, is left out.")
            launch["Ray Train"] = ray_launcher(scratch, use_gpu, cpus, stopped)
            found += scaling_rows(
                launch, most, words, wanted.repeats, price_per_hour=price, say=run.say, stopped=stopped
            )
    result = Result(wanted.case, found, provenance)
    outcome = STOPPED if stopped() else FINISHED
    if not any(row.tokens_per_second for row in found):
        return Outcome(outcome, closing="before anything was measured.")
    show_result(result, run.folder, run.say)
    fastest = max(row.tokens_per_second.median for row in found if row.tokens_per_second is not None)
    where = (run.folder / RESULT).uri
    closing = f"with what has been measured in {where}." if outcome == STOPPED else f"Result: {where}"
    return Outcome(outcome, {"case": result.case, "rows": len(found), "tokens_per_second": fastest}, closing=closing)


def _device(use_gpu: bool) -> Any:
    import torch

    return torch.device("cuda" if use_gpu else "cpu")


def _provenance(command: list[str], use_gpu: bool) -> dict[str, Any]:
    """Of a node with a worker's devices."""
    import ray

    from raygpt.bench.provenance import provenance
    from raygpt.bench.step import choose_device

    def find() -> dict[str, Any]:
        return provenance(command, "ray", "numpy", device=choose_device("cuda" if use_gpu else "cpu"))

    return ray.get(ray.remote(num_cpus=1, num_gpus=1 if use_gpu else 0)(find).remote())


def finetune(config: Config, call: Call) -> int:
    """The case finetune: a run of the trainer as any other, looked at from all sides while it goes on."""
    from raygpt.bench.resources import sample_cluster
    from raygpt.capacity.from_config import check_fit
    from raygpt.cluster import phases
    from raygpt.cluster.connect import connect, training_need
    from raygpt.data.stdlib_corpus import place_corpus
    from raygpt.jobs.prepare import with_prepared_data
    from raygpt.jobs.pretrain import check_places
    from raygpt.run.frame import SUMMARY, run_location
    from raygpt.train.resolve import resolve
    from raygpt.train.trainer import run_training

    launch = phases.Launch.of_this_process()
    check_places(config)
    text = config.data.train or "documentation and sources of Python's standard library"
    if config.data.train is None:
        corpus = place_corpus(config.run.storage)
        print(f"Text: documentation and sources of this Python's standard library, {corpus}", flush=True)
        config = config.model_copy(update={"data": config.data.model_copy(update={"train": corpus, "val": None})})
    print(connect(config.scale, training_need(config.scale), mark=launch.mark), flush=True)
    config = with_prepared_data(config)
    job = resolve(config)
    plan = check_fit(config, job.model, job.run) if job.done_steps < job.plan.total_steps else None
    launch.mark(phases.DATA)
    with sample_cluster(run_location(config), config.benchmark.sample_seconds, os.getpid()):
        rows = plan.micro_batch_size if plan is not None else None
        outcome = run_training(config, job, call.command, planned_rows=rows, launch=launch)
    if outcome.exit_status or not storage.exists(job.run / SUMMARY):
        return outcome.exit_status
    result = finetuning_result(config, job, text, shlex.split(call.command))
    show_result(result, job.run, lambda text: print(text, flush=True))
    print(f"Result: {(job.run / RESULT).uri}", flush=True)
    return outcome.exit_status


def finetuning_result(config: Config, job: Resolved, text: str, command: list[str]) -> Result:
    """One row of a finished run on `text`, from its records, its summary and its resource samples."""
    import json

    from raygpt.bench.plots import evaluation_names
    from raygpt.bench.resources import read_resources, summary
    from raygpt.bench.result import Result, Row, Spread
    from raygpt.cluster.connect import wants_gpu
    from raygpt.run.frame import SUMMARY
    from raygpt.track.jsonl import read_metrics

    records, samples = read_metrics(job.run / "metrics.jsonl"), read_resources(job.run)
    figures = json.loads(storage.read_text(job.run / SUMMARY))
    timed = [row for row in records if "tokens_per_second" in row]
    steady = [row["tokens_per_second"] for row in timed[1:] if "restarts" not in row] or [timed[0]["tokens_per_second"]]
    speed, tokens_per_step = Spread.of(steady), job.plan.tokens_per_step
    tasks, evaluated = evaluation_names(records), [row for row in records if "val_loss" in row]
    seen = summary(samples)
    memory = max((row["gpu_memory_bytes"] for row in records if "gpu_memory_bytes" in row), default=None)
    more = ("wall_seconds", "effective_time_ratio", "restarts", "launch_seconds", "cost_usd", "train_loss", "steps")
    return Result(
        "finetune",
        [
            Row(
                f"fine-tuning of {config.model.init_from}"
                if config.model.init_from != "random"
                else "from random weights",
                {
                    "model": job.model.to_dict(),
                    "parameters": job.model.num_parameters(),
                    "init_from": config.model.init_from,
                    "data": text,
                    "data_fingerprint": job.train.fingerprint,
                    "precision": config.train.precision,
                    "strategy": config.train.strategy,
                    "compile": config.train.compile,
                    "global_batch_tokens": config.train.global_batch_tokens,
                    "seq_len": job.plan.order.seq_len,
                    "steps": job.plan.total_steps,
                    "world_size": records[-1].get("world_size", config.scale.worker_range[1]),
                },
                tokens_per_second=speed,
                step_seconds=speed.per(tokens_per_step),
                mfu=figures.get("mfu"),
                memory_bytes=memory or int(seen.get("run_rss_bytes", {}).get("max", 0)) or None,
                data_wait_fraction=figures.get("data_wait_fraction"),
                usd_per_billion_tokens=figures["cost_usd"] / figures["tokens"] * 1e9 if "cost_usd" in figures else None,
                loss=figures.get("val_loss"),
                figures={
                    "before": _evaluation(evaluated[0], job, tasks)
                    if evaluated and evaluated[0]["step"] == 0
                    else None,
                    "after": _evaluation(evaluated[-1], job, tasks) if evaluated else None,
                    "resources": seen,
                    **{name: figures[name] for name in more if name in figures},
                },
            )
        ],
        _provenance(command, wants_gpu(config.scale)),
    )


def _evaluation(record: dict[str, Any], job: Resolved, tasks: list[str]) -> dict[str, float]:
    """What an evaluation of the run found, all over the same `val_tokens` tokens."""
    loss = record["val_loss"]
    found = {"step": record["step"], "loss": loss, "perplexity": math.exp(loss), "val_tokens": job.val_tokens}
    if job.val.bytes:
        found["bits_per_byte"] = loss / math.log(2) * job.val.tokens / job.val.bytes
    return found | {name: record[name] for name in tasks if name in record}


def write_result(result: Result, folder: Location) -> None:
    """benchmark.json, .csv and .md into the run's folder."""
    from raygpt.bench.result import to_csv, to_markdown

    storage.write_text(folder / RESULT, result.to_json() + "\n")
    storage.write_text(folder / "benchmark.csv", to_csv(result))
    storage.write_text(folder / "benchmark.md", to_markdown(result))


def show_result(result: Result, folder: Location, say: Any) -> None:
    """Write a result and its plots, and print its table and what has been published beside it."""
    from raygpt.bench.anchors import beside
    from raygpt.bench.plots import draw
    from raygpt.bench.resources import read_resources
    from raygpt.bench.result import to_markdown
    from raygpt.track.jsonl import read_metrics

    write_result(result, folder)
    records = read_metrics(folder / "metrics.jsonl") if result.case == "finetune" else []
    samples = read_resources(folder) if result.case == "finetune" else []
    with tempfile.TemporaryDirectory() as scratch:
        for path in draw(result, Path(scratch), records, samples):
            storage.write_bytes(folder / PLOTS / path.name, path.read_bytes())
    say(f"\n{to_markdown(result)}\n{beside(result)}".rstrip() + "\n")
    sys.stdout.flush()
