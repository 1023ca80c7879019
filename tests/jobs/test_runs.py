"""`raygpt runs`: how each run below a place stands, as the run itself, its lock and its records say."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from raygpt.cli import main
from raygpt.run.frame import STOPPED, Outcome, run_job
from raygpt.run.lock import LOST_SECONDS, Attempt
from raygpt.storage import locate, upload_folder
from raygpt.track.jsonl import MetricsLog
from tests.train.running import settings

NOW = time.time()


def attempt(**changes: Any) -> dict[str, Any]:
    made = Attempt("a", "elsewhere", 1, NOW - 7200, NOW - 7200, NOW - 3600, outcome="finished", job="pretrain")
    return {**vars(made), **changes}


def make(folder: Path, attempts: Any, records: list[dict] | None = None, **files: str) -> None:
    folder.mkdir(parents=True)
    (folder / "attempts.json").write_text(attempts if isinstance(attempts, str) else json.dumps(attempts))
    if records is not None:
        log = MetricsLog(locate(folder / "metrics.jsonl"))
        for record in records:
            log.append(record)  # type: ignore[arg-type]
        log.close()
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)


def listed(capsys: pytest.CaptureFixture[str], where: object, *words: str) -> dict[str, dict[str, Any]]:
    assert main(["runs", str(where), "--json", *words]) == 0
    return {run["name"]: run for run in json.loads(capsys.readouterr().out)}


def test_states_follow_from_outcomes_and_heartbeats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = {"host": socket.gethostname(), "outcome": None}
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    make(tmp_path / "finished", [attempt(outcome="stopped"), attempt()])
    make(tmp_path / "early", [attempt(outcome="early")])
    make(tmp_path / "stopped", [attempt(), attempt(outcome="stopped")])
    make(tmp_path / "spent", [attempt(outcome="budget")])
    make(tmp_path / "failed", [attempt(outcome="failed")])
    make(tmp_path / "running", [attempt(pid=os.getpid(), process_started=psutil.Process().create_time(), **here)])
    make(tmp_path / "killed", [attempt(pid=ended.pid, **here)])
    make(tmp_path / "running-far", [attempt(outcome=None, last_seen=time.time() - 5)])
    make(tmp_path / "lost-far", [attempt(outcome=None, last_seen=time.time() - LOST_SECONDS - 5)])
    (tmp_path / "prepared" / "train").mkdir(parents=True)
    found = listed(capsys, tmp_path)
    assert {name: run["state"] for name, run in found.items()} == {
        "running": "running",
        "running-far": "running",
        "lost-far": "lost",
        "early": "finished",
        "failed": "failed",
        "finished": "finished",
        "killed": "lost",
        "spent": "stopped",
        "stopped": "stopped",
    }
    assert list(found)[:3] == ["running-far", "running", "lost-far"]  # what runs, then the last seen
    assert found["finished"]["job"] == "pretrain" and found["finished"]["host"] == "elsewhere"


def test_figures_are_the_newest_record_s_and_the_length_the_config_s(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [{"step": 10 * k, "train_loss": 5 - k / 1000, "cost_usd": k / 100, "tokens": k} for k in range(1, 801)]
    records[-3]["val_loss"] = 4.5
    config = "run:\n  name: x\ntrain:\n  max_steps: null\n  max_tokens: 1000000\n  global_batch_tokens: 100\nplan: {}\n"
    make(tmp_path / "long", [attempt(outcome=None)], records, config_yaml=config)
    (tmp_path / "long" / "metrics.jsonl").open("a").write('{"step": 99999, "train_lo')  # torn
    steps = config.replace("max_steps: null", "max_steps: 12")
    done = json.dumps({"steps": 12, "train_loss": 3.0, "val_loss": 3.5, "cost_usd": 1.25})
    make(tmp_path / "done", [attempt()], [{"step": 12, "train_loss": 3.0}], config_yaml=steps, summary_json=done)
    make(tmp_path / "again", [attempt()], [{"step": 20, "train_loss": 2.0}], summary_json=done)  # went on since
    found = listed(capsys, tmp_path)
    long, finished, again = found["long"], found["done"], found["again"]
    assert (long["step"], long["total_steps"], long["loss"], long["val_loss"]) == (8000, 10_000, 4.2, 4.5)
    assert long["cost_usd"] == 8.0
    assert (finished["step"], finished["total_steps"], finished["val_loss"]) == (12, 12, 3.5)
    assert (again["step"], again["total_steps"], again["loss"]) == (20, None, 2.0)
    assert main(["runs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "job", "state", "step", "loss", "val", "$", "age", "seen", "host"]
    row = next(line.split() for line in lines if line.startswith("done"))
    assert row[:7] == ["done", "pretrain", "finished", "12/12", "3.0000", "3.5000", "1.25"]
    assert row[7][:2] == "2h" and row[8][:2] == "1h" and row[9] == "elsewhere"


def test_broken_folders_are_named_and_the_others_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "good", [attempt()])
    make(tmp_path / "torn", '[{"id": "a", "ho')
    make(tmp_path / "other", "7")
    make(tmp_path / "none", [])
    make(tmp_path / "summary", [attempt()], summary_json='{"steps": ')
    make(tmp_path / "binary", [attempt()])
    (tmp_path / "binary" / "config.yaml").write_bytes(b"train:\n\xff\xfe\n")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").write_text("run: {}\n")
    found = listed(capsys, tmp_path)
    assert {name for name, run in found.items() if run["state"] == "broken"} == {"torn", "other", "none", "begun"}
    assert {name for name, run in found.items() if run["problem"]} == {
        *("torn", "other", "none", "begun", "summary", "binary")
    }
    assert main(["runs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"{tmp_path / 'torn'}: attempts.json cannot be read" in out
    assert f"{tmp_path / 'summary'}: summary.json cannot be read" in out


def test_a_run_notes_its_job_and_may_be_listed_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = settings("x", tmp_path)
    run_job(config, lambda run: Outcome(STOPPED, {"steps": 3}), again="raygpt distill --a.b=c")
    capsys.readouterr()
    found = listed(capsys, tmp_path / config.run.name)
    assert (found[config.run.name]["job"], found[config.run.name]["state"]) == ("distill", "stopped")
    assert listed(capsys, tmp_path)[config.run.name]["step"] == 3


def test_places_without_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", f"--run.storage={tmp_path}"]) == 0
    assert capsys.readouterr().out == f"No runs in {tmp_path}.\n"
    assert main(["runs", str(tmp_path / "absent")]) == 2
    assert "does not exist: name the folder" in capsys.readouterr().err
    assert main(["runs", str(tmp_path), str(tmp_path)]) == 2


def test_runs_on_s3(bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "r", [attempt()], [{"step": 7, "train_loss": 3.0}])
    upload_folder(tmp_path, locate(f"{bucket}/runs"))
    assert listed(capsys, f"{bucket}/runs")["r"]["step"] == 7
    assert main(["runs", f"{bucket}/absent"]) == 2
