"""Models side by side by their answers to the same items: figures, and for every pair whether they differ.

Answers are paired item by item (`raygpt.evaluate.significance`). What cannot stand side by side is refused, different
items and protocols, or left out with its reason: figures per token of models of different vocabularies.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from raygpt.errors import UserError
from raygpt.evaluate.references import references
from raygpt.evaluate.significance import FEWEST, Pair, pair_answers, pair_losses
from raygpt.evaluate.task_run import Measured, plain
from raygpt.evaluate.task_table import PERCENT, aligned, published, rows, shown
from raygpt.storage import Location, write_text

FIGURES, TABLE = "tasks.json", "tasks.md"


@dataclass(frozen=True)
class Compared:
    """Two models on one metric of one task; `metric` names the protocol too."""

    task: str
    metric: str
    first: str
    second: str
    pair: Pair

    def sentence(self) -> str:
        change, unit = self.pair.difference, 100 if self.metric.rsplit(" ", 1)[-1] in PERCENT else 1
        if self.pair.p is None and self.pair.items < FEWEST:
            return f"{unit * change.value:+.4f}: {self.pair.items} texts are too few to say whether they differ"
        ends = f"[{unit * change.low:+.{2 if unit > 1 else 4}f}, {unit * change.high:+.{2 if unit > 1 else 4}f}]"
        by = "" if self.pair.p is None else f", McNemar p={self.pair.p:.2g}"
        verdict = "differ" if self.pair.significant else "no difference shown"
        return f"{unit * change.value:+.{2 if unit > 1 else 4}f} {ends}{by}: {verdict}"


def check_alike(measured: Sequence[Measured]) -> None:
    """Raises UserError for models that were not asked the same."""
    first = measured[0]
    texts = {str(each.figures["tasks"]["loss"]["data"]) for each in measured if "loss" in each.tasks}
    if len(texts) > 1:
        raise UserError(
            f"loss: the models were measured on different text ({', '.join(sorted(texts))}): name data.val."
        )
    for each in measured[1:]:
        for name, task in each.tasks.items():
            if each.digests[name] != first.digests[name]:
                raise UserError(
                    f"{name}: {first.model['name']} and {each.model['name']} were asked different items: evaluate both "
                    "on one file."
                )
            if task.settings() != first.tasks[name].settings():
                raise UserError(
                    f"{name}: {first.model['name']} and {each.model['name']} were asked by different settings: "
                    "evaluate both by the same."
                )


def compare_measured(measured: Sequence[Measured], *, resamples: int, seed: int) -> list[Compared]:
    """Every pair of models on everything that pairs, in the models' order."""
    check_alike(measured)
    found = []
    for name in measured[0].tasks:
        for one, other in combinations(measured, 2):
            mine, theirs = (each.tasks[name].answers(each.records[name]) for each in (one, other))
            for metric in mine:
                pair = pair_answers(mine[metric], theirs[metric], resamples=resamples, seed=seed)
                found.append(Compared(name, metric, one.model["name"], other.model["name"], pair))
            mine_too, theirs_too = (each.tasks[name].losses(each.records[name]) for each in (one, other))
            for metric, (nats, sizes) in mine_too.items():
                pair = pair_losses(nats, theirs_too[metric][0], sizes, resamples=resamples, seed=seed)
                found.append(Compared(name, metric, one.model["name"], other.model["name"], pair))
    return found


def lines(measured: Sequence[Measured], compared: Sequence[Compared]) -> list[str]:
    """The table, the pairs below it, and what others published by the same protocols."""
    names = [each.model["name"] for each in measured]
    cells = [["task", "protocol", "n", "shots", "BOS", "metric", *names, ""]]
    vocabularies = {each.model.get("tokenizer_sha256") for each in measured}
    alike, left_out = len(vocabularies) == 1 and None not in vocabularies, False
    by_model = [{(row.task, row.protocol): row for row in rows(each.figures["tasks"])} for each in measured]
    for key, row in by_model[0].items():
        others = [mine[key] for mine in by_model]
        bos = "/".join(dict.fromkeys("-" if each.bos is None else each.bos for each in others))
        how = "; ".join(dict.fromkeys(each.how for each in others))
        for metric in row.figures:
            if not alike and metric in ("ppl/token", "loss"):
                left_out = True
                continue
            values = [shown(metric, *each.figures[metric]) if metric in each.figures else "-" for each in others]
            cells.append([row.task, row.protocol, *row.counts[:2], bos, metric, *values, how])
    made = aligned(cells)
    if left_out:
        why = "Not every model's vocabulary is known" if None in vocabularies else "Vocabularies differ"
        made.append(f"{why}: figures per token do not compare and are left out; those per byte and word do.")
    made += _measured_on(measured)
    if compared:
        made += ["", "Paired by item, the second less the first, 95 % interval (accuracies in points):"]
        told = [[f"{each.second} - {each.first}", each.task, each.metric, each.sentence()] for each in compared]
        made += aligned(told)
    if below := list(_published(measured)):
        made += ["", *below]
    return made


def _measured_on(measured: Sequence[Measured]) -> list[str]:
    """Device and precision of each model, in one line where they are one."""
    places = [
        " and ".join(f"{place.get('device', '?')}, {place.get('precision', '?')}" for place in on)
        or "unknown to raygpt"
        for on in (each.figures["environment"]["devices"] for each in measured)
    ]
    if len(set(places)) == 1:
        return [f"All on: {places[0]}."]
    each = "; ".join(f"{one.model['name']} on {place}" for one, place in zip(measured, places))
    return [f"Not measured alike, which may be a part of a small difference: {each}."]


def _published(measured: Sequence[Measured]) -> Iterator[str]:
    every = rows(measured[0].figures["tasks"])
    found = []
    for task in dict.fromkeys(row.task for row in every):
        found += references(task, [row.protocol for row in every if row.task == task])
    yield from published(found)


def write_compared(measured: Sequence[Measured], compared: Sequence[Compared], target: Location) -> dict[str, Any]:
    """Write tasks.json and tasks.md below `target`; returns the figures."""
    figures = plain(
        {
            "models": [each.figures for each in measured],
            "pairs": [
                {"task": each.task, "metric": each.metric, "first": each.first, "second": each.second}
                | each.pair.to_dict()
                for each in compared
            ],
        }
    )
    write_text(target / FIGURES, json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
    write_text(target / TABLE, "```\n" + "\n".join(lines(measured, compared)) + "\n```\n")
    return figures
