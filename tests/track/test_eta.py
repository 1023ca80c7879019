"""The ETA against simulated and recorded runs whose true end is known."""

from __future__ import annotations

import random

import pytest

from raygpt.track.eta import Eta
from tests.track.traces import FOLDER, estimates, read_trace, relative_error


def simulate(
    total: int,
    *,
    step: float = 0.5,
    noise: float = 0.0,
    first: float = 0.0,
    eval_every: int = 0,
    eval_seconds: float = 0.0,
    checkpoint_every: int = 0,
    checkpoint_seconds: float = 0.0,
    stalls: dict[int, float] | None = None,
    log_every: int = 1,
    seed: int = 0,
) -> list[tuple[int, float, float]]:
    """(step, estimate, truth) at each logged step of a run."""
    rng = random.Random(seed)
    eta = Eta(total, eval_every, checkpoint_every)
    clock, since, seen = 0.0, 0.0, []
    for k in range(1, total + 1):
        seconds = step * rng.lognormvariate(0, noise) if noise else step
        seconds += first if k == 1 else 0.0
        seconds += (stalls or {}).get(k, 0.0)
        clock += seconds
        since += seconds
        if k % log_every == 0:
            eta.observe(k, since / log_every)
            since = 0.0
        if eval_every and (k % eval_every == 0 or k == total):
            eta.observe_evaluation(eval_seconds)
            clock += eval_seconds
        if checkpoint_every and (k % checkpoint_every == 0 or k == total):
            eta.observe_checkpoint(checkpoint_seconds)
            clock += checkpoint_seconds
        if k % log_every == 0:
            left = eta.seconds_left(k)
            assert left is not None
            seen.append((k, left, clock))
    return [(k, left, clock - at) for k, left, at in seen]


def worst_error(total: int, points: list[tuple[int, float, float]]) -> float:
    """Largest error after the first tenth, as a share of the run's whole duration."""
    whole = points[0][2]
    return max(abs(left - truth) / whole for k, left, truth in points if k >= total // 10)


def test_a_steady_run_is_estimated_exactly() -> None:
    for _, left, truth in simulate(200):
        assert left == pytest.approx(truth, abs=1e-6)


def test_evaluations_and_checkpoints_are_counted_including_the_last() -> None:
    points = simulate(1000, eval_every=90, eval_seconds=20, checkpoint_every=95, checkpoint_seconds=5)
    for k, left, truth in points:
        if k >= 100:
            assert left == pytest.approx(truth, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("log_every", [1, 10])
def test_a_noisy_run_is_right_within_five_percent_after_a_tenth(seed: int, log_every: int) -> None:
    points = simulate(
        3000,
        noise=0.3,
        first=60.0,  # compilation
        eval_every=250,
        eval_seconds=15.0,
        checkpoint_every=300,
        checkpoint_seconds=3.0,
        log_every=log_every,
        seed=seed,
    )
    assert worst_error(3000, points) < 0.05


def test_the_estimate_is_close_relative_to_what_is_left_too() -> None:
    points = simulate(3000, noise=0.15, first=60.0, eval_every=100, eval_seconds=10.0)
    for k, left, truth in points:
        if 300 <= k <= 2900:
            assert left == pytest.approx(truth, rel=0.05)


def test_one_pause_is_not_multiplied_over_the_rest_of_the_run() -> None:
    assert worst_error(2000, simulate(2000, stalls={190: 300.0})) < 0.05


def test_stalls_that_come_back_are_expected_again() -> None:
    every_25_steps = dict.fromkeys(range(25, 2001, 25), 5.0)
    assert worst_error(2000, simulate(2000, stalls=every_25_steps)) < 0.05


def test_the_estimate_follows_a_lasting_change_of_pace() -> None:
    slower_half = dict.fromkeys(range(1001, 2001), 0.5)
    points = simulate(2000, stalls=slower_half)
    k, left, truth = points[1250 - 1]
    assert (k, left) == (1250, pytest.approx(truth, rel=0.05))


def test_nothing_is_said_before_anything_was_seen() -> None:
    assert Eta(100).seconds_left(0) is None


def test_a_finished_run_has_nothing_left() -> None:
    assert Eta(100, 10, 10).seconds_left(100) == 0.0


def test_an_unobserved_evaluation_counts_as_the_given_number_of_steps() -> None:
    eta = Eta(100, eval_every=50, evaluation_steps=4)
    eta.observe(10, 2.0)
    assert eta.seconds_left(10) == pytest.approx(90 * 2.0 + 2 * 4 * 2.0)


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.json")))
def test_a_recorded_run_is_right_within_five_percent_from_a_tenth_to_nine_tenths(name: str) -> None:
    trace = read_trace(name)
    assert sum(row[2] is not None for row in trace["rows"]) >= 10
    checked = [(step, left) for step, left in estimates(trace) if 0.1 <= step / trace["total"] <= 0.9]
    assert len(checked) >= 30
    for step, left in checked:
        assert abs(relative_error(trace, step, left)) <= 0.05, (step, left)


def test_a_recorded_run_without_its_evaluations_would_be_told_apart() -> None:
    """There are enough for an estimate that forgets them to fail."""
    trace = read_trace("papers")
    blind = {**trace, "eval_every": 0}
    step, left = next(item for item in estimates(blind) if item[0] >= 20)
    assert relative_error(trace, step, left) < -0.05
