"""`raygpt pretrain`: train GPT-2 on token shards, or on raw text prepared on first use."""

from __future__ import annotations

from raygpt import storage
from raygpt.cli import Call
from raygpt.config import Config
from raygpt.data.sources import is_prepared, prepared_home, raw_sources
from raygpt.track.trackers import choose_wandb_mode
from raygpt.train.assignment import Resolved, resolve, run_location
from raygpt.train.plan import batch_rows


def run(config: Config, call: Call) -> int:
    if "dry_run" in call.flags:
        return dry_run(config)
    from raygpt.train.cluster import connect
    from raygpt.train.trainer import run_training

    assert config.data.train is not None
    check_places(config)
    prepared = is_prepared(config.data.train)
    if prepared:
        resolve(config)  # mistakes come out before a cluster is started
    cpus = config.scale.worker_range[0] * config.scale.cpus_per_worker
    print(connect(config.scale, workers_cpus=cpus), flush=True)
    if not prepared:
        config = with_prepared_data(config)
    return run_training(config, resolve(config), call.command).exit_status


def check_places(config: Config) -> None:
    """Fail early, in one sentence, where storage or data cannot be reached or W&B cannot be used."""
    storage.check_writable(run_location(config), "run.storage")
    for key in ("train", "val"):
        uri = getattr(config.data, key)
        if uri is not None and uri.startswith("s3://"):
            storage.check_readable(storage.locate(uri), f"data.{key}")
    choose_wandb_mode(config.track.wandb)


def with_prepared_data(config: Config) -> Config:
    """The config with raw `data.train` replaced by shards made from it (or made from it before)."""
    from raygpt.jobs.prepare import prepare_shards

    assert config.data.train is not None
    result = prepare_shards(config, raw_sources(config.data.train), prepared_home(config))
    data = config.data.model_copy(update={"train": result.train, "val": config.data.val or result.val})
    return config.model_copy(update={"data": data})


def dry_run(config: Config) -> int:
    """Check everything that can be checked without starting: settings, arithmetic and, where it is there, the data."""
    assert config.data.train is not None
    if not is_prepared(config.data.train):
        from raygpt.model.presets import PRESETS

        seq_len = config.data.seq_len or config.model.seq_len or PRESETS[config.model.preset]["seq_len"]
        rows = batch_rows(
            config.train.global_batch_tokens, seq_len, config.train.micro_batch_size, config.scale.worker_range
        )
        print(f"Settings are sound: {rows} rows of {seq_len} tokens per step; {config.data.train} is not prepared yet.")
        return 0
    print(describe(resolve(config)))
    return 0


def describe(job: Resolved) -> str:
    """What the job would do, in one line."""
    return (
        f"Run {job.run.uri}: {job.plan.total_steps:,} steps of {job.plan.tokens_per_step:,} tokens from "
        f"{job.train_uri}, {job.model.num_parameters():,} parameters, starting at step {job.done_steps}."
    )
