"""What a sweep will do, checked as a whole before any trial starts: every mistake comes out in one message."""

from __future__ import annotations

from dataclasses import dataclass

from raygpt.classify.shared import read_task
from raygpt.classify.tasks import Task
from raygpt.config import Config
from raygpt.config.checks import classifier, strategy
from raygpt.config.settings import config_with
from raygpt.data.sources import is_prepared, needs_preparing
from raygpt.errors import UserError
from raygpt.tune.space import Space, decode, encode_value, read_space

# What trials of each kind report, the usual metric first.
REPORTED = {
    "classify": ("accuracy", "f1", "loss", "train_loss"),
    "pretrain": ("val_loss", "train_loss"),
    "finetune": ("val_loss", "train_loss"),
}
POPULATION = ("pbt", "pb2")
# Settings beside prepare's own that decide which shards are made of raw text.
PREPARED_BY = ("data.train", "data.val", "data.tokenizer", "data.text_column")


@dataclass(frozen=True)
class SweepPlan:
    """A checked sweep. `longest` is the most epochs (classification) or evaluations (nested) a trial may have."""

    config: Config
    space: Space
    kind: str
    metric: str
    mode: str
    longest: int
    task: Task | None

    def describe(self) -> str:
        tune = self.config.tune
        size = f"{len(list(self.space.grid()))} points" if tune.search == "grid" else f"{tune.trials} trials"
        return (
            f"Sweep {self.config.run.name}: {size} of {self.kind} by {tune.search} search, scheduler {tune.scheduler}, "
            f"ranked by {self.metric} ({'highest' if self.mode == 'max' else 'lowest'}), over "
            + "; ".join(f"{item.key} {item.describe()}" for item in self.space.dimensions.values())
        )


def make_plan(config: Config) -> SweepPlan:
    """Check a sweep. Raises UserError listing every mistake in the space, the settings and the task's files."""
    tune = config.tune
    kind = tune.job if tune.job != "auto" else "classify" if config.task.name else "pretrain"
    space, problems = read_space(config)
    metric = tune.metric or REPORTED[kind][0]
    if metric not in REPORTED[kind]:
        problems.append(
            f"tune.metric={metric} is reported by no trial of this sweep: choose {', '.join(REPORTED[kind])}"
        )
    try:
        for key, value in tune.baseline.items():
            config_with(config, decode({key: encode_value(value)}), "tune.baseline")
    except UserError as error:
        problems += str(error).splitlines()
    problems += _scheduler_problems(config, space, kind)
    task, longest = None, 0
    if kind == "classify":
        problems += _classify_problems(config)
        longest = _longest(config, space, problems)
        if config.task.train:
            try:
                task = read_task(config)
            except UserError as error:
                problems += str(error).splitlines()
    else:
        problems += _nested_problems(config, space)
        longest = 10**6
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    mode = "min" if "loss" in metric else "max"
    return SweepPlan(config, space, kind, metric, mode, longest, task)


def _scheduler_problems(config: Config, space: Space, kind: str) -> list[str]:
    tune, found = config.tune, []
    if tune.scheduler in POPULATION and kind != "classify":
        found.append(
            f"tune.scheduler={tune.scheduler} cannot be used where a trial is a training job of its own ({kind}): it "
            "replaces a trial by handing it a checkpoint of Tune's, but such a trial resumes from its run folder, so "
            "nothing would ever be exploited; use asha, hyperband, median or none"
        )
    if tune.scheduler in POPULATION and tune.search == "grid":
        found.append(f"tune.scheduler={tune.scheduler} mutates what a grid fixes: set tune.search to random")
    if tune.scheduler in POPULATION and tune.concurrent is not None:
        found.append(
            f"tune.concurrent={tune.concurrent} cannot hold back {tune.scheduler}, whose trials take turns: set "
            "tune.cpus_per_trial or tune.gpus_per_trial so that as many fit as shall run at once"
        )
    if tune.scheduler == "pb2" and (other := [key for key, item in space.dimensions.items() if not item.is_numeric]):
        found.append(f"tune.scheduler=pb2 searches ranges of numbers only: drop {', '.join(other)} or use pbt")
    if tune.scheduler in POPULATION:
        fixed = {"train.epochs", "task.reinit_layers", "optim.betas"} & set(space.dimensions)
        if fixed:
            found.append(
                f"{', '.join(sorted(fixed))} cannot change within a trial: use asha instead of {tune.scheduler}"
            )
    return found


def _classify_problems(config: Config) -> list[str]:
    found = []
    if not config.task.name:
        found.append("task.name is not set: name the classification task, such as mrpc")
    if config.model.init_from == "random":
        found.append("model.init_from is not set: name the model to classify with (a run, a Hugging Face folder or id)")
    found += [f"{key} {text}" for key, text in classifier(config) if key != "train.epochs"]  # that may be searched
    idle = {"optim.name", "model.lora_rank", "train.strategy"} & set(config.tune.space)
    if idle:
        found.append(f"tune.space: {', '.join(sorted(idle))} changes nothing of a classification task: leave it out")
    return found


def _longest(config: Config, space: Space, problems: list[str]) -> int:
    """Most epochs a trial may have; 0 after a problem."""
    item = space.dimensions.get("train.epochs")
    if item is None:
        values = [config.train.epochs]
    else:
        values = [item.low, item.high] if item.is_numeric else list(item.options)  # type: ignore[arg-type]
        if item.kind in ("uniform", "loguniform"):
            problems.append("tune.space: train.epochs must be drawn by randint or choice: trials have whole epochs")
            return 0
    if any(value is None or float(value) != int(value) for value in values):
        problems.append("train.epochs must be a whole number: classification trains in whole epochs")
        return 0
    return max(int(value) for value in values if value is not None)


def _nested_problems(config: Config, space: Space) -> list[str]:
    found = [f"{key} {text}" for key, text in strategy(config)]
    if (
        config.tune.job == "finetune"
        and config.model.init_from == "random"
        and "model.init_from" not in space.dimensions
    ):
        found.append("model.init_from is not set: name the model to fine-tune (a run, a Hugging Face folder or id)")
    if not config.data.train:
        found.append("data.train is not set: name a shard folder or raw text")
    elif needs_preparing(config.data.train, config.data.val):
        # prepared once, before the first trial
        decided = [key for key in config.tune.space if key.split(".")[0] == "prepare" or key in PREPARED_BY]
        if config.data.tokenizer == "base":
            decided += [key for key in config.tune.space if key == "model.init_from"]
        if decided:
            found.append(
                f"tune.space: {', '.join(decided)} cannot be searched while data.train or data.val is raw text, which "
                "is prepared once for all trials: run raygpt prepare for every value and search data.train over the "
                "shard folders"
            )
    for key, side in (("data.train", "train"), ("data.val", "val")):
        item = space.dimensions.get(key)
        raw = [str(option) for option in item.options if not is_prepared(str(option), side)] if item else []
        if raw:
            found.append(f"tune.space: {key} names {', '.join(raw)}, no shard folder: run raygpt prepare for it first")
    lengths = [config.train.max_steps, config.train.max_tokens, config.train.epochs]
    searched = {"train.max_steps", "train.max_tokens", "train.epochs"} & set(config.tune.space)
    if sum(value is not None for value in lengths) != 1 and not searched:
        found.append("set exactly one of train.max_steps, train.max_tokens, train.epochs")
    return found
