"""Ray's job server over HTTP: reach it, submit, follow a log until its job ends. Every wait has an end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import ray.exceptions
import requests
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from raygpt.errors import UserError, one_line

# A request's; Ray's own client waits for ever. A server that has answered once may take longer: one that has just
# started took 12 s for its list of jobs.
CONNECT_SECONDS, ANSWER_SECONDS, LATER_SECONDS = 5.0, 10.0, 60.0
HEARTBEAT_SECONDS = 20.0  # a log may be silent for long: this keeps its connection, or finds it dead
AWAY_SECONDS = 300.0  # without an answer for so long, a log is followed no longer
DEFAULT_ADDRESS = "http://127.0.0.1:8265"  # where `ray dashboard CLUSTER.yaml` brings it
# Ray's client obeys these whatever address it is given
OVERRIDING = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
# Lines of Ray's that tell a user nothing: a supervisor that starts, and ray-project/ray#53727 of each run
NOISE = re.compile(
    r"job_manager\.py:\d+ -- Runtime env is setting up|core_worker\.cc:\d+: Actor with class name: .*/53727"
)
SIGTERM_STATUS = 143  # what raygpt itself ends with after `ray job stop`


class Client(JobSubmissionClient):
    """Ray's client with time-outs."""

    answer_seconds = ANSWER_SECONDS

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        options.setdefault("timeout", (CONNECT_SECONDS, self.answer_seconds))
        return super()._do_request(method, endpoint, **options)

    async def log(self, job: str, seen: int) -> Any:
        """Pieces of a job's log after `seen` characters, as they come, until the server says that it has ended."""
        options: dict[str, Any] = {"cookies": self._cookies, "headers": self._headers}
        async with aiohttp.ClientSession(**options) as session:
            where = f"{self._address}/api/jobs/{job}/logs/tail"
            async with session.ws_connect(where, heartbeat=HEARTBEAT_SECONDS, ssl=self._tls, max_msg_size=0) as socket:
                async for message in socket:
                    if message.type != aiohttp.WSMsgType.TEXT:
                        break
                    text = message.data
                    if seen < len(text):
                        yield text[seen:]
                    seen = max(0, seen - len(text))

    @property
    def _tls(self) -> Any:
        return True if self._ssl_context is None else self._ssl_context


@dataclass(frozen=True)
class End:
    """How a job ended: its exit status, and a sentence where its log does not say why."""

    status: int
    words: str


def server_address(setting: str | None) -> str:
    """The job server's URL from submit.address, Ray's variables, or where `ray dashboard` brings it. Raises UserError
    for what is no such URL."""
    named = "submit.address" if setting else next((name for name in OVERRIDING if _is_url(os.environ.get(name))), None)
    address = setting or (os.environ[named] if named else DEFAULT_ADDRESS)
    if "://" not in address and re.fullmatch(r"[^/\s]+:\d+", address):
        address = f"http://{address}"
    if not _is_url(address):
        raise UserError(
            f"{named}={public(address)} is not the address of a job server: write http://HOST:8265, the port of Ray's "
            "dashboard."
        )
    return address.rstrip("/")


def _is_url(text: str | None) -> bool:
    return bool(text) and re.fullmatch(r"https?://[^/\s]+.*", text or "") is not None


def public(address: str) -> str:
    """An address without user and password."""
    return re.sub(r"://[^/@\s]+@", "://***@", address)


def reach(address: str) -> Client:
    """A client of the job server there. Raises UserError in one sentence, after CONNECT_SECONDS + ANSWER_SECONDS at
    most, where none answers or it wants another token."""
    for name in (
        "ray.dashboard.modules.dashboard_sdk",
        "ray._private.runtime_env.packaging",
        "ray._private.runtime_env.working_dir",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
    headers = json.loads(os.environ["RAY_JOB_HEADERS"]) if "RAY_JOB_HEADERS" in os.environ else None
    with explained(address), _without(OVERRIDING):
        client = Client(address, headers=headers)
    client.answer_seconds = LATER_SECONDS
    return client


@contextlib.contextmanager
def explained(address: str) -> Iterator[None]:
    """What goes wrong with a job server, as a UserError."""
    shown = public(address)
    try:
        yield
    except ray.exceptions.AuthenticationError as error:
        if "Authentication failed" in str(error):
            raise UserError(
                f"the cluster at {shown} refuses this token: copy the head's ~/.ray/auth_token to this machine, or set "
                "RAY_AUTH_TOKEN to it."
            ) from error
        raise UserError(
            f"the cluster at {shown} asks for a token: set RAY_AUTH_MODE=token and copy the head's ~/.ray/auth_token "
            "to this machine."
        ) from error
    except (ConnectionError, requests.exceptions.ConnectionError, requests.exceptions.Timeout) as error:
        raise UserError(
            f"no job server answers at {shown}: check submit.address and that the cluster is up; where its ports are "
            f"closed, `ray dashboard CLUSTER.yaml` in another terminal brings it to {DEFAULT_ADDRESS}."
        ) from error
    except (requests.exceptions.RequestException, KeyError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "Version check" not in str(error):
            raise UserError(f"the job server at {shown} refuses: {one_line(error, 300)}.") from error
        raise UserError(
            f"{shown} answers, but is no Ray job server ({one_line(error, 100)}): write http://HOST:8265, the port of "
            "Ray's dashboard."
        ) from error


@contextlib.contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def free_id(client: Client, base: str) -> str:
    """`base-1`, or the first number above all that the cluster has had."""
    ids = [job.submission_id or "" for job in client.list_jobs()]
    numbers = [int(match[1]) for each in ids if (match := re.fullmatch(rf"{re.escape(base)}-(\d+)", each))]
    return f"{base}-{max(numbers, default=0) + 1}"


def follow(client: Client, job: str, write: Callable[[str], object]) -> End:
    """Pass a job's log to `write` until the job has ended. A connection that breaks is made anew, and nothing comes
    twice. Raises UserError after AWAY_SECONDS without an answer; KeyboardInterrupt leaves the job as it is."""
    return asyncio.run(_follow(client, job, write))


class Lines:
    """Passes whole lines on to `write`: without NOISE, and of a line that was redrawn in place its last state."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write, self._open = write, ""

    def add(self, piece: str) -> None:
        *whole, self._open = (self._open + piece).split("\n")
        for line in whole:
            if not NOISE.search(line):
                self._write(line.rstrip("\r").rpartition("\r")[2] + "\n")

    def close(self) -> None:
        if self._open:
            self.add("\n")


async def _follow(client: Client, job: str, write: Callable[[str], object]) -> End:
    seen, answered, lines = 0, time.monotonic(), Lines(write)
    while True:
        broken = False
        try:
            async for piece in client.log(job, seen):
                lines.add(piece)
                seen += len(piece)
                answered = time.monotonic()
        except (aiohttp.ClientError, OSError):
            broken = True  # what has become of the job is asked next
        try:
            details = await asyncio.to_thread(client.get_job_info, job)
            answered = time.monotonic()
            if details.status.is_terminal():
                if broken:  # what came after the connection broke
                    with contextlib.suppress(aiohttp.ClientError, OSError):
                        async for piece in client.log(job, seen):
                            lines.add(piece)
                            seen += len(piece)
                lines.close()
                return _end(details)
        except (OSError, RuntimeError, ray.exceptions.RayError) as error:
            if time.monotonic() - answered > AWAY_SECONDS:
                raise UserError(
                    f"the cluster has not answered for {AWAY_SECONDS:g} s ({one_line(error, 100)}): if {job} still "
                    "runs, `ray job logs --follow` shows it; submitting again goes on where the run stopped."
                ) from error
        await asyncio.sleep(1.0)


def _end(details: JobDetails) -> End:
    code = details.driver_exit_code
    if details.status == JobStatus.SUCCEEDED:
        return End(0, "")
    if details.status == JobStatus.STOPPED:
        return End(SIGTERM_STATUS, "was stopped")
    if code is not None:
        return End(128 - code if code < 0 else code or 1, f"ended with status {code}")
    return End(1, f"failed: {one_line(RuntimeError(details.message or 'no reason was given'), 500)}")
