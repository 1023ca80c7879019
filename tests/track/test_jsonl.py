from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from raygpt.errors import UserError
from raygpt.storage import Location, locate
from raygpt.track import jsonl
from raygpt.track.jsonl import MetricsLog, read_metrics


def write(log: MetricsLog, steps: range) -> None:
    for step in steps:
        log.append({"step": step, "train_loss": 1 / step})


def remote(tmp_path: Path) -> Location:
    """A location that is not local to the code: no append, as on S3."""
    return Location(
        pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), "metrics.jsonl", "s3://b/metrics.jsonl"
    )


def test_records_come_back_exactly_and_in_order(tmp_path: Path) -> None:
    where = locate(tmp_path / "run" / "metrics.jsonl")
    log = MetricsLog(where)
    write(log, range(1, 50))
    log.close()
    assert read_metrics(where) == [{"step": k, "train_loss": 1 / k} for k in range(1, 50)]


def test_every_line_is_strict_json_and_nan_comes_back_as_nan(tmp_path: Path) -> None:
    where = locate(tmp_path / "metrics.jsonl")
    log = MetricsLog(where)
    log.append({"step": 1, "train_loss": math.nan, "grad_norm": math.inf, "lr": 0.1})
    log.close()

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert line == {"step": 1, "train_loss": None, "grad_norm": None, "lr": 0.1}
    assert math.isnan(read_metrics(where)[0]["train_loss"])


def test_resuming_drops_the_steps_that_will_be_trained_again(tmp_path: Path) -> None:
    where = locate(tmp_path / "metrics.jsonl")
    for first, last, resume in ((1, 60, 0), (51, 80, 50), (76, 100, 75)):
        log = MetricsLog(where, resume_step=resume)
        write(log, range(first, last + 1))
        log.close()
    records = read_metrics(where)
    assert [record["step"] for record in records] == list(range(1, 101))
    assert {record["step"]: record["restarts"] for record in records if "restarts" in record} == {51: 1, 76: 2}


def test_a_restart_that_is_itself_lost_is_counted(tmp_path: Path) -> None:
    where = locate(tmp_path / "metrics.jsonl")
    for first, last, resume in ((1, 60, 0), (51, 55, 50), (51, 70, 50)):
        log = MetricsLog(where, resume_step=resume)
        write(log, range(first, last + 1))
        log.close()
    assert log.restarts == 2
    assert {record["step"]: record["restarts"] for record in read_metrics(where) if "restarts" in record} == {51: 2}


def test_a_run_that_starts_over_leaves_nothing_of_the_old_one(tmp_path: Path) -> None:
    where = locate(tmp_path / "metrics.jsonl")
    for _ in range(2):
        log = MetricsLog(where)
        log.append({"step": 0, "val_loss": 9.0})
        write(log, range(1, 4))
        log.close()
    assert [record["step"] for record in read_metrics(where)] == [0, 1, 2, 3]


@pytest.mark.parametrize("torn", [b'{"step": 4, "train_', b'{"step": 4}\n\x00\x00\x00', b"\xff\xfe\n", b"[1]\n"])
def test_a_torn_line_is_dropped_and_the_file_is_whole_again(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"step": 3}\n' + torn)
    log = MetricsLog(locate(path), resume_step=3)
    log.append({"step": 4, "train_loss": 1.0})
    log.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]


def test_a_last_line_without_its_newline_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}')
    log = MetricsLog(locate(path), resume_step=2)
    log.append({"step": 3})
    log.close()
    assert [record["step"] for record in read_metrics(locate(path))] == [1, 2, 3]


def test_no_file_is_no_records(tmp_path: Path) -> None:
    assert read_metrics(locate(tmp_path / "none.jsonl")) == []


def test_a_killed_process_loses_no_appended_record(tmp_path: Path) -> None:
    code = (
        "import sys, time; from raygpt.storage import locate; from raygpt.track.jsonl import MetricsLog\n"
        "log = MetricsLog(locate(sys.argv[1]))\n"
        "for k in range(1, 101): log.append({'step': k})\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    where = tmp_path / "metrics.jsonl"
    with subprocess.Popen([sys.executable, "-c", code, str(where)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        os.kill(process.pid, signal.SIGKILL)
    assert len(read_metrics(locate(where))) == 100


def test_an_object_store_gets_the_lines_at_flush(tmp_path: Path) -> None:
    where = remote(tmp_path)
    log = MetricsLog(where)
    write(log, range(1, 4))
    assert read_metrics(where) == []
    log.flush()
    assert len(read_metrics(where)) == 3
    write(log, range(4, 6))
    log.close()
    assert [record["step"] for record in read_metrics(where)] == [1, 2, 3, 4, 5]
    log = MetricsLog(where, resume_step=4)
    log.append({"step": 5})
    log.close()
    assert [record["step"] for record in read_metrics(where)] == [1, 2, 3, 4, 5]


def test_records_on_s3_continue_where_the_checkpoint_was(bucket: str) -> None:
    where = locate(f"{bucket}/runs/words/metrics.jsonl")
    for first, last, resume in ((1, 30, 0), (21, 40, 20)):
        log = MetricsLog(where, resume_step=resume)
        write(log, range(first, last + 1))
        log.flush(wait=False)
        log.close()
    records = read_metrics(where)
    assert [record["step"] for record in records] == list(range(1, 41))
    assert [record["step"] for record in records if "restarts" in record] == [21]


def test_an_object_store_gets_the_lines_in_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "FLUSH_SECONDS", 0.05)
    where = remote(tmp_path)
    log = MetricsLog(where)
    write(log, range(1, 4))
    deadline = time.monotonic() + 10
    while len(read_metrics(where)) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(read_metrics(where)) == 3
    log.close()


def test_an_outage_of_the_store_is_ridden_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = remote(tmp_path)
    log = MetricsLog(where)
    real = jsonl.write_text

    def down(*_: object) -> None:
        raise UserError("s3://b cannot be reached.")

    monkeypatch.setattr(jsonl, "write_text", down)
    write(log, range(1, 4))
    log.flush()
    assert isinstance(log.problem, UserError)
    monkeypatch.setattr(jsonl, "write_text", real)
    write(log, range(4, 6))
    log.close()
    assert log.problem is None
    assert len(read_metrics(where)) == 5


def test_records_that_never_reached_the_store_are_told_at_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MetricsLog(remote(tmp_path))

    def down(*_: object) -> None:
        raise UserError("s3://b cannot be reached.")

    monkeypatch.setattr(jsonl, "write_text", down)
    log.append({"step": 1})
    with pytest.raises(UserError, match="cannot be reached"):
        log.close()


def test_appending_does_not_wait_for_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MetricsLog(remote(tmp_path))
    real = jsonl.write_text

    def slow(where: Location, text: str) -> None:
        time.sleep(0.5)
        real(where, text)

    monkeypatch.setattr(jsonl, "write_text", slow)
    log.append({"step": 1})
    begin = time.perf_counter()
    log.flush(wait=False)
    time.sleep(0.05)
    log.append({"step": 2})
    assert time.perf_counter() - begin < 0.4
    log.close()
    assert len(read_metrics(log.location)) == 2
