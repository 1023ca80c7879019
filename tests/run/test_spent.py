"""What a run keeps of its cost: machines and prices of every start, waiting after failures, the budget over starts."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from raygpt.run.frame import FINISHED, SPENT, Outcome, Run, left_waiting, run_job
from raygpt.run.lock import Attempt
from raygpt.track.cost import Bill, Node
from tests.train.running import settings

T0 = 1_700_000_000.0


@pytest.fixture(autouse=True)
def _prices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prices.yaml").write_text("big: {price: 36, spot: 18, read: 2026-11-09}\n")
    monkeypatch.setenv("RAYGPT_PRICES", str(tmp_path / "prices.yaml"))


def test_a_start_keeps_what_it_paid_for() -> None:
    now = T0
    cluster = [Node("a", "big", "spot", started=T0 - 50), Node("gone", "big", started=T0 - 90, ended=T0 - 10)]
    bill = Bill("auto", since=T0, nodes=lambda: cluster, clock=lambda: now)
    bill.look()
    now = T0 + 100
    about = {"machine": "big", "market": "spot", "usd_per_hour": 18, "read": "2026-11-09"}
    assert bill.paid() == [{"node": "a", **about, "from": T0, "to": None}]
    cluster[0] = Node("a", "big", "spot", started=T0 - 50, ended=T0 + 60)
    bill.look()
    assert bill.paid()[0]["to"] == T0 + 60 and bill.attempt_usd() == pytest.approx(0.30)
    assert Bill(12.0, since=T0).paid() == [{"machine": None, "usd_per_hour": 12.0, "from": T0, "to": None}]
    assert Bill(None).paid() == []


def test_machines_that_stay_up_after_a_failure_are_paid_for() -> None:
    def attempt(outcome: str | None, *paid: tuple[str, float | None]) -> Attempt:
        entries = [{"node": name, "from": T0, "to": to} for name, to in paid]
        return Attempt("x", "h", 1, T0, T0, T0 + 100, outcome=outcome, paid=entries)

    killed = attempt(None, ("a", None), ("b", T0 + 50))
    assert left_waiting([killed]) == left_waiting([killed, attempt("failed")]) == {"a": T0 + 100}
    assert left_waiting([attempt("stopped", ("a", None))]) == {}, "nobody waits after a stop by wish"
    assert left_waiting([killed, attempt("budget", ("a", None))]) == {}
    cluster = [Node("a", "big", started=T0 - 500), Node("new", "big", started=T0 + 150)]
    bill = Bill("auto", since=T0 + 200, nodes=lambda: cluster, waited={"a": T0 + 100}, clock=lambda: T0 + 300)
    bill.look()
    # a cent a second: a for 200 s, the new one only since this start
    assert bill.attempt_usd() == pytest.approx(2.00 + 1.00)


def test_the_budget_counts_earlier_starts(tmp_path: Path) -> None:
    spending = {"run__name": "r", "track__price_per_hour": "36", "track__max_cost_usd": "5"}
    config = settings("data", tmp_path / "runs", **spending)
    before = Attempt("x", "elsewhere", 1, T0, T0, T0 + 600, outcome="failed", usd=4.999)
    (tmp_path / "runs" / "r").mkdir(parents=True)
    (tmp_path / "runs" / "r" / "attempts.json").write_text(json.dumps([vars(before)]))

    def work(run: Run) -> Outcome:
        stopped = threading.Event()
        run.stop.listen(stopped.set)
        return Outcome("stopped" if stopped.wait(10) else FINISHED, {"steps": 1, "cost_usd": run.cost_usd()})

    outcome = run_job(config, work)
    assert outcome.outcome == SPENT and 5.0 <= outcome.summary["cost_usd"] < 5.1
    first, second = json.loads((tmp_path / "runs" / "r" / "attempts.json").read_text())
    held = second["last_seen"] - second["started"]
    assert first["usd"] == 4.999 and second["usd"] == pytest.approx(held * 36 / 3600, abs=1e-5)
    assert second["paid"][0]["usd_per_hour"] == 36.0
    assert {"raygpt", "python", "torch", "processor"} <= second["environment"].keys()
