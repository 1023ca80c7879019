"""One module per job: each composes what the packages beside it offer and holds no logic of its own.

A module with a DECLARATION and `run(config, call) -> exit status` is a job. All are imported for `raygpt --help`: what
needs Ray, torch or another large library is imported inside the functions that use it.
"""

from __future__ import annotations

import importlib
import pkgutil

from raygpt.config.job import Job


def find_jobs() -> dict[str, Job]:
    """{name: declaration} of every job, in the order of the help."""
    found = []
    for info in pkgutil.iter_modules(__path__):
        job = getattr(importlib.import_module(f"{__name__}.{info.name}"), "DECLARATION", None)
        if job is not None:
            assert job.name == info.name, f"raygpt/jobs/{info.name}.py declares {job.name}"
            found.append(job)
    return {job.name: job for job in sorted(found, key=lambda job: (job.place, job.name))}
