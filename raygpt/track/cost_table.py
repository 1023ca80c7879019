"""The table of a project: what each run cost, how much of it failures took, and what keeping it costs a month."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

from raygpt import prices
from raygpt.errors import UserError
from raygpt.track.account import KINDS, Account, lost_of, machine_name, prices_used, total_of
from raygpt.track.progress import human_count

HEADINGS = ("run", "what", "tokens", "hours", "machines", "$", "tokens per $", "$ lost", "$ teacher", "$/month stored")
NUMBERS = (2, 3, 5, 6, 7, 8, 9)  # columns that are set to the right
GB = 2**30  # as S3 bills it
MOST_MACHINES = 3


def cost_table(accounts: Sequence[Account], usd_per_gb_month: float, *, markdown: bool) -> str:
    """Rows of runs, of each kind together where there are several, and of all; below it prices with date and source."""
    rows = [_row(account, usd_per_gb_month) for account in accounts]
    kinds = [kind for kind in KINDS if any(account.kind == kind for account in accounts)]
    sums = []
    if len(kinds) > 1:
        for kind in kinds:
            sums.append(_sum(kind, [each for each in accounts if each.kind == kind], usd_per_gb_month))
    if len(accounts) > 1:
        sums.append(_sum("all", accounts, usd_per_gb_month))
    lines = _markdown(rows, sums) if markdown else _aligned(rows, sums)
    return "\n".join([*lines, "", *_notes(accounts, usd_per_gb_month, markdown)])


def figures(accounts: Sequence[Account], usd_per_gb_month: float) -> dict[str, Any]:
    """The same for scripts; dollars to the cent's hundredth, what is not known left out."""
    runs = [_facts(account, usd_per_gb_month) for account in accounts]
    total = {
        name: round(sum(run.get(name, 0.0) for run in runs), 4)
        for name in ("teacher_usd", "stored_usd_per_month", "hours")
        if any(name in run for run in runs)
    }
    of_machines = {"usd": _whole_usd(accounts), "machine_usd": total_of(accounts), "lost_usd": lost_of(accounts)}
    total = {name: round(usd, 4) for name, usd in of_machines.items() if usd is not None} | total
    unpriced = [run["run"] for run in runs if "usd" not in run]
    return {"runs": runs, "total": total, **({"without_price": unpriced} if unpriced else {})}


def _facts(account: Account, usd_per_gb_month: float) -> dict[str, Any]:
    lost = account.lost
    facts: dict[str, Any] = {
        "run": account.name,
        "uri": account.uri,
        "job": account.job,
        "tokens": account.tokens,
        "hours": round(account.hours, 6),
        "machine_hours": {name: round(hours, 6) for name, hours in account.machine_hours.items()},
        "usd": _cents(account.whole_usd),
        "machine_usd": _cents(account.usd),
        "teacher_usd": _cents(account.teacher_usd),
        "tokens_per_usd": None if account.tokens_per_usd is None else round(account.tokens_per_usd, 1),
        "lost_usd": _cents(_lost_usd(account)),
        "lost_hours": None if lost is None else round(lost.seconds / 3600, 6),
        "starts": account.starts,
        "where": {
            share.name: {"hours": round(share.seconds / 3600, 6)}
            | ({} if share.usd is None else {"usd": _cents(share.usd)})
            for share in account.shares
        },
        "stored_bytes": account.stored_bytes,
        "stored_usd_per_month": _cents(account.stored_bytes / GB * usd_per_gb_month),
    }
    return {name: value for name, value in facts.items() if value is not None}


def _cents(usd: float | None) -> float | None:
    return None if usd is None else round(usd, 4)


def _lost_usd(account: Account) -> float | None:
    """Dollars lost to failures: 0 without one, None without a price."""
    if account.usd is None:
        return None
    return 0.0 if account.lost is None else account.lost.usd


def _row(account: Account, usd_per_gb_month: float) -> tuple[str, ...]:
    used = [f"{name} {_hours(hours)}" for name, hours in account.machine_hours.items() if name != "no price"]
    if len(used) > MOST_MACHINES:
        used = [*used[:MOST_MACHINES], f"{len(used) - MOST_MACHINES} more"]
    per_usd = account.tokens_per_usd
    return (
        account.name,
        account.what,
        "–" if account.tokens is None else human_count(account.tokens),
        _hours(account.hours),
        ", ".join(used) or "–",
        _usd(account.whole_usd),
        "–" if per_usd is None else human_count(per_usd),
        _usd(_lost_usd(account)),
        _usd(account.teacher_usd),
        _usd(account.stored_bytes / GB * usd_per_gb_month),
    )


def _sum(name: str, accounts: Sequence[Account], usd_per_gb_month: float) -> tuple[str, ...]:
    return (
        name,
        f"{len(accounts)} run{'s' * (len(accounts) != 1)}",
        "",
        _hours(sum(account.hours for account in accounts)),
        "",
        _usd(_whole_usd(accounts)),
        "",
        _usd(lost_of(accounts)),
        _usd(_sum_of(account.teacher_usd for account in accounts)),
        _usd(sum(account.stored_bytes for account in accounts) / GB * usd_per_gb_month),
    )


def _whole_usd(accounts: Sequence[Account]) -> float | None:
    return _sum_of([total_of(accounts), *(account.teacher_usd for account in accounts)])


def _sum_of(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _hours(hours: float) -> str:
    return f"{hours:,.2f}" if hours >= 0.1 else f"{hours:.4f}"


def _usd(usd: float | None) -> str:
    return "–" if usd is None else f"{usd:,.2f}"


def _aligned(rows: Sequence[tuple[str, ...]], sums: Sequence[tuple[str, ...]]) -> list[str]:
    table = [HEADINGS, *rows, *sums]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEADINGS))]

    def line(row: tuple[str, ...]) -> str:
        cells = [
            f"{cell:>{width}s}" if column in NUMBERS else f"{cell:{width}s}"
            for column, (cell, width) in enumerate(zip(row, widths))
        ]
        return "  ".join(cells).rstrip()

    rule = ["  ".join("-" * width for width in widths)] if sums else []
    return [*map(line, [HEADINGS, *rows]), *rule, *map(line, sums)]


def _markdown(rows: Sequence[tuple[str, ...]], sums: Sequence[tuple[str, ...]]) -> list[str]:
    def line(row: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"

    rule = ["---:" if column in NUMBERS else "---" for column in range(len(HEADINGS))]
    bold = [tuple(f"**{cell}**" if cell else "" for cell in row) for row in sums]
    return [line(HEADINGS), line(rule), *map(line, rows), *map(line, bold)]


def _notes(accounts: Sequence[Account], usd_per_gb_month: float, markdown: bool) -> list[str]:
    """What the figures mean and where prices come from."""
    notes = []
    for paid in prices_used(accounts):
        price = "no price is known" if paid.usd_per_hour is None else f"${paid.usd_per_hour:,.4f}/h"
        read = f", read {paid.read}" if paid.read else ""
        notes.append(f"{machine_name(paid)}: {price}{read}{_source(paid.machine, paid.read)}")
    together = {each.usd_per_hour for account in accounts for each in account.paid if not each.machine}
    for usd in sorted(usd for usd in together if usd is not None):
        notes.append(f"${usd:,.2f}/h for all machines of a run: track.price_per_hour, or what the run had kept")
    notes.append(f"stored: ${usd_per_gb_month:g} per GiB and month (cost.usd_per_gb_month), for what is there now")
    if any(account.lost is not None for account in accounts):
        notes.append("lost: steps that failures threw away, and the time until the run went on from its checkpoint")
    if shared := _shared(accounts):
        notes.append(
            f"{shared} machine{'s were' if shared > 1 else ' was'} in several runs at a time: each of these counts it "
            "whole, sums count it once"
        )
    notes += [
        f"{account.name}: {account.problem}, and its cost is not known whole" for account in accounts if account.problem
    ]
    unpriced = [account.name for account in accounts if account.usd is None and not account.problem]
    if unpriced:
        named = ", ".join(unpriced[:3]) + (f" and {len(unpriced) - 3} more" if len(unpriced) > 3 else "")
        notes.append(f"no price is known of the machines of {named}: --price_per_hour counts them at one")
    return [f"- {note}" if markdown else note for note in notes]


def _shared(accounts: Sequence[Account]) -> int:
    """How many nodes several of the runs had at the same time."""
    stays: dict[str, list[tuple[float, float, int]]] = {}
    for number, account in enumerate(accounts):
        for paid in account.paid:
            if paid.node is not None:
                stays.setdefault(paid.node, []).append((paid.begin, paid.end, number))
    return sum(any(_overlap(*pair) for pair in combinations(each, 2)) for each in stays.values())


def _overlap(one: tuple[float, float, int], other: tuple[float, float, int]) -> bool:
    return one[2] != other[2] and min(one[1], other[1]) > max(one[0], other[0])


def _source(machine: str | None, read: str) -> str:
    try:
        known = prices.machine(machine) if machine is not None else None
    except UserError:
        return ""
    return f", {known.source}" if known is not None and known.source and known.read == read else ""
