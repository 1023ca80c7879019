"""Under ZeRO too a run whose gradients stay infinite says so; test_not_finite.py has the rest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from raygpt.errors import UserError
from tests.train.gloo_pool import GlooPool
from tests.train.running import letters, records, run, zero_settings


@pytest.mark.parametrize("strategy", ["zero2"])  # zero3: tests/drills/test_strategies.py
def test_steps_after_one_that_was_far_too_long_are_skipped_and_end_the_run(
    gloo: GlooPool, tmp_path: Path, strategy: str
) -> None:
    own = {"optim__lr": "1e30", "optim__schedule": "constant", "optim__warmup_steps": "0", "train__max_steps": "12"}
    own |= {"data__backend": "mmap", "eval__every": "0", "model__n_layer": "1"}
    config = zero_settings(letters(tmp_path / "data"), tmp_path, strategy, **own)
    with pytest.raises(UserError) as caught:
        run(config, pool=gloo)
    found = re.search(
        r"not finite in 8 steps in a row, the last of them step 9 with gradient norm (\S+) and batch digest (\w{32})",
        str(caught.value),
    )
    assert found is not None and found[1] in ("nan", "inf"), caught.value
    assert [record.get("skipped_steps") for record in records(config)] == [None, *range(1, 8)]
