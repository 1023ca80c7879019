"""What `data.train` and `data.val` mean: shard folders as they are, raw text prepared on first use."""

from __future__ import annotations

import hashlib
import json

from raygpt import storage
from raygpt.config import Config
from raygpt.data.shards import MANIFEST, Manifest, load_manifest
from raygpt.errors import UserError


def is_prepared(uri: str) -> bool:
    """Whether a shard folder, or an output of `raygpt prepare`, lies there."""
    where = storage.locate(uri) if _may_be_path(uri) else None
    return where is not None and any(storage.exists(where / name) for name in (MANIFEST, f"train/{MANIFEST}"))


def shard_folders(config: Config) -> tuple[str, str]:
    """(train, val) shard folders of prepared data. Raises UserError where one of them cannot be told."""
    assert config.data.train is not None
    train = storage.locate(config.data.train)
    if storage.exists(train / "train" / MANIFEST):
        train = train / "train"
    if config.data.val is not None:
        val = storage.locate(config.data.val)
        if storage.exists(val / "val" / MANIFEST):
            val = val / "val"
    else:
        val = train.parent / "val"
        if not storage.exists(val / MANIFEST):
            raise UserError(
                f"data.val is not set and there is no {val.uri} beside data.train: name a validation folder."
            )
    return train.uri, val.uri


def prepared_home(config: Config) -> str:
    """Folder for raw `data.train`, named by all its tokens depend on: runs with the same text share it."""
    options = config.prepare.model_dump(mode="json")
    what = [config.data.train, config.data.val, config.data.tokenizer, options]
    name = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
    return (storage.locate(config.run.storage) / "prepared" / name).uri


def manifests(train: str, val: str) -> tuple[Manifest, Manifest]:
    """Both manifests. Raises UserError when the two were made with different tokenizers."""
    first, second = load_manifest(train), load_manifest(val)
    if first.tokenizer.sha256 != second.tokenizer.sha256:
        raise UserError(
            f"data.val={val} was made with tokenizer {second.tokenizer.name}, data.train={train} with "
            f"{first.tokenizer.name}: prepare both with one tokenizer."
        )
    return first, second


def raw_sources(uri: str) -> list[str]:
    """Sources of raw text that a data setting names."""
    return [part.strip() for part in uri.split(",") if part.strip()]


def _may_be_path(uri: str) -> bool:
    return "*" not in uri and not uri.startswith("hf://") and "," not in uri
