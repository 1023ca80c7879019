"""The final figures of a run, computed from its records: what goes into summary.json."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from raygpt.track.record import Record

# name -> what it is, with its unit; the order of summary.json and of the report.
SUMMARY: dict[str, str] = {
    "steps": "optimizer steps",
    "tokens": "training tokens seen",
    "train_loss": "last training loss, nats per token",
    "val_loss": "last validation loss, nats per token",
    "val_tokens": "validation tokens that each of these losses is over, always the same",
    "best_val_loss": "lowest validation loss, nats per token",
    "best_step": "step of the lowest validation loss",
    "tokens_per_second": "median training tokens per second of step time, warm-up left out",
    "mfu": "median model FLOP utilisation, 0 to 1, warm-up left out",
    "wall_seconds": "seconds from start to end, all attempts together",
    "effective_time_ratio": "share of wall_seconds spent in training steps that count",
    "restarts": "times the run was restarted",
    "tokens_lost": "training tokens that no step saw because of a restart",
    "tokens_repeated": "training tokens that two steps saw because of a restart",
    "cost_usd": "US dollars at track.price_per_hour",
    "tokens_per_usd": "training tokens seen for each of these dollars",
    "lost_seconds": "seconds that failures took: steps computed again, and stand-still until the run went on",
    "lost_usd": "US dollars of those seconds",
    "launch_seconds": "seconds of the last start, from the submission or the command to the first step",
    "data_wait_fraction": "share of step time spent waiting for data",
    "kd_loss": "last divergence from the teacher times its temperature squared, nats per token",
    "ce_loss": "last cross-entropy of the next token beside it, nats per token",
    "hellaswag_acc_norm": "last accuracy on eval.hellaswag by the first of eval.protocols, 0 to 1",
    "teacher_fraction": "share of step time in which the teacher computed, warm-up left out",
}


def summarise(records: Iterable[Record], **facts: Any) -> dict[str, Any]:
    """Figures of SUMMARY that the records support; `facts` that are not None are added or take their place.
    Without records there are the facts alone.

    Pass `wall_seconds` for the effective-time ratio; `train_seconds` (of the steps that count), where it is
    known exactly, replaces the estimate from the records. Speeds are tokens over durations of steps, never
    over time stamps. Lost and repeated tokens are 0 by construction: a step's data is a function of its
    number, and an undone step is undone in the weights too.
    """
    rows = list(records)
    spans = _spans(rows)
    steady = [span for span in spans if not span["first"]] or spans
    validations = [(row["val_loss"], row["step"]) for row in rows if math.isfinite(row.get("val_loss", math.nan))]
    found: dict[str, Any] = {
        "steps": _last(rows, "step"),
        "tokens": _last(rows, "tokens"),
        "train_loss": _last(rows, "train_loss"),
        "val_loss": _last(rows, "val_loss"),
        "best_val_loss": min(validations)[0] if validations else None,
        "best_step": min(validations)[1] if validations else None,
        "tokens_per_second": _median(span["tokens_per_second"] for span in steady),
        "mfu": _median(span["mfu"] for span in steady),
        "restarts": max((row.get("restarts", 0) for row in rows), default=None),
        "tokens_lost": 0 if rows else None,
        "tokens_repeated": 0 if rows else None,
        "cost_usd": _last(rows, "cost_usd"),
        "kd_loss": _last(rows, "kd_loss"),
        "ce_loss": _last(rows, "ce_loss"),
        "hellaswag_acc_norm": _last(rows, "hellaswag_acc_norm"),
        "teacher_fraction": _median(span["teacher"] for span in steady),
    }
    seconds = sum(span["seconds"] for span in spans)
    if seconds > 0 and all(span["wait"] is not None for span in spans):
        found["data_wait_fraction"] = sum(span["wait"] for span in spans) / seconds
    train_seconds = facts.get("train_seconds") or seconds
    if facts.get("wall_seconds") and train_seconds:
        # records round a restart's first interval up by the steps the earlier attempt had begun it with
        found["effective_time_ratio"] = min(1.0, train_seconds / facts["wall_seconds"])
    found |= {name: value for name, value in facts.items() if value is not None}
    if found.get("cost_usd") and found.get("tokens"):
        found["tokens_per_usd"] = found["tokens"] / found["cost_usd"]
    ordered = [name for name in SUMMARY if name in found] + [name for name in found if name not in SUMMARY]
    # a loss that was not a number has no figure, and JSON no word for it
    return {name: found[name] for name in ordered if _is_known(found[name])}


def _spans(rows: Sequence[Record]) -> list[dict[str, Any]]:
    """One entry per timed record: what happened from the timed record before it up to it. `first` marks the
    first after a start or restart: it holds compilation and cold caches."""
    spans = []
    step, tokens, first = 0, 0, True
    for row in rows:
        first = first or "restarts" in row
        if "step_seconds" not in row or row["step"] <= step:
            continue
        seconds = row["step_seconds"] * (row["step"] - step)
        wait = row.get("data_wait_seconds")
        speed = row.get("tokens_per_second")
        if "tokens" in row and seconds > 0:
            speed = (row["tokens"] - tokens) / seconds
        spans.append(
            {
                "first": first,
                "seconds": seconds,
                "wait": None if wait is None else wait * (row["step"] - step),
                "tokens_per_second": speed,
                "mfu": row.get("mfu"),
                "teacher": row["teacher_seconds"] / row["step_seconds"] if "teacher_seconds" in row else None,
            }
        )
        step, tokens, first = row["step"], row.get("tokens", tokens), False
    return spans


def _is_known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def _last(rows: Sequence[Record], name: str) -> Any:
    return next((row[name] for row in reversed(rows) if name in row), None)


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
