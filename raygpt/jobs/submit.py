"""`raygpt submit`: any other job, sent to a Ray cluster's job server, and its log followed until it ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from raygpt import prices
from raygpt.config import Config
from raygpt.config.job import Call, Job, whole_tree
from raygpt.config.places import check_lasting
from raygpt.config.section import Problem, Section
from raygpt.config.settings import ENV_PREFIX, load_config
from raygpt.config.words import parse
from raygpt.errors import UserError

# Folders that must outlive the job and be the same on all nodes.
HERE_ONLY = ("submit", "runs", "cluster")  # what a Ray job cannot be


class Submit(Section):
    """where a job is sent, and what goes along"""

    job: list[str] = Field([], description="the job to run, then its own options as it takes them here")
    address: str | None = Field(
        None,
        description="job server of the cluster, http://HOST:8265 (none: RAY_API_SERVER_ADDRESS, or this machine's "
        "8265, where `ray dashboard` brings it)",
    )
    working_dir: str = Field(".", description="folder that is uploaded and that the job runs in")
    max_upload_mb: float = Field(50, description="largest upload; what .rayignore names stays here", gt=0)
    env: list[str] = Field([], description="names of environment variables whose values go along, as [AWS_PROFILE]")
    stop_seconds: int = Field(120, description="seconds that `ray job stop` gives the run to save itself", ge=3)
    python: str = Field("python", description="Python on the cluster")
    wait: bool = Field(True, description="follow the log until the job ends; false: come back once it is submitted")

    def problems(self) -> Iterator[Problem]:
        if any(not name.isidentifier() for name in self.env):
            yield "env", "takes names of environment variables alone: their values are read here"


DECLARATION = Job(
    "submit",
    "run a job on a Ray cluster through its job server",
    ("submit",),
    flags=("dry_run",),
    rest="submit.job",
    own={"submit": Submit},
    place=71,
)


def run(config: Config, call: Call) -> int:
    own: Submit = config.submit  # type: ignore[attr-defined]
    if not own.job:
        raise UserError("raygpt submit needs a job: raygpt submit pretrain --config jobs/configs/quickstart.yaml.")
    job, words = own.job[0], tuple(own.job[1:])
    folder = Path(own.working_dir)
    name, file = check_job(job, words, folder)  # mistakes come out before anything is loaded or sent
    from raygpt.cluster.job_server import public, reach, server_address
    from raygpt.cluster.submit import Submission, submit, watch
    from raygpt.cluster.upload import survey

    address = server_address(own.address)
    upload = survey(folder)
    upload.check(own.max_upload_mb * 1e6, file)
    variables = (*own.env, *_settings(folder))
    submission = Submission(address, job, words, name, folder, variables, own.stop_seconds, own.python)
    submission.runtime_env()
    print(upload.describe(), flush=True)
    if "dry_run" in call.flags:
        print(submission.command(f"{submission.base}-1"))
        return 0
    client = reach(address)
    identifier = submit(client, submission, lambda text: print(text, flush=True))
    if not own.wait:
        print(f"Submitted {identifier}. Its log: ray job logs --follow --address {public(address)} {identifier}")
        return 0
    print(f"Submitted {identifier}; its log follows, Ctrl-C leaves it running.", flush=True)
    return watch(client, submission, identifier, lambda text: print(text, end="", flush=True))


def _settings(own_folder: Path) -> list[str]:
    """Variables that are settings of the job here, and so have to be there."""
    import os

    names = [name for name in os.environ if name.startswith(ENV_PREFIX) and not name.startswith("RAYGPT_SUBMIT__")]
    file = os.environ.get(prices.VARIABLE)
    if file and (Path(file).is_absolute() or not (own_folder / file).is_file()):
        raise UserError(
            f"{prices.VARIABLE}={file} is no file below {own_folder}: put it there, by its relative name, or unset it; "
            "the job could not read it."
        )
    return sorted(names)


def check_job(name: str, words: tuple[str, ...], folder: Path) -> tuple[str, str | None]:
    """(the job's run.name, "" where it has no run; its config file below `folder`). Raises UserError for all that is
    wrong with the job's settings."""
    from raygpt.jobs import find_jobs

    jobs = find_jobs()
    if name not in jobs or name in HERE_ONLY:
        listed = ", ".join(each for each in jobs if each not in HERE_ONLY)
        raise UserError(f"{name!r} is no job that a cluster could run (jobs: {listed}).")
    job = jobs[name]
    file, options, flags = parse(words, ("print_config", "help", *job.flags), dict(job.aliases), job.lists, job.words)
    local = file if file is not None and "://" not in file else None
    config = load_config(
        job,
        str(folder / local) if local else file or job.config,
        options,
        check="print_config" not in flags,
        base=job.base,
        tree=whole_tree(jobs.values()),
    )
    check_lasting(config, job)
    return config.run.name if "run" in job.all_sections else "", local
