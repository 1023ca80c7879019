"""One process per run folder, and no resume that would change the run's own order or weights."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from raygpt.data.order import ORDER_VERSION
from raygpt.errors import UserError
from raygpt.parallel.checkpoint import RunState
from raygpt.run.lock import ATTEMPTS, RunLock
from raygpt.storage import locate
from raygpt.train.resume import check_resume


def test_a_second_start_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    run = locate(tmp_path / "r")
    first = RunLock(run)
    first.acquire()
    with pytest.raises(UserError, match=f"in use by process {os.getpid()} on {socket.gethostname()}: stop that one"):
        RunLock(run).acquire()
    first.release("stopped")
    second = RunLock(run)
    second.acquire()
    assert second.restarts == 1
    second.release("finished")
    assert [item["outcome"] for item in json.loads((tmp_path / "r" / ATTEMPTS).read_text())] == ["stopped", "finished"]


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


CONFIG = {"run": {"seed": 1}, "data": {"seq_len": None}, "train": {"global_batch_tokens": 768}}
FACTS = {"fingerprint": "a" * 64, "tokenizer_sha256": "t", "model": {"n_layer": 4, "dropout": 0.0}}
SAVED = {**FACTS, "config": CONFIG, "order_version": ORDER_VERSION}


def check(config: dict | None = None, ignore: bool = False, **facts: object) -> None:
    check_resume(locate("/r"), SAVED, config or CONFIG, {**FACTS, **facts}, ignore_fingerprint=ignore)


def test_what_may_change_on_a_resume_does() -> None:
    check()
    check(model={"n_layer": 4, "dropout": 0.1})
    check(fingerprint="b" * 64, ignore=True)


def test_a_run_of_another_data_order_is_refused_with_both_ways_on() -> None:
    written_before = RunState.from_json(json.dumps({"step": 5, "fingerprint": "a"}))  # no version was recorded then
    assert written_before.order_version == 1
    saved = {**SAVED, "order_version": written_before.order_version}
    with pytest.raises(
        UserError, match="begun with version 1 of the data order.*model.init_from=/r.*ignore_fingerprint"
    ):
        check_resume(locate("/r"), saved, CONFIG, FACTS, ignore_fingerprint=False)
    check_resume(locate("/r"), saved, CONFIG, FACTS, ignore_fingerprint=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {**CONFIG, "run": {"seed": 2}}}, "run.seed is 2 but run /r was started with 1"),
        ({"config": {**CONFIG, "train": {"global_batch_tokens": 5}}}, "train.global_batch_tokens is 5 .* with 768"),
        ({"model": {"n_layer": 5, "dropout": 0.0}}, "model.n_layer is 5 but run /r was started with 4"),
        ({"tokenizer_sha256": "u"}, "another tokenizer"),
        (
            {"fingerprint": "b" * 64},
            "fingerprint bbbbbbbbbbbb instead of aaaaaaaaaaaa.*data.ignore_fingerprint=true, after",
        ),
    ],
)
def test_what_would_break_the_run_is_refused_with_the_way_out(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(**change)
