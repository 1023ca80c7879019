"""A run's folder: who is using it, how often it was started, and whether it may be resumed with these settings."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from raygpt import storage
from raygpt.data.order import ORDER_VERSION
from raygpt.errors import UserError
from raygpt.storage import Location

ATTEMPTS = "attempts.json"
HEARTBEAT_SECONDS = 10.0
LOST_SECONDS = 45.0  # another machine's run that has not been heard of for this long is dead


@dataclass
class Attempt:
    """One start of the run. Times are seconds since 1970 UTC; `outcome` is None while it runs or after a kill."""

    id: str
    host: str
    pid: int
    process_started: float
    started: float
    last_seen: float
    outcome: str | None = None

    @property
    def is_live(self) -> bool:
        """Whether its driver still runs: asked of the kernel on this machine, of the heartbeat elsewhere."""
        if self.outcome is not None:
            return False
        if self.host == socket.gethostname():
            try:
                return abs(psutil.Process(self.pid).create_time() - self.process_started) < 1
            except psutil.Error:
                return False
        return time.time() - self.last_seen < LOST_SECONDS


def read_attempts(run: Location) -> list[Attempt]:
    """Attempts so far, oldest first."""
    try:
        return [Attempt(**item) for item in json.loads(storage.read_text(run / ATTEMPTS))]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError):
        return []


class RunLock:
    """Holds a run folder for this process from `acquire` to `release`, by heartbeat.

    attempts.json doubles as the run's history: restarts and wall-clock time come from it.
    """

    def __init__(self, run: Location) -> None:
        self.run = run
        self.attempts = read_attempts(run)
        self._mine: Attempt | None = None
        self._ended = threading.Event()

    @property
    def restarts(self) -> int:
        """Starts of the run before this one."""
        return len(self.attempts) - (1 if self._mine else 0)

    @property
    def wall_seconds(self) -> float:
        """Seconds in which some attempt held the run, this one included."""
        return sum(max(0.0, attempt.last_seen - attempt.started) for attempt in self.attempts)

    @property
    def earlier_seconds(self) -> float:
        """`wall_seconds` without this attempt."""
        return sum(max(0.0, item.last_seen - item.started) for item in self.attempts if item is not self._mine)

    def acquire(self) -> None:
        """Raises UserError while a live process holds the run."""
        for attempt in self.attempts:
            if attempt.is_live:
                raise UserError(
                    f"run {self.run.uri} is in use by process {attempt.pid} on {attempt.host}: stop that one first, or "
                    "choose another run.name."
                )
        now = time.time()
        started = psutil.Process().create_time()
        self._mine = Attempt(uuid.uuid4().hex, socket.gethostname(), os.getpid(), started, now, now)
        self.attempts.append(self._mine)
        self._write()
        # two starts at one moment: the one that wrote last has the run
        seen = read_attempts(self.run)
        if not seen or seen[-1].id != self._mine.id:
            raise UserError(f"run {self.run.uri} was started elsewhere at the same moment: leave it to that process.")
        threading.Thread(target=self._beat, daemon=True, name="run-lock").start()

    def release(self, outcome: str) -> None:
        """Record how this attempt ended and let go."""
        self._ended.set()
        if self._mine is not None:
            self._mine.outcome = outcome
            self._mine.last_seen = time.time()
            self._write()

    def touch(self) -> None:
        """Bring this attempt's time up to now."""
        if self._mine is not None:
            self._mine.last_seen = time.time()

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            self.touch()
            try:
                self._write()
            except UserError:
                continue  # storage that is away for a moment must not end the run from here

    def _write(self) -> None:
        storage.write_text(self.run / ATTEMPTS, json.dumps([asdict(item) for item in self.attempts], indent=1) + "\n")


# What fixes the weights and the data order: setting -> the sentence's end. Everything else may change on a resume.
_FIXED = {
    ("run", "seed"): "the data order follows from it",
    ("data", "seq_len"): "the rows follow from it",
    ("train", "global_batch_tokens"): "the steps follow from it",
    ("model", "lora_rank"): "the adapters have it",
    ("optim", "name"): "what is remembered of the gradients is its own",
}


def check_resume(
    run: Location, saved: dict[str, Any], config: dict[str, Any], facts: dict[str, Any], *, ignore_fingerprint: bool
) -> None:
    """Refuse to go on with settings that would break the run's own order or weights.

    `saved` is a checkpoint's state.json plus its config under "config"; `facts` holds this start's fingerprint,
    tokenizer_sha256 and model. Raises UserError listing every difference.
    """
    wrong = []
    advice = "set it back, or give the new settings a run.name of their own"
    for (section, key), why in _FIXED.items():
        before, now = (tree.get(section, {}).get(key) for tree in (saved["config"], config))
        if key == "lora_rank":
            before, now = before or 0, now or 0  # configs from before there were adapters
        if before != now:
            wrong.append(f"{section}.{key} is {now} but run {run.uri} was started with {before} ({why}): {advice}.")
    for key in sorted(set(saved["model"]) | set(facts["model"])):
        before, now = saved["model"].get(key), facts["model"].get(key)
        if key != "dropout" and before != now:
            wrong.append(f"model.{key} is {now} but run {run.uri} was started with {before}: {advice}.")
    if saved["order_version"] != ORDER_VERSION and not ignore_fingerprint:
        wrong.append(
            f"run {run.uri} was begun with version {saved['order_version']} of the data order and this raygpt has "
            f"version {ORDER_VERSION}: train on from its weights under another run.name with "
            f"model.init_from={run.uri}, or set data.ignore_fingerprint=true, after which some tokens will be seen "
            "twice or never."
        )
    if saved["tokenizer_sha256"] != facts["tokenizer_sha256"]:
        wrong.append(
            f"data.train was made with another tokenizer than run {run.uri} began with, so its token ids mean other "
            "text: use the first shards, or another run.name."
        )
    elif saved["fingerprint"] != facts["fingerprint"] and not ignore_fingerprint:
        wrong.append(
            f"data.train holds other tokens than run {run.uri} began with (fingerprint {facts['fingerprint'][:12]} "
            f"instead of {saved['fingerprint'][:12]}): use the first shards, or set data.ignore_fingerprint=true, "
            "after which some tokens will be seen twice or never."
        )
    if wrong:
        raise UserError("\n".join(wrong))
