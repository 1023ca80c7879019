"""`raygpt export`: a Hugging Face folder of a run, a checkpoint or another Hugging Face model.

Weights go from the checkpoint's files to the folder's one at a time: no model is built, and a machine without a GPU and
with a few GB of memory exports any size.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raygpt import storage
from raygpt.config import Config
from raygpt.config.checks import base_tokenizer
from raygpt.config.job import Call, Job
from raygpt.errors import UserError
from raygpt.storage import Location

if TYPE_CHECKING:
    from raygpt.data.shards import Manifest
    from raygpt.data.tokenizer import Tokenizer
    from raygpt.parallel.weights import WeightSource


DECLARATION = Job(
    "export",
    "write a Hugging Face folder",
    ("run", "model", "data", "export"),
    checks=(base_tokenizer,),
    place=90,
)


@dataclass(frozen=True)
class Exported:
    """What is exported and all that is known about where it comes from; `config` and `run` as `background` has them."""

    source: WeightSource
    tokenizer: Tokenizer
    config: Config | None
    run: Location | None

    @property
    def name(self) -> str:
        """Short name: the run's, or the last part of the path or id."""
        return self.run.name if self.run else self.source.origin.rstrip("/").rsplit("/", 1)[-1]


def run(config: Config, call: Call) -> int:
    from raygpt.config.settings import config_from_dict
    from raygpt.evaluate.subject import background, subject_uri
    from raygpt.model import registry
    from raygpt.parallel.weights import open_tokenizer, open_weights
    from raygpt.run.frame import run_location

    source = open_weights(subject_uri(config.model.init_from, run_location(config)))
    family = registry.of(source.config)
    family.check_export()
    run, saved = background(source.origin) if source.state is not None else (None, None)
    trained = config_from_dict(saved) if saved is not None else None
    subject = Exported(source, open_tokenizer(source, config.data.tokenizer), trained, run)
    step = f" (step {source.state.step:,})" if source.state else ""
    print(f"Model {source.origin}{step}: {source.config.num_parameters():,} parameters", flush=True)
    target = target_folder(config, subject)
    family.export(
        source.config,
        source.items(),
        target,
        tokenizer_json=subject.tokenizer.to_json(),
        eot_id=subject.tokenizer.eot_id,
        card=describe(subject),
        dtype=config.export.dtype,
        shard_bytes=config.export.shard_gb * 1e9,
    )
    print(f"Exported to {target.uri}")
    if target.is_local:
        print(f'Load it: transformers.pipeline("text-generation", model="{target.uri}")')
    return 0


def target_folder(config: Config, subject: Exported) -> Location:
    """export.output, or export/ in the run folder."""
    if config.export.output is not None:
        return storage.locate(config.export.output)
    if subject.run is None:
        raise UserError("export.output is not set, and model.init_from lies in no run: name the folder to write.")
    return subject.run / "export"


def describe(subject: Exported) -> str:
    """The model card from what the checkpoint, its config and the run's summary say."""
    from raygpt.model.card import model_card

    state, config = subject.source.state, subject.config
    summary = _summary(subject) or {}
    training: dict[str, Any] = {}
    data: dict[str, Any] = {}
    results: dict[str, Any] = {}
    base = None
    if state is not None:
        training = {"steps": state.step, "tokens": state.tokens, "workers": state.world_size}
        data = {"fingerprint": f"`{state.fingerprint}`"}
        results = {"validation loss (nats per token)": state.val_loss}
        if state.val_loss is not None:
            results["validation perplexity"] = math.exp(min(state.val_loss, 700))
        if state.best_step is not None:
            results["best validation loss"] = f"{state.best_val_loss:.4f} at step {state.best_step:,}"
    if config is not None:
        base = config.model.init_from if config.model.init_from != "random" else None
        training |= {
            "batch": f"{config.train.global_batch_tokens:,} tokens",
            "optimizer": f"{config.optim.name}, lr {config.optim.lr:g}, {config.optim.schedule}, "
            f"weight decay {config.optim.weight_decay:g}",
            "dropout": config.model.dropout,
            "precision": config.train.precision,
            "seed": config.run.seed,
            "started from": base,
        }
        if (manifest := _manifest(config, subject)) is not None:
            data |= {
                "sources": manifest.sources,
                "training tokens": manifest.tokens,
                "documents": manifest.documents,
            }
    results |= {
        "bits per byte": summary.get("bits_per_byte"),
        "training loss (nats per token)": summary.get("train_loss"),
        "training tokens per second": summary.get("tokens_per_second"),
    }
    if (cost := summary.get("cost_usd")) is not None:
        training["cost"] = f"${cost:,.2f}"
    return model_card(
        subject.name,
        subject.source.config,
        tokenizer=subject.tokenizer.name,
        training=training,
        data=data,
        results=results,
        base=base,
    )


def _manifest(config: Config, subject: Exported) -> Manifest | None:
    """Of the training shards, when they still lie there and are those the model was trained on."""
    from raygpt.data.shards import load_manifest
    from raygpt.data.sources import shard_folders

    try:
        manifest = load_manifest(shard_folders(config.data.train, config.data.val)[0])
    except (UserError, AssertionError, OSError):
        return None
    assert subject.source.state is not None
    return manifest if manifest.fingerprint in subject.source.state.fingerprint else None


def _summary(subject: Exported) -> dict[str, Any] | None:
    """The run's summary.json, when it speaks of the step that is exported."""
    if subject.run is None or subject.source.state is None:
        return None
    try:
        summary = json.loads(storage.read_text(subject.run / "summary.json"))
    except (FileNotFoundError, ValueError):
        return None
    return summary if summary.get("steps") == subject.source.state.step else None
