"""PURE. Findings about losses and gradients: spikes, figures that are no number, overfitting, a plateau."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from raygpt.track.finding import LOOK, NOTE, Finding, points_of, scale, thirds

SPIKE_SCALES = 8.0  # a loss so many robust standard deviations above the records before it
SPIKE_SHARE = 0.05  # and at least this share of the loss
GRAD_SPIKE = 5.0  # a gradient norm this many times the median of the records before it
NEAR = 11  # records before a point that it is held against
OVERFIT = 0.01  # share by which validation loss rises above its best while training loss goes on falling
OVERFIT_EVALUATIONS = 3  # evaluations after the best one
PLATEAU = 0.002  # share of the loss that the last third of a run gained, at a learning rate above LOW_LR of its peak
LOW_LR = 0.2
SKIPPED = 0.02  # share of steps whose gradients were not finite
MOST_SPIKES = 3  # named one by one


def loss_findings(records: Sequence[Mapping[str, Any]], whole: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """In no order. `records` may be some of the `whole`."""
    some, all_of_it = (_loss_spikes, _gradient_spikes, _overfitting, _plateau), (_not_numbers, _skipped)
    found = [finding for check in some for finding in check(records)]
    return found + [finding for check in all_of_it for finding in check(whole)]


def _not_numbers(records: Sequence[Mapping[str, Any]]) -> list[Finding]:
    bad = [row["step"] for row in records if any(_is_nan(row.get(name)) for name in ("train_loss", "val_loss"))]
    if not bad:
        return []
    text = f"The loss was not a number at {len(bad)} record{'s' * (len(bad) > 1)}, first at step {bad[0]:,}."
    return [Finding("not a number", LOOK, text, bad[0], bad[-1])]


def _loss_spikes(records: Sequence[Mapping[str, Any]]) -> list[Finding]:
    points = points_of(records, "train_loss")
    if len(points) < 2 * NEAR:
        return []
    rises = [value - _before(points, at) for at, (_, value) in enumerate(points)]
    noise = scale(rises[NEAR:])
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
    points = [(step, math.log(value)) for step, value in points_of(records, "grad_norm") if value > 0]
    if len(points) < 2 * NEAR:
        return []
    rises = [value - _before(points, at) for at, (_, value) in enumerate(points)]
    noise = scale(rises[NEAR:])
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
    val, train = points_of(records, "val_loss"), points_of(records, "train_loss")
    if len(val) < OVERFIT_EVALUATIONS + 1:
        return []
    best = min(range(len(val)), key=lambda at: val[at][1])
    after = [value for _, value in val[best + 1 :]]
    if len(after) < OVERFIT_EVALUATIONS or median(after[-OVERFIT_EVALUATIONS:]) < val[best][1] * (1 + OVERFIT):
        return []
    step, last = val[best][0], val[-1][0]
    then = [value for at, value in train if at <= step][-NEAR:]
    since = [value for at, value in train if at > step]
    if not then and len(since) >= 2 * NEAR:  # the best was before the first record, as in fine-tuning
        then = since[:NEAR]
    now = since[-NEAR:]
    text = (
        f"Validation loss was best at step {step:,} ({val[best][1]:.4f}) and rose to {val[-1][1]:.4f} by step {last:,}"
    )
    if then and now and median(now) < median(then):
        text += (
            f", while training loss went on falling ({median(then):.3f} to {median(now):.3f}): the model learns the "
            "training text by heart. Take the best checkpoint; eval.patience would have stopped there."
        )
    elif then and now:
        text += ", and training loss did not fall either: the learning rate is too high for this part of the run."
    else:
        text += ". Take the best checkpoint."
    return [Finding("validation diverges", LOOK, text, step, last)]


def _plateau(records: Sequence[Mapping[str, Any]]) -> list[Finding]:
    points = points_of(records, "train_loss")
    rates = dict(points_of(records, "lr"))
    if len(points) < 3 * NEAR or not rates:
        return []
    parts = thirds(points)
    sixth = len(parts[2]) // 2
    before, after = (median(value for _, value in part) for part in (parts[2][:sixth], parts[2][sixth:]))
    start = median(value for _, value in parts[0])
    peak = max(rates.values())
    step = parts[2][0][0]
    late = [rate for at, rate in rates.items() if at >= step]
    falling = start - median(value for _, value in parts[2]) > PLATEAU * abs(start)
    if not late or min(late) < LOW_LR * peak or before - after > PLATEAU * abs(before):
        return []
    how = "fell no more" if falling else "hardly fell at all"
    text = (
        f"Training loss {how}: {before:.3f} and {after:.3f} over the two halves of steps {step:,}–{points[-1][0]:,}, "
        f"at a learning rate of {min(late) / peak:.0%} of its peak or more. Lower it (a schedule that decays) or end "
        "the run."
    )
    return [Finding("plateau", NOTE if falling else LOOK, text, step, points[-1][0])]


def _skipped(records: Sequence[Mapping[str, Any]]) -> list[Finding]:
    counts = [(row["step"], row["skipped_steps"]) for row in records if "skipped_steps" in row]
    if not counts or counts[-1][0] < 100 or counts[-1][1] <= SKIPPED * counts[-1][0]:
        return []
    step, skipped = counts[-1]
    text = f"{skipped:,} of {step:,} steps were skipped, their gradients not being finite: fp16 is too narrow here."
    return [Finding("skipped steps", LOOK, text, counts[0][0], step)]


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


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _steps(first: int, last: int) -> str:
    return f"step {first:,}" if first == last else f"steps {first:,}–{last:,}"
