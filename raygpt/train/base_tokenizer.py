"""The tokenizer of the model a run starts from, and whether the data was made with it."""

from __future__ import annotations

import re

from raygpt import storage
from raygpt.config import Config
from raygpt.data.shards import TOKENIZER, Manifest
from raygpt.data.tokenizer import Tokenizer, load_tokenizer
from raygpt.errors import UserError
from raygpt.parallel import checkpoint

RANDOM = "random"
BASE = "base"


def base_tokenizer(init_from: str) -> Tokenizer:
    """That of a run folder, a checkpoint, or a Hugging Face folder or id.

    UserError when there is no such model, or no tokenizer beside it.
    """
    try:
        where = checkpoint.locate_checkpoint(init_from)
    except FileNotFoundError:
        where = None
    if where is not None:
        state = checkpoint.read_state(where)
        return Tokenizer.from_json(storage.read_bytes(where / TOKENIZER), state.tokenizer_name, state.eot_id)
    is_id = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", init_from) is not None
    if not is_id and not storage.exists(storage.locate(init_from)):
        raise UserError(
            f"model.init_from={init_from} does not exist: name a run, a checkpoint, or a Hugging Face folder or id."
        )
    try:
        return load_tokenizer(init_from)
    except UserError as error:
        reason = str(error).removeprefix(f"data.tokenizer={init_from}: ").rstrip(".")
        raise UserError(
            f"model.init_from={init_from} comes without a tokenizer ({reason}): name the one it was trained with in "
            "data.tokenizer, such as gpt2."
        ) from error


def chosen_tokenizer(config: Config) -> Tokenizer | str:
    """The tokenizer that raw text is prepared with: data.tokenizer as it stands, or model.init_from's where it is base.

    UserError when data.tokenizer names another one than the model's.
    """
    init_from, spec = config.model.init_from, config.data.tokenizer
    if init_from == RANDOM:
        return load_tokenizer(spec) if spec == BASE else spec
    if spec == BASE:
        return base_tokenizer(init_from)
    try:
        base = base_tokenizer(init_from)
    except UserError:
        return spec  # it has none, which is what data.tokenizer is for
    named = None if spec.startswith("train:") else load_tokenizer(spec)
    if named is None or named.sha256 != base.sha256:
        raise UserError(
            f"data.tokenizer={spec} but model.init_from={init_from} reads {base.name} of {base.vocab_size:,}: set "
            "data.tokenizer=base."
        )
    return base


def check_tokenizer(base: Tokenizer, manifest: Manifest, init_from: str, train: str) -> None:
    """UserError when the shards of data.train (`train`, with `manifest`) hold ids of another tokenizer than the base
    model's: its weights would take every token for another one."""
    made_with = manifest.tokenizer
    if made_with.sha256 == base.sha256:
        return
    alike = (made_with.name, made_with.vocab_size) == (base.name, base.vocab_size)
    raise UserError(
        f"data.train={train} was made with tokenizer {made_with.name} of {made_with.vocab_size:,} but "
        f"model.init_from={init_from} reads {'another ' if alike else ''}{base.name} of {base.vocab_size:,}: name the "
        "raw text in data.train, or prepare it again with --data.tokenizer=base --model.init_from of that model."
    )
