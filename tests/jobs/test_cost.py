"""`raygpt cost`: a recorded run with two restarts and two node types, worked out by hand; tables; what is not known."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from raygpt.cli import main
from raygpt.storage import locate
from raygpt.track.account import read_account

T0 = 1_780_000_000.0


def attempt(begin: float, end: float, outcome: str | None, paid: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    times = {"process_started": T0 + begin, "started": T0 + begin, "last_seen": T0 + end}
    return {
        "id": str(begin),
        "host": "h",
        "pid": 1,
        **times,
        "outcome": outcome,
        "paid": paid,
        "job": "pretrain",
    } | more


def node(name: str, machine: str, price: float, begin: float, end: float | None, market: str = "on-demand") -> dict:
    until = None if end is None else T0 + end
    about = {"node": name, "machine": machine, "market": market, "usd_per_hour": price, "read": "2026-11-09"}
    return {**about, "from": T0 + begin, "to": until}


def record(at: float, step: int, seconds: float, **more: float) -> dict[str, Any]:
    return {"step": step, "tokens": 1000 * step, "train_loss": 3.0, "step_seconds": seconds, "time": T0 + at, **more}


def write(folder: Path, attempts: list[dict], records: list[dict], summary: dict | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "attempts.json").write_text(json.dumps(attempts))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    (folder / "config.yaml").write_text("model: {preset: gpt2, init_from: random}\ntrack: {price_per_hour: auto}\n")
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """big costs 1 cent a second on demand, half of it as spot; small a tenth.

    First attempt, 0 to 600 s, big on demand throughout, small from 100 s on. Its worker is lost once: the last record
    that counts is of 200 s (step 100), the first after it of 500 s, when 50 steps of 2 s and a save of 10 s were done
    anew: 200 s to 390 s are lost. The driver is killed at 600 s; the last record that counts stays that of 500 s.
    Small goes away at 600 s, big stays up.
    Second, taken at 900 s, to 1,500 s: the same big, paid for since 600 s, and another small from 900 s on. Its first
    record comes at 1,200 s after 50 steps of 4 s: 500 s to 1,000 s are lost. It is stopped by wish at 1,300 s.
    Third, a day later, for 200 s: big as spot. Its only record, at 150 s, has 50 steps of 2 s.
    """
    day = 86_400.0
    attempts = [
        attempt(0, 600, None, [node("a", "big", 36, 0, None), node("b", "small", 3.6, 100, 600)], starts=2),
        attempt(900, 1300, "stopped", [node("a", "big", 36, 600, None), node("c", "small", 3.6, 900, None)]),
        attempt(day, day + 200, "finished", [node("d", "big", 18, day, None, "spot")]),
    ]
    records = [
        record(200, 100, 1.5, data_wait_seconds=0.5),  # 50 s of start, 150 s of steps, 50 s of them waiting
        record(500, 150, 2.0, checkpoint_stall_seconds=10.0, restarts=1),
        record(1200, 200, 4.0, restarts=2),
        record(1250, 210, 4.0),  # 40 s of steps and 10 s of evaluation
        record(day + 150, 260, 2.0, restarts=3),
    ]
    return write(tmp_path / "runs" / "broken", attempts, records)


def test_two_restarts_on_two_types_of_nodes_cost_what_a_hand_works_out(broken: Path) -> None:
    account = read_account(locate(broken))
    # big: 1,300 s on demand at 1 cent (13.00), 200 s as spot at half a cent (1.00)
    # small: 500 s and 400 s at a tenth of a cent (0.90)
    assert round(account.usd or 0, 2) == 14.90
    assert account.machine_hours == pytest.approx({"big": 1300 / 3600, "small": 900 / 3600, "big spot": 200 / 3600})
    assert account.hours == pytest.approx(1500 / 3600)
    lost = account.lost
    assert lost is not None and lost.seconds == pytest.approx(190 + 500)
    # 200–390 s: big and small, 1.1 cents a second (2.09). 500–600 s: the same (1.10). 600–900 s: big alone, standing
    # still (3.00). 900–1,000 s: both (1.10).
    assert round(lost.usd or 0, 2) == round(2.09 + 1.10 + 3.00 + 1.10, 2) == 7.29
    shares = {share.name: (round(share.seconds, 6), round(share.usd or 0, 4)) for share in account.shares}
    assert shares == {
        # 50–100 s of the first window at 1 cent, 100–200 s at 1.1: 1.60 for 150 s, a third of it waiting
        "training steps": (100 + 100 + 200 + 40 + 100, round(1.60 * 2 / 3 + 1.10 + 2.20 + 0.44 + 0.50, 4)),
        "waiting for data": (50, round(1.60 / 3, 4)),
        "checkpoints": (10, 0.11),
        "evaluation and pauses": (10, 0.11),
        "first start": (50, 0.50),
        "starts after stops": (50 + 50, 0.55 + 0.25),  # 1,250–1,300 s before the stop, and 50 s of the third start
        "lost to failures": (690, 7.29),
        "closing the run": (50, 0.25),
    }
    assert sum(share.usd or 0 for share in account.shares) == pytest.approx(14.90)
    assert account.tokens_per_usd == pytest.approx(260_000 / 14.90)


def test_the_table_of_a_project_adds_up(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = broken.parent
    paid = [{"machine": None, "usd_per_hour": 12.0, "from": T0, "to": None}]
    asked = {"teacher_tokens": 10, "total_teacher_tokens": 2_000_000, "token_cost_usd": 4.5, "total_cost_usd": 5.5}
    write(home / "answers", [attempt(0, 300, "finished", paid, job="generate")], [], asked)
    here = {"node": "n", "machine": None, "market": "on-demand", "usd_per_hour": None, "from": T0, "to": None}
    write(home / "laptop", [attempt(0, 3600, "finished", [here], usd=None)], [record(100, 10, 1.0)])
    with open(home / "laptop" / "big.bin", "wb") as file:
        file.truncate(100 * 2**30)  # 100 GiB, sparse
    assert main(["cost", f"--run.storage={home}", "--format=markdown"]) == 0
    out = capsys.readouterr().out
    figures = json.loads(out.splitlines()[-1])
    assert [run["run"] for run in figures["runs"]] == ["answers", "broken", "laptop"]
    assert figures["total"]["usd"] == pytest.approx(14.90 + 1.00 + 4.50)
    assert (figures["total"]["teacher_usd"], figures["total"]["lost_usd"]) == (4.5, 7.29)
    assert figures["total"]["stored_usd_per_month"] == pytest.approx(2.30, abs=0.001) and "0.00" not in out[-9:]
    assert figures["without_price"] == ["laptop"]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]
    assert all(len(row) == 10 for row in rows)
    by_name = {row[0]: row for row in rows}
    assert by_name["broken"][1] == "pretrain gpt2" and by_name["broken"][5:8] == ["14.90", "17.4k", "7.29"]
    assert by_name["answers"][2] == "2.00M" and by_name["answers"][5] == "5.50" and by_name["answers"][8] == "4.50"
    assert by_name["laptop"][5] == "–" and by_name["laptop"][9] == "2.30"
    assert by_name["**all**"][5] == "**20.40**" and by_name["**training**"][5] == "**14.90**"
    assert "- big spot: $18.0000/h, read 2026-11-09" in out
    # at a price, the laptop counts as well; names, paths and folders mean the same run once
    words = ["cost", "broken", str(broken), str(home), f"--run.storage={home}", "--price_per_hour=0.5"]
    assert main(words) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(figures["runs"]) == 3 and figures["total"]["usd"] == pytest.approx(20.90)


def test_an_older_history_counts_its_dollars_evenly(tmp_path: Path) -> None:
    """One of a version that kept an attempt's dollars and no machines: nothing is lost, only coarser."""
    attempts = [attempt(0, 100, None, [], usd=1.0), attempt(100, 300, "finished", [], usd=4.0)]
    account = read_account(locate(write(tmp_path / "old", attempts, [record(50, 5, 8.0), record(250, 10, 20.0)])))
    assert account.usd == pytest.approx(5.0)
    assert account.lost is not None and account.lost.seconds == pytest.approx(100)
    assert account.lost.usd == pytest.approx(0.5 + 1.0)


def test_no_run_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", "nothing", f"--run.storage={tmp_path}"]) == 2
    assert "there is no run nothing" in capsys.readouterr().err
    assert main(["cost", f"--run.storage={tmp_path}"]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_an_evaluation_inside_a_run_is_a_row_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paid = [{"machine": None, "usd_per_hour": 12.0, "from": T0, "to": None}]
    run = write(tmp_path / "runs" / "model", [attempt(0, 600, "finished", paid)], [record(300, 10, 20.0)])
    before = read_account(locate(run)).stored_bytes
    write(run / "evaluation", [attempt(0, 300, "finished", paid, job="evaluate")], [])
    (run / "evaluation" / "items.bin").write_bytes(bytes(1000))
    write(run / "runs" / "trial", [attempt(0, 300, "finished", paid)], [])  # of a sweep: in its cost already
    assert main(["cost", "model", f"--run.storage={run.parent}"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(each["run"], each["usd"]) for each in figures["runs"]] == [("model", 2.0), ("model/evaluation", 1.0)]
    inner, trial = figures["runs"][1]["stored_bytes"], sum(f.stat().st_size for f in (run / "runs").rglob("*.*"))
    assert inner > 1000 and figures["runs"][0]["stored_bytes"] == before + trial
    assert main(["cost", str(run.parent), str(run / "evaluation"), f"--run.storage={run.parent}"]) == 0
    assert len(json.loads(capsys.readouterr().out.splitlines()[-1])["runs"]) == 2, "each once"


def test_a_node_of_two_runs_at_once_costs_its_price_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """$10 an hour for an hour. The first run is killed after 15 minutes and goes on at 45; the second has the same node
    from 30 minutes on: 15 of the 30 minutes that the first one lost were of use to somebody."""
    home = tmp_path / "runs"
    first = [
        attempt(0, 900, None, [node("n", "big", 10, 0, None)]),
        attempt(2700, 3600, "finished", [node("n", "big", 10, 900, None)]),
    ]
    write(home / "first", first, [record(900, 10, 90.0), record(3600, 20, 90.0, restarts=1)])
    second = [attempt(1800, 3600, "finished", [node("n", "big", 10, 1800, None)])]
    write(home / "second", second, [record(3600, 10, 180.0)])
    assert main(["cost", f"--run.storage={home}"]) == 0
    out = capsys.readouterr().out
    figures = json.loads(out.splitlines()[-1])
    assert [each["usd"] for each in figures["runs"]] == [10.0, 5.0] and figures["total"]["usd"] == 10.0
    assert figures["runs"][0]["lost_usd"] == 5.0 and figures["total"]["lost_usd"] == 2.5
    assert "1 machine was in several runs at a time" in out


@pytest.mark.parametrize(
    ("outcome", "records", "lost"), [("failed", 0, 600), (None, 0, 600), (None, 1, 300), ("stopped", 1, 0)]
)
def test_a_failure_that_nothing_went_on_from_is_lost(
    tmp_path: Path, outcome: str | None, records: int, lost: float
) -> None:
    history = [attempt(0, 600, outcome, [node("n", "big", 36, 0, None)])]
    account = read_account(locate(write(tmp_path / "r", history, [record(300, 10, 30.0)][:records])))
    assert (account.lost.seconds if account.lost else 0) == pytest.approx(lost)
    assert account.lost is None or account.lost.usd == pytest.approx(lost / 100)


def test_what_still_runs_has_lost_nothing(tmp_path: Path) -> None:
    begin = time.time() - T0 - 600
    history = [attempt(begin, begin + 590, None, [node("n", "big", 36, begin, None)])]
    account = read_account(locate(write(tmp_path / "r", history, [record(begin + 300, 10, 30.0)])))
    assert account.lost is None


def test_folders_of_old_or_foreign_making(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "runs"
    torn = write(home / "torn", [], [record(50, 5, 8.0)])
    (torn / "attempts.json").write_text('[{"started": 1')
    odd = write(home / "odd", [attempt(0, 100, "finished", [], started=None)], [record(50, 5, 8.0)])
    (odd / "config.yaml").write_text("track: none\nmodel: 3\n")
    old = attempt(0, 3600, "finished", [])
    del old["paid"]
    write(home / "old", [old], [record(3600, 5, 8.0, cost_usd=3.0)], {"steps": 5, "cost_usd": 3.5})
    assert main(["cost", f"--run.storage={home}"]) == 0
    out = capsys.readouterr().out
    figures = {each["run"]: each for each in json.loads(out.splitlines()[-1])["runs"]}
    assert figures["old"]["usd"] == 3.5 and "usd" not in figures["torn"] and "usd" not in figures["odd"]
    assert "torn: attempts.json is no JSON" in out and "odd: 1 of 1 starts in attempts.json have no times" in out
    assert "no price is known of the machines of" not in out
