"""PURE. Where a run's time and dollars went, worked out from its history of starts and its records.

Dollars are the integral of what the machines cost per hour over the time for which they were paid. The timeline is cut
at the records, each of which says how much of the stretch before it was training that counts; what lies before that
part is named by what happened: evaluation, the start, a stop by wish, or a failure. Steps that a failure threw away
have left no record, so that their time, the stand-still after them and the start anew are one stretch: what it lost.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

STEPS, WAIT, SAVES, PAUSES = "training steps", "waiting for data", "checkpoints", "evaluation and pauses"
START, STOPS, LOST, END = "first start", "starts after stops", "lost to failures", "closing the run"
WORK = "work"  # of a job that keeps no records of steps
ORDER = (STEPS, WORK, WAIT, SAVES, PAUSES, START, STOPS, LOST, END)
FAILURES = (None, "failed")  # outcomes of attempts: killed or lost, and failed
TRAININGS = ("pretrain", "finetune", "distill", "quickstart")  # jobs whose work is steps
SILENT_SECONDS = 120.0  # a driver that has said nothing for so long is gone: it speaks every 10 s


@dataclass(frozen=True)
class Paid:
    """A machine, or all of them together (`machine` None), at one price for a while. Times are seconds since 1970 UTC;
    `usd_per_hour` is None where no price is known, `node` where it is not one machine of a cluster."""

    begin: float
    end: float
    usd_per_hour: float | None
    machine: str | None = None
    market: str = ""
    read: str = ""
    node: str | None = None

    @property
    def hours(self) -> float:
        return max(0.0, self.end - self.begin) / 3600

    def usd(self, since: float, until: float) -> float:
        """US dollars of the part of it in [since, until]."""
        return max(0.0, min(self.end, until) - max(self.begin, since)) * (self.usd_per_hour or 0.0) / 3600


@dataclass(frozen=True)
class Share:
    """A part of a run: seconds on the clock, and US dollars (None without a price)."""

    name: str
    seconds: float
    usd: float | None


def paid_for(attempts: Iterable[Mapping[str, Any]], usd_per_hour: float | None = None) -> list[Paid]:
    """What each attempt of attempts.json paid for. One that kept only its dollars counts them evenly over its time, one
    that knows no price counts `usd_per_hour` for all its machines together."""
    found = []
    for attempt in attempts:
        begin, end = float(attempt["started"]), float(attempt["last_seen"])
        entries = [
            entry for entry in attempt.get("paid") or [] if isinstance(entry, Mapping) and _is_time(entry.get("from"))
        ]
        priced = any(entry.get("usd_per_hour") is not None for entry in entries)
        if entries and (priced or usd_per_hour is None):
            found += [_paid(entry, end) for entry in entries]
        elif end > begin:
            usd, price = attempt.get("usd"), usd_per_hour
            if usd is not None:
                price = usd * 3600 / (end - begin)
            found.append(Paid(begin, end, price))
    return found


def _paid(entry: Mapping[str, Any], end: float) -> Paid:
    until = end if entry.get("to") is None else float(entry["to"])
    market, read = entry.get("market") or "", entry.get("read") or ""
    price, node = entry.get("usd_per_hour"), entry.get("node")
    return Paid(float(entry["from"]), until, price, entry.get("machine"), market, read, node)


def total_usd(paid: Sequence[Paid], since: float = float("-inf"), until: float = float("inf")) -> float | None:
    """US dollars in [since, until]; None where no price is known of anything."""
    if not any(each.usd_per_hour is not None for each in paid):
        return None
    return sum(each.usd(since, until) for each in paid)


def shared_usd(paid: Iterable[Paid]) -> float | None:
    """US dollars of what several runs paid for together: a node that two of them had at the same time cost its price
    once. None where no price is known of anything."""
    priced = [each for each in paid if each.usd_per_hour is not None]
    if not priced:
        return None
    total = 0.0
    reached: dict[str, float] = {}
    for each in sorted(priced, key=lambda each: each.begin):
        since = -math.inf if each.node is None else reached.get(each.node, -math.inf)
        total += each.usd(since, math.inf)
        if each.node is not None:
            reached[each.node] = max(since, each.end)
    return total


def without(paid: Iterable[Paid], stretches: Sequence[tuple[float, float]]) -> list[Paid]:
    """The pieces of it that lie in none of the stretches (begin, end)."""
    found = []
    for each in paid:
        at = each.begin
        for since, until in sorted(stretches):
            if since >= each.end:
                break
            if since > at:
                found.append(replace(each, begin=at, end=since))
            at = max(at, until)
        if at < each.end:
            found.append(replace(each, begin=at))
    return found


def seconds_covered(paid: Iterable[Paid], since: float = float("-inf"), until: float = float("inf")) -> float:
    """Seconds in [since, until] in which at least one of them was paid for."""
    total, reached = 0.0, since
    for each in sorted(paid, key=lambda each: each.begin):
        begin, end = max(each.begin, reached), min(each.end, until)
        total += max(0.0, end - begin)
        reached = max(reached, end)
    return total


def where_it_went(
    attempts: Sequence[Mapping[str, Any]],
    records: Sequence[Mapping[str, Any]],
    paid: Sequence[Paid],
    now: float | None = None,
) -> list[Share]:
    """Shares of all that was paid for, in the order of ORDER, those of zero seconds left out. They add up to the whole:
    nothing is counted twice or left over. `records` are those of metrics.jsonl; without any that were timed the whole
    is WORK and what failures left standing still. `now` (seconds since 1970 UTC) tells whether a last start without an
    outcome still runs; without it it does."""
    priced = total_usd(paid) is not None
    found = {name: [0.0, 0.0] for name in ORDER}
    for name, since, until, part in _parts(attempts, records, paid, now):
        found[name][0] += part * seconds_covered(paid, since, until)
        found[name][1] += part * (total_usd(paid, since, until) or 0.0)
    return [Share(name, seconds, usd if priced else None) for name, (seconds, usd) in found.items() if seconds > 0]


def lost_stretches(
    attempts: Sequence[Mapping[str, Any]],
    records: Sequence[Mapping[str, Any]],
    paid: Sequence[Paid],
    now: float | None = None,
) -> list[tuple[float, float]]:
    """(begin, end) of what failures took, as `where_it_went` counts it."""
    return [(since, until) for name, since, until, _ in _parts(attempts, records, paid, now) if name == LOST]


def _parts(
    attempts: Sequence[Mapping[str, Any]],
    records: Sequence[Mapping[str, Any]],
    paid: Sequence[Paid],
    now: float | None,
) -> list[tuple[str, float, float, float]]:
    """(name, begin, end, share of that stretch), which make up all that was paid for."""
    if not paid:
        return []
    found: list[tuple[str, float, float, float]] = []

    def add(name: str, since: float, until: float, seconds: float | None = None, of: float | None = None) -> None:
        """[since, until] is `name`'s, or of its seconds so many `of` so many."""
        found.append((name, since, until, 1.0 if seconds is None or not of else seconds / of))

    failed = _has_failed(attempts, now)
    begin, end = min(each.begin for each in paid), max(each.end for each in paid)
    rows = [row for row in records if isinstance(row.get("time"), (int, float)) and begin <= row["time"] <= end]
    before, step = begin, 0
    for number, row in enumerate(rows):
        time, steps = float(row["time"]), row["step"] - step
        work = steps * row["step_seconds"] if "step_seconds" in row and steps > 0 else 0.0
        saved = row.get("checkpoint_stall_seconds", 0.0)
        busy = min(work + saved, max(0.0, time - before))
        _name_pause(add, attempts, before, time - busy, first=number == 0, restarted="restarts" in row)
        if busy > 0:
            wait = min(work, max(0, steps) * row.get("data_wait_seconds", 0.0))
            for name, seconds in ((STEPS, work - wait), (WAIT, wait), (SAVES, saved)):
                add(name, time - busy, time, seconds, work + saved)
        before, step = max(before, time), row["step"] if "step_seconds" in row else step
    if rows:
        _name_pause(add, attempts, before, end, last=True, failed=failed)
    elif failed and attempts[-1].get("job") in TRAININGS:
        add(LOST, begin, end)  # not a step of it is left
    else:
        _name_pause(add, attempts, begin, end, work=True)
    return found


def _has_failed(attempts: Sequence[Mapping[str, Any]], now: float | None) -> bool:
    """Whether the last start failed or was killed, and nothing has gone on from it."""
    if not attempts:
        return False
    last = attempts[-1]
    killed = last.get("outcome") is None and now is not None and now - last["last_seen"] > SILENT_SECONDS
    return last.get("outcome") == "failed" or killed


def lost(shares: Iterable[Share]) -> Share | None:
    """What failures took; None for a run without one."""
    return next((share for share in shares if share.name == LOST), None)


def _name_pause(
    add: Any,
    attempts: Sequence[Mapping[str, Any]],
    since: float,
    until: float,
    *,
    first: bool = False,
    restarted: bool = False,
    last: bool = False,
    work: bool = False,
    failed: bool = False,
) -> None:
    """Name the stretch before a record's own steps, or after the last record."""
    ended = [(one, other) for one, other in itertools.pairwise(attempts) if since < other["started"] <= until]
    if work:
        at = since
        for one, other in ended:
            add(WORK, at, one["last_seen"])
            add(LOST if one.get("outcome") in FAILURES else STOPS, one["last_seen"], other["started"])
            at = other["started"]
        add(WORK, at, until)
    elif first and ended:
        anew = ended[-1][1]["started"]  # what came before it left nothing
        add(LOST if any(one.get("outcome") in FAILURES for one, _ in ended) else STOPS, since, anew)
        add(START, anew, until)
    elif first:
        add(LOST if restarted else START, since, until)
    elif ended or restarted:
        by_wish = ended and not any(one.get("outcome") in FAILURES for one, _ in ended)
        add(STOPS if by_wish else LOST, since, until)
    elif last:
        add(LOST if failed else END, since, until)
    else:
        add(PAUSES, since, until)


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
