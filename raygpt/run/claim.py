"""A file that only one of several writers can create: the lock under a run's lock, locally and on S3."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path
from typing import Any, Protocol

from raygpt import storage
from raygpt.storage import Location


class Claim(Protocol):
    """Create, renew, read and remove one file; every change is made only on the content it expects."""

    def create(self, content: bytes) -> bool:
        """Bring the file into being with this content; False where it exists."""

    def renew(self, content: bytes) -> bool:
        """Replace the own content; False where the file is another's or gone."""

    def read(self) -> bytes | None:
        """What is there, None for nothing."""

    def remove(self, content: bytes | None) -> bool:
        """Delete the file if it has this content (None: the own one); False where it has not."""


def claim_file(where: Location) -> Claim:
    """The claim for a local path or an S3 object."""
    return LocalClaim(Path(where.path)) if where.is_local else S3Claim(where)


class LocalClaim:
    """By hard link: the one system call that creates a file with its content and fails where one exists, on network
    file systems too. Removing renames first, so that of two who remove one gets the file and can see whose it was."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._own: bytes | None = None

    def create(self, content: bytes) -> bool:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._aside(content) as aside:
            try:
                os.link(aside, self._path)
            except FileExistsError:
                return False
            except OSError:  # a file system without hard links
                try:
                    with open(self._path, "xb") as file:
                        file.write(content)
                except FileExistsError:
                    return False
        self._own = content
        return True

    def renew(self, content: bytes) -> bool:
        if self._own is None or self.read() != self._own:
            return False
        with self._aside(content) as aside:
            os.replace(aside, self._path)
        self._own = content
        return True

    def read(self) -> bytes | None:
        try:
            return self._path.read_bytes() or None
        except FileNotFoundError:
            return None

    def remove(self, content: bytes | None) -> bool:
        expected = self._own if content is None else content
        taken = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex}")
        try:
            os.rename(self._path, taken)
        except FileNotFoundError:
            return False
        found = taken.read_bytes()
        if found != expected:  # a new holder's: back with it
            with contextlib.suppress(FileExistsError):
                os.link(taken, self._path)
        taken.unlink()
        return found == expected

    @contextlib.contextmanager
    def _aside(self, content: bytes) -> Any:
        aside = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex}")
        aside.write_bytes(content)
        try:
            yield aside
        finally:
            aside.unlink(missing_ok=True)


class S3Claim:
    """By conditional requests: PUT with If-None-Match or If-Match, which S3 has had since 2024.

    A server that knows no conditions takes every PUT; so what was written is read again, and the last writer has it.
    """

    def __init__(self, where: Location) -> None:
        import boto3
        from botocore.config import Config

        self._where = where
        self._bucket, _, self._key = where.path.partition("/")
        options = Config(retries={"max_attempts": storage.S3_ATTEMPTS, "mode": "standard"}, connect_timeout=10)
        self._client = boto3.client("s3", endpoint_url=storage.endpoint(), region_name=storage.region(), config=options)
        self._tag: str | None = None
        self._own: bytes | None = None

    def create(self, content: bytes) -> bool:
        if self.read() is not None:
            return False
        return self._put(content, **({"IfNoneMatch": "*"} if self._tag is None else {"IfMatch": self._tag}))

    def renew(self, content: bytes) -> bool:
        if self.read() != self._own or self._own is None:
            return False
        return self._put(content, IfMatch=self._tag)

    def read(self) -> bytes | None:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            answer = self._client.get_object(Bucket=self._bucket, Key=self._key)
        except self._client.exceptions.NoSuchKey:
            self._tag = None
            return None
        except (BotoCoreError, ClientError) as error:
            raise storage.explain(OSError(str(error)), self._where) from error
        self._tag = answer["ETag"]
        return answer["Body"].read() or None

    def remove(self, content: bytes | None) -> bool:
        expected = self._own if content is None else content
        if self.read() != expected:
            return False
        # DELETE has no condition everywhere: an empty object, which counts as none, has one
        return self._put(b"", IfMatch=self._tag)

    def _put(self, content: bytes, **condition: Any) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._client.put_object(Bucket=self._bucket, Key=self._key, Body=content, **condition)
        except BotoCoreError as error:
            raise storage.explain(OSError(str(error)), self._where) from error
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if status in (409, 412):
                return False
            if status not in (400, 501):
                raise storage.explain(OSError(str(error)), self._where) from error
            self._client.put_object(Bucket=self._bucket, Key=self._key, Body=content)  # it knows no conditions
        if content and self.read() != content:
            return False
        self._own = content or None
        return True
