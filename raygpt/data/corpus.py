"""Where documents come from: sources as the user writes them -> units of reading, in a fixed order.

A source is a file, a glob or a folder (local or s3://), or a Hugging Face dataset (`org/name`,
`hf://org/name`, or a local folder that `datasets` knows how to load). A unit is what one task reads by
itself: a row group of a parquet file, a shard of a streamed dataset, otherwise a file.
`raygpt.data.documents.read_documents` turns a unit into its documents.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raygpt import storage
from raygpt.data import hub
from raygpt.data.decoding import LFS_POINTER, lfs_pointer
from raygpt.data.documents import Unit, read_documents
from raygpt.data.records import holds_objects
from raygpt.data.walking import NOT_UTF8, walk
from raygpt.errors import UserError, one_line
from raygpt.storage import Location

__all__ = ["FORMATS", "Unit", "expand_sources", "file_format", "read_documents"]

# Extension -> how the file is read. Any of them but parquet and arrow may also end in one of COMPRESSIONS.
FORMATS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".md": "text",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
# Files in a folder or under a glob that describe the data rather than being it.
_NOT_DATA = re.compile(
    r"((readme|license|licence|copying|notice|citation)(\.(md|txt))?"
    r"|(dataset_infos?|state|config|generation_config|tokenizer|tokenizer_config|special_tokens_map|metadata)\.json)",
    re.IGNORECASE,
)
SPLITS = {"train": "train", "training": "train"} | {
    word: word for word in ("test", "testing", "dev", "val", "valid", "validation", "eval", "evaluation")
}
# as `datasets` looks for them: the word between separators
_WORDS = "|".join(sorted(SPLITS, key=len, reverse=True))
_SPLIT_NAME = re.compile(rf"(?:.*[-._ 0-9])?({_WORDS})(?:[-._ 0-9].*)?")
OF_SPLIT = "of the split "
File = tuple[Location, pafs.FileInfo]
# Parquet footers read at the same time: each is one or two small requests, 50 ms apiece on S3.
FOOTER_THREADS = 16


@dataclass
class Expansion:
    """What sources hold: `units` to read, files `left_out` with the reason, and files named more than once, which are
    read where they are named first."""

    units: list[Unit] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    # what tells files apart, whatever path leads to them -> the URI they were named by
    identities: dict[tuple, str] = field(default_factory=dict)

    @property
    def files(self) -> int:
        """Files that are read."""
        return len({unit.uri for unit in self.units})


def expand_sources(
    sources: Sequence[str], subset: str | None = None, setting: str = "prepare.sources", *, whole: bool = False
) -> list[Unit]:
    """Units of all sources: sources as given, files of one source by path, row groups in file order.

    Of a folder that holds splits the train split is taken, with `whole` all of them. Raises UserError, naming
    `setting`, for a source that does not exist or holds no file of a known format.
    """
    return look_into(sources, subset, setting, whole=whole).units


def held_out_units(uri_parts: Sequence[str], subset: str | None, setting: str) -> list[Unit]:
    """Units to evaluate on. UserError for a folder of several splits: which one is meant has to be said."""
    found = look_into(uri_parts, subset, setting)
    if any(reason.startswith(OF_SPLIT) for _, reason in found.left_out):
        raise UserError(f"{setting}: {', '.join(uri_parts)} holds several splits: name the file or folder of one.")
    return found.units


def look_into(
    sources: Sequence[str], subset: str | None = None, setting: str = "prepare.sources", *, whole: bool = False
) -> Expansion:
    """As `expand_sources`, with what is not read."""
    if not sources:
        raise UserError(f"{setting} is empty: name files, folders, s3:// URIs or Hugging Face datasets.")
    found = Expansion()
    files: list[File] = []
    streamed: list[tuple[int, list[Unit]]] = []
    for source in sources:
        if not hub.is_hub_id(source):
            files += _files(_of_subset(source, subset, setting), setting, found, whole)
            continue
        data_files = hub.dataset_files(source, subset)
        if data_files and all(file_format(name)[0] for name in data_files):
            files += [(where, storage.info(where)) for where in map(hub.locate, data_files)]
        else:
            shards = hub.stream_shards(source, subset)
            units = [Unit("hub", source, part, shards, subset=subset, stamp=str(shards)) for part in range(shards)]
            if found.identities.setdefault(("hub", source, subset), source) is not source:
                found.repeated.append(source)
            else:
                streamed.append((len(files), units))
    once: list[File | None] = [file if _is_first(file[0], found) else None for file in files]
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        expanded = list(pool.map(lambda file: [] if file is None else _units(*file), once))
    for at, units in reversed(streamed):
        expanded.insert(at, units)
    found.units = [unit for units in expanded for unit in units]
    return found


def _is_first(where: Location, found: Expansion) -> bool:
    """Whether no path before led to this very file."""
    first = found.identities.setdefault(identity(where), where.uri)
    if first is where.uri:
        return True
    found.repeated.append(where.uri)
    return False


def identity(where: Location) -> tuple:
    """Equal for paths, links and hard links that lead to one file."""
    if not where.is_local:
        return (where.uri,)
    entry = os.stat(where.path)
    return (entry.st_dev, entry.st_ino)


def file_format(name: str) -> tuple[str | None, str | None]:
    """(format or None, compression or None) by the name's extensions."""
    name = name.lower()
    compression = None
    for extension, algorithm in COMPRESSIONS.items():
        if name.endswith(extension):
            name, compression = name.removesuffix(extension), algorithm
    dot = name.rfind(".")
    kind = FORMATS.get(name[dot:]) if dot >= 0 else None
    if compression and kind in ("parquet", "arrow"):
        return None, None
    return kind, compression


def _of_subset(source: str, subset: str | None, setting: str) -> str:
    """The folder of a downloaded data set's subset."""
    if subset is None or not storage.exists(storage.locate(source)) or storage.is_file(storage.locate(source)):
        return source
    inside = f"{source.rstrip('/')}/{subset}"
    if not storage.exists(storage.locate(inside)):
        raise UserError(f"prepare.subset={subset}: {setting} {source} has no folder of that name: mend it.")
    return inside


def _files(source: str, setting: str, found: Expansion, whole: bool = False) -> list[File]:
    if re.search(r"[*?[]", source) and not storage.exists(storage.locate(source)):
        return _glob(source, setting, found)
    where = storage.locate(source)
    entry = storage.info(where)
    if entry.type == pafs.FileType.NotFound:
        hint = ""
        if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
            hint = f"; for the Hugging Face dataset of that name write hf://{source}"
        raise UserError(f"{setting}: {source} does not exist{hint}.")
    if entry.type == pafs.FileType.File:
        if file_format(where.name)[0] is None:
            raise UserError(f"{setting}: {source} has no known extension: {_known()}.")
        return [(where, entry)]
    files = _data_files(where, _entries(where, setting, found), source, setting, found)
    return files if whole else _train_split(where, files, found)


def _glob(source: str, setting: str, found: Expansion) -> list[File]:
    """Files whose path matches: `*` and `?` stay within one folder, `**` crosses folders."""
    pattern = storage.locate(source)
    fixed = re.split(r"[*?[]", pattern.uri, maxsplit=1)[0].rsplit("/", 1)[0]
    root = storage.locate(fixed or "/")
    regex = re.compile(_glob_regex(pattern.path))
    deep = "/" in pattern.uri[len(fixed) + 1 :] or "**" in pattern.uri
    entries = [entry for entry in _entries(root, setting, found, deep) if regex.fullmatch(entry.path)]
    return _data_files(root, entries, source, setting, found)


def _entries(root: Location, setting: str, found: Expansion, deep: bool = True) -> list[pafs.FileInfo]:
    """Files below a folder, by path. UserError for a local file of a known kind whose name is not UTF-8."""
    if not root.is_local:
        return [entry for entry in storage.list_folder(root, recursive=deep) if entry.type == pafs.FileType.File]
    listed = walk(root.path, deep)
    for path, reason in listed.left_out:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        if reason == NOT_UTF8 and file_format(path.rsplit("/", 1)[-1])[0]:
            raise UserError(f"{setting}: {shown} has a name that is not UTF-8: rename it.")
        found.left_out.append((shown, reason))
    return listed.files


def _glob_regex(pattern: str) -> str:
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    tokens = re.findall(r"\*\*/|\*\*|\*|\?|\[!?[^\]/]+\]|.", pattern, re.DOTALL)
    return "".join(
        meaning.get(t) or (t.replace("[!", "[^") if t[0] == "[" and len(t) > 1 else re.escape(t)) for t in tokens
    )


def _data_files(
    root: Location, entries: Iterable[pafs.FileInfo], source: str, setting: str, found: Expansion
) -> list[File]:
    kept: list[File] = []
    for entry in entries:
        where = storage.child(root, entry)
        inside = entry.path.removeprefix(root.path).split("/")
        if any(part.startswith((".", "_")) for part in inside):
            found.left_out.append((where.uri, "hidden"))
        elif _NOT_DATA.fullmatch(entry.base_name):
            found.left_out.append((where.uri, "about the data"))
        elif file_format(entry.base_name)[0] is None:
            found.left_out.append((where.uri, "no known extension"))
        elif file_format(entry.base_name)[0] == "json" and not holds_objects(where, file_format(where.name)[1]):
            found.left_out.append((where.uri, "JSON, but no objects"))
        else:
            kept.append((where, entry))
    if not kept:
        raise UserError(f"{setting}: {source} matches no file of a known kind: {_known()}.")
    return kept


def _train_split(root: Location, files: list[File], found: Expansion) -> list[File]:
    """Of a folder that holds a train split and others, as a data set of the hub does, the train split."""
    splits = [_split(where.path.removeprefix(root.path)) for where, _ in files]
    if "train" not in splits:
        return files
    kept = []
    for file, split in zip(files, splits):
        if split in (None, "train"):
            kept.append(file)
        else:
            found.left_out.append((file[0].uri, f"{OF_SPLIT}{split}"))
    return kept


def _split(path: str) -> str | None:
    """The split that a path names as the hub's data sets name theirs: data/test-00000-of-00001.parquet, dev/x.txt."""
    *folders, name = path.lower().strip("/").split("/")
    stem = name
    for extension in (*COMPRESSIONS, *FORMATS):
        stem = stem.removesuffix(extension)
    words = [*folders, *(match[1] for match in [_SPLIT_NAME.fullmatch(stem)] if match)]
    return next((SPLITS[word] for word in reversed(words) if word in SPLITS), None)


def _known() -> str:
    return f"{', '.join(FORMATS)} are read, each but .parquet and .arrow also as {', '.join(COMPRESSIONS)}"


def _is_lfs_pointer(where: Location, entry: pafs.FileInfo) -> bool:
    return (entry.size or 0) < 1024 and storage.read_bytes(where).startswith(LFS_POINTER)


def _units(where: Location, entry: pafs.FileInfo) -> list[Unit]:
    kind, compression = file_format(where.name)
    assert kind is not None
    stamp = f"{entry.size}:{entry.mtime_ns or 0}"
    if kind != "parquet":
        return [Unit(kind, where.uri, bytes=entry.size or 0, stamp=stamp, compression=compression)]
    try:
        with where.fs.open_input_file(where.path) as file:
            footer = pq.read_metadata(file)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        if _is_lfs_pointer(where, entry):
            raise lfs_pointer(where) from None
        raise UserError(f"{where.uri} is not a complete parquet file ({one_line(error)}): copy it again.") from error
    except OSError as error:
        raise storage.explain(error, where) from error
    groups = footer.num_row_groups
    return [
        Unit(kind, where.uri, part, groups, footer.row_group(part).total_byte_size, stamp) for part in range(groups)
    ]
