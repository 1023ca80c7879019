"""PURE. "Is this normal?": what in a run's records a person should look at, in words, with the steps where it is.

Every check compares the run with itself, robustly: medians, and scales from the median absolute deviation, so that one
odd record decides nothing. The thresholds are constants in `findings_speed` and `findings_loss`, each with what it
means. What is slow or rough by nature is left out: the first steps after every start, evaluations and saves (they are
no part of a step's time), noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raygpt.track.finding import LOOK, Finding
from raygpt.track.findings_loss import loss_findings
from raygpt.track.findings_speed import speed_findings

MOST_RECORDS = 20_000  # 2.4 s of a core
EVENTS = frozenset(("restarts", "val_loss", "checkpoint_stall_seconds"))  # what a record has where something happened


def findings(records: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """What stands out, what to look into first. [] for a run on which nothing does, or that has hardly begun. Of more
    than MOST_RECORDS records, some as many are looked at for speed and spikes, evenly spaced, beside those that say
    what happened; gaps, saves and what is no number are looked for in all of them."""
    some = records
    if len(records) > MOST_RECORDS:
        stride = -(-len(records) // MOST_RECORDS)
        some = [row for number, row in enumerate(records) if number % stride == 0 or not EVENTS.isdisjoint(row)]
    found = [*speed_findings(some, records), *loss_findings(some, records)]
    return sorted(found, key=lambda each: (each.level != LOOK, each.first_step))
