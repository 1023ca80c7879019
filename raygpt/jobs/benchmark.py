"""`raygpt benchmark`: speed rung by rung and worker by worker, or a whole fine-tuning with its resources over time.

With --compare: results side by side. `python -m raygpt.bench` measures the ladder on a machine that has torch alone.
"""

from __future__ import annotations

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
from raygpt.jobs.benchmark_parts import (
    RESULT,
    changed_settings,
    pricing_of,
    provenance_of,
    read_result,
    show_finished,
    show_result,
    whole_command,
    write_result,
)

if TYPE_CHECKING:
    from raygpt.bench.ladder import LadderSettings
    from raygpt.bench.result import Row
    from raygpt.model.gpt import GPTConfig
    from raygpt.run.frame import Outcome, Run


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


def run(config: Config, call: Call) -> int:
    if config.benchmark.compare:
        return compare_results(config.benchmark.compare)
    config = named_by_case(config)
    check_folder(config)
    if config.benchmark.case == "finetune":
        from raygpt.jobs.benchmark_finetune import finetune

        return finetune(config, call)
    return speeds(config, call)


def named_by_case(config: Config) -> Config:
    """The name that benchmark.yaml gives stands for one per case: no case finds another's run in its folder."""
    if config.run.name != DECLARATION.name:
        return config
    name = f"{config.run.name}-{config.benchmark.case}"
    return config.model_copy(update={"run": config.run.model_copy(update={"name": name})})


def check_folder(config: Config) -> None:
    """Raises UserError where the run's folder holds another job's run, or a benchmark of another case."""
    from raygpt.run.frame import run_location, saved_config
    from raygpt.run.lock import read_attempts

    folder = run_location(config)
    if not (saved := saved_config(folder)):
        return
    jobs = {attempt.job for attempt in read_attempts(folder)} - {"", DECLARATION.name}
    if jobs:
        raise UserError(f"{folder.uri} is a run of raygpt {min(jobs)}: give the benchmark a run.name of its own.")
    case = saved.get("benchmark", {}).get("case", config.benchmark.case)
    if case != config.benchmark.case:
        raise UserError(
            f"{folder.uri} holds a benchmark of case {case}: give this one a run.name of its own, or none, which names "
            "it after its case."
        )


def speeds(config: Config, call: Call) -> int:
    """The cases ladder and step, as a run. One that is finished is shown and not measured again; one that was stopped
    begins anew, as speeds of two sittings are not to be put side by side."""
    from raygpt.run.frame import check_start, run_job, run_location

    folder = run_location(config)
    storage.check_writable(folder, "run.storage")
    _check_supported(config)
    again = check_start(config, lambda where: storage.exists(where / RESULT), "benchmark")
    if again:
        if changed := changed_settings(config):
            raise UserError(
                f"{folder.uri} holds a benchmark with other settings ({', '.join(changed)}): set them back, or give "
                "this one a run.name of its own."
            )
        if not read_result(folder.uri).provenance.get("stopped"):
            show_finished(folder)
            return 0
        print(f"The benchmark in {folder.uri} did not end: it begins anew.", flush=True)
    shape = measured_model(config)
    return run_job(
        config,
        lambda run: measure_speeds(run, shape, whole_command(call)),
        again=call.command,
        stopping="keeping what has been measured",
    ).exit_status


def _check_supported(config: Config) -> None:
    """Raises UserError for settings that these cases would not measure."""
    train = config.train
    if train.strategy != "ddp":
        raise UserError(
            f"train.strategy={train.strategy} is not measured by benchmark.case={config.benchmark.case}: set ddp, "
            "or benchmark.case=finetune; python -m raygpt.bench --case step --strategy measures it on one process."
        )
    if config.model.lora_rank:
        raise UserError("model.lora_rank is not measured rung by rung: set it to 0, or benchmark.case=finetune.")


def compare_results(names: list[str]) -> int:
    """Print the results side by side, and what has been published for the last of them."""
    from raygpt.bench.anchors import beside
    from raygpt.bench.compare import compare

    results = [read_result(name) for name in names]
    print(compare(results, names))
    print(beside(results[-1]), end="")
    return 0


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


def measure_speeds(run: Run, shape: GPTConfig, command: list[str]) -> Outcome:
    """The cases ladder and step: rungs on one worker, then Ray Train and torchrun on 1…scale.num_workers."""
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
    rows, price = config.train.micro_batch_size, pricing_of(config, use_gpu)
    settings = LadderSettings(
        rows=rows if isinstance(rows, int) else 8,
        repeats=wanted.repeats,
        steps=wanted.steps,
        seconds=wanted.seconds,
        price=price,
    )
    run.say(
        f"Model {config.model.preset}: {shape.num_parameters():,} parameters, {settings.rows} rows of {shape.seq_len} "
        f"tokens, {settings.repeats} repeats"
    )
    rungs: list[Row] = []
    workers: list[Row] = []
    facts: dict[str, Any] = {}
    planned = {"planned_repeats": wanted.repeats}

    def keep(rows: list[Row], provenance: dict[str, Any]) -> None:
        rungs[:], facts["of the ladder"] = rows, provenance | planned
        write_result(Result("ladder", rungs, facts["of the ladder"] | {"stopped": True}), run.folder)

    def keep_workers(rows: list[Row]) -> None:
        workers[:] = rows
        write_result(Result(wanted.case, [*rungs, *rows], provenance | {"stopped": True}), run.folder)

    def stopped() -> bool:
        return run.stop.requested

    if wanted.case == "ladder":
        ladder_on_cluster(
            shape, settings, use_gpu=use_gpu, cpus=cpus, command=command, say=run.say, keep=keep, stopped=stopped
        )
    provenance = facts.get("of the ladder") or provenance_of(command, use_gpu) | planned
    if not stopped():
        words = step_words(config, shape, settings, use_gpu)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            launch = (
                {"torchrun": torchrun_launcher(use_gpu, cpus, stopped)} if most_on_a_node(use_gpu, cpus) >= most else {}
            )
            if not launch:
                run.say(f"No node has room for {most} workers: torchrun, which is measured on one node, is left out.")
            launch["Ray Train"] = ray_launcher(scratch, use_gpu, cpus, stopped)
            workers = scaling_rows(
                launch, most, words, wanted.repeats, price=price, say=run.say, keep=keep_workers, stopped=stopped
            )
    found = [*rungs, *workers]
    if stopped():
        provenance = provenance | {"stopped": True}
    result = Result(wanted.case, found, provenance)
    outcome = STOPPED if stopped() else FINISHED
    if not any(row.tokens_per_second for row in found):
        if outcome == FINISHED:
            raise UserError(f"nothing could be measured ({'; '.join(row.note for row in found)}).")
        return Outcome(outcome, closing="before anything was measured.")
    show_result(result, run.folder, run.say)
    fastest = max(row.tokens_per_second.median for row in found if row.tokens_per_second is not None)
    where = (run.folder / RESULT).uri
    kept = f"with what has been measured in {where}; it will begin anew."
    closing = kept if outcome == STOPPED else f"Result: {where}"
    return Outcome(outcome, {"case": result.case, "rows": len(found), "tokens_per_second": fastest}, closing=closing)


def step_words(config: Config, shape: GPTConfig, settings: LadderSettings, use_gpu: bool) -> list[str]:
    """Arguments of raygpt.bench.step for the workers. What is set in `train` holds; where train.compile is not set, a
    GPU's step is compiled, as the last rung is."""
    from raygpt.bench.__main__ import worker_words

    train = config.train
    return worker_words(
        shape,
        settings,
        _device(use_gpu),
        int(config.scale.cpus_per_worker) or 1,
        precision=train.precision,
        compile=train.compile if "compile" in train.model_fields_set else None,
        activation_checkpointing=train.activation_checkpointing,
    )


def _device(use_gpu: bool) -> Any:
    import torch

    return torch.device("cuda" if use_gpu else "cpu")
