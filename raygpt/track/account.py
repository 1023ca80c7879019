"""What one run folder says about its cost: time, machines, dollars, what failures took, and the bytes it keeps."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from raygpt import storage
from raygpt.storage import Location
from raygpt.track.finding import is_number
from raygpt.track.jsonl import read_metrics
from raygpt.track.spending import (
    Paid,
    Share,
    lost,
    lost_stretches,
    paid_for,
    seconds_covered,
    shared_usd,
    total_usd,
    where_it_went,
    without,
)

ATTEMPTS, SUMMARY, CONFIG = "attempts.json", "summary.json", "config.yaml"
INSIDE = "evaluation"  # the folder of a run in which `raygpt evaluate` keeps its own run
SWEEP, GENERATION, EVALUATION, BENCHMARK, TRAINING, OTHER = (
    "sweeps",
    "generation",
    "evaluation",
    "benchmarks",
    "training",
    "other",
)
KINDS = (TRAINING, SWEEP, GENERATION, EVALUATION, BENCHMARK, OTHER)
_KINDS = {
    "pretrain": TRAINING,
    "finetune": TRAINING,
    "distill": TRAINING,
    "quickstart": TRAINING,
    "tune": SWEEP,
    "generate": GENERATION,
    "evaluate": EVALUATION,
    "benchmark": BENCHMARK,
}


@dataclass(frozen=True)
class Account:
    """One run's account. `usd` is of machines, `teacher_usd` of tokens that a teacher was paid for; None is not known.

    `hours` are those in which something was paid for, or some attempt held the run; `starts` how often workers were
    started. `shares` are where the time went, `used` those pieces of `paid` that no failure took; `stored_bytes` what
    the folder holds now, without a run inside it. `problem` names a history that cannot be read.
    """

    name: str
    uri: str
    job: str
    what: str
    tokens: int | None
    hours: float
    usd: float | None
    teacher_usd: float | None
    shares: tuple[Share, ...]
    paid: tuple[Paid, ...]
    used: tuple[Paid, ...]
    starts: int
    stored_bytes: int
    problem: str = ""

    @property
    def kind(self) -> str:
        return _KINDS.get(self.job, OTHER)

    @property
    def whole_usd(self) -> float | None:
        """Machines and teacher; None where neither is known."""
        known = [usd for usd in (self.usd, self.teacher_usd) if usd is not None]
        return sum(known) if known else None

    @property
    def tokens_per_usd(self) -> float | None:
        return self.tokens / self.whole_usd if self.tokens and self.whole_usd else None

    @property
    def lost(self) -> Share | None:
        """What failures took: steps computed again, and stand-still until the run went on."""
        return lost(self.shares)

    @property
    def machine_hours(self) -> dict[str, float]:
        """{machine and market: hours of all machines of that kind together}."""
        found: dict[str, float] = {}
        for each in self.paid:
            name = machine_name(each)
            found[name] = found.get(name, 0.0) + each.hours
        return found


def machine_name(paid: Paid) -> str:
    """`p4d.24xlarge spot`; of a price of all machines together, that price."""
    if paid.machine is None:
        return "no price" if paid.usd_per_hour is None else f"all at ${paid.usd_per_hour:,.2f}/h"
    return f"{paid.machine} spot" if paid.market == "spot" else paid.machine


def read_account(run: Location, usd_per_hour: float | None = None) -> Account:
    """The account of the run at `run`. `usd_per_hour` is what its machines cost where its records hold no price."""
    attempts, problem = history_of(run)
    config, summary = _mapping(run / CONFIG, yaml.safe_load), _mapping(run / SUMMARY, json.loads)
    records = read_metrics(run / "metrics.jsonl")
    fixed = price_in(config)
    paid = paid_for(attempts, usd_per_hour if fixed is None else fixed)
    usd = total_usd(paid)
    if usd is None and (kept := _last_cost(summary, records)) is not None:
        # of a version that kept no dollars of its starts: evenly over their time
        seconds = sum(max(0.0, each["last_seen"] - each["started"]) for each in attempts)
        paid, usd = paid_for(attempts, kept * 3600 / seconds) if seconds else paid, kept
    now = time.time()
    job = next((each["job"] for each in reversed(attempts) if each.get("job")), _job_of(summary, config))
    tokens = next((record["tokens"] for record in reversed(records) if "tokens" in record), summary.get("tokens"))
    return Account(
        name=_name(run),
        uri=run.uri,
        job=job,
        what=_what(job, config),
        tokens=summary.get("total_teacher_tokens") if job == "generate" else tokens,
        hours=seconds_covered(paid) / 3600,
        usd=usd,
        teacher_usd=summary.get("token_cost_usd"),
        shares=tuple(where_it_went(attempts, records, paid, now)),
        paid=tuple(paid),
        used=tuple(without(paid, lost_stretches(attempts, records, paid, now))),
        starts=sum(int(each.get("starts") or 0) if "starts" in each else 1 for each in attempts),
        stored_bytes=stored_bytes(run),
        problem=problem,
    )


def read_history(run: Location) -> list[dict[str, Any]]:
    """attempts.json as it stands, starts without times left out; [] where there is none that can be read."""
    return history_of(run)[0]


def history_of(run: Location) -> tuple[list[dict[str, Any]], str]:
    """The same, and what is wrong with the file ("" for nothing)."""
    try:
        found = json.loads(storage.read_text(run / ATTEMPTS))
    except FileNotFoundError:
        return [], ""
    except ValueError:
        return [], f"{ATTEMPTS} is no JSON"
    if not isinstance(found, list):
        return [], f"{ATTEMPTS} is no list of starts"
    known = [
        each
        for each in found
        if isinstance(each, dict) and is_number(each.get("started")) and is_number(each.get("last_seen"))
    ]
    missing = len(found) - len(known)
    return known, f"{missing} of {len(found)} starts in {ATTEMPTS} have no times" if missing else ""


def price_in(config: Mapping[str, Any]) -> float | None:
    """track.price_per_hour of saved settings where it is a number."""
    price = section_of(config, "track").get("price_per_hour")
    return price if is_number(price) else None


def section_of(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section of saved settings; empty where it is none."""
    found = config.get(name)
    return found if isinstance(found, Mapping) else {}


def _last_cost(summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> float | None:
    told = [each["cost_usd"] for each in (*records, summary) if is_number(each.get("cost_usd"))]
    return told[-1] if told else None


def _name(run: Location) -> str:
    """The folder's name; of a run inside another one with that one's."""
    inside = run.name == INSIDE and storage.exists(run.parent / ATTEMPTS)
    return f"{run.parent.name}/{run.name}" if inside else run.name


def stored_bytes(folder: Location) -> int:
    """Bytes of all files in a folder, those of the run inside it left out."""
    sizes = {
        storage.child(folder, entry).uri: entry.size or 0
        for entry in storage.list_folder(folder, recursive=True)
        if entry.is_file
    }
    inner = folder / INSIDE
    if (inner / ATTEMPTS).uri in sizes:
        sizes = {uri: size for uri, size in sizes.items() if not uri.startswith(f"{inner.uri}/")}
    return sum(sizes.values())


def total_of(accounts: Sequence[Account]) -> float | None:
    """US dollars of the machines of several runs, a node that several had at a time once."""
    known = [
        usd
        for usd in (
            shared_usd(paid for account in accounts for paid in account.paid),
            *(account.usd for account in accounts if total_usd(account.paid) is None),
        )
        if usd is not None
    ]
    return sum(known) if known else None


def lost_of(accounts: Sequence[Account]) -> float | None:
    """US dollars that failures took of several runs: of what was paid, all but what some run had use of."""
    whole = shared_usd(paid for account in accounts for paid in account.paid)
    if whole is None:
        return None
    # rounded: the difference of two sums
    return max(0.0, round(whole - (shared_usd(paid for account in accounts for paid in account.used) or 0.0), 9))


def _mapping(where: Location, parse: Any) -> dict[str, Any]:
    try:
        found = parse(storage.read_text(where))
    except (FileNotFoundError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _job_of(summary: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The job of a run whose history does not name it."""
    if "trials" in summary:
        return "tune"
    if "teacher_tokens" in summary:
        return "generate"
    init_from = section_of(config, "model").get("init_from", "random")
    return "pretrain" if init_from == "random" else "finetune"


def _what(job: str, config: Mapping[str, Any]) -> str:
    """The job and the model it was about."""
    model = section_of(config, "model")
    start = model.get("init_from", "random")
    named = section_of(config, "teacher").get("model") if job == "generate" else None
    if named is None:
        named = model.get("preset") if start == "random" else start
    return f"{job} {str(named).rstrip('/').rsplit('/', 1)[-1]}" if named else job


def prices_used(accounts: Iterable[Account]) -> list[Paid]:
    """Each price once, those of named machines, in the order of their names."""
    found = {(each.machine, each.market, each.usd_per_hour): each for account in accounts for each in account.paid}
    return sorted((each for each in found.values() if each.machine), key=lambda each: (each.machine or "", each.market))
