"""The run of an evaluation: ask what is missing, keep every answer, say what they come to.

evaluation.json   what the model is, every task's figures with their protocol, where it was measured, what it cost
hellaswag.jsonl   a record per item (and protocol); one such file per task
parts/            answers as they came (`raygpt.evaluate.task_parts`)
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import raygpt
from raygpt import storage
from raygpt.evaluate.answering import ModelSource
from raygpt.evaluate.served import recognise
from raygpt.evaluate.task_parts import Parts
from raygpt.evaluate.task_workers import Pending, Workers, answers
from raygpt.evaluate.tasks import Record, Task
from raygpt.run.frame import COMPLETE, FINISHED, STOPPED, Outcome, Run
from raygpt.storage import Location
from raygpt.track.meter import Meter
from raygpt.track.progress import human_count, human_duration

FIGURES = "evaluation.json"
SCHEMA = 1


@dataclass
class Measured:
    """One model's answers to all tasks. `records` are by task, in the order of its items; `model` is what is known of
    it, `figures` what evaluation.json says."""

    folder: Location
    model: dict[str, Any]
    tasks: dict[str, Task]
    digests: dict[str, str]  # of the items of each task
    records: dict[str, list[Record]]
    figures: dict[str, Any]


def evaluate_tasks(
    run: Run, source: ModelSource, asked: Sequence[tuple[Task, list[Any]]], workers: Workers, found: list[Measured]
) -> Outcome:
    """The work of the run: the tasks `asked` with their items. What was measured is added to `found` when every item is
    answered."""
    if workers.connect is not None:  # first: what the workers compute in decides whose answers are theirs
        source = replace(source, use_gpu=workers.connect())
    if source.served is not None:
        source = recognise(source, run.folder)
    fingerprint = source.fingerprint()
    tasks = [task for task, _ in asked]
    every = {task.name: Parts(run.folder, task, fingerprint, items) for task, items in asked}
    run.say(f"Model {source.shown}")
    pending = []
    for name, parts in every.items():
        parts.look()
        kept = f", {parts.answered:,} of them answered before" if parts.done else ""
        run.say(f"{name}: {len(parts.items):,} item{'s' * (len(parts.items) != 1)}{kept}")
        pending += [Pending(name, part.start, parts.items[part.start : part.stop]) for part in parts.missing()]
    if pending:
        _ask(run, source, tasks, every, pending, workers)
    run.check_held()
    done, total = (sum(counts) for counts in zip(*((p.answered, len(p.items)) for p in every.values())))
    if done < total:
        return Outcome(
            STOPPED, closing=f"after {done:,} of {total:,} items; their answers are kept in {run.folder.uri}."
        )
    measured = _gather(run, source, fingerprint, tasks, every)
    found.append(measured)
    summary = {name: measured.figures["tasks"][name] for name in every} | {"wall_seconds": run.lock.wall_seconds}
    if (cost := run.cost_usd()) is not None:
        summary["cost_usd"] = cost
    return Outcome(FINISHED if pending else COMPLETE, summary)


def _ask(
    run: Run,
    source: ModelSource,
    tasks: Sequence[Task],
    every: dict[str, Parts],
    pending: Sequence[Pending],
    workers: Workers,
) -> None:
    """Have the pending parts answered until all are or a stop is asked for."""
    began, asked = time.monotonic(), sum(len(one.items) for one in pending)
    last = began
    meter, done = Meter("evaluate", run.stream), 0
    try:
        with closing(answers(source, tasks, pending, workers)) as coming:
            if run.stop.requested:
                return
            for name, start, stop, records, facts in coming:
                run.check_held()
                now = time.monotonic()
                every[name].write(range(start, stop), records, facts, now - last)
                done += stop - start
                passed, last = now - began, now
                figures = [
                    name,
                    f"{human_count(done / passed)} items/s",
                    f"eta {human_duration((asked - done) * passed / done)}",
                ]
                if (usd := run.cost_usd()) is not None:
                    figures.append(f"${usd:.2f}")
                meter.show(done, asked, *figures)
                if run.stop.requested:
                    break
    finally:
        meter.close()


def _gather(
    run: Run,
    source: ModelSource,
    fingerprint: str,
    tasks: Sequence[Task],
    every: dict[str, Parts],
) -> Measured:
    """Put the answers together, write the per-item files and evaluation.json, in which the figures of the same model's
    other tasks stay."""
    records: dict[str, list[Record]] = {}
    model: dict[str, Any] = {}
    places: list[dict[str, Any]] = []
    seconds: dict[str, float] = {}
    for name, parts in every.items():
        records[name], answered, took = parts.read()
        seconds[name] = round(took, 3)
        lines = (json.dumps(record, ensure_ascii=False) for record in records[name])
        storage.write_text(run.folder / f"{name}.jsonl", "\n".join(lines) + "\n")
        for facts in answered:
            place: dict[str, Any] = {key: facts[key] for key in ("device", "precision") if key in facts}
            if place and place not in places:
                places.append(place)
            model |= {key: value for key, value in facts.items() if key not in place}
    if len(places) > 1:
        run.say(f"Answered on different devices ({', '.join(map(str, places))}): figures may differ in the last digit.")
    model |= {"name": source.name, "uri": source.shown, "fingerprint": fingerprint}
    figures: dict[str, Any] = {
        "schema": SCHEMA,
        "model": dict(sorted(model.items())),
        "tasks": {
            task.name: {**task.summarise(every[task.name].items, records[task.name], model), **_of(task, every)}
            for task in tasks
        },
        "environment": {
            "devices": places,
            "raygpt": raygpt.__version__,
            "python": platform.python_version(),
            "torch": _version("torch"),
            "seconds": round(sum(seconds.values()), 3),
            "task_seconds": seconds,
            "wall_seconds": run.lock.wall_seconds,
        },
        "cost_usd": run.cost_usd(),
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    figures = plain(figures)
    _write(run.folder, figures)
    digests = {name: parts.digest for name, parts in every.items()}
    return Measured(run.folder, model, {task.name: task for task in tasks}, digests, records, figures)


def _write(folder: Location, figures: dict[str, Any]) -> None:
    """evaluation.json of these figures and of those that are there of the same model; answers of another model's tasks
    go, their parts stay."""
    try:
        before = json.loads(storage.read_text(folder / FIGURES))
    except (FileNotFoundError, ValueError):
        before = {}
    if before.get("schema") == SCHEMA:
        others = [name for name in before["tasks"] if name not in figures["tasks"]]
        if before["model"]["fingerprint"] == figures["model"]["fingerprint"]:
            now, then = figures["environment"], before["environment"]
            took = {name: then["task_seconds"][name] for name in others} | now["task_seconds"]
            environment = now | {"seconds": round(sum(took.values()), 3), "task_seconds": took}
            environment["devices"] = now["devices"] + [one for one in then["devices"] if one not in now["devices"]]
            figures = figures | {
                "model": before["model"] | figures["model"],
                "tasks": {name: before["tasks"][name] for name in others} | figures["tasks"],
                "environment": environment,
            }
        else:
            for name in others:
                storage.delete(folder / f"{name}.jsonl")
    storage.write_text(folder / FIGURES, json.dumps(figures, indent=2, ensure_ascii=False) + "\n")


def _of(task: Task, every: dict[str, Parts]) -> dict[str, Any]:
    """Where a task's items came from, and what tells them from others."""
    return {"items_from": getattr(task, "uri", None), "items_sha256": every[task.name].digest}


def plain(value: Any) -> Any:
    """As JSON has it: a number that is none becomes null, for there is no word for it."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
