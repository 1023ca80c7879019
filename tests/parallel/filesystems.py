"""A file system like S3's over a local folder: every request is counted, and any one of the writes may be refused."""

from __future__ import annotations

import io
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs as pafs

from raygpt.storage import Location


class Killed(BaseException):
    """Stands for the death of the process: no `except Exception` sees it."""


class Counting(pafs.FileSystemHandler):
    """`requests` by kind (info, list, read, write, delete), `bytes_read` by file name. Write number `fail_at` (from 0)
    raises Killed before anything appears; a file appears when its writer closes it, whole."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.local = pafs.LocalFileSystem()
        self.requests: Counter[str] = Counter()
        self.bytes_read: Counter[str] = Counter()
        self.fail_at = fail_at
        self.refuse_deletes = False
        self.lock = threading.Lock()

    def count(self, kind: str) -> int:
        with self.lock:
            self.requests[kind] += 1
            return self.requests[kind] - 1

    def get_file_info(self, paths: list[str]) -> Any:
        self.count("info")
        return self.local.get_file_info(paths)

    def get_file_info_selector(self, selector: pafs.FileSelector) -> Any:
        self.count("list")
        return self.local.get_file_info(selector)

    def open_input_file(self, path: str) -> pa.NativeFile:
        self.count("read")
        return pa.PythonFile(_Reader(path, self), mode="r")

    open_input_stream = open_input_file

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        return pa.PythonFile(_Writer(path, self), mode="w")

    def delete_file(self, path: str) -> None:
        self.delete(lambda: self.local.delete_file(path))

    def delete_dir(self, path: str) -> None:
        self.delete(lambda: self.local.delete_dir(path))

    def delete(self, act: Any) -> None:
        self.count("delete")
        if self.refuse_deletes:
            raise PermissionError("AccessDenied: s3:DeleteObject")
        act()

    def get_type_name(self) -> str:
        return "counting"

    def normalize_path(self, path: str) -> str:
        return path

    def _not_used(self, *_: Any) -> None:
        raise NotImplementedError

    create_dir = delete_dir_contents = delete_root_dir_contents = move = copy_file = open_append_stream = _not_used


class _Reader(io.FileIO):
    def __init__(self, path: str, counts: Counting) -> None:
        super().__init__(path, "rb")
        self.counts = counts

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(-1 if size is None else size) or b""
        with self.counts.lock:
            self.counts.bytes_read[Path(str(self.name)).name] += len(data)
        return data


class _Writer(io.BytesIO):
    def __init__(self, path: str, counts: Counting) -> None:
        if counts.count("write") == counts.fail_at:
            raise Killed
        super().__init__()
        self.path, self.counts = Path(path), counts

    def close(self) -> None:
        if not self.closed:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_bytes(self.getvalue())
        super().close()


def counting(folder: Path, fail_at: int | None = None) -> tuple[Location, Counting]:
    """(location of `folder` through such a file system, its counts)."""
    handler = Counting(fail_at)
    return Location(pafs.PyFileSystem(handler), str(folder), str(folder)), handler
