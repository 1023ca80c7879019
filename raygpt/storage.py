"""Local paths and s3:// URIs through one door: `locate` gives a pyarrow filesystem and a path.

Credentials are never handled here: the AWS SDK inside pyarrow reads the standard variables, files
and instance roles on every machine for itself, so nothing secret is pickled into a task.
"""

from __future__ import annotations

import os
import threading
import uuid
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow.fs as pafs

from raygpt.errors import UserError

# Attempts per request, with the SDK's exponential backoff between them: rides out 5xx, resets and
# time-outs of about a minute.
S3_ATTEMPTS = 8


@dataclass(frozen=True)
class Location:
    """A folder or file on some filesystem: `uri` is what the user wrote, `path` what `fs` takes."""

    fs: pafs.FileSystem
    path: str
    uri: str

    def __truediv__(self, part: str) -> Location:
        return Location(self.fs, f"{self.path.rstrip('/')}/{part}", f"{self.uri.rstrip('/')}/{part}")

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.rstrip("/").rsplit("/", 1)[-1]

    @property
    def parent(self) -> Location:
        return Location(self.fs, self.path.rstrip("/").rsplit("/", 1)[0] or "/", self.uri.rstrip("/").rsplit("/", 1)[0])

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, pafs.LocalFileSystem)


def locate(uri: str | os.PathLike[str] | Location) -> Location:
    """Location of a local path (`~` expanded, made absolute), a file:// URI or an s3:// URI.

    Raises UserError for any other scheme and for an S3 URI without a bucket.
    """
    if isinstance(uri, Location):
        return uri
    text = os.fspath(uri)
    scheme = urlsplit(text).scheme if "://" in text else ""
    if scheme in ("", "file"):
        path = str(Path(text.removeprefix("file://")).expanduser().absolute())
        return Location(pafs.LocalFileSystem(), path, path)
    if scheme == "s3":
        path = text.removeprefix("s3://").strip("/")
        if not path:
            raise UserError(f"{text!r} names no bucket: write s3://bucket/folder.")
        return Location(_s3(os.getpid(), _endpoint(), _region()), path, f"s3://{path}")
    raise UserError(f"{text!r} is neither a local path nor an s3:// URI: other schemes are not supported.")


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _region() -> str | None:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")


@lru_cache(maxsize=8)
def _s3(pid: int, endpoint: str | None, region: str | None) -> pafs.S3FileSystem:
    # keyed by pid: the SDK's threads do not survive a fork
    options: dict = {}
    if endpoint:
        parts = urlsplit(endpoint)
        options["endpoint_override"] = parts.netloc
        options["scheme"] = parts.scheme
    if region:
        options["region"] = region
    return pafs.S3FileSystem(
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=S3_ATTEMPTS),
        connect_timeout=10,
        request_timeout=60,
        **options,
    )


def info(where: Location) -> pafs.FileInfo:
    """FileInfo of one location; `.type` is NotFound, File or Directory. Errors as `explain` words them."""
    try:
        return where.fs.get_file_info(where.path)
    except OSError as error:
        raise explain(error, where) from error


def exists(where: Location) -> bool:
    return info(where).type != pafs.FileType.NotFound


def is_file(where: Location) -> bool:
    return info(where).type == pafs.FileType.File


def read_bytes(where: Location) -> bytes:
    """Whole file. Raises FileNotFoundError where there is none, UserError where it may not be read."""
    try:
        with where.fs.open_input_file(where.path) as file:
            return file.read()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise explain(error, where) from error


def read_text(where: Location) -> str:
    return read_bytes(where).decode("utf-8")


def write_bytes(where: Location, data: bytes) -> None:
    """Write a whole file so that a reader sees the old one or the new one, never a part.

    Locally a file beside it is renamed over; an S3 PUT is atomic by itself.
    """
    try:
        if where.is_local:
            target = Path(where.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            aside = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.{uuid.uuid4().hex[:6]}")
            try:
                with open(aside, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(aside, target)
            finally:
                aside.unlink(missing_ok=True)
        else:
            with where.fs.open_output_stream(where.path) as stream:
                stream.write(data)
    except OSError as error:
        raise explain(error, where) from error


def write_text(where: Location, text: str) -> None:
    write_bytes(where, text.encode("utf-8"))


def list_folder(where: Location, recursive: bool = False) -> list[pafs.FileInfo]:
    """Entries of a folder sorted by path; empty where the folder does not exist."""
    selector = pafs.FileSelector(where.path, recursive=recursive, allow_not_found=True)
    try:
        entries = where.fs.get_file_info(selector)
    except OSError as error:
        raise explain(error, where) from error
    return sorted(entries, key=lambda entry: entry.path)


def child(where: Location, entry: pafs.FileInfo) -> Location:
    """Location of an entry that `list_folder(where)` gave."""
    relative = entry.path.removeprefix(where.path.rstrip("/")).lstrip("/")
    return where / relative


def delete(where: Location) -> None:
    """Delete a file or a folder with all in it; nothing happens where there is none."""
    kind = info(where).type
    if kind == pafs.FileType.File:
        where.fs.delete_file(where.path)
    elif kind == pafs.FileType.Directory:
        where.fs.delete_dir(where.path)


def check_writable(where: Location, setting: str) -> None:
    """Write and delete a marker below `where`; UserError names `setting` when that fails."""
    marker = where / f".writable-{uuid.uuid4().hex[:8]}"
    try:
        write_bytes(marker, b"")
        delete(marker)
    except (UserError, OSError) as error:
        raise UserError(f"{setting}={where.uri} cannot be written to ({_short(error)}): choose another or mend its permissions.") from error


def explain(error: OSError, where: Location) -> UserError:
    """One sentence for a storage error: what failed, on which path, and the way out."""
    text = str(error)
    upper = text.upper()
    if isinstance(error, FileNotFoundError) or "NO_SUCH_BUCKET" in upper or "NOSUCHBUCKET" in upper:
        if where.is_local:
            return UserError(f"{where.uri} does not exist.")
        return UserError(f"{where.uri} does not exist: check the bucket and the path, or create the bucket first.")
    denied = ("ACCESS_DENIED", "ACCESSDENIED", "INVALID_ACCESS_KEY_ID", "INVALIDACCESSKEYID", "SIGNATUREDOESNOTMATCH",
              "SIGNATURE_DOES_NOT_MATCH", "INVALIDCLIENTTOKENID", "HTTP STATUS 403", "FORBIDDEN", "EXPIREDTOKEN")
    if any(word in upper for word in denied):
        return UserError(
            f"{where.uri} refuses these credentials: check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (or the instance's "
            "role) and the bucket's policy."
        )
    if isinstance(error, PermissionError):
        return UserError(f"{where.uri} may not be read or written by this user: mend its permissions or choose another path.")
    if "NETWORK_CONNECTION" in upper or "CURLCODE" in upper or "COULD NOT RESOLVE" in upper:
        return UserError(f"{where.uri} cannot be reached: check the network and AWS_ENDPOINT_URL ({_endpoint() or 'not set'}).")
    return UserError(f"{where.uri}: {_short(error)}.")


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
