"""PURE. Findings about speed: jumps, sagging, waiting for data, saves, time in which nothing was computed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from raygpt.track.finding import LOOK, NOTE, Finding, has, is_number, scale, thirds
from raygpt.track.progress import human_count, human_duration

WARMUP_STEPS = 10  # after a start, and at least its first record: compilation, cold caches
JUMP = 1.5  # a speed that changes by this factor from some records to the next
JUMP_RECORDS = 3  # it has to hold for so many records on both sides, on up to four times as many it is measured
SAG = 0.8  # the last third of a run at less than this share of the first third's speed, without a jump
WAIT = 0.05  # share of step time spent waiting for data
WAIT_GROWTH = 0.02  # by how much that share grows from the first third to the last, at least twofold
STALLS = 0.05  # share of the time in which saves held training up
STALL = 5.0  # a save that took this many times the median one, and 10 s more than it
IDLE = 0.25  # share of the time that went into neither steps nor saves, restarts left out
GAP = 60.0  # seconds between two records in which nothing was computed, beyond 10 times what is usual
ENOUGH = 8  # timed records without which nothing is said about speed
MOST_GAPS = 3  # named one by one


def speed_findings(records: Sequence[Mapping[str, Any]], whole: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """In no order. `records` may be some of the `whole`."""
    spans = _spans(records)
    steady = [span for span in spans if span.warm]
    jumps = _jumps(steady)
    return [*jumps, *([] if jumps else _sag(steady)), *_waiting(steady), *_saves(whole, spans), *_gaps(whole)]


@dataclass(frozen=True)
class _Span:
    """What a timed record says of the steps before it."""

    first_step: int
    step: int
    speed: float
    wait: float | None  # share of step time
    seconds: float
    warm: bool
    restarted: bool
    workers: int | None


def _spans(records: Sequence[Mapping[str, Any]]) -> list[_Span]:
    spans: list[_Span] = []
    step, began, fresh, restarted = 0, 0, True, False
    for row in records:
        if "restarts" in row:
            began, fresh, restarted = step, True, True
        if not row.get("step_seconds") or row["step"] <= step or not is_number(row.get("tokens_per_second")):
            continue
        seconds, wait = float(row["step_seconds"]), row.get("data_wait_seconds")
        spans.append(
            _Span(
                step + 1,
                row["step"],
                float(row["tokens_per_second"]),
                None if wait is None else float(wait) / seconds,
                seconds * (row["step"] - step),
                not fresh and row["step"] - began > WARMUP_STEPS,
                restarted,
                row.get("world_size"),
            )
        )
        step, fresh, restarted = row["step"], False, False
    return spans


def _jumps(steady: Sequence[_Span]) -> list[Finding]:
    """Places where the speed changes by JUMP or more and stays, the largest first, none within another's reach."""
    if len(steady) < max(ENOUGH, 2 * JUMP_RECORDS):
        return []
    reach = max(JUMP_RECORDS, min(4 * JUMP_RECORDS, len(steady) // 4))
    logs = [math.log(span.speed) if span.speed > 0 else -math.inf for span in steady]
    changes = []
    for at in range(JUMP_RECORDS, len(logs) - JUMP_RECORDS + 1):
        before, after = logs[max(0, at - reach) : at], logs[at : at + reach]
        change = median(after) - median(before)
        noise = max(scale(before), scale(after))
        # the records beside the place belong to their own side, so that it is a jump there and no slope
        near = median(logs[at : at + JUMP_RECORDS]) - median(logs[at - JUMP_RECORDS : at])
        if min(abs(change), abs(near)) >= math.log(JUMP) and abs(change) > 3 * noise and change * near > 0:
            changes.append((abs(logs[at] - logs[at - 1]), abs(change), at))
    found: list[tuple[int, float]] = []
    for _, _, at in sorted(changes, reverse=True):
        if all(abs(at - other) >= JUMP_RECORDS + 1 for other, _ in found):
            others = sorted([0, len(logs), *(other for other, _ in found)])
            left = max(other for other in others if other <= at - 1)
            right = min(other for other in others if other > at)
            found.append((at, median(logs[at : min(right, at + reach)]) - median(logs[max(left, at - reach) : at])))
    told = []
    for at, change in sorted(found)[:5]:
        if abs(change) < math.log(JUMP):
            continue
        told.append(
            _jump(steady[at - 1], steady[at], math.exp(abs(change)), up=change > 0, speeds=_around(steady, at, reach))
        )
    return told


def _around(steady: Sequence[_Span], at: int, reach: int) -> tuple[float, float]:
    return (
        median(span.speed for span in steady[max(0, at - reach) : at]),
        median(span.speed for span in steady[at : at + reach]),
    )


def _jump(before: _Span, after: _Span, factor: float, *, up: bool, speeds: tuple[float, float]) -> Finding:
    how = f"{'rose' if up else 'fell'} {factor:.1f}-fold"
    was, now = human_count(speeds[0]), human_count(speeds[1])
    text = f"Speed {how} between steps {before.step:,} and {after.step:,}, from {was} to {now} tok/s"
    if before.workers != after.workers and before.workers and after.workers:
        text += f": the workers changed from {before.workers} to {after.workers}."
        return Finding("speed jump", NOTE, text, before.step, after.step)
    if after.restarted:
        text += ", at a restart: the machines may be others."
    elif up:
        text += (
            ". Nothing in the records asks for that: something else had used the machine before, or held the run back."
        )
    else:
        text += (
            ". Look for another job on the machine, heat (a GPU that lowers its clock), or storage that became slow."
        )
    return Finding("speed jump", LOOK, text, before.step, after.step)


def _sag(steady: Sequence[_Span]) -> list[Finding]:
    if len(steady) < ENOUGH:
        return []
    parts = thirds(steady)
    first, middle, last = (median(span.speed for span in part) for part in parts)
    if not (last < SAG * first and last < middle < first):
        return []
    text = (
        f"Speed sagged by {1 - last / first:.0%}, little by little: {human_count(first)} tok/s over steps "
        f"{parts[0][0].first_step:,}–{parts[0][-1].step:,}, {human_count(last)} over {parts[2][0].first_step:,}–"
        f"{parts[2][-1].step:,}. Look for heat, memory that fills, or a neighbour on the machine."
    )
    return [Finding("speed sags", LOOK, text, steady[0].first_step, steady[-1].step)]


def _waiting(steady: Sequence[_Span]) -> list[Finding]:
    known = [span for span in steady if span.wait is not None]
    if len(known) < ENOUGH:
        return []
    parts = thirds(known)
    first, last = (median(span.wait or 0.0 for span in part) for part in (parts[0], parts[2]))
    if last - first > WAIT_GROWTH and last > 2 * first:
        text = (
            f"Waiting for data grew from {first:.1%} of a step's time (steps {parts[0][0].first_step:,}–"
            f"{parts[0][-1].step:,}) to {last:.1%} (steps {parts[2][0].first_step:,}–{parts[2][-1].step:,}): what had "
            "been read ahead is used up, or storage became slow."
        )
        return [Finding("data wait grows", LOOK, text, parts[2][0].first_step, parts[2][-1].step)]
    whole = sum((span.wait or 0.0) * span.seconds for span in known) / sum(span.seconds for span in known)
    if whole <= WAIT:
        return []
    text = f"Waiting for data took {whole:.0%} of step time: storage or the reader is slower than the training steps."
    return [Finding("data wait", LOOK, text, known[0].first_step, known[-1].step)]


def _saves(records: Sequence[Mapping[str, Any]], spans: Sequence[_Span]) -> list[Finding]:
    stalls = [
        (row["step"], float(row["checkpoint_stall_seconds"])) for row in records if has(row, "checkpoint_stall_seconds")
    ]
    if not stalls:
        return []
    found = []
    usual, (step, longest) = median(stall for _, stall in stalls), max(stalls, key=lambda pair: pair[1])
    if len(stalls) >= 4 and longest > STALL * usual and longest - usual > 10:
        text = (
            f"The save at step {step:,} held training up for {longest:.0f} s where others took {usual:.1f} s: storage "
            "was slow then."
        )
        found.append(Finding("slow save", LOOK, text, step, step))
    total, steps = sum(stall for _, stall in stalls), sum(span.seconds for span in spans)
    if len(stalls) >= 2 and steps > 0 and total / (total + steps) > STALLS and total > 10:
        text = (
            f"Saves held training up for {total / (total + steps):.0%} of the time ({usual:.1f} s each): raise "
            "train.checkpoint_every, or save to a faster place."
        )
        found.append(Finding("saves", LOOK, text, stalls[0][0], stalls[-1][0]))
    return found


def _gaps(records: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Time in which nothing was computed: evaluations beyond measure, a machine that was asleep."""
    pauses: list[tuple[int, int, float, bool]] = []
    step, before, work = 0, None, 0.0
    for row in records:
        time = row.get("time")
        if not is_number(time):
            continue
        steps = max(0, row["step"] - step) * row.get("step_seconds", 0.0)
        if before is not None and "restarts" not in row:
            rest = time - before - steps - row.get("checkpoint_stall_seconds", 0.0)
            pauses.append((step, row["step"], max(0.0, rest), "val_loss" in row))
            work += steps
        before, step = time, row["step"] if "step_seconds" in row else step
    if len(pauses) < ENOUGH:
        return []
    found = []
    for evaluated in (True, False):
        like = [pause for pause in pauses if pause[3] == evaluated]
        usual = median(pause[2] for pause in like) if len(like) >= JUMP_RECORDS else 0.0
        for first, last, rest, _ in like:
            if len(like) >= JUMP_RECORDS and rest > max(GAP, 10 * usual):
                text = (
                    f"Nothing was computed for {human_duration(rest)} between steps {first:,} and {last:,}, without a "
                    "restart: a machine that was asleep or stopped, or a neighbour that took it all."
                )
                found.append(Finding("gap", LOOK, text, first, last))
    idle = sum(pause[2] for pause in pauses if pause[3])
    whole = work + sum(pause[2] for pause in pauses)
    if whole > 0 and idle / whole > IDLE and not found:
        text = f"Evaluations took {idle / whole:.0%} of the time: raise eval.every or lower eval.batches."
        found.append(Finding("evaluations", NOTE, text, pauses[0][0], pauses[-1][1]))
    return found[:MOST_GAPS]
