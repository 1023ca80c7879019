"""PURE. What a check found, and the table of all findings."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail", "skipped"]
ORDER: tuple[Status, ...] = ("fail", "warn", "ok", "skipped")
TEXT_COLUMN = 28
WIDTH = 120


@dataclass(frozen=True)
class Finding:
    """`text` says what is there, `fix` what to do about it (for warn and fail), `node` where it was seen ("" for what
    concerns no single node). Neither ever holds a key."""

    name: str
    status: Status
    text: str
    fix: str = ""
    node: str = ""


def ok(name: str, text: str) -> Finding:
    return Finding(name, "ok", text)


def warn(name: str, text: str, fix: str) -> Finding:
    return Finding(name, "warn", text, fix)


def fail(name: str, text: str, fix: str) -> Finding:
    return Finding(name, "fail", text, fix)


def skipped(name: str, text: str) -> Finding:
    return Finding(name, "skipped", text)


def merged(findings: Sequence[Finding]) -> list[Finding]:
    """What every node found alike once, with the nodes' names joined; the order of the first."""
    nodes: dict[tuple, list[str]] = {}
    for each in findings:
        found = nodes.setdefault((each.name, each.status, each.text, each.fix), [])
        if each.node and each.node not in found:
            found.append(each.node)
    return [Finding(*key, node=_named(names)) for key, names in nodes.items()]  # type: ignore[misc]


def _named(nodes: Sequence[str]) -> str:
    return ", ".join(nodes) if len(nodes) <= 3 else f"{nodes[0]} and {len(nodes) - 1} other nodes"


def table(findings: Sequence[Finding]) -> str:
    """A row per finding, its fix below it, and a last line that counts."""
    lines = []
    for each in findings:
        where = f" [{each.node}]" if each.node else ""
        left = f"{each.status:8s}{each.name}"
        body = textwrap.wrap(f"{each.text}{where}", WIDTH - TEXT_COLUMN) or [""]
        lines.append(f"{left:{TEXT_COLUMN - 1}s} {body[0]}")
        lines += [" " * TEXT_COLUMN + line for line in body[1:]]
        if each.fix:
            fix = textwrap.wrap(f"-> {each.fix}", WIDTH - TEXT_COLUMN, subsequent_indent="   ", break_long_words=False)
            lines += [" " * TEXT_COLUMN + line for line in fix]
    return "\n".join([*lines, "", counts(findings)])


def counts(findings: Sequence[Finding]) -> str:
    """`1 fails, 2 to look at, 9 in order, 3 not checked`."""
    words = {"fail": "failed", "warn": "to look at", "ok": "in order", "skipped": "not checked"}
    number = {status: sum(each.status == status for each in findings) for status in ORDER}
    return ", ".join(f"{number[status]} {words[status]}" for status in ORDER if number[status])


def exit_status(findings: Sequence[Finding]) -> int:
    """1 where anything failed."""
    return int(any(each.status == "fail" for each in findings))


def as_json(findings: Sequence[Finding]) -> str:
    """One line for scripts."""
    return json.dumps({"ok": not exit_status(findings), "findings": [asdict(each) for each in findings]})
