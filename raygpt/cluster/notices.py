"""How a machine learns that it will be taken away: its cloud's metadata service, or a file somebody touches.

A source is asked every few seconds and answers with a Notice or None. What cannot be asked is no notice: a metadata
service that does not answer, or answers with something else, never ends a run.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

METADATA_SERVICE = "http://169.254.169.254"
TOKEN_SECONDS = 21600  # the longest that AWS grants
ANSWER_SECONDS = 1.0
SILENT_SECONDS = 60.0  # where nothing answered, on a machine of another kind, this long passes before the next question
GRACE_SECONDS = 120.0  # what AWS gives; assumed of notices that name no time


@dataclass(frozen=True)
class Notice:
    """`why` is half a sentence; `deadline` is when the machine goes, in seconds since 1970 UTC. One that is not
    `certain` says that it may go, and not when."""

    why: str
    deadline: float
    certain: bool = True

    @property
    def seconds_left(self) -> float:
        return max(0.0, self.deadline - time.time())


class InstanceMetadata:
    """AWS's metadata service (IMDSv2): the notice two minutes before a spot machine is taken, and the recommendation
    to rebalance, which may come earlier and need not be followed by anything.

    AWS_EC2_METADATA_SERVICE_ENDPOINT names another address and AWS_EC2_METADATA_DISABLED=true asks none, as they do for
    AWS's own tools.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        self.disabled = environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true"
        self._base = environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", METADATA_SERVICE).rstrip("/")
        self._token = ""
        self._token_until = 0.0
        self._quiet_until = 0.0
        # never through a proxy: the address means this very machine
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def __call__(self) -> Notice | None:
        if self.disabled or time.monotonic() < self._quiet_until:
            return None
        try:
            action = self._get("/latest/meta-data/spot/instance-action")
            if action is not None:
                told = json.loads(action)
                return Notice(f"AWS will {told['action']} this spot machine", _seconds(told["time"]))
            advice = self._get("/latest/meta-data/events/recommendations/rebalance")
            if advice is not None:
                return Notice("AWS recommends to rebalance", _seconds(json.loads(advice)["noticeTime"]), certain=False)
        except (OSError, ValueError, KeyError, TypeError):
            self._quiet_until = time.monotonic() + SILENT_SECONDS * (not self._token)
        return None

    def _get(self, path: str) -> bytes | None:
        """What stands there, None for nothing (404). Raises OSError for everything else."""
        for fresh in (False, True):
            if fresh or time.monotonic() > self._token_until:
                self._renew()
            request = urllib.request.Request(self._base + path, headers={"X-aws-ec2-metadata-token": self._token})
            try:
                with self._opener.open(request, timeout=ANSWER_SECONDS) as answer:
                    return answer.read(4096)
            except urllib.error.HTTPError as error:
                if error.code == 404:
                    return None
                if error.code != 401 or fresh:  # 401: the token has run out
                    raise
        raise AssertionError("unreachable")

    def _renew(self) -> None:
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}
        request = urllib.request.Request(f"{self._base}/latest/api/token", method="PUT", headers=headers)
        with self._opener.open(request, timeout=ANSWER_SECONDS) as answer:
            self._token = answer.read(4096).decode("ascii")
        self._token_until = time.monotonic() + TOKEN_SECONDS / 2


def file_notice(path: str) -> Callable[[], Notice | None]:
    """Source of a file whose being there is the notice: a cloud's own hook or a person touches it. One that is older
    than this boot's first question counts as well, for a machine that is to be left stays so."""

    def ask() -> Notice | None:
        if not Path(path).exists():
            return None
        return Notice(f"{path} is there", time.time() + GRACE_SECONDS)

    return ask


def preempted(instances: Iterable[Mapping[str, Any]]) -> dict[str, Notice]:
    """Notices by IP address, private and public, of the machines that Lambda's API lists as preempted. It names no
    time: they may go at any moment."""
    found: dict[str, Notice] = {}
    for instance in instances:
        if instance.get("status") == "preempted":
            notice = Notice("Lambda lists this machine as preempted", time.time() + GRACE_SECONDS)
            found |= {instance[key]: notice for key in ("private_ip", "ip") if instance.get(key)}
    return found


def _seconds(text: str) -> float:
    """An ISO time of AWS (2026-11-27T14:02:00Z) in seconds since 1970 UTC. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text} names no time zone")
    return moment.timestamp()
