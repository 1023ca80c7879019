"""What is found in a run's records, and above all what is not: a clean run says nothing."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from raygpt.track.finding import Finding
from raygpt.track.findings import findings

TRACES = Path(__file__).parent / "traces"


def recorded(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (TRACES / f"{name}.jsonl").read_text().splitlines()]


def clean(steps: int = 600, *, log_every: int = 5, seed: int = 0) -> list[dict[str, Any]]:
    """A run as it should be: noisy, slow at first, with evaluations, saves, warm-up, a decaying learning rate."""
    draw = random.Random(seed)
    rows, time = [], 1_780_000_000.0
    for step in range(1, steps + 1):
        seconds = (30.0 if step == 1 else 3.0 if step < 6 else 0.5) * math.exp(0.05 * draw.gauss(0, 1))
        time += seconds
        if step % log_every:
            continue
        row: dict[str, Any] = {"step": step, "tokens": 1000 * step, "step_seconds": seconds}
        row |= {"tokens_per_second": 1000 / seconds, "data_wait_seconds": seconds * 0.01 * draw.random()}
        row["train_loss"] = 3 + 6 * (step + 3) ** -0.4 + 0.05 * draw.gauss(0, 1)
        row["grad_norm"] = (0.4 + 8 / (step + 1)) * math.exp(0.25 * draw.gauss(0, 1))
        row["lr"] = 1e-3 * min(1, step / 50) * (0.55 + 0.45 * math.cos(math.pi * step / steps))
        if step % 50 == 0:
            row |= {"val_loss": 3.05 + 6 * (step + 3) ** -0.4, "checkpoint_stall_seconds": 0.3 + 0.2 * draw.random()}
            time += 4 + row["checkpoint_stall_seconds"]
        rows.append({**row, "time": time})
    return rows


def named(found: list[Finding]) -> list[str]:
    return [finding.name for finding in found]


def only(found: list[Finding], name: str) -> Finding:
    assert named(found) == [name], found
    return found[0]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("log_every", [1, 5])
def test_a_clean_run_says_nothing(seed: int, log_every: int) -> None:
    assert findings(clean(400, seed=seed, log_every=log_every)) == []


def test_a_restart_is_no_finding() -> None:
    rows = clean()
    for number in (40, 80):
        rows[number] |= {"restarts": number // 40, "tokens_per_second": 90.0, "step_seconds": 11.0}
        for row in rows[number:]:
            row["time"] += 900
    assert findings(rows) == []


def test_the_recorded_quick_start_is_clean_and_a_jump_in_it_is_told() -> None:
    rows = recorded("quickstart")
    assert findings(rows) == []
    for row in rows:
        if row["step"] <= 400:
            row["tokens_per_second"] /= 2.6
            row["step_seconds"] *= 2.6
    found = only(findings(rows), "speed jump")
    assert (found.level, found.first_step, found.last_step) == ("look", 400, 450)
    assert found.text.startswith("Speed rose 2.6-fold between steps 400 and 450, from 8.")


def test_a_recorded_run_that_others_slowed_down_twice() -> None:
    """On a shared machine: 6.5k, from step 500 on 3.7k, from step 1,300 on 1.1k tokens/s."""
    first, second = findings(recorded("slowed"))
    assert first.text.startswith("Speed fell 1.7-fold between steps 500 and 600")
    assert second.text.startswith("Speed fell 3.9-fold between steps 1,300 and 1,400, from 4.33k to 1.14k tok/s")


def test_a_jump_that_more_workers_explain_is_only_noted() -> None:
    rows = clean()
    for row in rows:
        more = row["step"] > 300
        row["world_size"] = 4 if more else 2
        row["tokens_per_second"] *= 1.9 if more else 1
        row["step_seconds"] /= 1.9 if more else 1
    found = only(findings(rows), "speed jump")
    assert found.level == "note" and found.text.endswith("the workers changed from 2 to 4.")


def test_speed_that_sags_little_by_little() -> None:
    rows = clean()
    for row in rows:
        slower = 1 + row["step"] / 1000
        row["tokens_per_second"] /= slower
        row["step_seconds"] *= slower
        row["time"] += 0.25 * row["step"] ** 2 / 1000
    found = only(findings(rows), "speed sags")
    assert "sagged by 2" in found.text and "little by little" in found.text and found.last_step == 600


def test_waiting_for_data_that_grows_and_that_is_there_all_along() -> None:
    rows = clean()
    for row in rows:
        row["data_wait_seconds"] += row["step_seconds"] * 0.2 * max(0, row["step"] - 300) / 300
    found = only(findings(rows), "data wait grows")
    assert found.text.startswith("Waiting for data grew from 0.") and "(steps 406–600)" in found.text
    for row in rows:
        row["data_wait_seconds"] = 0.15 * row["step_seconds"]
    assert only(findings(rows), "data wait").text.startswith("Waiting for data took 15% of step time")


def test_a_loss_that_spikes_and_whether_it_came_back() -> None:
    rows = clean()
    rows[70]["train_loss"] += 1.5
    found = only(findings(rows), "loss spike")
    assert (found.level, found.first_step) == ("note", 355) and found.text.endswith("came back.")
    for row in rows[70:]:
        row["train_loss"] += 1.5
    found = next(each for each in findings(rows) if each.name == "loss spike")
    assert found.level == "look" and "did not come back" in found.text


def test_gradient_norms_that_spike() -> None:
    rows = clean()
    for number in (50, 70, 90):
        rows[number]["grad_norm"] *= 20
    found = only(findings(rows), "gradient spikes")
    assert found.level == "look" and "3 times" in found.text and (found.first_step, found.last_step) == (255, 455)


def test_saves_that_hold_training_up_and_one_slow_one() -> None:
    rows = clean()
    for row in rows:
        if "checkpoint_stall_seconds" in row:
            row["checkpoint_stall_seconds"] = 8.0
    assert only(findings(rows), "saves").text.startswith("Saves held training up for ")
    rows = clean(3000)
    rows[99]["checkpoint_stall_seconds"] = 40.0
    found = only(findings(rows), "slow save")
    assert found.text.startswith("The save at step 500 held training up for 40 s where others took 0.")


def test_time_in_which_nothing_was_computed() -> None:
    rows = clean()
    for row in rows[60:]:
        row["time"] += 420
    found = only(findings(rows), "gap")
    assert "for 7m" in found.text and (found.first_step, found.last_step) == (300, 305)


def test_validation_that_diverges_from_training() -> None:
    rows = clean()
    for row in rows:
        if "val_loss" in row and row["step"] > 300:
            row["val_loss"] += 0.6 * (row["step"] - 300) / 300
    found = only(findings(rows), "validation diverges")
    assert found.first_step == 300 and "while training loss went on falling" in found.text


def test_a_plateau_at_a_learning_rate_that_is_still_high() -> None:
    rows = clean()
    for row in rows:
        row["lr"] = 1e-3
        row["train_loss"] = 3.4 + max(0.0, 2.5 - row["step"] / 100) + 0.01 * math.sin(row["step"])
    found = only(findings(rows), "plateau")
    assert found.level == "note" and "fell no more" in found.text and found.last_step == 600


def test_figures_that_are_no_number_and_steps_that_are_skipped() -> None:
    rows = clean()
    rows[100]["train_loss"] = math.nan
    rows[-1]["skipped_steps"] = 60
    assert sorted(named(findings(rows))) == ["not a number", "skipped steps"]


def test_a_run_that_has_hardly_begun_says_nothing() -> None:
    assert findings([]) == [] and findings(clean()[:3]) == []
    assert findings([{"step": 0, "val_loss": 5.0}, {"step": 10}]) == []


def test_a_run_of_many_records_keeps_what_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run that is thinned out restarts, evaluations, saves and losses that are none are still seen."""
    rows = clean(3000, log_every=1)
    rows[301]["restarts"] = 1
    for row in rows[301:]:
        row["time"] += 900
    rows[412]["train_loss"] = math.nan
    rows[499]["checkpoint_stall_seconds"] = 40.0
    monkeypatch.setattr("raygpt.track.findings.MOST_RECORDS", 1000)
    assert sorted(named(findings(rows))) == ["not a number", "slow save"]


def test_fine_tuning_whose_first_evaluation_is_the_best() -> None:
    rows = [{"step": 0, "val_loss": 2.0}, *clean()]
    for row in rows[1:]:
        if "val_loss" in row:
            row["val_loss"] = 2.1 + row["step"] / 1000
    told = only(findings(rows), "validation diverges").text
    assert "while training loss went on falling" in told
    few = [{"step": 0, "val_loss": 2.0}] + [
        {"step": 10 * n, "val_loss": 2 + n / 10, "train_loss": 3.0} for n in (1, 2, 3)
    ]
    assert only(findings(few), "validation diverges").text.endswith("by step 30. Take the best checkpoint.")
