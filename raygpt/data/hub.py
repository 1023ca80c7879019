"""Hugging Face datasets as corpus sources: their data files where they can be read directly, else streamed rows.

Direct reading is what FineWeb, FineWeb-Edu and OpenWebText get: their parquet files are taken at one revision and
read by row group like any others, so a resumed run continues inside a file. Only the `train` split is used; a
dataset without one gives its only split.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from raygpt import storage
from raygpt.errors import UserError, one_line
from raygpt.storage import Location

PREFIX = "hf://"


def is_hub_id(source: str) -> bool:
    """Whether a source names a dataset: hf://…, or `org/name` where no such path exists locally."""
    if source.startswith(PREFIX):
        return True
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", source)) and not (
        Path(source).exists()
        or Path(source.split("/")[0]).exists()
        or "." in source.split("/")[1].rstrip("0123456789.")
    )


def dataset_files(source: str, subset: str | None) -> list[str]:
    """URIs of the files of the dataset's train split, in its order; empty when it is not made of plain files."""
    files = getattr(_builder(source, subset).config, "data_files", None)
    if not files:
        return []
    split = "train" if "train" in files else _only(source, [str(name) for name in files])
    return [str(file) for file in files[split]]


def locate(uri: str) -> Location:
    """As `storage.locate`, and also hf://datasets/… files of the hub."""
    if not uri.startswith(PREFIX):
        return storage.locate(uri)
    return Location(_hub_filesystem(), uri.removeprefix(PREFIX), uri)


def stream_shards(source: str, subset: str | None) -> int:
    """Into how many parts the dataset can be streamed side by side."""
    return _streamed(source, subset).num_shards


def stream(source: str, subset: str | None, part: int, parts: int) -> Iterator[dict[str, Any]]:
    """Rows of one part of a streamed dataset, in order."""
    yield from _streamed(source, subset).shard(num_shards=parts, index=part)


def stream_split(source: str, split: str, setting: str, subset: str | None = None) -> Iterator[dict[str, Any]]:
    """Rows of one split, in order. Raises UserError, naming `setting`, for a data set or split that is not there."""
    import datasets

    try:
        rows = datasets.load_dataset(source.removeprefix(PREFIX), subset, split=split, streaming=True)
    except Exception as error:  # hub, script and format errors share no base class
        raise UserError(
            f"{setting}={source}: its split {split} cannot be opened ({type(error).__name__}: {one_line(error, 300)}): "
            "check the name and the network, or name a local file (no local path of that name exists)."
        ) from error
    yield from map(dict, rows)


def _streamed(source: str, subset: str | None) -> Any:
    import datasets

    name = source.removeprefix(PREFIX)
    try:
        splits = datasets.load_dataset(name, subset, streaming=True)
    except Exception as error:  # hub, script and format errors share no base class
        raise _unreachable(source, subset, error) from error
    return splits["train"] if "train" in splits else splits[_only(source, list(splits))]


@lru_cache(maxsize=32)
def _builder(source: str, subset: str | None) -> Any:
    import datasets

    try:
        return datasets.load_dataset_builder(source.removeprefix(PREFIX), subset)
    except Exception as error:  # hub, script and format errors share no base class
        raise _unreachable(source, subset, error) from error


@lru_cache(maxsize=1)
def _hub_filesystem() -> pafs.FileSystem:
    from huggingface_hub import HfFileSystem

    return pafs.PyFileSystem(pafs.FSSpecHandler(HfFileSystem()))


def _only(source: str, splits: list[str]) -> str:
    if len(splits) == 1:
        return splits[0]
    raise UserError(
        f"{source} has no train split (it has {', '.join(splits)}): name its files in prepare.sources instead."
    )


def _unreachable(source: str, subset: str | None, error: Exception) -> UserError:
    reason = one_line(error, 300)
    wanted = f"{source} with prepare.subset={subset}" if subset else source
    return UserError(
        f"prepare.sources: the dataset {wanted} cannot be opened ({type(error).__name__}: {reason}): check its name, "
        "prepare.subset and the network, or name local files (no local path of that name exists)."
    )
