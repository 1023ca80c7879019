"""PURE. Results side by side: ratios with their spread, and in words what else differs between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raygpt.bench.result import Result, Row, Spread, spread_text, warnings
from raygpt.errors import UserError

HARDWARE = ("device", "gpus", "cpu", "cores", "threads", "memory")


def ratio(new: Spread, old: Spread) -> Spread:
    """Of the medians; low and high are the furthest that any two of their repeats lie apart."""
    return Spread(new.median / old.median, new.low / old.high, new.high / old.low, min(new.repeats, old.repeats))


def compare(results: Sequence[Result], names: Sequence[str]) -> str:
    """Markdown: the speeds of rows of one name, each over the first result's, and the labels of what differs.

    Raises UserError for fewer than two results, for different cases, and where no row is in both.
    """
    if len(results) < 2:
        raise UserError("--compare names one result: name the one that it is held to first, then others.")
    base = results[0]
    lines = []
    for result, name in zip(results[1:], names[1:]):
        if result.case != base.case:
            raise UserError(
                f"{names[0]} is of case {base.case} and {name} of case {result.case}: compare those of one case."
            )
        pairs = [
            (old, new)
            for old in base.rows
            if old.tokens_per_second is not None
            and (new := result.row(old.name)) is not None
            and new.tokens_per_second is not None
        ]
        if not pairs:
            raise UserError(f"{names[0]} and {name} have no measured row in common: there is nothing to compare.")
        lines += [f"{name} over {names[0]}", ""]
        sides = ((base, names[0]), (result, name))
        found = [f"{which}: {text}" for side, which in sides for text in warnings(side.provenance)]
        found += differences(base, result, pairs)
        lines += [f"- **{each}**" for each in found] + ([""] if found else [])
        lines += ["| | tokens/s before | tokens/s | ratio | |", "|---|---|---|---|---|"]
        for old, new in pairs:
            assert old.tokens_per_second is not None and new.tokens_per_second is not None
            times = ratio(new.tokens_per_second, old.tokens_per_second)
            lines.append(
                f"| {old.name} | {spread_text(old.tokens_per_second)} | {spread_text(new.tokens_per_second)} | "
                f"{times.median:.3f} ({times.low:.3f}–{times.high:.3f}) | {verdict(times)} |"
            )
        missing = [row.name for row in (*base.rows, *result.rows) if row.name not in {old.name for old, _ in pairs}]
        if missing:
            lines += ["", f"Not in both: {', '.join(dict.fromkeys(missing))}."]
        lines.append("")
    return "\n".join(lines)


def verdict(times: Spread) -> str:
    """What a ratio says: faster or slower where no two repeats say otherwise."""
    if times.repeats == 1:
        return "measured once: no spread to judge by"
    return "faster" if times.low > 1 else "slower" if times.high < 1 else "within the spread"


def differences(old: Result, new: Result, pairs: Sequence[tuple[Row, Row]]) -> list[str]:
    """Sentences on hardware, versions, model and settings that are not the same; for what a result does not record,
    that it does not."""
    found = []
    before, after = (_parts(each.provenance.get("hardware"), HARDWARE) for each in (old, new))
    if before is None or after is None:
        found.append("Hardware not recorded: these speeds may be of different machines.")
    elif changed := _changed(before, after):
        found.append(f"Different hardware: {changed}.")
    one, other = old.provenance.get("versions"), new.provenance.get("versions")
    if not one or not other:
        found.append("Versions not recorded.")
    elif changed := _changed(one, other):
        found.append(f"Different versions: {changed}.")
    models = [{str(row.settings.get("model")) for row in side} for side in zip(*pairs)]
    if models[0] != models[1]:
        sizes = [sorted({row.settings.get("parameters", 0) for row in side}) for side in zip(*pairs)]
        found.append(f"Different model: {_numbers(sizes[0])} against {_numbers(sizes[1])} parameters.")
    for row, other in pairs:
        one, two = (
            {k: v for k, v in each.settings.items() if k not in ("model", "parameters")} for each in (row, other)
        )
        if changed := _changed(one, two):
            found.append(f"Different settings of {row.name}: {changed}.")
    return found


def _numbers(values: Sequence[int]) -> str:
    return " and ".join(f"{value:,}" for value in values)


def _parts(value: Any, keys: Sequence[str]) -> dict[str, Any] | None:
    if isinstance(value, dict):
        return {key: value[key] for key in keys if key in value}
    return None if value is None else {"machine": value}


def _changed(before: dict[str, Any], after: dict[str, Any]) -> str:
    keys = [key for key in dict.fromkeys([*before, *after]) if before.get(key) != after.get(key)]
    return ", ".join(f"{key} {_word(before.get(key))} against {_word(after.get(key))}" for key in keys)


def _word(value: Any) -> str:
    return "not recorded" if value is None else str(value)
