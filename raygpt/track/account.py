"""What one run folder says about its cost: time, machines, dollars, what failures took, and the bytes it keeps."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from raygpt import storage
from raygpt.storage import Location
from raygpt.track.jsonl import read_metrics
from raygpt.track.spending import Paid, Share, lost, paid_for, seconds_covered, total_usd, where_it_went

ATTEMPTS, SUMMARY, CONFIG = "attempts.json", "summary.json", "config.yaml"
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
    started. `shares` are where the time went; `stored_bytes` what the folder holds now.
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
    starts: int
    stored_bytes: int

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
    attempts = read_history(run)
    config, summary = _mapping(run / CONFIG, yaml.safe_load), _mapping(run / SUMMARY, json.loads)
    records = read_metrics(run / "metrics.jsonl")
    fixed = (config.get("track") or {}).get("price_per_hour")
    paid = paid_for(attempts, fixed if isinstance(fixed, int | float) else usd_per_hour)
    job = next((each["job"] for each in reversed(attempts) if each.get("job")), _job_of(summary, config))
    tokens = next((record["tokens"] for record in reversed(records) if "tokens" in record), summary.get("tokens"))
    return Account(
        name=run.name,
        uri=run.uri,
        job=job,
        what=_what(job, config),
        tokens=summary.get("total_teacher_tokens") if job == "generate" else tokens,
        hours=seconds_covered(paid) / 3600,
        usd=total_usd(paid),
        teacher_usd=summary.get("token_cost_usd"),
        shares=tuple(where_it_went(attempts, records, paid)),
        paid=tuple(paid),
        starts=sum(int(each.get("starts", 1)) for each in attempts),
        stored_bytes=stored_bytes(run),
    )


def read_history(run: Location) -> list[dict[str, Any]]:
    """attempts.json as it stands; [] where there is none that can be read."""
    try:
        found = json.loads(storage.read_text(run / ATTEMPTS))
    except (FileNotFoundError, ValueError):
        return []
    known = isinstance(found, list) and all(
        isinstance(each, dict) and {"started", "last_seen"} <= each.keys() for each in found
    )
    return found if known else []


def stored_bytes(folder: Location) -> int:
    """Bytes of all files in a folder."""
    return sum(entry.size or 0 for entry in storage.list_folder(folder, recursive=True) if entry.is_file)


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
    init_from = (config.get("model") or {}).get("init_from", "random")
    return "pretrain" if init_from == "random" else "finetune"


def _what(job: str, config: Mapping[str, Any]) -> str:
    """The job and the model it was about."""
    model = config.get("model") or {}
    start = model.get("init_from", "random")
    named = (config.get("teacher") or {}).get("model") if job == "generate" else None
    if named is None:
        named = model.get("preset") if start == "random" else start
    return f"{job} {str(named).rstrip('/').rsplit('/', 1)[-1]}" if named else job


def prices_used(accounts: Iterable[Account]) -> list[Paid]:
    """Each price once, those of named machines, in the order of their names."""
    found = {(each.machine, each.market, each.usd_per_hour): each for account in accounts for each in account.paid}
    return sorted((each for each in found.values() if each.machine), key=lambda each: (each.machine or "", each.market))
