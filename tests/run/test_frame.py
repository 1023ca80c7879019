"""The frame that every job runs in, with works that do nothing: what it says of a folder, of stops and of costs."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from raygpt.config import Config
from raygpt.config.settings import load_config
from raygpt.errors import UserError
from raygpt.run.frame import COMPLETE, FAILED, FINISHED, STOPPED, Outcome, Run, check_start, check_unchanged, run_job
from raygpt.run.lock import ATTEMPTS, LOCK
from raygpt.run.stop import StopToken
from raygpt.track.cost import Node


def config(folder: Path, **options: str) -> Config:
    named = {key.replace("__", "."): value for key, value in options.items()}
    return load_config("pretrain", None, {"run.storage": str(folder), "run.name": "r", **named}, {}, check=False)


def wait(run: Run) -> Outcome:
    """A work that does as it is told."""
    limit = time.monotonic() + 20
    while not run.stop.requested:
        assert time.monotonic() < limit
        time.sleep(0.01)
    return Outcome(STOPPED, {"steps": 3}, closing="after step 3.")


def attempts(folder: Path) -> list[dict]:
    return json.loads((folder / "r" / ATTEMPTS).read_text())


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_any_work_and_is_the_exit_status(tmp_path: Path, number: int, status: int) -> None:
    before, screen = signal.getsignal(number), io.StringIO()
    threading.Timer(0.3, os.kill, (os.getpid(), number)).start()
    outcome = run_job(config(tmp_path), wait, again="raygpt pretrain …", stream=screen)
    assert (outcome.outcome, outcome.exit_status) == (STOPPED, status)
    assert "Stopping: finishing this step" in screen.getvalue()
    assert "Stopped after step 3. To go on: raygpt pretrain …" in screen.getvalue()
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert summary == {"steps": 3, "outcome": STOPPED, "stopped_by": signal.Signals(number).name}
    assert attempts(tmp_path)[-1]["outcome"] == STOPPED and not (tmp_path / "r" / LOCK).exists()
    assert signal.getsignal(number) == before


def test_the_budget_counts_from_the_start_whether_anything_trains_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raygpt.run.stop.BUDGET_LOOK_SECONDS", 0.05)
    screen = io.StringIO()
    spending = {"track__price_per_hour": "3600", "track__max_cost_usd": "1.5"}
    outcome = run_job(config(tmp_path, **spending), wait, again="again", stream=screen)
    assert (outcome.outcome, outcome.exit_status) == ("budget", 0)
    assert "track.max_cost_usd is reached: stopped after step 3." in screen.getvalue()
    assert json.loads((tmp_path / "r" / "summary.json").read_text())["stopped_by"] == "budget"
    # what an earlier attempt cost counts: this one has nothing left
    assert attempts(tmp_path)[0]["last_seen"] - attempts(tmp_path)[0]["started"] >= 1.5
    assert run_job(config(tmp_path, **spending), wait, stream=io.StringIO()).outcome == "budget"
    assert attempts(tmp_path)[1]["last_seen"] - attempts(tmp_path)[1]["started"] < 1.4


def test_a_caller_in_this_process_stops_it(tmp_path: Path) -> None:
    token = StopToken()
    threading.Timer(0.2, token.request).start()
    outcome = run_job(config(tmp_path), wait, stream=io.StringIO(), stop=token)
    assert outcome.outcome == STOPPED and outcome.signal == 0


def test_a_displaced_run_writes_no_more(tmp_path: Path) -> None:
    def work(run: Run) -> Outcome:
        other = json.loads((tmp_path / "r" / LOCK).read_text()) | {"id": "other", "host": "elsewhere", "pid": 7}
        (tmp_path / "r" / LOCK).write_text(json.dumps(other))
        run.lock.beat()
        assert run.stop.requested
        return Outcome(FINISHED, {"steps": 3})

    with pytest.raises(UserError, match="was taken over by process 7 on elsewhere: this one wrote nothing more"):
        run_job(config(tmp_path), work, stream=io.StringIO())
    assert not (tmp_path / "r" / "summary.json").exists()
    assert json.loads((tmp_path / "r" / LOCK).read_text())["id"] == "other"
    assert attempts(tmp_path)[-1]["outcome"] is None


def test_a_work_that_fails_is_on_record_and_lets_go(tmp_path: Path) -> None:
    def work(run: Run) -> Outcome:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        run_job(config(tmp_path), work, stream=io.StringIO())
    assert attempts(tmp_path)[-1]["outcome"] == FAILED and not (tmp_path / "r" / LOCK).exists()
    assert [Outcome(each).exit_status for each in (FINISHED, COMPLETE, FAILED)] == [0, 0, 1]


def test_starts_of_workers_are_restarts_over_all_attempts(tmp_path: Path) -> None:
    seen = []

    def work(run: Run) -> Outcome:
        run.lock.workers_started()
        run.lock.workers_started()
        seen.append(run.lock.restarts)
        return Outcome(FINISHED)

    for _ in range(2):
        run_job(config(tmp_path), work, stream=io.StringIO())
    assert seen == [1, 3]


def test_what_resume_asks_for_is_asked_of_every_job_alike(tmp_path: Path) -> None:
    def begun(folder: object) -> bool:
        return (tmp_path / "r" / "begun").exists()

    assert not check_start(config(tmp_path), begun, "checkpoint")
    with pytest.raises(UserError, match=r"run.resume=must but .*/r has no checkpoint: check run.storage and run.name"):
        check_start(config(tmp_path, run__resume="must"), begun, "checkpoint")
    run_job(config(tmp_path), lambda run: Outcome(FINISHED), stream=io.StringIO())
    with pytest.raises(UserError, match=r"run.resume=never but run .*/r exists already: choose another run.name"):
        check_start(config(tmp_path, run__resume="never"), begun, "checkpoint")
    (tmp_path / "r" / "begun").touch()
    assert check_start(config(tmp_path, run__resume="must"), begun, "checkpoint")
    with pytest.raises(UserError, match=r"begun with other settings \(run.seed\): set them back"):
        check_unchanged(config(tmp_path, run__seed="7"), "classify")


def test_a_budget_on_machines_without_a_price_is_refused_before_the_run_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raygpt.cluster.nodes.nodes", lambda: None)  # of another test's cluster
    with pytest.raises(UserError, match=r"track\.max_cost_usd needs a price .*no cluster is there.*price_per_hour"):
        run_job(config(tmp_path, track__max_cost_usd="5"), wait, stream=io.StringIO())
    assert not (tmp_path / "r").exists()


def test_nodes_at_their_own_prices_spend_the_budget_over_restarts_and_the_history_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines of half a dollar a second: the second attempt has half a dollar left."""
    (tmp_path / "prices.yaml").write_text("big: 1800\n")
    monkeypatch.setenv("RAYGPT_PRICES", str(tmp_path / "prices.yaml"))
    monkeypatch.setattr("raygpt.run.stop.BUDGET_LOOK_SECONDS", 0.05)
    there = [Node("a", "big", started=time.time() - 3600), Node("b", "big", "spot", started=time.time() - 3600)]
    monkeypatch.setattr("raygpt.cluster.nodes.nodes", lambda: there)

    def a_second(run: Run) -> Outcome:
        time.sleep(1.0)
        run.lock.beat()
        assert run.cost_usd() == pytest.approx(run.lock.wall_seconds, abs=0.2)
        return Outcome(FINISHED)

    assert run_job(config(tmp_path, track__max_cost_usd="1000"), a_second, stream=io.StringIO()).outcome == FINISHED
    first = attempts(tmp_path)[0]["usd"]
    assert first == pytest.approx(attempts(tmp_path)[0]["last_seen"] - attempts(tmp_path)[0]["started"], abs=0.2)
    outcome = run_job(config(tmp_path, track__max_cost_usd=str(first + 0.5)), wait, stream=io.StringIO())
    assert outcome.outcome == "budget" and attempts(tmp_path)[1]["usd"] == pytest.approx(0.5, abs=0.3)
    # at a fixed price earlier seconds count at that price, and dollars that were kept stay
    spent: list[float | None] = []
    fixed = config(tmp_path, track__price_per_hour="0")
    run_job(fixed, lambda run: spent.append(run.cost_usd()) or Outcome(FINISHED), stream=io.StringIO())
    assert spent == [pytest.approx(first + attempts(tmp_path)[1]["usd"])]


def test_a_file_of_prices_that_cannot_be_read_is_told_and_not_taken_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYGPT_PRICES", str(tmp_path / "nowhere.yaml"))
    with pytest.raises(UserError, match="RAYGPT_PRICES=.*nowhere.yaml"):
        run_job(config(tmp_path), wait, stream=io.StringIO())
    assert not (tmp_path / "r").exists()
