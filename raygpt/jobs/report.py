"""`raygpt report`: a run's page drawn again, or one page of several runs and of what is no training run."""

from __future__ import annotations

from pydantic import Field

from raygpt.config import Config
from raygpt.config.job import Call, Job
from raygpt.config.section import Section
from raygpt.storage import Location


class Report(Section):
    """what the page is about"""

    runs: list[str] = Field(
        [],
        description="names in run.storage, run folders, JSON files of results (none: the run run.storage/run.name)",
    )
    output: str | None = Field(
        None, description="where the page goes (none: the run's own folder; of several report.html in run.storage)"
    )


DECLARATION = Job(
    "report",
    "draw a run's page again, or one page of several runs, sweeps, evaluations and benchmarks",
    ("run", "report"),
    aliases=(("output", "report.output"),),
    words="report.runs",
    own={"report": Report},
    place=100,
)


def run(config: Config, call: Call) -> int:
    from raygpt import storage
    from raygpt.run.frame import run_location
    from raygpt.run.listing import find_runs
    from raygpt.track.recorded import read_recorded
    from raygpt.track.report import write_page, write_report
    from raygpt.track.results import find_results

    wanted: Report = config.report  # type: ignore[attr-defined]
    places = _places(wanted.runs, config.run.storage) if wanted.runs else [run_location(config)]
    results, runs = [], []
    for place in places:
        found = find_results(place)
        results += found
        if not storage.is_file(place) and (not found or storage.exists(place / "metrics.jsonl")):
            runs += [place] if not wanted.runs else find_runs([place.uri], config.run.storage)
    if wanted.output is None and len(runs) == 1 and not results:
        page = write_report(runs[0])
    else:
        page = write_page([read_recorded(each) for each in runs], results, _target(wanted.output, config.run.storage))
    print(f"Report: {page.uri}")
    return 0


def _places(names: list[str], home: str) -> list[Location]:
    """What is meant: a name in `home` where nothing of that name lies here, else a path or URI."""
    from raygpt import storage

    found = []
    for name in names:
        where, at_home = storage.locate(name), storage.locate(home) / name
        found.append(at_home if "/" not in name and not storage.exists(where) else where)
    return list({place.uri: place for place in found}.values())


def _target(output: str | None, home: str) -> Location:
    """The file that is written: report.html in a folder that is named, or in run.storage."""
    from raygpt import storage

    where = storage.locate(output or home)
    target = where if where.name.endswith(".html") else where / "report.html"
    storage.check_writable(target.parent, "report.output" if output else "run.storage")
    return target
