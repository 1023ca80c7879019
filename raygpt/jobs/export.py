"""`raygpt export`: a Hugging Face folder of a run, a checkpoint or another Hugging Face model."""

from __future__ import annotations

import json
from typing import Any

import torch

from raygpt import storage
from raygpt.cli import Call
from raygpt.config import Config
from raygpt.data.shards import Manifest, load_manifest
from raygpt.data.sources import shard_folders
from raygpt.errors import UserError
from raygpt.evaluate.subject import Subject, open_subject
from raygpt.model.card import model_card
from raygpt.model.export import export_model
from raygpt.storage import Location


def run(config: Config, call: Call) -> int:
    subject = open_subject(config, torch.device("cpu"))
    print(subject.describe(), flush=True)
    target = target_folder(config, subject)
    export_model(
        subject.model,
        target,
        tokenizer_json=subject.tokenizer.to_json(),
        eot_id=subject.tokenizer.eot_id,
        card=describe(subject),
    )
    print(f"Exported to {target.uri}")
    if target.is_local:
        print(f'Load it: transformers.pipeline("text-generation", model="{target.uri}")')
    return 0


def target_folder(config: Config, subject: Subject) -> Location:
    """export.output, or export/ in the run folder."""
    if config.export.output is not None:
        return storage.locate(config.export.output)
    if subject.run is None:
        raise UserError("export.output is not set, and model.init_from lies in no run: name the folder to write.")
    return subject.run / "export"


def describe(subject: Subject) -> str:
    """The model card from what the checkpoint, its config and the run's summary say."""
    state, config = subject.state, subject.config
    training: dict[str, Any] = {}
    data: dict[str, Any] = {}
    results: dict[str, Any] = {}
    if state is not None:
        training = {"steps": state.step, "tokens": state.tokens}
        data = {"fingerprint": f"`{state.fingerprint}`"}
        results = {"validation loss (nats per token)": state.val_loss}
    if config is not None:
        training |= {
            "batch": f"{config.train.global_batch_tokens:,} tokens",
            "optimizer": f"{config.optim.name}, lr {config.optim.lr:g}, {config.optim.schedule}, "
            f"weight decay {config.optim.weight_decay:g}",
            "dropout": config.model.dropout,
            "precision": config.train.precision,
            "seed": config.run.seed,
        }
        if config.model.init_from != "random":
            training["started from"] = config.model.init_from
        if (manifest := _manifest(config, subject)) is not None:
            data |= {
                "sources": manifest.sources,
                "training tokens": manifest.tokens,
                "documents": manifest.documents,
            }
    if (summary := _summary(subject)) is not None:
        results |= {
            "bits per byte": summary.get("bits_per_byte"),
            "training loss (nats per token)": summary.get("train_loss"),
            "training tokens per second": summary.get("tokens_per_second"),
        }
    return model_card(
        subject.name,
        subject.model.config,
        tokenizer=subject.tokenizer.name,
        training=training,
        data=data,
        results=results,
    )


def _manifest(config: Config, subject: Subject) -> Manifest | None:
    """Of the training shards, when they still lie there and are those the model was trained on."""
    try:
        manifest = load_manifest(shard_folders(config)[0])
    except (UserError, AssertionError, OSError):
        return None
    assert subject.state is not None
    return manifest if manifest.fingerprint == subject.state.fingerprint else None


def _summary(subject: Subject) -> dict[str, Any] | None:
    """The run's summary.json, when it speaks of the step that is exported."""
    if subject.run is None or subject.state is None:
        return None
    try:
        summary = json.loads(storage.read_text(subject.run / "summary.json"))
    except (FileNotFoundError, ValueError):
        return None
    return summary if summary.get("steps") == subject.state.step else None
