"""PURE. "Is this normal?": what in a run's records a person should look at, in words, with the steps where it is.

Every check compares the run with itself, robustly: medians, and scales from the median absolute deviation, so that one
odd record decides nothing. The thresholds are the constants below, each with what it means. What is slow or rough by
nature is left out: the first steps after every start, evaluations and saves (they are no part of a step's time), noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

LOOK, NOTE = "look", "note"  # something to look into; something to know

WARMUP_STEPS = 10  # after a start, and at least its first record: compilation, cold caches
JUMP = 1.5  # a speed that changes by this factor from some records to the next
JUMP_RECORDS = 3  # it has to hold for so many records on both sides, on up to four times as many it is measured
SAG = 0.8  # the last third of a run at less than this share of the first third's speed, without a jump
WAIT = 0.05  # share of step time spent waiting for data
WAIT_GROWTH = 0.02  # by how much that share grows from the first third to the last, at least twofold
SPIKE_SCALES = 8.0  # a loss so many robust standard deviations above the records before it
SPIKE_SHARE = 0.05  # and at least this share of the loss
GRAD_SPIKE = 5.0  # a gradient norm this many times the median of the records before it
NEAR = 11  # records before a point that it is held against
STALLS = 0.05  # share of the time in which saves held training up
STALL = 5.0  # a save that took this many times the median one, and 10 s more than it
IDLE = 0.25  # share of the time that went into neither steps nor saves, restarts left out
GAP = 60.0  # seconds between two records in which nothing was computed, beyond 10 times what is usual
OVERFIT = 0.01  # share by which validation loss rises above its best while training loss goes on falling
OVERFIT_EVALUATIONS = 3  # evaluations after the best one
PLATEAU = 0.002  # share of the loss that the last third of a run gained, at a learning rate above LOW_LR of its peak
LOW_LR = 0.2
ENOUGH = 8  # timed records without which nothing is said about speed
SKIPPED = 0.02  # share of steps whose gradients were not finite
MOST_SPIKES = 3  # named one by one


@dataclass(frozen=True)
class Finding:
    """One sentence or two about steps `first_step` to `last_step`. `level` is look or note."""

    name: str
    level: str
    text: str
    first_step: int
    last_step: int


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


def findings(records: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """What stands out, what to look into first. [] for a run on which nothing does, or that has hardly begun."""
    spans = _spans(records)
    steady = [span for span in spans if span.warm]
    jumps = _jumps(steady)
    found = [*jumps, *([] if jumps else _sag(steady)), *_waiting(steady), *_saves(records, spans)]
    found += [*_gaps(records), *_not_numbers(records), *_loss_spikes(records), *_gradient_spikes(records)]
    found += [*_overfitting(records), *_plateau(records), *_skipped(records)]
    return sorted(found, key=lambda each: (each.level != LOOK, each.first_step))


def _spans(records: Sequence[Mapping[str, Any]]) -> list[_Span]:
    spans: list[_Span] = []
    step, began, fresh, restarted = 0, 0, True, False
    for row in records:
        if "restarts" in row:
            began, fresh, restarted = step, True, True
        if not row.get("step_seconds") or row["step"] <= step or not _is_number(row.get("tokens_per_second")):
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
        noise = max(_scale(before), _scale(after))
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
        before, after = steady[at - 1], steady[at]
        told.append(_jump(before, after, math.exp(abs(change)), up=change > 0, speeds=_around(steady, at, reach)))
    return told


def _around(steady: Sequence[_Span], at: int, reach: int) -> tuple[float, float]:
    return (
        median(span.speed for span in steady[max(0, at - reach) : at]),
        median(span.speed for span in steady[at : at + reach]),
    )


def _jump(before: _Span, after: _Span, factor: float, *, up: bool, speeds: tuple[float, float]) -> Finding:
    how = f"{'rose' if up else 'fell'} {factor:.1f}-fold"
    text = f"Speed {how} between steps {before.step:,} and {after.step:,}, from {_count(speeds[0])} to {_count(speeds[1])} tok/s"
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
    thirds = _thirds(steady)
    first, middle, last = (median(span.speed for span in part) for part in thirds)
    if not (last < SAG * first and last < middle < first):
        return []
    text = (
        f"Speed sagged by {1 - last / first:.0%}, little by little: {_count(first)} tok/s over steps "
        f"{thirds[0][0].first_step:,}–{thirds[0][-1].step:,}, {_count(last)} over {thirds[2][0].first_step:,}–"
        f"{thirds[2][-1].step:,}. Look for heat, memory that fills, or a neighbour on the machine."
    )
    return [Finding("speed sags", LOOK, text, steady[0].first_step, steady[-1].step)]


def _waiting(steady: Sequence[_Span]) -> list[Finding]:
    known = [span for span in steady if span.wait is not None]
    if len(known) < ENOUGH:
        return []
    parts = _thirds(known)
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
        (row["step"], float(row["checkpoint_stall_seconds"]))
        for row in records
        if _has(row, "checkpoint_stall_seconds")
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
        if not _is_number(time):
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
                    f"Nothing was computed for {_duration(rest)} between steps {first:,} and {last:,}, and nothing was "
                    "restarted: a machine that was asleep or stopped, or a neighbour that took it all."
                )
                found.append(Finding("gap", LOOK, text, first, last))
    idle = sum(pause[2] for pause in pauses if pause[3])
    whole = work + sum(pause[2] for pause in pauses)
    if whole > 0 and idle / whole > IDLE and not found:
        text = f"Evaluations took {idle / whole:.0%} of the time: raise eval.every or lower eval.batches."
        found.append(Finding("evaluations", NOTE, text, pauses[0][0], pauses[-1][1]))
    return found[:MOST_SPIKES]


def _not_numbers(records: Sequence[Mapping[str, Any]]) -> list[Finding]:
    bad = [row["step"] for row in records if any(_is_nan(row.get(name)) for name in ("train_loss", "val_loss"))]
    if not bad:
        return []
    text = f"The loss was not a number at {len(bad)} record{'s' * (len(bad) > 1)}, first at step {bad[0]:,}."
    return [Finding("not a number", LOOK, text, bad[0], bad[-1])]


def _loss_spikes(records: Sequence[Mapping[str, Any]]) -> list[Finding]:
    points = _points(records, "train_loss")
    if len(points) < 2 * NEAR:
        return []
    rises = [value - _before(points, at) for at, (_, value) in enumerate(points)]
    noise = _scale(rises[NEAR:])
    spikes = []
    for at in range(NEAR, len(points)):
        level = _before(points, at)
        if rises[at] > max(SPIKE_SCALES * noise, SPIKE_SHARE * abs(level)):
            spikes.append((at, rises[at], level))
    told = []
    groups = _grouped(spikes)
    for group in sorted(groups, key=lambda group: -max(each[1] for each in group))[:MOST_SPIKES]:
        peak = max(group, key=lambda each: each[1])
        first, last = points[group[0][0]][0], points[group[-1][0]][0]
        after = [value for _, value in points[group[-1][0] + 1 : group[-1][0] + 1 + NEAR]]
        back = bool(after) and min(after) <= peak[2] + max(2 * noise, 0.01 * abs(peak[2]))
        text = f"Training loss spiked from {peak[2]:.3f} to {points[peak[0]][1]:.3f} at {_steps(first, last)}, and " + (
            "came back." if back else "did not come back: a learning rate too high, or bad data there."
        )
        told.append(Finding("loss spike", NOTE if back and len(groups) == 1 else LOOK, text, first, last))
    if len(groups) > MOST_SPIKES:
        first, last = points[groups[0][0][0]][0], points[groups[-1][-1][0]][0]
        text = f"{len(groups)} spikes of the training loss in all: lower optim.lr, or lengthen optim.warmup_steps."
        told.append(Finding("loss spikes", LOOK, text, first, last))
    return told


def _gradient_spikes(records: Sequence[Mapping[str, Any]]) -> list[Finding]:
    points = [(step, math.log(value)) for step, value in _points(records, "grad_norm") if value > 0]
    if len(points) < 2 * NEAR:
        return []
    rises = [value - _before(points, at) for at, (_, value) in enumerate(points)]
    noise = _scale(rises[NEAR:])
    begin = max(NEAR, len(points) // 20)  # norms fall and rise in the first steps by nature
    spikes = [
        (at, rises[at], _before(points, at))
        for at in range(begin, len(points))
        if rises[at] > max(math.log(GRAD_SPIKE), SPIKE_SCALES * noise / 2)
    ]
    if not spikes:
        return []
    groups = _grouped(spikes)
    at, rise, _ = max(spikes, key=lambda each: each[1])
    first, last = points[spikes[0][0]][0], points[spikes[-1][0]][0]
    times = "once" if len(groups) == 1 else f"{len(groups)} times"
    text = (
        f"The gradient norm spiked {times}, {math.exp(rise):.0f}-fold at step {points[at][0]:,}. Clipping "
        "(optim.grad_clip) bounds what one such step can do; often repeated, they foretell a loss that diverges."
    )
    return [Finding("gradient spikes", NOTE if len(groups) < 3 else LOOK, text, first, last)]


def _overfitting(records: Sequence[Mapping[str, Any]]) -> list[Finding]:
    val, train = _points(records, "val_loss"), _points(records, "train_loss")
    if len(val) < OVERFIT_EVALUATIONS + 1:
        return []
    best = min(range(len(val)), key=lambda at: val[at][1])
    after = [value for _, value in val[best + 1 :]]
    if len(after) < OVERFIT_EVALUATIONS or median(after[-OVERFIT_EVALUATIONS:]) < val[best][1] * (1 + OVERFIT):
        return []
    step, last = val[best][0], val[-1][0]
    then = [value for at, value in train if at <= step][-NEAR:]
    now = [value for at, value in train if at > step][-NEAR:]
    text = (
        f"Validation loss was best at step {step:,} ({val[best][1]:.4f}) and rose to {val[-1][1]:.4f} by step {last:,}"
    )
    if then and now and median(now) < median(then):
        text += (
            f", while training loss went on falling ({median(then):.3f} to {median(now):.3f}): the model learns the "
            "training text by heart. Take the best checkpoint; eval.patience would have stopped there."
        )
    else:
        text += ", and training loss did not fall either: the learning rate is too high for this part of the run."
    return [Finding("validation diverges", LOOK, text, step, last)]


def _plateau(records: Sequence[Mapping[str, Any]]) -> list[Finding]:
    points = _points(records, "train_loss")
    rates = dict(_points(records, "lr"))
    if len(points) < 3 * NEAR or not rates:
        return []
    thirds = _thirds(points)
    sixth = len(thirds[2]) // 2
    before, after = (median(value for _, value in part) for part in (thirds[2][:sixth], thirds[2][sixth:]))
    start = median(value for _, value in thirds[0])
    peak = max(rates.values())
    step = thirds[2][0][0]
    late = [rate for at, rate in rates.items() if at >= step]
    falling = start - median(value for _, value in thirds[2]) > PLATEAU * abs(start)
    if not late or min(late) < LOW_LR * peak or before - after > PLATEAU * abs(before):
        return []
    how = "fell no more" if falling else "hardly fell at all"
    text = (
        f"Training loss {how}: {before:.3f} and {after:.3f} over the two halves of steps {step:,}–{points[-1][0]:,}, at a "
        f"learning rate of {min(late) / peak:.0%} of its peak or more. Lower it (a schedule that decays), or end the run."
    )
    return [Finding("plateau", NOTE if falling else LOOK, text, step, points[-1][0])]


def _skipped(records: Sequence[Mapping[str, Any]]) -> list[Finding]:
    counts = [(row["step"], row["skipped_steps"]) for row in records if "skipped_steps" in row]
    if not counts or counts[-1][0] < 100 or counts[-1][1] <= SKIPPED * counts[-1][0]:
        return []
    step, skipped = counts[-1]
    text = f"{skipped:,} of {step:,} steps were skipped, their gradients not being finite: fp16 is too narrow for this run."
    return [Finding("skipped steps", LOOK, text, counts[0][0], step)]


def _points(records: Iterable[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(row["step"], float(row[name])) for row in records if _has(row, name)]


def _before(points: Sequence[tuple[int, float]], at: int) -> float:
    """Median of the records just before one."""
    near = [value for _, value in points[max(0, at - NEAR) : at]]
    return median(near) if near else points[at][1]


def _grouped(spikes: Sequence[tuple[int, float, float]]) -> list[list[tuple[int, float, float]]]:
    """Spikes of records next to one another together."""
    groups: list[list[tuple[int, float, float]]] = []
    for spike in spikes:
        if groups and spike[0] - groups[-1][-1][0] <= 2:
            groups[-1].append(spike)
        else:
            groups.append([spike])
    return groups


def _thirds(values: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    third = len(values) // 3
    return values[:third], values[third : len(values) - third], values[len(values) - third :]


def _scale(values: Sequence[float]) -> float:
    """Standard deviation of normal noise with the same median absolute deviation."""
    middle = median(values)
    return 1.4826 * median(abs(value - middle) for value in values)


def _has(row: Mapping[str, Any], name: str) -> bool:
    return _is_number(row.get(name))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _steps(first: int, last: int) -> str:
    return f"step {first:,}" if first == last else f"steps {first:,}–{last:,}"


def _count(value: float) -> str:
    from raygpt.track.progress import human_count

    return human_count(value)


def _duration(seconds: float) -> str:
    from raygpt.track.progress import human_duration

    return human_duration(seconds)
