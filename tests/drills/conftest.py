"""What a failed drill leaves running must not slow down or disturb the next one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.drills.program import Program


@pytest.fixture(autouse=True)
def no_leftovers() -> Iterator[None]:
    """Ends the programs that a test started and did not see the end of."""
    yield
    while Program.started:
        Program.started.pop().sweep_up()
