"""Local paths and s3:// URIs through one door: `locate` gives a pyarrow filesystem and a path.

Credentials are never handled here: the AWS SDK inside pyarrow reads the standard variables, files
and instance roles on every machine for itself, so nothing secret is pickled into a task.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import threading
import uuid
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from raygpt.errors import UserError, one_line

if TYPE_CHECKING:  # 0.07 s of every start, `raygpt --help` included: each function imports it for itself
    import pyarrow.fs as pafs

# Attempts per request, with the SDK's exponential backoff between them: rides out 5xx, resets and
# time-outs of about 40 s. Refused credentials and missing buckets are not tried again.
S3_ATTEMPTS = 8
# Attempts where a job has not begun yet, so that a mistyped endpoint is told at once.
S3_ATTEMPTS_AT_START = 2


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
        import pyarrow.fs as pafs

        return isinstance(self.fs, pafs.LocalFileSystem)


def locate(uri: str | os.PathLike[str] | Location) -> Location:
    """Location of a local path (`~` expanded, made absolute), a file:// URI or an s3:// URI.

    Raises UserError for any other scheme and for an S3 URI without a bucket.
    """
    if isinstance(uri, Location):
        return uri
    import pyarrow.fs as pafs

    text = os.fspath(uri)
    found = re.match(r"([A-Za-z][\w+.-]*)://", text)  # further on it is a part of a name
    scheme = found[1].lower() if found else ""
    if scheme in ("", "file"):
        local = Path(text[len("file://") :] if scheme else text)
        try:
            local = local.expanduser()
        except RuntimeError:  # `~$draft.csv` is a file and no home
            pass
        path = str(local.absolute())
        return Location(pafs.LocalFileSystem(), path, path)
    if scheme == "s3":
        path = _normal_key(text[len("s3://") :], text)
        if not path:
            raise UserError(f"{text!r} names no bucket: write s3://bucket/folder.")
        return Location(_s3_here(endpoint(), region()), path, f"s3://{path}")
    raise UserError(f"{text!r} is neither a local path nor an s3:// URI: other schemes are not supported.")


def _normal_key(key: str, text: str) -> str:
    """Without empty parts and `.`, which are no folders on S3 and which pyarrow refuses."""
    parts = [part for part in key.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise UserError(f"{text!r} has '..' in it, which leads nowhere on S3: write the path without it.")
    return "/".join(parts)


def endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def region() -> str | None:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")


def _s3_here(endpoint: str | None, region: str | None, attempts: int = S3_ATTEMPTS) -> pafs.S3FileSystem:
    return _s3(os.getpid(), endpoint, region, attempts)


@lru_cache(maxsize=8)
def _s3(pid: int, endpoint: str | None, region: str | None, attempts: int) -> pafs.S3FileSystem:
    # keyed by pid: the SDK's threads do not survive a fork
    return _patient_s3()(endpoint, region, attempts)


@lru_cache(maxsize=1)
def _patient_s3() -> type[pafs.S3FileSystem]:
    import pyarrow.fs as pafs

    class PatientS3(pafs.S3FileSystem):
        """pyarrow's S3 with our patience. pyarrow leaves the retry strategy out of its own pickles, so a task or a
        Ray Train upload would fall back to three attempts; this one is rebuilt from endpoint, region and attempts,
        with the credentials of the machine it arrives on."""

        def __init__(self, endpoint: str | None, region: str | None, attempts: int) -> None:
            options: dict[str, str] = {}
            if endpoint:
                parts = urlsplit(endpoint)
                options.update(endpoint_override=parts.netloc, scheme=parts.scheme)
            if region:
                options["region"] = region
            super().__init__(
                retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=attempts),
                connect_timeout=10,
                # a small file is one PUT instead of the three requests of a multipart upload
                allow_delayed_open=True,
                **options,
            )
            self._made_of = (endpoint, region, attempts)

        def __reduce__(self) -> tuple:
            return _s3_here, self._made_of

    return PatientS3


def info(where: Location) -> pafs.FileInfo:
    """FileInfo of one location; `.type` is NotFound, File or Directory. Errors as `explain` words them."""
    try:
        return where.fs.get_file_info(where.path)
    except OSError as error:
        raise explain(error, where) from error


def exists(where: Location) -> bool:
    import pyarrow.fs as pafs

    return info(where).type != pafs.FileType.NotFound


def is_file(where: Location) -> bool:
    import pyarrow.fs as pafs

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


def sha256(where: Location) -> str:
    """Hex sha256 of a file, read in pieces. Errors as `read_bytes`."""
    digest = hashlib.sha256()
    try:
        with where.fs.open_input_stream(where.path, compression=None) as stream:
            while piece := stream.read(8 * 2**20):
                digest.update(piece)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise explain(error, where) from error
    return digest.hexdigest()


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
            with where.fs.open_output_stream(where.path, compression=None) as stream:
                stream.write(data)
    except OSError as error:
        raise explain(error, where) from error


def write_text(where: Location, text: str) -> None:
    write_bytes(where, text.encode("utf-8"))


def upload_folder(folder: Path, where: Location) -> None:
    """Copy the files below a local folder (links left out) to `where`, under the same names. Raises as write_bytes."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            write_bytes(where / path.relative_to(folder).as_posix(), path.read_bytes())


def list_folder(where: Location, recursive: bool = False) -> list[pafs.FileInfo]:
    """Entries of a folder sorted by path; empty where the folder does not exist."""
    import pyarrow.fs as pafs

    selector = pafs.FileSelector(where.path, recursive=recursive, allow_not_found=True)
    try:
        entries = where.fs.get_file_info(selector)
    except OSError as error:
        raise explain(error, where) from error
    except UnicodeDecodeError:
        raise UserError(f"{where.uri} holds a name that is not UTF-8: rename it.") from None
    return sorted(entries, key=lambda entry: entry.path)


def child(where: Location, entry: pafs.FileInfo) -> Location:
    """Location of an entry that `list_folder(where)` gave."""
    relative = entry.path.removeprefix(where.path.rstrip("/")).lstrip("/")
    return where / relative


def delete(where: Location) -> None:
    """Delete a file or a folder with all in it; nothing happens where there is none."""
    import pyarrow.fs as pafs

    kind = info(where).type
    if kind == pafs.FileType.File:
        where.fs.delete_file(where.path)
    elif kind == pafs.FileType.Directory:
        where.fs.delete_dir(where.path)


def check_writable(where: Location, setting: str) -> None:
    """Write and delete a marker below `where`, before a job begins. UserError names `setting` when that fails."""
    marker = at_start(where) / f".writable-{uuid.uuid4().hex[:8]}"
    try:
        write_bytes(marker, b"")
        delete(marker)
    except (UserError, OSError) as error:
        raise UserError(f"{setting} cannot be written to: {_about(error, where)}") from error


def check_readable(where: Location, setting: str) -> None:
    """See that `where` exists, before a job begins. UserError names `setting` when it does not or cannot be reached."""
    try:
        found = exists(at_start(where))
    except (UserError, OSError) as error:
        raise UserError(f"{setting} cannot be read: {_about(error, where)}") from error
    if not found:
        raise UserError(f"{setting}={where.uri} does not exist: check the path.")


def at_start(where: Location) -> Location:
    """The same place with less patience: what is wrong with it is told in seconds."""
    if made_of := getattr(where.fs, "_made_of", None):  # only ours has it
        endpoint, region, _ = made_of
        return Location(_s3_here(endpoint, region, S3_ATTEMPTS_AT_START), where.path, where.uri)
    return where


def _about(error: UserError | OSError, where: Location) -> UserError:
    """The sentence for `where` itself when `error` happened to a marker below it."""
    cause = error.__cause__ if isinstance(error, UserError) else error
    return explain(cause, where) if isinstance(cause, OSError) else UserError(str(error))


DENIED = (
    "ACCESS_DENIED",
    "ACCESSDENIED",
    "INVALID_ACCESS_KEY_ID",
    "INVALIDACCESSKEYID",
    "SIGNATUREDOESNOTMATCH",
    "SIGNATURE_DOES_NOT_MATCH",
    "INVALIDCLIENTTOKENID",
    "EXPIREDTOKEN",
    "FORBIDDEN",
    "HTTP STATUS 401",
    "HTTP STATUS 403",
)


def explain(error: OSError, where: Location) -> UserError:
    """One sentence for a storage error: what failed, on which path, and the way out."""
    upper = str(error).upper()
    if isinstance(error, FileNotFoundError) or "NO_SUCH_BUCKET" in upper or "NOSUCHBUCKET" in upper:
        if where.is_local:
            return UserError(f"{where.uri} does not exist.")
        return UserError(f"{where.uri} does not exist: check the bucket and the path, or create the bucket first.")
    if any(word in upper for word in DENIED):
        return UserError(
            f"{where.uri} refuses these credentials: check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (or the instance's "
            "role) and the bucket's policy."
        )
    if "HTTP STATUS 400" in upper:
        # what servers answer to a request without credentials, with an expired token or for another region
        return UserError(
            f"{where.uri} refuses the request (HTTP 400): check that AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and "
            "AWS_DEFAULT_REGION are set and belong together."
        )
    if isinstance(error, PermissionError):
        return UserError(f"{where.uri} may not be used by this user: mend its permissions or choose another path.")
    if isinstance(error, (NotADirectoryError, FileExistsError)):
        return UserError(f"{where.uri} has a file where a folder should be: choose another path.")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"{where.uri} has no space left: free some or choose another path.")
    if "NETWORK_CONNECTION" in upper or "CURLCODE" in upper or "COULD NOT RESOLVE" in upper:
        way_out = f"check the network and AWS_ENDPOINT_URL ({endpoint() or 'not set'})"
        return UserError(f"{where.uri} cannot be reached: {way_out}.")
    return UserError(f"{where.uri}: {one_line(error, 300)}.")
