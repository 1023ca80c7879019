"""From a config to what the workers will do: data, model shape, plan, and whether an earlier run may go on."""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from raygpt import storage
from raygpt.config import Config
from raygpt.data.mixture import AnyOrder, Mixture, Share
from raygpt.data.order import Order
from raygpt.data.shards import TOKENIZER, AnyLayout, JoinedLayout, Manifest
from raygpt.data.sources import manifests, real_manifest, shard_folders
from raygpt.data.tokenizer import Tokenizer
from raygpt.errors import UserError
from raygpt.model.architecture import ModelConfig
from raygpt.model.registry import FIRST
from raygpt.parallel import checkpoint
from raygpt.run.frame import check_start, run_location
from raygpt.scoring.hellaswag import Item, questions, read_items
from raygpt.storage import Location
from raygpt.train.base_tokenizer import base_tokenizer, check_tokenizer
from raygpt.train.evaluation import rows_in_training
from raygpt.train.hellaswag import check_endings
from raygpt.train.model_shape import model_shape
from raygpt.train.optim import check_name
from raygpt.train.plan import TrainPlan, batch_rows, total_steps, warmup
from raygpt.train.resume import check_resume
from raygpt.train.schedule import Schedule


@dataclass(frozen=True)
class RealText:
    """Text mixed with data.train: its shard folder, and its share of a batch at the first step and at the last."""

    uri: str
    start: float
    end: float


@dataclass(frozen=True)
class Resolved:
    """A job ready to start. `done_steps` is where the newest complete checkpoint stands, 0 for a fresh run.

    `real` is the shard folder of text mixed with that of `train`; `hellaswag` what is asked at every evaluation.
    """

    run: Location
    train_uri: str
    val_uri: str
    train: Manifest
    val: Manifest
    model: ModelConfig
    plan: TrainPlan
    done_steps: int
    tokenizer_json: bytes
    stopped_early: bool = False
    real_uri: str | None = None
    real: Manifest | None = None
    hellaswag: tuple[Item, ...] = ()

    @property
    def layout(self) -> AnyLayout:
        """Where what is trained on lies."""
        train = self.train.layout(self.train_uri)
        if self.real is None or self.real_uri is None:
            return train
        return JoinedLayout(train, self.real.layout(self.real_uri))

    @property
    def val_tokens(self) -> int:
        """Tokens that every evaluation of the run predicts."""
        rows = self.plan.evaluation_rows
        every = self.val.tokens - 1
        return every if rows is None else min(every, rows * self.plan.order.seq_len)


def resolve(config: Config, real: RealText | None = None) -> Resolved:
    """Read the manifests and work out everything that follows. Needs no Ray. Raises UserError for what cannot be."""
    check_name(config.optim.name, config.train.strategy)
    train_uri, val_uri = shard_folders(config.data.train, config.data.val)
    train, val = manifests(train_uri, val_uri)
    if val.tokens < 2:
        raise UserError(f"data.val={val_uri} holds {val.tokens} tokens, too few to predict one: prepare more text.")
    run = run_location(config)
    earlier = earlier_run(config)
    trained = {"architecture": FIRST, **earlier.model} if earlier is not None else None
    model = model_shape(config.model, train.tokenizer.vocab_size, trained=trained)
    if earlier is None or config.model.init_from == "random":
        _check_vocabulary(model, train)
    if earlier is None and config.model.init_from != "random":
        _check_base_tokenizer(config, train, train_uri)
    seq_len = config.data.seq_len or model.seq_len
    if seq_len > model.seq_len:
        raise UserError(
            f"data.seq_len={seq_len} exceeds the model's context of {model.seq_len}: lower it or raise model.seq_len."
        )
    rows = batch_rows(config.train.global_batch_tokens, seq_len, config.scale.worker_range)
    real_uri, mixed = real_manifest(real.uri, train, train_uri) if real is not None else (None, None)
    width = max(each.numpy_dtype.itemsize for each in (train, mixed) if each is not None)
    own = Order(train.fingerprint, config.run.seed, seq_len, rows, train.tokens, width)
    steps = total_steps(
        own,
        rows * seq_len,
        max_steps=config.train.max_steps,
        max_tokens=config.train.max_tokens,
        epochs=config.train.epochs,
        real_share=(real.start + real.end) / 2 if real is not None else 0.0,
    )
    order: AnyOrder = own
    if real is not None and mixed is not None:
        _check_length(mixed, real.uri, rows * seq_len)
        second = Order(mixed.fingerprint, config.run.seed, seq_len, rows, mixed.tokens, width)
        order = Mixture(own, second, Share(real.start, real.end, steps - 1))
    schedule = Schedule(
        config.optim.schedule,
        config.optim.lr,
        steps,
        warmup(steps, config.optim.warmup_steps, config.optim.warmup_fraction),
        config.optim.min_lr_ratio,
        config.optim.decay_fraction,
    )
    evaluated = rows_in_training(
        config.eval.batches,
        seq_len=seq_len,
        batch_rows=rows,
        steps_between=min(steps, config.eval.every or steps),
    )
    facts = {
        "fingerprint": order.fingerprint,
        "tokenizer_sha256": train.tokenizer.sha256,
        "model": model.to_dict(),
    }
    if earlier is not None:
        saved = {
            "order_version": earlier.order_version,
            "fingerprint": earlier.fingerprint,
            "tokenizer_sha256": earlier.tokenizer_sha256,
            "model": trained,
            "config": yaml.safe_load(storage.read_text(checkpoint.complete_checkpoints(run)[0] / "config.yaml")),
        }
        check_resume(run, saved, config.to_dict(), facts, ignore_fingerprint=config.data.ignore_fingerprint)
    tokenizer_json = storage.read_bytes(storage.locate(train_uri) / TOKENIZER)
    hellaswag = hellaswag_items(config)
    if hellaswag:
        known = Tokenizer.from_json(tokenizer_json, train.tokenizer.name, train.tokenizer.eot_id)
        check_endings(hellaswag, config.eval.protocols[0], known, model.seq_len)
    return Resolved(
        run,
        train_uri,
        val_uri,
        train,
        val,
        model,
        TrainPlan(order, schedule, steps, evaluated),
        earlier.step if earlier else 0,
        tokenizer_json,
        earlier.stopped_early if earlier else False,
        real_uri,
        mixed,
        hellaswag,
    )


def hellaswag_items(config: Config) -> tuple[Item, ...]:
    """Items of eval.hellaswag, of which eval.limit may take the first ones; none where it is not set. Raises UserError
    for what cannot be asked."""
    if config.eval.hellaswag is None:
        return ()
    items = read_items(config.eval.hellaswag, config.eval.limit)
    questions(items, config.eval.protocols[0])
    return tuple(items)


def _check_length(real: Manifest, uri: str, batch_tokens: int) -> None:
    if real.tokens <= batch_tokens:
        raise UserError(
            f"distill.real={uri} holds {real.tokens:,} tokens but one batch has {batch_tokens:,}: name more text, or "
            "lower train.global_batch_tokens."
        )


def _check_vocabulary(model: ModelConfig, train: Manifest) -> None:
    if model.vocab_size < train.tokenizer.vocab_size:
        raise UserError(
            f"the model knows {model.vocab_size:,} token ids but data.train was made with tokenizer "
            f"{train.tokenizer.name} of {train.tokenizer.vocab_size:,}: prepare the data with the model's tokenizer, "
            "or raise model.vocab_size."
        )


def earlier_run(config: Config) -> checkpoint.RunState | None:
    """What the newest complete checkpoint says, None for a fresh run. UserError where run.resume forbids either."""
    found = checkpoint.complete_checkpoints(run_location(config))
    check_start(config, lambda _: bool(found), "complete checkpoint")
    return checkpoint.read_state(found[0]) if found else None


def _check_base_tokenizer(config: Config, train: Manifest, train_uri: str) -> None:
    try:
        base = base_tokenizer(config.model.init_from)
    except UserError:
        if config.data.tokenizer == "base":
            raise
        return  # the model came without one; how many ids it knows was checked
    check_tokenizer(base, train, config.model.init_from, train_uri)
