"""A wish to stop that no group of workers hears ends the run at its last checkpoint."""

from __future__ import annotations

import pytest

from raygpt.train import watching


def test_a_stop_is_unheard_once_no_group_had_room_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now, placed = [100.0], [set()]
    monkeypatch.setattr(watching, "nodes_of_this_job", lambda: placed[0])
    monkeypatch.setattr(watching.time, "monotonic", lambda: now[0])
    unheard = watching.Unheard()
    assert not unheard.is_so(False) and not unheard.is_so(True)
    now[0] += watching.UNHEARD_SECONDS + 1
    placed[0] = {"a node"}  # a group is there: it hears, and saves
    assert not unheard.is_so(True)
    placed[0] = set()
    assert not unheard.is_so(True)
    now[0] += watching.UNHEARD_SECONDS + 1
    assert unheard.is_so(True) and not unheard.is_so(False)
