"""One driver per run folder, whoever else starts, dies or comes back."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from raygpt import storage
from raygpt.errors import UserError
from raygpt.run.claim import S3Claim
from raygpt.run.lock import ATTEMPTS, LOCK, RunLock, _attempt, read_attempts
from raygpt.storage import locate


def test_a_second_start_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    run = locate(tmp_path / "r")
    first = RunLock(run)
    first.acquire()
    with pytest.raises(UserError, match=f"in use by process {os.getpid()} on {socket.gethostname()}: stop that one"):
        RunLock(run).acquire()
    first.workers_started()
    first.release("stopped")
    idle = RunLock(run)
    idle.acquire()
    idle.release("complete")  # nothing to do: no restart of anything
    second = RunLock(run)
    second.acquire()
    second.workers_started()
    assert second.restarts == 1
    second.release("finished")
    assert [item["outcome"] for item in json.loads((tmp_path / "r" / ATTEMPTS).read_text())] == [
        "stopped",
        "complete",
        "finished",
    ]


def test_a_killed_process_gives_the_run_free_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time; from raygpt.storage import locate; from raygpt.run.lock import RunLock;"
        f"RunLock(locate({str(tmp_path / 'r')!r})).acquire(); print('held', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline().strip() == "held"
    run = locate(tmp_path / "r")
    with pytest.raises(UserError, match=f"process {child.pid}"):
        RunLock(run).acquire()
    child.kill()
    child.wait()
    lock = RunLock(run)
    lock.acquire()
    lock.release("finished")


@pytest.mark.parametrize(("silent", "refused"), [(5, True), (120, False)])
def test_another_machine_holds_the_run_by_its_heartbeat(tmp_path: Path, silent: float, refused: bool) -> None:
    run = locate(tmp_path / "r")
    (tmp_path / "r").mkdir()
    seen = time.time() - silent
    other = {"id": "x", "host": "elsewhere", "pid": 1, "process_started": 0.0, "started": seen - 100, "last_seen": seen}
    (tmp_path / "r" / ATTEMPTS).write_text(json.dumps([other]))
    lock = RunLock(run)
    if refused:
        with pytest.raises(UserError, match="process 1 on elsewhere"):
            lock.acquire()
    else:
        lock.acquire()
        assert lock.earlier_seconds == pytest.approx(100)
        lock.release("finished")


def test_a_reused_pid_is_not_mistaken_for_the_run(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    now = time.time()
    started = psutil.Process().create_time() - 1000
    mine = {
        "id": "x",
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_started": started,
        "started": now,
        "last_seen": now,
    }
    (tmp_path / "r" / ATTEMPTS).write_text(json.dumps([mine]))
    lock = RunLock(locate(tmp_path / "r"))
    lock.acquire()
    lock.release("finished")


def test_a_zombie_has_ended(tmp_path: Path) -> None:
    """Its parent has not waited for it yet: the kernel still knows the pid."""
    code = (
        "import time; from raygpt.storage import locate; from raygpt.run.lock import RunLock;"
        f"RunLock(locate({str(tmp_path / 'r')!r})).acquire(); print('held', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline().strip() == "held"
    child.kill()
    limit = time.monotonic() + 10
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < limit:
        time.sleep(0.01)
    lock = RunLock(locate(tmp_path / "r"))
    lock.acquire()
    lock.release("finished")
    child.wait()


def race(uri: str, count: int) -> list[str]:
    """What became of so many processes that take one run at the same moment."""
    code = (
        "import sys, time; from raygpt.storage import locate; from raygpt.run.lock import RunLock;"
        "from raygpt.errors import UserError; lock = RunLock(locate(sys.argv[1])); print('ready', flush=True);"
        "sys.stdin.readline()\n"
        "try: lock.acquire()\n"
        "except UserError: print('refused', flush=True)\n"
        "else: print('held', flush=True); sys.stdin.readline(); lock.release('finished')"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        for _ in range(count)
    ]
    for racer in racers:
        assert racer.stdout is not None and racer.stdout.readline().strip() == "ready"
    for racer in racers:  # all have read the history: only taking the lock decides
        assert racer.stdin is not None
        racer.stdin.write("\n")
    found = [racer.stdout.readline().strip() for racer in racers if racer.stdout is not None]
    for racer in racers:
        racer.communicate("\n", timeout=30)
    return found


def test_of_several_that_start_at_one_moment_one_has_the_run(tmp_path: Path) -> None:
    assert sorted(race(str(tmp_path / "r"), 4)) == ["held", "refused", "refused", "refused"]


def test_of_several_that_find_a_dead_lock_one_has_the_run(tmp_path: Path) -> None:
    run = locate(tmp_path / "r")
    dead = RunLock(run)
    dead.acquire()
    (tmp_path / "r" / LOCK).write_text((tmp_path / "r" / LOCK).read_text().replace(f'"pid": {os.getpid()}', '"pid": 1'))
    (tmp_path / "r" / ATTEMPTS).unlink()
    assert sorted(race(str(tmp_path / "r"), 4)) == ["held", "refused", "refused", "refused"]


def test_of_two_that_start_at_one_moment_on_s3_one_has_the_run(bucket: str) -> None:
    assert sorted(race(f"{bucket}/r", 2)) == ["held", "refused"]
    lock = RunLock(locate(f"{bucket}/r"))
    lock.acquire()
    lock.beat()
    assert lock.displaced_by is None
    other = S3Claim(locate(f"{bucket}/r") / LOCK)
    other.read()
    assert other.renew(b"") is False, "only the holder renews"
    lock.release("finished")
    assert len(read_attempts(locate(f"{bucket}/r"))) == 2


def test_the_heart_beats_in_the_lock_and_in_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raygpt.run.lock.HEARTBEAT_SECONDS", 0.05)
    lock = RunLock(locate(tmp_path / "r"))
    lock.acquire()

    def seen() -> tuple[float, float]:
        held = json.loads((tmp_path / "r" / LOCK).read_text())
        return held["last_seen"], json.loads((tmp_path / "r" / ATTEMPTS).read_text())[-1]["last_seen"]

    before, limit = seen(), time.monotonic() + 10
    while any(now <= then for now, then in zip(seen(), before)):
        assert time.monotonic() < limit, "no beat"
        time.sleep(0.02)
    lock.release("finished")


def held_elsewhere(folder: Path, ahead: float, **more: object) -> dict:
    """The lock of a run on another machine, whose clock is so many seconds ahead of ours."""
    now = time.time() + ahead
    held = {"id": "x", "host": "elsewhere", "pid": 1, "process_started": 0.0, "started": now - 9999, "last_seen": now}
    folder.mkdir(exist_ok=True)
    (folder / LOCK).write_text(json.dumps(held | more))
    return held | more


@pytest.mark.parametrize("ahead", [-120, 0, 3000])
def test_a_run_elsewhere_is_held_while_its_heart_beats_whatever_its_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    monkeypatch.setattr("raygpt.run.lock.LOST_SECONDS", 2.0)
    held = held_elsewhere(tmp_path / "r", ahead)
    ended, said = threading.Event(), []

    def beat() -> None:
        while not ended.wait(0.1):
            held["last_seen"] += 0.1
            storage.write_text(locate(tmp_path / "r") / LOCK, json.dumps(held))

    beating = threading.Thread(target=beat)
    beating.start()
    with pytest.raises(UserError, match="process 1 on elsewhere"):
        RunLock(locate(tmp_path / "r"), say=said.append).acquire()
    ended.set()
    beating.join()
    assert len(said) == 1 and "waiting up to 2 s for a sign of life" in said[0]
    monkeypatch.setattr("raygpt.run.lock.LOST_SECONDS", 0.2)
    lock = RunLock(locate(tmp_path / "r"))
    lock.acquire()
    lock.release("finished")


def test_a_run_that_has_been_silent_for_an_hour_is_not_waited_for(tmp_path: Path) -> None:
    held_elsewhere(tmp_path / "r", -4000)
    began = time.monotonic()
    lock = RunLock(locate(tmp_path / "r"))
    lock.acquire()
    lock.release("finished")
    assert time.monotonic() - began < 5


def test_another_containers_pid_is_not_looked_for_among_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers on a host's network have its name and a list of processes each."""
    monkeypatch.setattr("raygpt.run.lock.LOST_SECONDS", 0.2)
    dead = held_elsewhere(tmp_path / "r", 0, host=socket.gethostname(), pid=os.getpid(), processes="boot/1")
    assert not _attempt(dead).is_near
    live = {**dead, "pid": 2**22 + 1}  # no process of ours, and its heart beats
    assert _attempt(live).is_live
    lock = RunLock(locate(tmp_path / "r"))
    lock.acquire()
    assert lock.attempts[-1].processes and lock.attempts[-1].is_near
    lock.release("finished")


@pytest.mark.parametrize("torn", ['{"id": "a", "ho', "{}", "[]", "null", ""])
def test_a_lock_that_cannot_be_read_is_a_sentence_and_displaces_its_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: str
) -> None:
    monkeypatch.setattr("raygpt.run.lock.CLAIM_TRIES", 2)
    holder = RunLock(locate(tmp_path / "r"))
    holder.acquire()
    (tmp_path / "r" / LOCK).write_text(torn)
    (tmp_path / "r" / ATTEMPTS).unlink()
    with pytest.raises(UserError, match="can neither be taken nor read: delete it if no run uses it"):
        RunLock(locate(tmp_path / "r")).acquire()
    holder.beat()
    assert holder.displaced_by in ("somebody who overwrote its lock", "somebody who deleted its lock")
    holder.release("stopped")


def test_a_clock_that_is_set_does_not_make_a_live_run_a_dead_one(tmp_path: Path) -> None:
    """psutil adds a process's start to the time of the boot, which moves with the clock."""
    holder = RunLock(locate(tmp_path / "r"))
    holder.acquire()
    for name in (LOCK, ATTEMPTS):
        file = tmp_path / "r" / name
        started = json.dumps(holder.history()[0]["process_started"])
        assert started in file.read_text()
        file.write_text(file.read_text().replace(started, json.dumps(float(started) - 90)))
    with pytest.raises(UserError, match="is in use by process"):
        RunLock(locate(tmp_path / "r")).acquire()
    holder.release("finished")


def test_a_holder_that_was_displaced_finds_out_and_leaves_the_lock_alone(tmp_path: Path) -> None:
    told: list[bool] = []
    first = RunLock(locate(tmp_path / "r"), on_lost=lambda: told.append(True))
    first.acquire()
    (tmp_path / "r" / LOCK).write_text(json.dumps({**json.loads((tmp_path / "r" / LOCK).read_text()), "pid": 3}))
    first.beat()
    assert told == [True] and first.displaced_by == f"process 3 on {socket.gethostname()}"
    first.release("finished")
    assert json.loads((tmp_path / "r" / LOCK).read_text())["pid"] == 3
    assert json.loads((tmp_path / "r" / ATTEMPTS).read_text())[-1]["outcome"] is None


def test_a_beat_that_fails_is_not_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage may answer with any error; without beats another driver would take the run."""
    monkeypatch.setattr("raygpt.run.lock.HEARTBEAT_SECONDS", 0.02)
    lock, beats = RunLock(locate(tmp_path / "r")), []

    def beat() -> None:
        beats.append(len(beats))
        raise RuntimeError("a client's own error")

    monkeypatch.setattr(lock, "beat", beat)
    lock.acquire()
    end = time.monotonic() + 10
    while len(beats) < 3:
        assert time.monotonic() < end
        time.sleep(0.01)
    lock.release("finished")


def test_what_s3_s_client_raises_is_a_sentence_about_the_lock(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from botocore.exceptions import ClientError, EndpointConnectionError

    def refuse(error: Exception) -> SimpleNamespace:
        def answer(**_: object) -> None:
            raise error

        exceptions = SimpleNamespace(NoSuchKey=type("NoSuchKey", (ClientError,), {}))
        return SimpleNamespace(get_object=answer, put_object=answer, exceptions=exceptions)

    claim = S3Claim.__new__(S3Claim)
    claim._where, claim._bucket, claim._key, claim._tag, claim._own = (
        locate(tmp_path / "lock.json"),
        "b",
        "k",
        "t",
        b"x",
    )
    away = {"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": 503}}
    for error in (ClientError(away, "GetObject"), EndpointConnectionError(endpoint_url="http://s3")):  # type: ignore[arg-type]
        claim._client = refuse(error)
        for use in (claim.read, lambda: claim._put(b"y")):
            with pytest.raises(UserError, match="lock.json"):
                use()
