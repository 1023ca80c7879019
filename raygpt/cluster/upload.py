"""What Ray would ship of a working directory: looked over before anything travels."""

from __future__ import annotations

import logging
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from raygpt.errors import UserError

LARGEST_NAMED = 3


@dataclass(frozen=True)
class Upload:
    """Files below a folder that its .gitignore and .rayignore files leave in, {path relative to it: bytes}."""

    folder: Path
    files: dict[str, int]

    @property
    def bytes(self) -> int:
        return sum(self.files.values())

    def largest(self) -> list[tuple[str, int]]:
        """(top-level entry, bytes below it), the largest first."""
        below: Counter[str] = Counter()
        for name, size in self.files.items():
            top, slash, _ = name.partition("/")
            below[top + slash] += size
        return below.most_common(LARGEST_NAMED)

    def check(self, most_bytes: float, needed: str | None = None) -> None:
        """UserError where it is too much to send with every job, or lacks the config file that the job is given."""
        if needed is not None and os.path.normpath(needed) not in self.files:
            raise UserError(
                f"--config {needed} is not among what is uploaded from {self.folder}: give its path from there, and "
                "see that no .rayignore or .gitignore names it."
            )
        if self.bytes > most_bytes:
            named = ", ".join(f"{name} {_megabytes(size)}" for name, size in self.largest())
            raise UserError(
                f"the upload of submit.working_dir={self.folder} would be {_megabytes(self.bytes)} (largest: {named}): "
                f"name in {self.folder / '.rayignore'} what the job does not read, as in a .gitignore, put data on S3, "
                "or raise submit.max_upload_mb."
            )

    def describe(self) -> str:
        return f"Upload: {len(self.files)} files, {_megabytes(self.bytes)} from {self.folder}"


def survey(folder: Path) -> Upload:
    """Exactly what Ray would pack. Raises UserError where the folder is none."""
    if not folder.is_dir():
        raise UserError(f"submit.working_dir={folder} is no folder: name the checkout, or leave it out for this one.")
    # no part of Ray's interface, but the very functions that pack
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    files: dict[str, int] = {}

    def look(path: Path) -> None:
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = path.stat().st_size

    excludes = [_get_excludes(folder, get_runtime_env_default_excludes())]
    gitignore = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE") != "1"
    quiet = logging.getLogger(f"{__name__}.quiet")
    quiet.setLevel(logging.ERROR)
    _dir_travel(folder, excludes, look, include_gitignore=gitignore, logger=quiet)
    return Upload(folder, files)


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB"
