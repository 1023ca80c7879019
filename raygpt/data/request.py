"""What a preparation is asked for, and how two requests are known to ask for the same shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from raygpt.data.corpus import Expansion, look_into
from raygpt.data.documents import Errors, Reading, Unit
from raygpt.data.tokenizer import Tokenizer, load_tokenizer
from raygpt.errors import UserError
from raygpt.storage import Location

TRAIN, VAL = "train", "val"


@dataclass(frozen=True)
class PrepareOptions:
    """Settings of the section `prepare`, and `data.tokenizer` (as a setting names it, or a tokenizer itself).

    With `val_sources` all documents of `sources` go to train/ and all of `val_sources` to val/; either list may then
    be empty, and its side is not written. Otherwise `val_split` says what is held out: "documents" puts a document on
    one side by a hash of its text, about `val_fraction` of them into validation; "tail" puts the last `val_fraction`
    of every document's characters there; "none" nothing, and only train/ is written. `max_documents` ends the reading
    of `sources`; `val_sources` are always taken whole. `text_column` names the text in parquet, JSONL and CSV.
    `split_text` cuts text files into documents (see raygpt.data.splitting). A document of more than `max_document_mb`
    is refused. `encoding_errors="replace"` reads invalid UTF-8 as U+FFFD instead of stopping.
    """

    sources: Sequence[str]
    output: str
    tokenizer: str | Tokenizer = "gpt2"
    subset: str | None = None
    text_column: str = "text"
    val_fraction: float = 0.005
    val_split: Literal["documents", "tail", "none"] = "documents"
    shard_tokens: int = 2**24
    max_documents: int | None = None
    encoding_errors: Errors = "strict"
    val_sources: Sequence[str] = ()
    split_text: bool = False
    max_document_mb: float = 256
    # settings that messages name: where the sources came from
    sources_setting: str = "prepare.sources"
    val_setting: str = "prepare.val_sources"

    @property
    def reading(self) -> Reading:
        return Reading(self.text_column, self.encoding_errors, self.split_text, self.max_document_mb)

    @property
    def sides(self) -> tuple[str, ...]:
        """Which of train and val are written."""
        if self.val_sources:
            return (TRAIN, VAL) if self.sources else (VAL,)
        return (TRAIN,) if self.val_split == "none" else (TRAIN, VAL)

    @property
    def trained_vocabulary(self) -> int | None:
        """Size of the tokenizer that is to be trained on the corpus, None where there is one already."""
        if isinstance(self.tokenizer, str) and self.tokenizer.startswith("train:"):
            return int(self.tokenizer.removeprefix("train:"))
        return None

    def load_tokenizer(self) -> Tokenizer | None:
        """None where it is to be trained. UserError as `raygpt.data.tokenizer.load_tokenizer`."""
        if isinstance(self.tokenizer, Tokenizer):
            return self.tokenizer
        return None if self.trained_vocabulary else load_tokenizer(self.tokenizer)


def check_options(options: PrepareOptions) -> None:
    """UserError with all settings that cannot be, in one sentence each."""
    problems = []
    if not 0 < options.val_fraction < 1:
        problems.append(
            f"prepare.val_fraction is {options.val_fraction}: give a fraction between 0 and 1, such as 0.005."
        )
    if options.shard_tokens < 1:
        problems.append(f"prepare.shard_tokens is {options.shard_tokens}: give at least 1.")
    if options.max_documents is not None and options.max_documents < 1:
        problems.append(f"prepare.max_documents is {options.max_documents}: give at least 1, or none for all.")
    if options.max_document_mb <= 0:
        problems.append(f"prepare.max_document_mb is {options.max_document_mb}: give more than 0.")
    if options.val_split not in ("documents", "tail", "none"):
        problems.append(f"prepare.val_split is {options.val_split!r}: choose documents or tail.")
    if options.val_sources and options.val_split == "tail":
        problems.append(f"{options.val_setting} and prepare.val_split=tail are both set: keep one.")
    if options.encoding_errors not in ("strict", "replace"):
        problems.append(f"prepare.encoding_errors is {options.encoding_errors!r}: choose strict or replace.")
    tokenizer = options.tokenizer
    if isinstance(tokenizer, str) and tokenizer.startswith("train:"):
        if not tokenizer.removeprefix("train:").isdecimal():
            problems.append(f"data.tokenizer={tokenizer}: write train:<vocab_size>, such as train:8192.")
        elif not options.sources:
            problems.append(f"data.tokenizer={tokenizer} has no training text: name a tokenizer that is there.")
    if problems:
        raise UserError(" ".join(problems))


@dataclass(frozen=True)
class Inputs:
    """What there is to read: `units` of `sources` and of `val_sources`, and of both the files that are not read (with
    the reason) and those named more than once."""

    units: tuple[Unit, ...]
    val_units: tuple[Unit, ...] = ()
    files: int = 0
    left_out: tuple[tuple[str, str], ...] = ()
    repeated: tuple[str, ...] = ()


def expand(options: PrepareOptions) -> Inputs:
    """UserError where a source cannot be read or one file, by whatever path, is in `sources` and in `val_sources`."""
    of_train = of_val = Expansion()
    if options.sources or not options.val_sources:
        of_train = look_into(options.sources, options.subset, options.sources_setting)
    if options.val_sources:
        of_val = look_into(options.val_sources, options.subset, options.val_setting)
    both = of_train.identities.keys() & of_val.identities.keys()
    if both:
        name = min(of_train.identities[key] for key in both)
        raise UserError(
            f"{name} is in {options.sources_setting} and in {options.val_setting}: name it in one of them alone."
        )
    return Inputs(
        tuple(of_train.units),
        tuple(of_val.units),
        of_train.files + of_val.files,
        (*of_train.left_out, *of_val.left_out),
        (*of_train.repeated, *of_val.repeated),
    )


def describe_request(
    options: PrepareOptions, units: Sequence[Unit], val_units: Sequence[Unit], tokenizer: Tokenizer | None
) -> dict[str, Any]:
    """What decides the result, as JSON: equal requests give equal shards. Settings without effect are left out."""
    settings: dict[str, Any] = {
        "tokenizer": tokenizer.sha256 if tokenizer else options.tokenizer,
        "subset": options.subset,
        "text_column": options.text_column,
        "val_fraction": options.val_fraction,
        "val_split": options.val_split,
        "shard_tokens": options.shard_tokens,
        "max_documents": options.max_documents,
        "encoding_errors": options.encoding_errors,
    }
    if options.split_text:
        settings["split_text"] = True
    if options.val_sources:
        del settings["val_fraction"], settings["val_split"]
        settings["val_sources"] = True
    elif options.val_split == "none":
        del settings["val_fraction"]
    parts = [[(unit.uri, unit.part, unit.parts, unit.stamp) for unit in side] for side in (units, val_units)]
    return {
        "settings": settings,
        "files": len({(unit.uri, unit.stamp) for unit in (*units, *val_units)}),
        "inputs": hashlib.sha256(json.dumps(parts if val_units else parts[0]).encode()).hexdigest(),
    }


def request_name(request: dict[str, Any]) -> str:
    """Twelve characters that name the shards a request gives."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:12]


def check_same(output: Location, before: dict[str, Any], now: dict[str, Any], verb: str) -> None:
    """UserError with the differences unless what `output` holds (or `was begun with`) was asked for by `now`."""
    was, wants = before["settings"], now["settings"]
    differences = [
        f"{name}={was.get(name)!r}, now {wants.get(name)!r}"
        for name in {**was, **wants}
        if was.get(name) != wants.get(name)
    ]
    if was.get("encoding_errors") == "strict":
        # what was read strictly had nothing to replace
        differences = [text for text in differences if not text.startswith("encoding_errors=")]
    if before["inputs"] != now["inputs"]:
        differences.append(
            f"other input files ({before['files']}, now {now['files']}; a file counts as changed with its size or time)"
        )
    if differences:
        raise UserError(
            f"prepare.output={output.uri} {verb} other data: {'; '.join(differences)}. Choose another prepare.output, "
            "or delete that folder to prepare it anew."
        )
