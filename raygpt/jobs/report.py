"""`raygpt report`: a run's report.html and plots, drawn again from what the run folder holds."""

from __future__ import annotations

from raygpt.config import Config
from raygpt.config.job import Call, Job

DECLARATION = Job("report", "draw a run's report and plots again", ("run",), place=100)


def run(config: Config, call: Call) -> int:
    from raygpt.run.frame import run_location
    from raygpt.track.report import write_report

    page = write_report(run_location(config))
    print(f"Report: {page.uri}")
    return 0
