"""What is wrong with a config that no single key shows: settings that are missing for a job or do not go together."""

from __future__ import annotations

from raygpt.config import Config, Train


def problems(config: Config, job: str) -> list[tuple[str, str]]:
    """(dotted key, what is wrong and the way out) for everything that takes more than one key to see."""
    found: list[tuple[str, str]] = []
    if job in ("prepare",):
        if not config.prepare.sources:
            found.append(("prepare.sources", "is not set: name files, folders, s3:// URIs or Hugging Face ids"))
        if not config.prepare.output:
            found.append(("prepare.output", "is not set: name the folder that gets train/ and val/"))
    if job == "finetune" and config.task.name:
        found += _task_problems(config)
    elif job in ("pretrain", "finetune"):
        if not config.data.train:
            found.append(("data.train", "is not set: name a shard folder or raw text"))
        found += _length_problems(config.train)
    if job in ("pretrain", "finetune", "plan"):
        found += _scale_problems(config)
        found += _strategy_problems(config)
    if job == "finetune" and config.model.init_from == "random":
        found.append(
            ("model.init_from", "is not set: name the model to fine-tune (a run, a Hugging Face folder or id)")
        )
    if job == "evaluate" and bool(config.compare.base) != bool(config.compare.tuned):
        given, other = ("base", "tuned") if config.compare.base else ("tuned", "base")
        found.append((f"compare.{other}", f"is not set but compare.{given} is: a comparison needs both"))
    if config.data.tokenizer == "base" and config.model.init_from == "random" and job != "prepare":
        found.append(("data.tokenizer", "is base but model.init_from names no model: name a tokenizer"))
    if config.optim.warmup_steps is not None and config.optim.warmup_fraction is not None:
        found.append(("optim.warmup_steps", "and optim.warmup_fraction are both set: keep one"))
    if config.optim.schedule == "wsd" and (config.optim.warmup_fraction or 0) + config.optim.decay_fraction > 1:
        found.append(("optim.decay_fraction", "and optim.warmup_fraction together exceed the run: lower one"))
    if not all(0 <= beta < 1 for beta in config.optim.betas):
        found.append(("optim.betas", "must both lie in [0, 1)"))
    micro = config.train.micro_batch_size
    if isinstance(micro, int) and micro < 1:
        found.append(("train.micro_batch_size", "must be at least 1, or auto"))
    if config.track.max_cost_usd is not None and config.track.price_per_hour is None:
        found.append(("track.max_cost_usd", "needs track.price_per_hour"))
    return found


def _task_problems(config: Config) -> list[tuple[str, str]]:
    found, epochs = [], config.train.epochs
    if not config.task.train:
        found.append(("task.train", "is not set: name a CSV, TSV or JSONL file, a folder with train.*, or glue/mrpc"))
    if len(config.task.text_columns) > 2:
        found.append(("task.text_columns", "names more than two columns: a task has one text or a pair"))
    if epochs is None or epochs != int(epochs):
        found.append(("train.epochs", "must be a whole number: classification trains in whole epochs"))
    for key in ("max_steps", "max_tokens"):
        if getattr(config.train, key) is not None:
            found.append((f"train.{key}", "has no meaning for a classification task: set train.epochs"))
    return found


def _length_problems(train: Train) -> list[tuple[str, str]]:
    given = [key for key in ("max_steps", "max_tokens", "epochs") if getattr(train, key) is not None]
    if len(given) == 1:
        return []
    text = "is not set" if not given else f"is set beside train.{' and train.'.join(given[1:])}"
    return [
        (
            f"train.{given[0] if given else 'max_steps'}",
            f"{text}: set exactly one of train.max_steps, train.max_tokens, train.epochs",
        )
    ]


def _scale_problems(config: Config) -> list[tuple[str, str]]:
    low, high = config.scale.worker_range
    if not 1 <= low <= high:
        return [("scale.num_workers", "must be at least 1, and a range must go upwards")]
    return []


def _strategy_problems(config: Config) -> list[tuple[str, str]]:
    train, found = config.train, []
    if train.offload != "none" and train.strategy == "ddp":
        found.append(("train.offload", "needs DeepSpeed: set train.strategy to zero1, zero2 or zero3"))
    if train.offload == "all" and train.strategy in ("zero1", "zero2"):
        found.append(("train.offload", f"is all but train.strategy={train.strategy} keeps whole weights: set zero3"))
    if train.deepspeed and train.strategy == "ddp":
        found.append(("train.deepspeed", "has no effect with train.strategy=ddp: set zero1, zero2 or zero3"))
    if train.compile and train.strategy != "ddp":
        found.append(("train.compile", "is not supported with DeepSpeed: set it to false or train.strategy to ddp"))
    if config.model.lora_rank and config.model.init_from == "random":
        found.append(("model.lora_rank", "needs a model to adapt: set model.init_from, or model.lora_rank to 0"))
    if config.model.lora_rank and train.strategy != "ddp":
        found.append(("model.lora_rank", "needs train.strategy=ddp: adapters leave ZeRO nothing to share out"))
    low, high = config.scale.worker_range
    if train.strategy != "ddp" and low != high:
        found.append(
            (
                "scale.num_workers",
                "must be one number with DeepSpeed: a resume may use another one, a run not change it",
            )
        )
    return found
