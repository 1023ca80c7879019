"""One trial: what it takes for a want of memory."""

from __future__ import annotations

import pytest
import torch

from raygpt.tune.trial import is_out_of_memory


def test_a_failure_for_want_of_memory_is_told_from_others() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**46)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
