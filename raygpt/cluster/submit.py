"""A raygpt job as a job of a Ray cluster: the command that submits it, and submitting it."""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from raygpt.cluster import phases
from raygpt.cluster.job_server import Client, End, explained, follow, free_id, public
from raygpt.errors import UserError

STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"  # seconds between SIGTERM and SIGKILL of `ray job stop`; 3 by default
TRIES = 5  # where several submit the same run at once


@dataclass(frozen=True)
class Submission:
    """`words` are the job's own, as they were typed; `env` are names of variables whose values go along."""

    address: str
    job: str
    words: tuple[str, ...]
    name: str
    working_dir: Path
    env: tuple[str, ...] = ()
    stop_seconds: int = 120
    python: str = "python"

    @property
    def base(self) -> str:
        """What submission ids begin with: job and run, in letters that a URL takes."""
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{self.job}-{self.name}" if self.name else self.job).rstrip("-")

    def entrypoint(self) -> list[str]:
        """The job's script in a checkout; elsewhere the raygpt that the cluster has."""
        if (self.working_dir / "jobs" / f"{self.job}.py").is_file():
            return [self.python, f"jobs/{self.job}.py", *self.words]
        return [self.python, "-m", "raygpt.cli", self.job, *self.words]

    def runtime_env(self) -> dict[str, dict[str, str]]:
        """Environment of the job, with the values of `env`. Raises UserError for a variable that is not set here."""
        for name in self.env:
            if name not in os.environ:
                raise UserError(
                    f"submit.env names {name.split('=')[0]}, which is not set here: set it or leave it out."
                )
        return {"env_vars": {STOP_WAIT: str(self.stop_seconds), **{name: os.environ[name] for name in self.env}}}

    def command(self, identifier: str) -> str:
        """What a shell would run for the same. Values of `env` are named and not shown."""
        hidden = {name: f"@{name}@" for name in self.env}
        text = shlex.quote(json.dumps({"env_vars": {STOP_WAIT: str(self.stop_seconds), **hidden}}))
        for name, mark in hidden.items():
            text = text.replace(mark, f"'\"${name}\"'")
        words = ["ray", "job", "submit", "--address", public(self.address), "--submission-id", identifier]
        words += ["--working-dir", str(self.working_dir)]
        return f"{shlex.join(words)} --runtime-env-json {text} -- {shlex.join(self.entrypoint())}"


def submit(client: Client, submission: Submission, say: Callable[[str], object]) -> str:
    """Send it; its submission id, one that this cluster has not had. Raises UserError where the server refuses."""
    environment = submission.runtime_env()
    for attempt in range(TRIES):
        with explained(submission.address):
            identifier = free_id(client, submission.base)
        say(submission.command(identifier))
        try:
            with explained(submission.address):
                return client.submit_job(
                    entrypoint=shlex.join(submission.entrypoint()),
                    submission_id=identifier,
                    runtime_env={**environment, "working_dir": str(submission.working_dir)},
                    metadata={phases.SUBMITTED: f"{time.time():.3f}"},
                )
        except UserError as error:
            if "already" not in str(error) or attempt + 1 == TRIES:
                raise
    raise AssertionError("unreachable")


def watch(client: Client, submission: Submission, identifier: str, write: Callable[[str], object]) -> int:
    """Follow the job's log; its exit status. Ctrl-C leaves it running, with status 130."""
    where = f"--address {public(submission.address)} {identifier}"
    try:
        end: End = follow(client, identifier, write)
    except KeyboardInterrupt:
        write(f"\n{identifier} goes on. Its log: ray job logs --follow {where}\nTo stop it: ray job stop {where}\n")
        return 130
    if end.words:
        write(f"{identifier} {end.words}.\n")
    return end.status
