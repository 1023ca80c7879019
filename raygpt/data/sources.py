"""What `data.train` and `data.val` mean: shard folders as they are, raw text prepared on first use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from raygpt import storage
from raygpt.data import hub
from raygpt.data.request import PrepareOptions, check_options, describe_request, expand, request_name
from raygpt.data.shards import MANIFEST, TOKENIZER, Manifest, load_manifest
from raygpt.data.tokenizer import Tokenizer
from raygpt.errors import UserError


def is_prepared(uri: str, side: str = "train") -> bool:
    """Whether a shard folder, or an output of `raygpt prepare` with that side, lies there."""
    where = storage.locate(uri) if is_path(uri) else None
    return where is not None and any(storage.exists(where / name) for name in (MANIFEST, f"{side}/{MANIFEST}"))


def needs_preparing(train: str | None, val: str | None) -> bool:
    """Whether data.train or data.val is raw text."""
    return (train is not None and not is_prepared(train)) or (val is not None and not is_prepared(val, "val"))


def shard_folders(train: str | None, val: str | None) -> tuple[str, str]:
    """(train, val) shard folders of the data.train and data.val given; data.train has to be set, data.val may lie
    beside it. Raises UserError where one of them cannot be told."""
    assert train is not None
    of_train = storage.locate(train)
    if storage.exists(of_train / "train" / MANIFEST):
        of_train = of_train / "train"
    if val is not None:
        of_val = storage.locate(val)
        if storage.exists(of_val / "val" / MANIFEST):
            of_val = of_val / "val"
    else:
        of_val = of_train.parent / "val"
        if not storage.exists(of_val / MANIFEST):
            raise UserError(
                f"data.val is not set and there is no {of_val.uri} beside data.train: name a validation folder."
            )
    return of_train.uri, of_val.uri


def raw_options(
    train: str, val: str | None, settings: PrepareOptions, tokenizer: Callable[[], Tokenizer | str]
) -> PrepareOptions | None:
    """How to make shards of what is raw in data.train and data.val; None where nothing is.

    | data.train | data.val | train/ | val/ |
    |---|---|---|---|
    | raw | not set | what prepare.val_split, prepare.val_fraction or prepare.val_sources leave | the rest |
    | raw | raw | all of data.train | all of data.val |
    | raw | shards | all of data.train | not made: the shards stay |
    | shards | raw | not made: the shards stay | all of data.val, with the tokenizer of the train shards |

    `settings` say how, and their output is the folder of all such shards; sources and tokenizer are chosen here.
    `tokenizer` gives the one for raw training text. The output's name says all that the shards depend on, so runs with
    the same text share it and changed text gets another one. Raises UserError for text that is not there and for
    validation shards of another tokenizer.
    """
    raw_train, raw_val = not is_prepared(train), val is not None and not is_prepared(val, "val")
    if not raw_train and not raw_val:
        return None
    options = replace(
        settings,
        sources=raw_sources(train) if raw_train else [],
        tokenizer=tokenizer() if raw_train else "bytes",
        sources_setting="data.train",
    )
    if val is not None:
        held_out = replace(options, val_setting="data.val", val_sources=raw_sources(val) if raw_val else [])
        options = replace(held_out, val_split="documents" if raw_val else "none")
    if not raw_train:
        options = replace(options, tokenizer=_shards_tokenizer(train), max_documents=None)
    options = _in_its_folder(options)
    if val is not None and not raw_val:
        _check_beside(val, options)
    return options


def _in_its_folder(options: PrepareOptions) -> PrepareOptions:
    """With a folder of its own in the output, named by all that the shards depend on, and its tokenizer loaded."""
    check_options(options)
    inputs = expand(options)
    used = options.load_tokenizer()
    name = request_name(describe_request(options, inputs.units, inputs.val_units, used))
    return replace(options, output=(storage.locate(options.output) / name).uri, tokenizer=used or options.tokenizer)


def manifests(train: str, val: str) -> tuple[Manifest, Manifest]:
    """Both manifests. Raises UserError when the two were made with different tokenizers."""
    first, second = load_manifest(train), load_manifest(val)
    if first.tokenizer.sha256 != second.tokenizer.sha256:
        raise UserError(
            f"data.val={val} was made with tokenizer {second.tokenizer.name}, data.train={train} with "
            f"{first.tokenizer.name}: prepare both with one tokenizer."
        )
    return first, second


def real_manifest(real: str, train: Manifest, train_uri: str) -> tuple[str, Manifest]:
    """Folder and manifest of the shards distill.real, a folder or an output of `raygpt prepare`.

    Raises UserError where they were made with another tokenizer than data.train.
    """
    folder = storage.locate(real)
    if storage.exists(folder / "train" / MANIFEST):
        folder = folder / "train"
    found = load_manifest(folder)
    if found.tokenizer.sha256 != train.tokenizer.sha256:
        raise UserError(
            f"distill.real={real} was made with tokenizer {found.tokenizer.name} of {found.tokenizer.vocab_size:,}, "
            f"data.train={train_uri} with {train.tokenizer.name} of {train.tokenizer.vocab_size:,}: prepare both with "
            "one tokenizer, or name distill.real's raw text."
        )
    return folder.uri, found


def real_options(real: str, train: str, settings: PrepareOptions) -> PrepareOptions:
    """How to make shards of the raw text distill.real: all of it, with the tokenizer of the shards data.train.

    `settings` say how, and their output is the folder of all such shards. Raises UserError for text that is not there.
    """
    options = replace(
        settings,
        sources=raw_sources(real),
        tokenizer=_shards_tokenizer(train, "distill.real"),
        sources_setting="distill.real",
        val_split="none",
        val_sources=[],
        max_documents=None,
    )
    return _in_its_folder(options)


def raw_sources(uri: str) -> list[str]:
    """Sources of raw text that a data setting names, separated by commas where no file has that name."""
    if "," in uri and storage.exists(storage.locate(uri.strip())):
        return [uri]
    return [part.strip() for part in uri.split(",") if part.strip()]


def _shards_tokenizer(train: str, raw: str = "data.val") -> Tokenizer:
    folder = storage.locate(train)
    if storage.exists(folder / "train" / MANIFEST):
        folder = folder / "train"
    info = load_manifest(folder).tokenizer
    try:
        found = Tokenizer.from_json(storage.read_bytes(folder / TOKENIZER), info.name, info.eot_id)
    except FileNotFoundError:
        found = None
    if found is None or found.sha256 != info.sha256:
        raise UserError(
            f"{raw} is raw text but {(folder / TOKENIZER).uri} {'is missing' if found is None else 'is another one'}"
            ": put the tokenizer that data.train was made with there, or name a validation shard folder."
        )
    return found


def _check_beside(val: str, options: PrepareOptions) -> None:
    folder = storage.locate(val)
    if storage.exists(folder / "val" / MANIFEST):
        folder = folder / "val"
    made_with = load_manifest(folder).tokenizer
    chosen = options.tokenizer
    if isinstance(chosen, str) or chosen.sha256 != made_with.sha256:
        wanted = chosen if isinstance(chosen, str) else chosen.name
        raise UserError(
            f"data.val={val} was made with tokenizer {made_with.name} of {made_with.vocab_size:,} but data.train is "
            f"raw text for {wanted}: name data.val's raw text too, or set data.tokenizer={folder.uri}."
        )


def is_path(uri: str) -> bool:
    """Whether a URI names one file or folder, not a dataset of the hub, a glob or a list: what is there is meant first,
    whatever characters its name has."""
    if hub.is_hub_id(uri):
        return False
    return not any(mark in uri for mark in "*?[,") or storage.exists(storage.locate(uri))
