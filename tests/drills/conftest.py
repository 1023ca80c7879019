"""What a failed drill leaves running must not slow down or disturb the next one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.drills.program import Program

# `make drills` gives files to two processes in the order of collection: the longest first, and both end together.
LONGEST_FIRST = (
    "test_hosts",
    "test_serving",
    "test_sweeps",
    "test_stopping",
    "test_finetuning",
    "test_distillation",
    "test_real_input",
    "test_readme",
    "test_memory",
    "test_whole_sweeps",
    "test_zero",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST_FIRST.index(item.path.stem) if _is_long(item) else len(LONGEST_FIRST))


def _is_long(item: pytest.Item) -> bool:
    return item.path.parent == Path(__file__).parent and item.path.stem in LONGEST_FIRST


@pytest.fixture(autouse=True)
def no_leftovers() -> Iterator[None]:
    """Ends the programs that a test started and did not see the end of."""
    yield
    while Program.started:
        Program.started.pop().sweep_up()
