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


def findings(records: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """What stands out, what to look into first. [] for a run on which nothing does, or that has hardly begun. Of more
    than MOST_RECORDS records, as many are looked at, evenly spaced."""
    if len(records) > MOST_RECORDS:
        records = records[:: -(-len(records) // MOST_RECORDS)]
    found = [*speed_findings(records), *loss_findings(records)]
    return sorted(found, key=lambda each: (each.level != LOOK, each.first_step))
