"""The model a job looks at, and what its checkpoint says about its training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import yaml

from raygpt import storage
from raygpt.data.tokenizer import Tokenizer
from raygpt.errors import UserError
from raygpt.evaluate.foreign import is_foreign, load_foreign
from raygpt.hardware import choose_precision
from raygpt.parallel import checkpoint
from raygpt.parallel.checkpoint import RunState
from raygpt.parallel.weights import load
from raygpt.storage import Location
from raygpt.train.precision import Precision


@dataclass(frozen=True)
class Trained:
    """What a checkpoint's config says about its training; None for what it leaves out."""

    train: str | None = None  # URI of the data
    val: str | None = None
    text_column: str | None = None
    seq_len: int | None = None
    global_batch_tokens: int | None = None
    precision: str | None = None
    real: str | None = None  # a second corpus

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> Trained:
        """From a run's config.yaml, of whatever version."""
        data, train = saved.get("data") or {}, saved.get("train") or {}
        return cls(
            data.get("train"),
            data.get("val"),
            data.get("text_column"),
            data.get("seq_len"),
            train.get("global_batch_tokens"),
            train.get("precision"),
            (saved.get("distill") or {}).get("real"),
        )


@dataclass
class Subject:
    """A model in eval mode on its device, with all that is known about where it comes from.

    `state` and `trained` are None for a Hugging Face model; `run` also for a checkpoint that lies outside a run folder.
    """

    model: Any  # a LanguageModel, of whatever family
    tokenizer: Tokenizer
    origin: str
    device: torch.device
    precision: Precision
    state: RunState | None = None
    trained: Trained | None = None
    run: Location | None = None

    @property
    def mixed(self) -> bool:
        """Whether it was trained on two corpora: the state's fingerprint is of both then."""
        return self.trained is not None and self.trained.real is not None

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


def open_subject(
    uri: str,
    *,
    tokenizer: str | None = None,
    use_gpu: bool | str = "auto",
    precision: str = "auto",
    device: torch.device | None = None,
) -> Subject:
    """Load the model of a run or checkpoint, a Hugging Face one of whatever family, or a GGUF file onto `device`, or
    the best one that `use_gpu` allows.

    `tokenizer`, as a setting names it, is for a Hugging Face model without one. A precision of auto is the training's
    own; on a CPU it is always fp32. Raises UserError where there is no such model.
    """
    loaded = load_foreign(uri) if is_foreign(uri) else load(uri, tokenizer)
    run, saved = background(loaded.origin) if loaded.state is not None else (None, None)
    trained = None if saved is None else Trained.of(saved)
    device = device or choose_device(use_gpu)
    wanted = precision
    if wanted == "auto" and trained is not None:
        wanted = trained.precision or wanted
    name = "fp32" if device.type == "cpu" else choose_precision(wanted, device)[0]
    model = loaded.model.to(device)
    return Subject(model, loaded.tokenizer, loaded.origin, device, Precision(name, device), loaded.state, trained, run)


def choose_device(use_gpu: bool | str) -> torch.device:
    """The first GPU where there is one and scale.use_gpu allows it. Raises UserError for true without a GPU."""
    if use_gpu is True and not torch.cuda.is_available():
        raise UserError("scale.use_gpu=true but PyTorch finds no GPU here: leave it at auto, or set it to false.")
    return torch.device("cuda" if use_gpu and torch.cuda.is_available() else "cpu")


def subject_uri(init_from: str, run: Location) -> str:
    """model.init_from where it names weights, else the run's folder; UserError where that has no checkpoint."""
    if init_from != "random":
        return init_from
    if not storage.exists(run / checkpoint.FOLDER) or not storage.list_folder(run / checkpoint.FOLDER):
        raise UserError(
            f"run {run.uri} has no checkpoint: name a run with run.storage and run.name, or a model with "
            "model.init_from."
        )
    return run.uri


def background(origin: str) -> tuple[Location | None, dict[str, Any] | None]:
    """(run folder, the config.yaml it was trained with) of a checkpoint, each None where it is not known."""
    where = storage.locate(origin)
    run = where.parent.parent if where.parent.name == checkpoint.FOLDER else None
    try:
        return run, yaml.safe_load(storage.read_text(where / "config.yaml"))
    except FileNotFoundError:
        return run, None
