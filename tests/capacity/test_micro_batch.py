"""How many rows a pass has: what is tried, what is trusted, and what a checkpoint's own size is worth elsewhere."""

from __future__ import annotations

import pytest

from raygpt.capacity.micro_batch import Found, accumulation, micro_batch_choices, most_rows, untried_rows

BIG, SMALL = 80 * 10**9, 16 * 10**9


def test_automatic_micro_batches_divide_the_rows() -> None:
    assert micro_batch_choices(12, 64) == [12, 6, 4, 3, 2, 1]
    assert micro_batch_choices(480, 64)[0] == 60


def test_a_prime_number_of_rows_is_not_trained_one_by_one() -> None:
    assert micro_batch_choices(103, 64)[:3] == [52, 35, 26] and micro_batch_choices(103, 64)[-1] == 1


@pytest.mark.parametrize(
    ("earlier", "memory", "planned", "taken"),
    [
        (Found(32, BIG), BIG, 16, 32),  # the same GPU: a resumed run adds in the same order
        (Found(32, SMALL), BIG, 16, 32),  # a larger one
        (Found(32, BIG), SMALL, 8, 8),  # a smaller one: what the plan finds
        (Found(4, BIG), SMALL, 8, 4),  # but the plan allows it
        (Found(32, BIG), SMALL, None, 4),  # nobody planned
        (Found(16, 0), SMALL, 2, 2),  # found on a CPU, which it fitted
        (Found(16, SMALL), 0, None, 16),  # and the other way round: 16 x 1024 tokens are what a CPU takes
        (Found(32, SMALL), 0, None, 16),
        (Found(32), SMALL, 8, 32),  # a checkpoint from before devices were recorded
        (Found(24, BIG), BIG, 8, 8),  # the batch is another: 24 does not divide it
        (None, SMALL, 8, 8),
    ],
)
def test_a_micro_batch_is_not_trusted_on_a_smaller_gpu(
    earlier: Found | None, memory: int, planned: int | None, taken: int
) -> None:
    assert untried_rows(64, seq_len=1024, memory=memory, planned=planned, earlier=earlier) == taken


def test_one_limit_holds_for_plan_and_workers() -> None:
    assert most_rows("ddp", True, 1024) > most_rows("zero2", True, 1024) == most_rows("zero3", True, 64)
    assert most_rows("ddp", False, 1024) * 1024 == most_rows("zero2", False, 256) * 256
    assert most_rows("ddp", False, 10**9) == 1


def test_the_rank_with_most_rows_decides_how_often_gradients_accumulate() -> None:
    assert accumulation(32, 2, 8) == 2 and accumulation(33, 2, 8) == 3
    assert [accumulation(512, world, 16) for world in (3, 5)] == [11, 7]
