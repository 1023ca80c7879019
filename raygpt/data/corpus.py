"""Where documents come from: sources as the user writes them -> units of reading, in a fixed order.

A source is a file, a glob or a folder (local or s3://), or a Hugging Face dataset (`org/name`,
`hf://org/name`, or a local folder that `datasets` knows how to load). A unit is what one task reads by
itself: a row group of a parquet file, a shard of a streamed dataset, otherwise a file.
`raygpt.data.documents.read_documents` turns a unit into its documents.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raygpt import storage
from raygpt.data import hub
from raygpt.data.documents import Unit, read_documents
from raygpt.errors import UserError, one_line
from raygpt.storage import Location

__all__ = ["FORMATS", "Unit", "expand_sources", "file_format", "read_documents"]

# Extension -> how the file is read. Any of them but parquet and arrow may also end in .gz or .zst.
FORMATS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".md": "text",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
# Files in a folder or under a glob that describe the data rather than being it.
_NOT_DATA = re.compile(r"^([._].*|(readme|license|licence|copying|notice|citation)(\.(md|txt))?)$", re.IGNORECASE)
# Parquet footers read at the same time: each is one or two small requests, 50 ms apiece on S3.
FOOTER_THREADS = 16


def expand_sources(sources: Sequence[str], subset: str | None = None, setting: str = "prepare.sources") -> list[Unit]:
    """Units of all sources: sources as given, files of one source by path, row groups in file order.

    Raises UserError, naming `setting`, for a source that does not exist or holds no file of a known format.
    """
    if not sources:
        raise UserError(f"{setting} is empty: name files, folders, s3:// URIs or Hugging Face datasets.")
    files: list[tuple[Location, pafs.FileInfo]] = []
    streamed: list[tuple[int, list[Unit]]] = []
    for source in sources:
        if not hub.is_hub_id(source):
            files += _files(source, setting)
            continue
        found = hub.dataset_files(source, subset)
        if found and all(file_format(name)[0] for name in found):
            files += [(where, storage.info(where)) for where in map(hub.locate, found)]
        else:
            shards = hub.stream_shards(source, subset)
            units = [Unit("hub", source, part, shards, subset=subset, stamp=str(shards)) for part in range(shards)]
            streamed.append((len(files), units))
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        expanded = list(pool.map(lambda file: _units(*file), files))
    for at, units in reversed(streamed):
        expanded.insert(at, units)
    return [unit for units in expanded for unit in units]


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


def _files(source: str, setting: str) -> list[tuple[Location, pafs.FileInfo]]:
    if re.search(r"[*?[]", source) and not storage.exists(storage.locate(source)):
        return _glob(source, setting)
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
    return _data_files(where, storage.list_folder(where, recursive=True), source, setting)


def _glob(source: str, setting: str) -> list[tuple[Location, pafs.FileInfo]]:
    """Files whose path matches: `*` and `?` stay within one folder, `**` crosses folders."""
    pattern = storage.locate(source)
    fixed = re.split(r"[*?[]", pattern.uri, maxsplit=1)[0].rsplit("/", 1)[0]
    root = storage.locate(fixed or "/")
    deep = "/" in pattern.uri[len(fixed) + 1 :] or "**" in pattern.uri
    regex = re.compile(_glob_regex(pattern.path))
    entries = [entry for entry in storage.list_folder(root, recursive=deep) if regex.fullmatch(entry.path)]
    return _data_files(root, entries, source, setting)


def _glob_regex(pattern: str) -> str:
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    tokens = re.findall(r"\*\*/|\*\*|\*|\?|\[!?[^\]/]+\]|.", pattern, re.DOTALL)
    return "".join(
        meaning.get(t) or (t.replace("[!", "[^") if t[0] == "[" and len(t) > 1 else re.escape(t)) for t in tokens
    )


def _data_files(
    root: Location, entries: Iterable[pafs.FileInfo], source: str, setting: str
) -> list[tuple[Location, pafs.FileInfo]]:
    found = []
    for entry in entries:
        inside = entry.path.removeprefix(root.path).split("/")
        hidden = any(part.startswith((".", "_")) for part in inside)
        if entry.type != pafs.FileType.File or hidden or _NOT_DATA.match(entry.base_name):
            continue
        if file_format(entry.base_name)[0]:
            found.append((storage.child(root, entry), entry))
    if not found:
        raise UserError(f"{setting}: {source} matches no file of a known kind: {_known()}.")
    return found


def _known() -> str:
    return f"{', '.join(FORMATS)} are read, each but .parquet and .arrow also as .gz or .zst"


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
        raise UserError(f"{where.uri} is not a complete parquet file ({one_line(error)}): copy it again.") from error
    except OSError as error:
        raise storage.explain(error, where) from error
    groups = footer.num_row_groups
    return [
        Unit(kind, where.uri, part, groups, footer.row_group(part).total_byte_size, stamp) for part in range(groups)
    ]
