"""The model a job looks at: `model.init_from`, or the newest checkpoint of the run `run.storage`/`run.name`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import yaml

from raygpt import storage
from raygpt.config import Config
from raygpt.config.settings import config_from_dict
from raygpt.data.tokenizer import Tokenizer
from raygpt.errors import UserError
from raygpt.hardware import choose_precision
from raygpt.model.gpt import GPT
from raygpt.parallel import checkpoint
from raygpt.parallel.checkpoint import RunState
from raygpt.parallel.weights import load
from raygpt.run.frame import run_location
from raygpt.storage import Location
from raygpt.train.precision import Precision


@dataclass
class Subject:
    """A model in eval mode on its device, with all that is known about where it comes from.

    `state` and `config` (what it was trained with) are None for a Hugging Face model; `run` also for a checkpoint that
    lies outside a run folder.
    """

    model: GPT
    tokenizer: Tokenizer
    origin: str
    device: torch.device
    precision: Precision
    state: RunState | None = None
    config: Config | None = None
    run: Location | None = None

    @property
    def name(self) -> str:
        """Short name: the run's, or the last part of the path or id."""
        return self.run.name if self.run else self.origin.rstrip("/").rsplit("/", 1)[-1]

    def describe(self) -> str:
        """One sentence: what, how large, where it computes."""
        step = f" (step {self.state.step:,})" if self.state else ""
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        return (
            f"Model {self.origin}{step}: {self.model.config.num_parameters():,} parameters, tokenizer "
            f"{self.tokenizer.name} of {self.tokenizer.vocab_size:,}, {device}, {self.precision.name}"
        )


def open_subject(config: Config, device: torch.device | None = None) -> Subject:
    """Load the model onto `device`, or the best one scale.use_gpu allows.

    The precision is train.precision, where that is auto the training's own; on a CPU always fp32. Raises UserError
    where there is no such model.
    """
    loaded = load(subject_uri(config), config.data.tokenizer)
    run, saved = background(loaded.origin) if loaded.state is not None else (None, None)
    device = device or choose_device(config.scale.use_gpu)
    wanted = config.train.precision
    if wanted == "auto" and saved is not None:
        wanted = saved.train.precision
    name = "fp32" if device.type == "cpu" else choose_precision(wanted, device)[0]
    model = loaded.model.to(device)
    return Subject(model, loaded.tokenizer, loaded.origin, device, Precision(name, device), loaded.state, saved, run)


def choose_device(use_gpu: bool | str) -> torch.device:
    """The first GPU where there is one and scale.use_gpu allows it. Raises UserError for true without a GPU."""
    if use_gpu is True and not torch.cuda.is_available():
        raise UserError("scale.use_gpu=true but PyTorch finds no GPU here: leave it at auto, or set it to false.")
    return torch.device("cuda" if use_gpu and torch.cuda.is_available() else "cpu")


def subject_uri(config: Config) -> str:
    """model.init_from, or the run `run.storage`/`run.name`; UserError where that has no checkpoint."""
    if config.model.init_from != "random":
        return config.model.init_from
    run = run_location(config)
    if not storage.exists(run / checkpoint.FOLDER) or not storage.list_folder(run / checkpoint.FOLDER):
        raise UserError(
            f"run {run.uri} has no checkpoint: name a run with run.storage and run.name, or a model with "
            "model.init_from."
        )
    return run.uri


def background(origin: str) -> tuple[Location | None, Config | None]:
    """(run folder, config it was trained with) of a checkpoint, each None where it is not known."""
    where = storage.locate(origin)
    run = where.parent.parent if where.parent.name == checkpoint.FOLDER else None
    try:
        return run, config_from_dict(yaml.safe_load(storage.read_text(where / "config.yaml")))
    except FileNotFoundError:
        return run, None
