"""`raygpt tune`: search hyperparameters of classification, pretraining or fine-tuning on a Ray cluster."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from raygpt import storage
from raygpt.config import Config
from raygpt.config.checks import base_tokenizer
from raygpt.config.job import Call, Job
from raygpt.errors import UserError

DECLARATION = Job(
    "tune",
    "search hyperparameters: classification, pretraining or fine-tuning",
    ("run", "scale", "model", "task", "tune", "optim", "train", "data", "prepare", "eval", "track"),
    flags=("dry_run",),
    base=str(Path(__file__).with_name("tune.yaml")),
    checks=(base_tokenizer,),
    place=50,
)

if TYPE_CHECKING:
    from raygpt.cluster.room import Need
    from raygpt.tune.plan import SweepPlan


def run(config: Config, call: Call) -> int:
    from raygpt.jobs.prepare import raw_preparation
    from raygpt.run.frame import run_location
    from raygpt.track.wandb_run import choose_wandb_mode

    try:
        import optuna  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError as error:
        raise UserError(f"raygpt tune needs {error.name}: install it with pip install 'raygpt[tune]'.") from None
    from raygpt.tune.plan import make_plan

    plan = make_plan(config)
    if "dry_run" in call.flags:
        print(plan.describe())
        if plan.task is not None:
            print(plan.task.describe())
        return 0
    storage.check_writable(run_location(config), "run.storage")
    choose_wandb_mode(config.track.wandb)
    from raygpt.tune.sweep import prepare_environment, run_sweep

    prepare_environment()
    from raygpt.cluster.connect import connect, training_need

    nested = plan.kind != "classify"
    if nested:
        raw_preparation(config)  # a mistake in the text comes out before a cluster is started
    print(connect(config.scale, training_need(config.scale) if nested else _trial_need(config)), flush=True)
    return run_sweep(with_shards(plan) if nested else plan, call.command).exit_status


def _trial_need(config: Config) -> Need:
    """What one trial of a classifier takes, or a classifier trained alone."""
    from raygpt.cluster.room import Need

    gpus, settings = config.tune.gpus_per_trial, ("", "tune.cpus_per_trial", "scale.use_gpu")
    if gpus == "auto":
        return Need(1, config.tune.cpus_per_trial, config.scale.use_gpu, settings)
    return Need(1, config.tune.cpus_per_trial, gpus > 0, ("", "tune.cpus_per_trial", ""), gpus=gpus)


def with_shards(plan: SweepPlan) -> SweepPlan:
    """The sweep with raw data.train and data.val replaced by shards made from them once, which all trials train on."""
    from raygpt.jobs.prepare import with_prepared_data

    return replace(plan, config=with_prepared_data(plan.config))


def finetune_task(config: Config, call: Call) -> int:
    """`raygpt finetune` where task.name is set: one classifier, trained as the config says."""
    from raygpt.run.frame import run_location

    if "print_deepspeed" in call.flags:
        raise UserError("--print_deepspeed has nothing to print for a classifier (task.name): it trains on one device.")
    if "dry_run" in call.flags:
        return _dry_run_task(config)
    from raygpt.classify.finetune import train_classifier
    from raygpt.cluster.connect import connect

    storage.check_writable(run_location(config), "run.storage")
    print(connect(config.scale, _trial_need(config)), flush=True)
    return train_classifier(config, call.command).exit_status


def _dry_run_task(config: Config) -> int:
    """Read the task and the model and say what would be trained."""
    from raygpt.classify.shared import read_task
    from raygpt.parallel.weights import open_weights
    from raygpt.run.frame import run_location

    task = read_task(config)
    weights = open_weights(config.model.init_from)
    print(task.describe())
    assert config.train.epochs is not None
    steps = int(config.train.epochs) * -(-len(task.train) // config.task.batch_size)
    print(
        f"{weights.origin}: {weights.config.num_parameters():,} parameters; "
        f"{config.train.epochs:g} epochs, {steps:,} steps of {config.task.batch_size} examples into "
        f"{run_location(config).uri}"
    )
    return 0
