"""`raygpt cost`: what runs cost, as a table for people or for a README, and as JSON."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import Field

from raygpt.config import Config
from raygpt.config.job import Call, Job
from raygpt.config.section import Section


class Cost(Section):
    """which runs are counted, and how"""

    runs: list[str] = Field([], description="names in run.storage, run folders, folders of runs (none: run.storage)")
    format: Literal["table", "markdown"] = Field("table", description="the table for a terminal, or for a README")
    price_per_hour: float | None = Field(
        None, ge=0, description="USD per hour of all machines of a run whose records hold no price"
    )
    usd_per_gb_month: float = Field(
        0.023, ge=0, description="price of storage (S3 Standard, us-east-1, first 50 TB, as listed since December 2016)"
    )


DECLARATION = Job(
    "cost",
    "what runs cost: machines, teachers, failures, storage; as text or Markdown",
    ("run", "cost"),
    aliases=(("format", "cost.format"), ("price_per_hour", "cost.price_per_hour")),
    words="cost.runs",
    own={"cost": Cost},
    place=73,
)


def run(config: Config, call: Call) -> int:
    from raygpt.run.listing import find_runs
    from raygpt.track.account import read_account
    from raygpt.track.cost_table import cost_table, figures

    wanted: Cost = config.cost  # type: ignore[attr-defined]
    runs = find_runs(wanted.runs, config.run.storage)
    accounts = [read_account(run, wanted.price_per_hour) for run in runs]
    print(cost_table(accounts, wanted.usd_per_gb_month, markdown=wanted.format == "markdown"))
    # the last line is for scripts
    print(json.dumps(figures(accounts, wanted.usd_per_gb_month)), flush=True)
    return 0
