"""Learning-rate schedules against hand-computed points."""

from __future__ import annotations

import math

import pytest

from raygpt.train.schedule import Schedule


def test_warm_up_starts_above_zero_and_reaches_the_peak() -> None:
    schedule = Schedule("cosine", 1.0, 100, warmup_steps=10)
    assert [schedule.lr(step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd"])
def test_the_last_step_has_the_smallest_rate(kind: str) -> None:
    schedule = Schedule(kind, 2.0, 100, warmup_steps=10, min_ratio=0.1)
    assert schedule.lr(99) == pytest.approx(0.2)
    assert all(schedule.lr(step) >= schedule.lr(step + 1) for step in range(10, 99))


def test_cosine_is_half_way_in_the_middle() -> None:
    schedule = Schedule("cosine", 1.0, 101, warmup_steps=1, min_ratio=0.0)
    assert schedule.lr(50) == pytest.approx(0.5)
    assert schedule.lr(25) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.25)))


def test_wsd_stays_at_the_peak_until_its_decay() -> None:
    schedule = Schedule("wsd", 1.0, 100, warmup_steps=10, min_ratio=0.0, decay_fraction=0.2)
    assert schedule.lr(10) == schedule.lr(79) == 1.0
    assert schedule.lr(89) == pytest.approx(0.5)


def test_constant_never_moves_after_the_warm_up() -> None:
    schedule = Schedule("constant", 3.0, 100, warmup_steps=2)
    assert {schedule.lr(step) for step in range(2, 100)} == {3.0}
