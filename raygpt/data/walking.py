"""Files below a local folder, each folder once however many links lead to it, and what is no file that can be read."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field

import pyarrow.fs as pafs

from raygpt import storage

NOT_UTF8 = "a name that is not UTF-8"


@dataclass
class Walk:
    """`files` by path; `left_out` are (path, reason) of what cannot be read."""

    files: list[pafs.FileInfo] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)


def walk(root: str, deep: bool = True) -> Walk:
    """Files in a folder, and with `deep` in those below it; nothing for a folder that is not there.

    Links to folders are followed after the folders themselves, so that a file is found by its own path where it has one
    below `root`. UserError for a folder that may not be read.
    """
    found = Walk()
    seen: set[tuple[int, int]] = set()
    waiting, links = [root], list[str]()
    while waiting or links:
        folder = waiting.pop() if waiting else links.pop(0)
        try:
            entry = os.stat(folder)
            if (entry.st_dev, entry.st_ino) in seen:
                continue
            seen.add((entry.st_dev, entry.st_ino))
            names = sorted(os.listdir(folder))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise storage.explain(error, storage.locate(folder)) from error
        for name in names:
            path = os.path.join(folder, name)
            try:
                entry = os.stat(path)
            except OSError:
                found.left_out.append((path, "a link that leads nowhere"))
                continue
            if stat.S_ISDIR(entry.st_mode):
                if deep:
                    (links if os.path.islink(path) else waiting).append(path)
            elif not _is_utf8(path):
                found.left_out.append((path, NOT_UTF8))
            elif stat.S_ISREG(entry.st_mode):
                info = pafs.FileInfo(path, pafs.FileType.File, mtime_ns=entry.st_mtime_ns, size=entry.st_size)
                found.files.append(info)
            else:
                found.left_out.append((path, "no regular file"))
    found.files.sort(key=lambda info: info.path)
    return found


def _is_utf8(path: str) -> bool:
    try:
        path.encode("utf-8")
        return True
    except UnicodeEncodeError:
        return False
