"""The ten questions of first_contact.py on the GPU that is here. On a CPU: tests/drills/test_gpu_once.py."""

from __future__ import annotations

import pytest

from raygpt.bench.step import choose_device
from tests.gpu.first_contact import CASES, Site


@pytest.mark.parametrize("case", CASES)
def test_first_contact(case: str) -> None:
    print(CASES[case](Site(choose_device(None))))
