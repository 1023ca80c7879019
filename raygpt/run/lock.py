"""One driver per run folder, and the run's history of starts.

`<run>/lock.json` exists while a driver has the run. It comes into being in one step that only one of several can make
(a hard link that must not exist; on S3 a PUT with If-None-Match), and its holder looks every few seconds whether it is
still there: one that was displaced stops and writes no more. `<run>/attempts.json` is the history: every start, how
long it held the run and how often workers were started in it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from raygpt import storage
from raygpt.errors import UserError
from raygpt.run.claim import Claim, claim_file
from raygpt.storage import Location
from raygpt.track.environment import environment

ATTEMPTS = "attempts.json"
LOCK = "lock.json"
HEARTBEAT_SECONDS = 10.0
CLAIM_TRIES = 50
LOST_SECONDS = 45.0  # another machine's run that has not been heard of for this long is dead
# A heartbeat as old as this by our clock is not waited for. Younger ones are: clocks of two machines may differ.
LONG_DEAD_SECONDS = 3600.0


@dataclass
class Attempt:
    """One start of the run. Times are seconds since 1970 UTC; `outcome` is None while it runs or after a kill.

    `starts` counts how often workers were started in it: 1 without a loss, 0 before the first. `job` is what
    `raygpt <job>` was. `usd` is what it cost, `paid` what for (`raygpt.track.cost.Bill.paid`), `environment` what it
    ran on. `processes` tells whose list of processes `pid` stands in: two containers may have one host name. `ticks` is
    when its process began by the kernel's own count, which a clock that is set does not move, as it does
    `process_started`.
    """

    id: str
    host: str
    pid: int
    process_started: float
    started: float
    last_seen: float
    outcome: str | None = None
    starts: int = 1
    job: str = ""
    usd: float | None = None
    paid: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    processes: str = ""
    ticks: int | None = None

    @property
    def is_near(self) -> bool:
        """Whether the kernel that we ask knows its pid."""
        return self.host == socket.gethostname() and self.processes in ("", _processes())

    @property
    def seconds(self) -> float:
        """How long it held the run, as far as it said."""
        return max(0.0, self.last_seen - self.started)

    @property
    def is_live(self) -> bool:
        """Whether its driver still runs: asked of the kernel on this machine, of the heartbeat elsewhere, which is
        read by our clock."""
        if self.outcome is not None:
            return False
        if self.is_near:
            try:
                process = psutil.Process(self.pid)
                # a zombie has ended: only its parent has not been told yet
                if process.status() == psutil.STATUS_ZOMBIE:
                    return False
                if self.ticks is not None:
                    return self.ticks == _ticks(self.pid)
                return abs(process.create_time() - self.process_started) < 1
            except psutil.Error:
                return False
        return time.time() - self.last_seen < LOST_SECONDS


def _processes() -> str:
    """Which list of processes this process stands in: the boot, and the kernel's number of the namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # not Linux
        return ""


def _ticks(pid: int) -> int | None:
    """When the process began, in the kernel's ticks since the boot (proc(5), the 22nd field of stat)."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _holder(held: bytes) -> Attempt | None:
    """Whose lock it is; None where that cannot be read: it is being written, or somebody else wrote it."""
    try:
        return _attempt(json.loads(held))
    except (ValueError, TypeError, AttributeError):
        return None


def read_attempts(run: Location) -> list[Attempt]:
    """Attempts so far, oldest first."""
    try:
        return parse_attempts(storage.read_text(run / ATTEMPTS))
    except (FileNotFoundError, ValueError):
        return []


def parse_attempts(text: str) -> list[Attempt]:
    """What attempts.json holds. Raises ValueError where it is torn or something else."""
    try:
        return [_attempt(item) for item in json.loads(text)]
    except (TypeError, AttributeError) as error:
        raise ValueError(f"no list of attempts: {error}") from error


def _attempt(item: dict) -> Attempt:
    return Attempt(**{key: value for key, value in item.items() if key in Attempt.__dataclass_fields__})


def is_held(run: Location) -> bool:
    """Whether a live driver has the run, as its history says."""
    return any(attempt.is_live for attempt in read_attempts(run))


class RunLock:
    """Holds a run folder for this process from `acquire` to `release`.

    `on_lost` is called once, from a thread, when another driver has taken the run over in spite of it; `job` is noted
    in the history. `spent` and `paid` tell what this attempt has cost and what for, to be kept in the history. `say`
    hears of a wait.
    """

    def __init__(
        self,
        run: Location,
        on_lost: Callable[[], None] | None = None,
        job: str = "",
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.run = run
        self.attempts = read_attempts(run)
        self.displaced_by: str | None = None
        self.spent: Callable[[], float | None] = lambda: None
        self.paid: Callable[[], list[dict[str, Any]]] = list
        self._on_lost = on_lost
        self._job, self._say = job, say
        self._mine: Attempt | None = None
        self._claim: Claim | None = None
        self._ended = threading.Event()
        self._beating: threading.Thread | None = None
        self._writing = threading.Lock()

    @property
    def restarts(self) -> int:
        """Starts of workers after the first, in this attempt and those before it. One that started none is none."""
        return max(0, sum(attempt.starts for attempt in self.attempts) - 1)

    @property
    def wall_seconds(self) -> float:
        """Seconds in which some attempt held the run, this one up to now."""
        now = time.time()
        mine = self._mine
        ends = [now if item is mine and item.outcome is None else item.last_seen for item in self.attempts]
        return sum(max(0.0, end - item.started) for end, item in zip(ends, self.attempts))

    @property
    def earlier_seconds(self) -> float:
        """`wall_seconds` without this attempt."""
        return sum(item.seconds for item in self.earlier)

    @property
    def earlier(self) -> list[Attempt]:
        """The attempts before this one."""
        return [item for item in self.attempts if item is not self._mine]

    @property
    def started(self) -> float:
        """When this attempt took the run, in seconds since 1970 UTC."""
        assert self._mine is not None
        return self._mine.started

    def acquire(self) -> None:
        """Raises UserError while a live process holds the run. One on another machine that was heard of lately is
        watched for LOST_SECONDS: it lives if its heart beats meanwhile, whatever its clock says."""
        self._claim = claim_file(self.run / LOCK)
        told = self._claim.read() is not None  # by the lock itself, which is fresher
        for attempt in self.attempts:
            if attempt.is_live and (attempt.is_near or not told):
                self._refuse(attempt)
        now = time.time()
        mine = Attempt(
            uuid.uuid4().hex,
            socket.gethostname(),
            os.getpid(),
            psutil.Process().create_time(),
            now,
            now,
            starts=0,
            job=self._job,
            environment=environment(),
            processes=_processes(),
            ticks=_ticks(os.getpid()),
        )
        tries = 0
        while not self._claim.create(json.dumps(asdict(mine)).encode()):
            held, tries = self._claim.read(), tries + 1
            if tries > CLAIM_TRIES:
                raise UserError(f"{(self.run / LOCK).uri} can neither be taken nor read: delete it if no run uses it.")
            holder = None if held is None else _holder(held)
            if held is None or holder is None:  # let go of in this moment, or being written
                time.sleep(0.1)
                continue
            if not self._ended_since(holder) and self._lives(holder, held):
                self._refuse(holder)
            self._claim.remove(held)  # nothing happens where somebody was quicker
        self._mine = mine
        self.attempts = [*read_attempts(self.run), mine]
        self._write()
        self._beating = threading.Thread(target=self._beat, daemon=True, name="run-lock")
        self._beating.start()

    def workers_started(self, **about: Any) -> None:
        """Count a start of the run's workers; `about` is what they run on."""
        assert self._mine is not None
        self._mine.environment |= {name: str(value) for name, value in about.items()}
        self._mine.starts += 1
        self._write()

    def release(self, outcome: str) -> None:
        """Record how this attempt ended and let go."""
        self._ended.set()
        if self._beating is not None:
            self._beating.join()
        if self._mine is not None and self._claim is not None and self.displaced_by is None:
            self._mine.outcome = outcome
            self._note()
            try:
                self._write()
            finally:
                self._claim.remove(None)

    def history(self) -> list[dict[str, Any]]:
        """All attempts as attempts.json keeps them, this one up to now."""
        if self._mine is not None and self._mine.outcome is None:
            self._note()
        return [asdict(item) for item in self.attempts]

    def _lives(self, holder: Attempt, held: bytes) -> bool:
        """Whether the holder of the lock, whose content is `held`, still runs; may take LOST_SECONDS to tell."""
        if holder.is_near:
            return holder.is_live
        silent = time.time() - holder.last_seen
        if holder.outcome is not None or silent > LONG_DEAD_SECONDS:
            return False
        self._say(
            f"Run {self.run.uri} was in use by process {holder.pid} on {holder.host} {max(0.0, silent):.0f} s ago: "
            f"waiting up to {LOST_SECONDS:.0f} s for a sign of life."
        )
        assert self._claim is not None
        end = time.monotonic() + LOST_SECONDS
        while time.monotonic() < end:
            time.sleep(min(1.0, LOST_SECONDS / 10))
            if (found := self._claim.read()) != held:
                return found is not None
        return False

    def _refuse(self, attempt: Attempt) -> None:
        raise UserError(
            f"run {self.run.uri} is in use by process {attempt.pid} on {attempt.host}: stop that one first, or choose "
            "another run.name."
        )

    def _ended_since(self, holder: Attempt) -> bool:
        """Whether the history says that the holder has ended: it was killed between that and letting go."""
        return any(item.id == holder.id and item.outcome is not None for item in read_attempts(self.run))

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            # whatever one beat meets, the next has to come: without them another driver takes the run
            with contextlib.suppress(Exception):
                self.beat()

    def beat(self) -> None:
        """Say that this driver lives, or find that another one has the run."""
        assert self._mine is not None and self._claim is not None
        self._note()
        try:
            if self._claim.renew(json.dumps(asdict(self._mine)).encode()):
                self._write()
                return
            held = self._claim.read()
        except (UserError, OSError):
            return  # storage that is away for a moment must not end the run from here
        holder = _holder(held) if held else None
        somebody = f"somebody who {'overwrote' if held else 'deleted'} its lock"
        self.displaced_by = f"process {holder.pid} on {holder.host}" if holder else somebody
        self._ended.set()
        if self._on_lost is not None:
            self._on_lost()

    def _note(self) -> None:
        assert self._mine is not None
        self._mine.last_seen, self._mine.usd, self._mine.paid = time.time(), self.spent(), self.paid()

    def _write(self) -> None:
        with self._writing:
            text = json.dumps([asdict(item) for item in self.attempts], indent=1) + "\n"
            storage.write_text(self.run / ATTEMPTS, text)
