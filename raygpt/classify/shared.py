"""What all trainings of one task share (the encoded task, the base model, the settings), and how one of them starts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from raygpt.classify.tasks import Task, encode, load_task
from raygpt.classify.training import EncodedTask, Recipe, Training
from raygpt.config import Config
from raygpt.config.settings import config_from_dict, config_with
from raygpt.errors import UserError
from raygpt.model.gpt import GPT
from raygpt.parallel.weights import load, load_weights

STATE_TENSORS, STATE_VALUES = "state.safetensors", "state.json"


@dataclass(frozen=True)
class Shared:
    """What a Ray worker needs to train on a task. `origin` is where the base weights lie, `shape` and `tokenizer_json`
    are theirs; `cpus`, `gpus`: its share."""

    config: dict[str, Any]
    task: EncodedTask
    origin: str
    metric: str
    cpus: float
    gpus: float
    shape: dict[str, Any]
    tokenizer_json: bytes


def read_task(config: Config) -> Task:
    """The task of a config. Raises UserError listing what is wrong with its files."""
    task = config.task
    assert task.train is not None
    return load_task(
        task.name or "task",
        task.train,
        task.val,
        text_columns=task.text_columns,
        label_column=task.label_column,
        labels=task.labels,
        selection_fraction=task.selection_fraction,
        split_seed=task.split_seed,
        train_examples=task.train_examples,
    )


def make_shared(config: Config, task: Task, say: Callable[[str], None], *, metric: str, reinit_layers: int) -> Shared:
    """The encoded task and the exact checkpoint that trainings start from; Ray must be connected.

    Raises UserError where the model has fewer blocks than `reinit_layers`, the most that any training begins anew.
    """
    tokenizer = None if config.data.tokenizer == "base" else config.data.tokenizer
    loaded = load(config.model.init_from, tokenizer)
    shape = loaded.model.config
    say(f"Model {loaded.origin}: {shape.num_parameters():,} parameters, tokenizer {loaded.tokenizer.name}")
    say(task.describe())
    if reinit_layers > shape.n_layer:
        raise UserError(f"task.reinit_layers={reinit_layers} but the model has {shape.n_layer} blocks: lower it.")
    parts = [encode(part, task.labels, loaded.tokenizer) for part in (task.train, task.selection)]
    val = encode(task.val, task.labels, loaded.tokenizer) if task.val else None
    return Shared(
        config=config.to_dict(),
        task=EncodedTask(task.name, task.labels, parts[0], parts[1], val, loaded.tokenizer.eot_id),
        shape=shape.to_dict(),
        tokenizer_json=loaded.tokenizer.to_json(),
        origin=loaded.origin,
        metric=metric,
        cpus=config.tune.cpus_per_trial,
        gpus=_gpus(config),
    )


def start_training(shared: Shared, changes: Mapping[str, Any] | None = None, *, keep_val: bool = False) -> Training:
    """A training at its beginning, with `changes` to the settings ({dotted key: value})."""
    config = config_with(config_from_dict(shared.config), dict(changes or {}), "trial")
    device = torch.device("cuda" if shared.gpus > 0 and torch.cuda.is_available() else "cpu")
    recipe = Recipe.from_config(config)
    return Training(base_model(shared.origin), shared.task, recipe, device, metric=shared.metric, keep_val=keep_val)


@lru_cache(maxsize=1)
def base_model(origin: str) -> GPT:
    """The model every training starts from, read once per process. Callers leave it as it is."""
    return load_weights(origin)[0]


def save_state(training: Training, folder: Path) -> None:
    """Write what `load_state` goes on from."""
    tensors, values = training.state()
    save_file(tensors, folder / STATE_TENSORS)
    (folder / STATE_VALUES).write_text(json.dumps(values))


def load_state(training: Training, folder: Path) -> None:
    """Bring a training to where `save_state` left it."""
    training.restore(load_file(folder / STATE_TENSORS), json.loads((folder / STATE_VALUES).read_text()))


def _gpus(config: Config) -> float:
    import ray

    wanted = config.tune.gpus_per_trial
    if wanted != "auto":
        return float(wanted)
    return 1.0 if config.scale.use_gpu is not False and ray.cluster_resources().get("GPU", 0) >= 1 else 0.0
