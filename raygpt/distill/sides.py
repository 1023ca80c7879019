"""train/ and val/ of a generated data set: written beside the shards that are there, which stand until the end.

New shards get numbers that the manifest in place does not list. Each manifest is replaced in one piece, the two one
after the other, and only then the shards that no manifest lists are deleted: a kill leaves folders that are whole, the
old or the new.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from raygpt import storage
from raygpt.data.shards import Manifest, ShardWriter, read_manifest
from raygpt.data.tokenizer import Tokenizer
from raygpt.errors import UserError
from raygpt.storage import Location

TRAIN, VAL = "train", "val"
SIDES = (TRAIN, VAL)
BATCH = 256  # documents tokenised at a time
_SHARD = re.compile(r"shard-(\d+)\.bin")


def write_sides(
    documents: Iterable[tuple[bool, str]], output: Location, tokenizer: Tokenizer, shard_tokens: int, source: str
) -> dict[str, Manifest]:
    """Shards of (is validation, text) in their order; manifests of train and val."""
    sides = {name: _Side(output / name, tokenizer, shard_tokens) for name in SIDES}
    batch: list[tuple[bool, str]] = []
    for document in documents:
        batch.append(document)
        if len(batch) == BATCH:
            _append(batch, sides)
            batch = []
    _append(batch, sides)
    for side in sides.values():
        side.writer.close()
    return {name: side.finish(source) for name, side in sides.items()}


def delete_unlisted(output: Location, manifests: dict[str, Manifest]) -> None:
    """Delete shards of what was there before, and of a writing that was killed."""
    for name, manifest in manifests.items():
        listed = {shard.name for shard in manifest.shards}
        for entry in storage.list_folder(output / name):
            if _SHARD.fullmatch(entry.base_name) and entry.base_name not in listed:
                storage.delete(output / name / entry.base_name)


class _Side:
    def __init__(self, folder: Location, tokenizer: Tokenizer, shard_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.writer = ShardWriter(folder, tokenizer.dtype, shard_tokens, first=_first_free(folder))
        self.documents = self.bytes = 0

    def append(self, texts: list[str]) -> None:
        flat, lengths = self.tokenizer.encode_flat(texts)
        self.writer.append(np.insert(flat, np.cumsum(lengths), self.tokenizer.eot_id))
        self.documents += len(texts)
        self.bytes += sum(len(text.encode("utf-8")) for text in texts)

    def finish(self, source: str) -> Manifest:
        tokenizer = self.tokenizer
        return self.writer.finish(tokenizer.info, tokenizer.to_json(), self.documents, self.bytes, (source,))


def _append(batch: list[tuple[bool, str]], sides: dict[str, _Side]) -> None:
    for name, side in sides.items():
        if texts := [text for is_val, text in batch if is_val == (name == VAL)]:
            side.append(texts)


def _first_free(folder: Location) -> int:
    try:
        names = [shard.name for shard in read_manifest(folder).shards]
    except UserError:  # no manifest, or none that can be read: nothing there stands
        return 0
    return max((int(match[1]) for match in map(_SHARD.fullmatch, names) if match), default=-1) + 1
