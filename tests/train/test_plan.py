"""Batch arithmetic: every impossible combination is refused with a number that would work."""

from __future__ import annotations

import pytest

from raygpt.capacity.micro_batch import accumulation
from raygpt.data.order import Order
from raygpt.errors import UserError
from raygpt.train.plan import batch_rows, total_steps, warmup

ORDER = Order("f", 1, 8, 12, 40_003)


def test_the_batch_in_tokens_decides_the_accumulation() -> None:
    assert batch_rows(524_288, 1024, (1, 4)) == 512
    assert [accumulation(512, world, 16) for world in (1, 2, 8)] == [32, 16, 4]


@pytest.mark.parametrize(
    ("tokens", "seq_len", "workers", "message"),
    [
        (1000, 64, (1, 1), "global_batch_tokens=1,000 is no multiple of data.seq_len=64: 1,024 would be"),
        (10, 64, (1, 1), "no multiple of data.seq_len=64: 64 would be"),
        (768, 64, (1, 13), "makes 12 rows of data.seq_len=64, too few for 13 workers: 832 would be enough"),
    ],
)
def test_impossible_batches_are_refused_with_one_that_works(tokens, seq_len, workers, message) -> None:
    with pytest.raises(UserError, match=message):
        batch_rows(tokens, seq_len, workers)


def test_lengths_in_steps_tokens_and_epochs() -> None:
    assert total_steps(ORDER, 96, max_steps=7, max_tokens=None, epochs=None) == 7
    assert total_steps(ORDER, 96, max_steps=None, max_tokens=1000, epochs=None) == 10
    assert total_steps(ORDER, 96, max_steps=None, max_tokens=None, epochs=2.5) == round(2.5 * ORDER.steps_per_epoch)
    with pytest.raises(UserError, match="max_tokens=95 is less than one step of 96"):
        total_steps(ORDER, 96, max_steps=None, max_tokens=95, epochs=None)


def test_warm_up_is_never_longer_than_the_run() -> None:
    assert (warmup(100, 10, None), warmup(100, None, 0.25), warmup(5, 10, None), warmup(9, None, None)) == (
        10,
        25,
        5,
        0,
    )
