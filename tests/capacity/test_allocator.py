"""What the C library gives back, seen from a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from raygpt.capacity.allocator import is_tight

CODE = """
import sys
import numpy as np
from raygpt.capacity.allocator import return_freed_memory
if sys.argv[1] == "tight":
    assert return_freed_memory()
def anonymous():
    return int(open("/proc/self/status").read().split("RssAnon:")[1].split()[0]) // 1024
np.ones(30 * 2**17)  # freeing a mapped block of 30 MiB is what makes glibc keep blocks of up to that size from now on
blocks = [np.ones(2**20) for _ in range(40)]  # 8 MiB each, with a small one that stays in front of every other
before = anonymous()
keep = []
for index in range(40):
    blocks[index] = None if index % 2 else blocks[index]
print(before - anonymous())
"""


def test_freed_blocks_go_back_where_memory_is_tight_and_stay_by_default() -> None:
    freed = {
        how: int(subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, text=True, check=True).stdout)
        for how in ("tight", "default")
    }
    assert freed["tight"] > 150 and freed["default"] < 20  # of 160 MiB


@pytest.mark.parametrize(
    ("strategy", "checkpointing", "tight"),
    [("ddp", False, False), ("ddp", True, True), ("zero1", False, True), ("zero3", True, True)],
)
def test_only_settings_that_ask_for_little_memory_pay_for_it(strategy: str, checkpointing: bool, tight: bool) -> None:
    assert is_tight(strategy, checkpointing) is tight
