from __future__ import annotations

import json
import math

import pytest

from raygpt.track.record import make_record
from raygpt.track.summary import SUMMARY, summarise

CONTRACT = [
    "steps",
    "tokens",
    "best_val_loss",
    "val_loss",
    "tokens_per_second",
    "mfu",
    "wall_seconds",
    "effective_time_ratio",
    "restarts",
    "tokens_lost",
    "tokens_repeated",
    "cost_usd",
    "data_wait_fraction",
]


def steady_run() -> list[dict]:
    """100 steps of 1,000 tokens in 0.5 s, logged every 10; the first interval also compiled for 50 s."""
    return [
        make_record(
            step=step,
            tokens=1000 * step,
            train_loss=5 - step / 100,
            val_loss={50: 4.0, 80: 3.5, 100: 3.6}.get(step),
            tokens_per_second=1000 / (5.5 if step == 10 else 0.5),
            mfu=0.03 if step == 10 else 0.4,
            step_seconds=5.5 if step == 10 else 0.5,
            data_wait_seconds=0.005,
            cost_usd=step / 100,
            # a clock that lies: the machine was suspended for a day after step 50
            time=1e9 + step + (86_400 if step > 50 else 0),
        )
        for step in range(10, 101, 10)
    ]


def test_the_summary_has_every_figure_of_the_contract() -> None:
    assert set(CONTRACT) <= set(SUMMARY)
    assert set(CONTRACT) <= set(summarise(steady_run(), wall_seconds=120.0))


def test_figures_are_what_a_hand_computes() -> None:
    summary = summarise(steady_run(), wall_seconds=125.0, train_seconds=100.0)
    assert (summary["steps"], summary["tokens"]) == (100, 100_000)
    assert (summary["val_loss"], summary["best_val_loss"], summary["best_step"]) == (3.6, 3.5, 80)
    assert summary["effective_time_ratio"] == pytest.approx(0.8)
    assert summary["data_wait_fraction"] == pytest.approx(100 * 0.005 / (55 + 90 * 0.5))
    assert summary["cost_usd"] == 1.0
    assert (summary["tokens_lost"], summary["tokens_repeated"], summary["restarts"]) == (0, 0, 0)


def test_speed_is_tokens_over_step_time_without_warm_up_and_without_time_stamps() -> None:
    summary = summarise(steady_run())
    assert summary["tokens_per_second"] == pytest.approx(2000)
    assert summary["mfu"] == pytest.approx(0.4)


def test_the_first_interval_after_a_restart_is_warm_up_too() -> None:
    rows = [
        make_record(
            step=step,
            tokens=1000 * step,
            step_seconds=9.0 if step in (10, 30, 50) else 0.5,
            restarts={30: 1, 50: 2}.get(step),
        )
        for step in range(10, 61, 10)
    ]
    summary = summarise(rows)
    assert summary["tokens_per_second"] == pytest.approx(2000)
    assert summary["restarts"] == 2


def test_evaluations_between_logged_steps_do_not_change_the_speed() -> None:
    rows = steady_run()
    rows.insert(5, make_record(step=55, tokens=55_000, val_loss=3.9))
    assert summarise(rows)["tokens_per_second"] == pytest.approx(2000)


def test_a_single_record_counts_as_it_is() -> None:
    assert summarise(steady_run()[:1])["tokens_per_second"] == pytest.approx(10_000 / 55)


def test_what_is_not_known_is_absent() -> None:
    summary = summarise([make_record(step=3, train_loss=2.0)], cost_usd=None)
    assert summary == {"steps": 3, "train_loss": 2.0, "restarts": 0, "tokens_lost": 0, "tokens_repeated": 0}
    assert summarise([]) == {}


def test_facts_take_the_place_of_what_records_say() -> None:
    summary = summarise(steady_run(), restarts=3, outcome="finished")
    assert (summary["restarts"], summary["outcome"]) == (3, "finished")
    assert list(summary)[-1] == "outcome"


def test_a_validation_loss_that_is_not_finite_is_never_the_best() -> None:
    rows = [make_record(step=1, val_loss=math.nan), make_record(step=2, val_loss=4.0)]
    assert summarise(rows)["best_val_loss"] == 4.0


def test_the_summary_is_plain_json() -> None:
    diverged = summarise([make_record(step=4, train_loss=math.nan, val_loss=math.inf)])
    assert diverged == {"steps": 4, "restarts": 0, "tokens_lost": 0, "tokens_repeated": 0}
    assert json.loads(json.dumps(summarise(steady_run()), allow_nan=False)) == summarise(steady_run())
