"""`raygpt prepare`: documents to token shards; and raw `data.train` and `data.val` of other jobs made into them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from raygpt import storage
from raygpt.config import Config
from raygpt.config.job import Call, Job
from raygpt.config.section import Problem

if TYPE_CHECKING:
    from raygpt.data.prepare import PrepareProgress, PrepareResult
    from raygpt.data.request import PrepareOptions
    from raygpt.data.tokenizer import Tokenizer
    from raygpt.train.resolve import RealText


def _sources_and_output(config: Config) -> Iterator[Problem]:
    if not config.prepare.sources:
        yield "prepare.sources", "is not set: name files, folders, s3:// URIs or Hugging Face ids"
    if not config.prepare.output:
        yield "prepare.output", "is not set: name the folder that gets train/ and val/"


DECLARATION = Job(
    "prepare",
    "documents to token shards",
    ("prepare", "data", "scale"),
    reads=("model",),
    flags=("from_txt",),
    aliases=(("from_txt", "prepare.sources"),),
    checks=(_sources_and_output,),
    place=20,
)


def run(config: Config, call: Call) -> int:
    from raygpt.cluster.connect import connect
    from raygpt.train.base_tokenizer import chosen_tokenizer

    if "from_txt" in call.flags:
        config = config.model_copy(update={"prepare": config.prepare.model_copy(update={"split_text": True})})
    assert config.prepare.output is not None
    options = text_options(config, config.prepare.sources, config.prepare.output, chosen_tokenizer(config))
    print(connect(config.scale), flush=True)
    result = prepare_shards(options)
    train_on = shlex.join(["raygpt", "pretrain", f"--data.train={result.train}", "--train.max_steps=1000"])
    print(f"Train on it: {train_on}", flush=True)
    return 0


def text_options(config: Config, sources: Sequence[str], output: str, tokenizer: Tokenizer | str) -> PrepareOptions:
    """`prepare`'s options with the settings of a config; data.text_column goes before prepare.text_column."""
    from raygpt.data.request import PrepareOptions

    settings = config.prepare
    return PrepareOptions(
        sources=sources,
        output=output,
        tokenizer=tokenizer,
        subset=settings.subset,
        text_column=config.data.text_column or settings.text_column,
        val_fraction=settings.val_fraction,
        val_split=settings.val_split,
        shard_tokens=settings.shard_tokens,
        max_documents=settings.max_documents,
        encoding_errors=settings.encoding_errors,
        val_sources=settings.val_sources,
        split_text=settings.split_text,
        max_document_mb=settings.max_document_mb,
    )


def raw_preparation(config: Config) -> PrepareOptions | None:
    """What has to be prepared before training on data.train and data.val, None where both are shards.

    Raises UserError for text that is not there; needs no Ray.
    """
    from raygpt.data.sources import raw_options
    from raygpt.train.base_tokenizer import chosen_tokenizer

    assert config.data.train is not None
    settings = text_options(config, [], (storage.locate(config.run.storage) / "prepared").uri, "bytes")
    return raw_options(config.data.train, config.data.val, settings, lambda: chosen_tokenizer(config))


def with_prepared_data(config: Config) -> Config:
    """The config with raw data.train and data.val replaced by shards made from them (or made from them before)."""
    options = raw_preparation(config)
    if options is None:
        return config
    result = prepare_shards(options)
    made = {side: uri for side, uri in (("train", result.train), ("val", result.val)) if uri is not None}
    return config.model_copy(update={"data": config.data.model_copy(update=made)})


def with_prepared_text(config: Config, real: RealText | None) -> RealText | None:
    """The same with raw text replaced by shards made from it, with the tokenizer of the shards data.train."""
    from dataclasses import replace

    from raygpt.data.sources import is_prepared, real_options

    if real is None or is_prepared(real.uri):
        return real
    assert config.data.train is not None
    settings = text_options(config, [], (storage.locate(config.run.storage) / "prepared").uri, "bytes")
    made = prepare_shards(real_options(real.uri, config.data.train, settings)).train
    assert made is not None
    return replace(real, uri=made)


def prepare_shards(options: PrepareOptions) -> PrepareResult:
    """Prepare, showing progress; prints the closing figures and what became of every row."""
    from raygpt.data.prepare import prepare
    from raygpt.track.meter import Meter
    from raygpt.track.progress import human_count, human_duration

    meter = Meter("prepare", sys.stdout)

    def show(now: PrepareProgress) -> None:
        documents, tokens = f"{now.documents:,} documents", f"{human_count(now.tokens)} tokens"
        meter.show(now.fraction, 1, documents, tokens, f"{human_count(now.tokens_per_second)} tok/s")

    try:
        result = prepare(options, show)
    finally:
        meter.close()
    rate = (
        "already there"
        if result.reused
        else f"{human_count(result.tokens_per_second)} tok/s in {human_duration(result.seconds)}"
    )
    lines = [
        f"Prepared {result.documents:,} documents, {result.tokens:,} tokens ({rate}), tokenizer {result.tokenizer} of "
        f"{result.vocab_size:,}"
    ]
    if result.train:
        lines.append(
            f"  train {result.train}: {result.train_tokens:,} tokens, fingerprint {result.train_fingerprint[:16]}"
        )
    if result.val:
        lines.append(f"  val   {result.val}: {result.val_tokens:,} tokens, fingerprint {result.val_fingerprint[:16]}")
    if result.val_split != options.val_split:
        lines.append(
            f"  With {result.documents:,} document{'s' * (result.documents != 1)} none can be held out whole: the last "
            f"{options.val_fraction:.3g} of each is validation text (prepare.val_split=tail)"
        )
    print("\n".join([*lines, f"  {rows_line(result)}", *input_lines(result)]), flush=True)
    return result


def input_lines(result: PrepareResult) -> list[str]:
    """A table of files, documents and tokens, with what was not read and why."""
    inputs = result.inputs
    rows = [("files read", inputs.files, "")]
    reasons = sorted({reason for _, reason in inputs.left_out})
    for reason in reasons:
        names = [uri for uri, why in inputs.left_out if why == reason]
        rows.append((f"left out: {reason}", len(names), _some(names)))
    if inputs.repeated:
        rows.append(("named again", len(inputs.repeated), _some(list(inputs.repeated))))
    rows += [
        ("documents", result.documents, ""),
        ("empty documents", result.empty_documents, ""),
        ("tokens", result.tokens, ""),
    ]
    width = max(len(name) for name, *_ in rows)
    figures = max(len(f"{count:,}") for _, count, _ in rows)
    return [f"    {name:<{width}}  {count:>{figures},}{'  ' + names if names else ''}" for name, count, names in rows]


def _some(uris: list[str], most: int = 4) -> str:
    """The first names, and how many more."""
    names = [uri.rsplit("/", 1)[-1] for uri in uris[:most]]
    return ", ".join(names) + (f" and {len(uris) - most:,} more" if len(uris) > most else "")


def rows_line(result: PrepareResult) -> str:
    """What became of every row: `Rows: 21,353 read = 20,285 train + 1,068 val + 0 empty`."""
    account, other = result.account, result.val_account
    if other is not None:
        val = f"{other.read:,} read = {other.val:,} val + {other.empty:,} empty"
        if result.train is None:
            return f"Rows: {val}"
        return f"Rows: {account.read:,} read = {account.train:,} train + {account.empty:,} empty; {val}"
    if result.val_split == "tail":
        kept = account.read - account.empty
        return f"Rows: {account.read:,} read = {kept:,} with their ends held out + {account.empty:,} empty"
    return (
        f"Rows: {account.read:,} read = {account.train:,} train + {account.val:,} val + {account.empty:,} empty"
        if result.val_split == "documents"
        else f"Rows: {account.read:,} read = {account.train:,} train + {account.empty:,} empty"
    )
