"""`raygpt prepare`: documents to token shards."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TextIO

from raygpt.cli import Call
from raygpt.config import Config
from raygpt.data.prepare import PrepareOptions, PrepareProgress, PrepareResult, prepare
from raygpt.track.progress import human_count, human_duration
from raygpt.train.cluster import connect


def run(config: Config, call: Call) -> int:
    print(connect(config.scale), flush=True)
    assert config.prepare.output is not None
    result = prepare_shards(config, config.prepare.sources, config.prepare.output)
    print(f"Train on it: raygpt pretrain --data.train={result.train} --train.max_steps=1000", flush=True)
    return 0


def prepare_shards(config: Config, sources: list[str], output: str) -> PrepareResult:
    """Prepare with the settings of `config`, showing progress; prints the closing figures."""
    settings = config.prepare
    options = PrepareOptions(
        sources=sources,
        output=output,
        tokenizer=config.data.tokenizer,
        subset=settings.subset,
        text_column=settings.text_column,
        val_fraction=settings.val_fraction,
        val_split=settings.val_split,
        shard_tokens=settings.shard_tokens,
        max_documents=settings.max_documents,
        encoding_errors=settings.encoding_errors,
    )
    show, close = _progress(sys.stdout)
    try:
        result = prepare(options, show)
    finally:
        close()
    rate = (
        "already there"
        if result.reused
        else f"{human_count(result.tokens_per_second)} tok/s in {human_duration(result.seconds)}"
    )
    print(
        f"Prepared {result.documents:,} documents, {result.tokens:,} tokens ({rate}), tokenizer {result.tokenizer} of "
        f"{result.vocab_size:,}\n"
        f"  train {result.train}: {result.train_tokens:,} tokens, fingerprint {result.train_fingerprint[:16]}\n"
        f"  val   {result.val}: {result.val_tokens:,} tokens, fingerprint {result.val_fingerprint[:16]}",
        flush=True,
    )
    if result.empty_documents:
        print(f"  {result.empty_documents:,} documents without text were left out", flush=True)
    return result


def _progress(stream: TextIO) -> tuple[Callable[[PrepareProgress], None], Callable[[], None]]:
    import time

    live = stream.isatty()
    last = 0.0
    shown = False

    def show(now: PrepareProgress) -> None:
        nonlocal last, shown
        if time.monotonic() - last < (0.2 if live else 5.0) and now.fraction < 1:
            return
        last = time.monotonic()
        cells = round(24 * now.fraction)
        line = (
            f"prepare {'#' * cells}{'.' * (24 - cells)} {now.fraction:4.0%} | {now.documents:,} documents | "
            f"{human_count(now.tokens)} tokens | {human_count(now.tokens_per_second)} tok/s"
        )
        print(f"\r\x1b[K{line}" if live else line, end="" if live else "\n", file=stream, flush=True)
        shown = True

    def close() -> None:
        if live and shown:
            print(file=stream, flush=True)

    return show, close
