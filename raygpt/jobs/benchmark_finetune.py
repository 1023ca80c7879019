"""`raygpt benchmark --benchmark.case=finetune`: a run of the trainer, with its resources and one row of figures."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

from raygpt import storage
from raygpt.config import Config
from raygpt.config.job import Call
from raygpt.errors import UserError
from raygpt.jobs.benchmark_parts import (
    RESULT,
    changed_settings,
    pricing_of,
    provenance_of,
    show_finished,
    show_result,
    whole_command,
)

if TYPE_CHECKING:
    from raygpt.bench.result import Result
    from raygpt.train.resolve import Resolved


def finetune(config: Config, call: Call) -> int:
    """The case finetune: a run of the trainer as any other, looked at from all sides while it goes on."""
    from raygpt.bench.resources import sample_cluster
    from raygpt.capacity.from_config import check_fit
    from raygpt.cluster import phases
    from raygpt.cluster.connect import connect, training_need
    from raygpt.data.stdlib_corpus import place_corpus
    from raygpt.jobs.prepare import with_prepared_data
    from raygpt.jobs.pretrain import check_places
    from raygpt.run.frame import SPENT, STOPPED, SUMMARY, run_location
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
    if job.done_steps >= job.plan.total_steps or (job.stopped_early and config.eval.patience is not None):
        return _ended(config, job, text, call)
    plan = check_fit(config, job.model, job.run)
    rows = plan.micro_batch_size if plan is not None else None
    launch.mark(phases.DATA)
    with sample_cluster(run_location(config), config.benchmark.sample_seconds, os.getpid()):
        outcome = run_training(config, job, call.command, planned_rows=rows, launch=launch)
    if outcome.exit_status or not storage.exists(job.run / SUMMARY):
        return outcome.exit_status
    if outcome.outcome in (STOPPED, SPENT):  # the budget's stop has status 0: the result is that of the whole run
        return outcome.exit_status
    return _finish(config, job, text, call)


def _ended(config: Config, job: Resolved, text: str, call: Call) -> int:
    """A run that has nothing to do any more: its result is shown as it is, and made where it was killed before that."""
    from raygpt.train.trainer import run_training

    if changed := changed_settings(config):
        raise UserError(
            f"{job.run.uri} is finished, and was run with other settings ({', '.join(changed)}): set them back to see "
            "its result, or give the new one a run.name of its own."
        )
    if storage.exists(job.run / RESULT):
        show_finished(job.run)
        return 0
    run_training(config, job, call.command)
    return _finish(config, job, text, call)


def _finish(config: Config, job: Resolved, text: str, call: Call) -> int:
    result = finetuning_result(config, job, text, whole_command(call))
    show_result(result, job.run, lambda text: print(text, flush=True))
    print(f"Result: {(job.run / RESULT).uri}", flush=True)
    return 0


def finetuning_result(config: Config, job: Resolved, text: str, command: list[str]) -> Result:
    """One row of a finished run on `text`, from its records, its summary and its resource samples."""
    import json

    from raygpt.bench.plots import evaluation_names
    from raygpt.bench.resources import read_resources, summary
    from raygpt.bench.result import Result, Row, Spread
    from raygpt.cluster.connect import wants_gpu
    from raygpt.parallel import checkpoint
    from raygpt.run.frame import SUMMARY
    from raygpt.run.lock import read_attempts
    from raygpt.track.jsonl import read_metrics

    records, samples = read_metrics(job.run / "metrics.jsonl"), read_resources(job.run)
    figures = json.loads(storage.read_text(job.run / SUMMARY))
    timed = [row for row in records if "tokens_per_second" in row]
    steady = [row["tokens_per_second"] for row in timed[1:] if "restarts" not in row] or [timed[0]["tokens_per_second"]]
    speed, tokens_per_step = Spread.of(steady), job.plan.tokens_per_step
    tasks, evaluated = evaluation_names(records), [row for row in records if "val_loss" in row]
    seen = summary(samples)
    memory = max((row["gpu_memory_bytes"] for row in records if "gpu_memory_bytes" in row), default=None)
    started = [each.environment for each in read_attempts(job.run) if "precision" in each.environment]
    kept = checkpoint.complete_checkpoints(job.run)
    workers = records[-1].get("world_size", config.scale.worker_range[1])
    dollars, priced = _cost(config, figures, workers, wants_gpu(config.scale))
    after = _evaluation(evaluated[-1], job, tasks) if evaluated else None
    before = _evaluation(evaluated[0], job, tasks) if evaluated and evaluated[0]["step"] == 0 else None
    own = {"before": before, "after": after, "resources": seen, "priced": priced}
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
                    # as the workers resolved it: "bf16 (why)"
                    "precision": started[-1]["precision"].split(" ")[0] if started else config.train.precision,
                    "micro_batch_size": checkpoint.read_state(kept[0]).micro_batch_size if kept else None,
                    "strategy": config.train.strategy,
                    "compile": config.train.compile,
                    "global_batch_tokens": config.train.global_batch_tokens,
                    "seq_len": job.plan.order.seq_len,
                    "steps": job.plan.total_steps,
                    "world_size": workers,
                },
                tokens_per_second=speed,
                step_seconds=speed.per(tokens_per_step),
                mfu=figures.get("mfu"),
                memory_bytes=memory or int(seen.get("run_rss_bytes", {}).get("max", 0)) or None,
                data_wait_fraction=figures.get("data_wait_fraction"),
                usd_per_billion_tokens=None if dollars is None else dollars / figures["tokens"] * 1e9,
                loss=figures.get("val_loss"),
                figures={name: value for name, value in own.items() if value is not None}
                | {name: figures[name] for name in more if name in figures},
            )
        ],
        provenance_of(command, wants_gpu(config.scale)),
    )


def _cost(config: Config, figures: dict[str, Any], workers: int, use_gpu: bool) -> tuple[float | None, str | None]:
    """(US dollars of the whole run, what they are the price of): at benchmark.machine's price, else the run's bill."""
    if config.benchmark.machine is not None:
        price = pricing_of(config, use_gpu)
        if price is not None:
            hours = figures["wall_seconds"] / 3600
            return price.per_hour(workers) * hours, f"{price.describe(workers)}, {hours:.4g} hours, the whole run"
        return None, None
    if "cost_usd" in figures:
        return figures["cost_usd"], f"the whole run's bill, track.price_per_hour={config.track.price_per_hour}"
    return None, None


def _evaluation(record: dict[str, Any], job: Resolved, tasks: list[str]) -> dict[str, float]:
    """What an evaluation of the run found, all over the same `val_tokens` tokens."""
    loss = record["val_loss"]
    found = {"step": record["step"], "loss": loss, "perplexity": math.exp(loss), "val_tokens": job.val_tokens}
    if job.val.bytes:
        found["bits_per_byte"] = loss / math.log(2) * job.val.tokens / job.val.bytes
    return found | {name: record[name] for name in tasks if name in record}
