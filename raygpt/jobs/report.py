"""`raygpt report`: a run's report.html and plots, drawn again from what the run folder holds."""

from __future__ import annotations

from raygpt.cli import Call
from raygpt.config import Config
from raygpt.track.report import write_report
from raygpt.train.resolve import run_location


def run(config: Config, call: Call) -> int:
    page = write_report(run_location(config))
    print(f"Report: {page.uri}")
    return 0
