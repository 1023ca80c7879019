"""`raygpt report`: a run's page drawn again, or one page of several runs and of what is no training run."""

from __future__ import annotations

from pydantic import Field

from raygpt.config import Config
from raygpt.config.job import Call, Job
from raygpt.config.section import Section
from raygpt.errors import UserError
from raygpt.storage import Location


class Report(Section):
    """what the page is about"""

    runs: list[str] = Field(
        [],
        description="names in run.storage, folders of runs or results, their JSON files (none: run.storage/run.name)",
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
    from raygpt.track.account import INSIDE
    from raygpt.track.recorded import read_recorded
    from raygpt.track.report import write_page, write_report
    from raygpt.track.results import find_results

    wanted: Report = config.report  # type: ignore[attr-defined]
    places = _places(wanted.runs, config.run.storage) if wanted.runs else [run_location(config)]
    results, runs = [], []
    for place in places:
        found = find_results(place)
        # the run itself, though it has not begun, where nothing else is named
        is_run = not storage.is_file(place) and (not found or storage.exists(place / "metrics.jsonl"))
        runs += [place] if is_run else []
        results += found
        if not storage.is_file(place):
            results += find_results(place / INSIDE)
    if wanted.output is None and len(runs) == 1 and len(places) == 1:
        page = write_report(runs[0], results=results)
    else:
        page = write_page([read_recorded(each) for each in runs], results, _target(wanted.output, config.run.storage))
    print(f"Report: {page.uri}")
    return 0


def _places(names: list[str], home: str) -> list[Location]:
    """Runs, results and their files that are meant by names in `home`, paths or URIs, folders of them opened."""
    from raygpt.run.listing import find_runs, is_run, locate_named
    from raygpt.track.account import INSIDE
    from raygpt.track.results import find_results

    def known(where: Location) -> bool:
        return is_run(where) or bool(find_results(where))

    found = []
    for name in names:
        where = locate_named(name, home, known)
        if known(where):
            found.append(where)
            continue
        inside = [each for each in _folders(where) if find_results(each) and not is_run(each)]
        try:
            found += find_runs([where.uri], home)
        except UserError:
            if not inside:
                raise
        found += inside
    # what lies in a run comes with it
    unique = {place.uri: place for place in found}
    return [place for place in unique.values() if not (place.name == INSIDE and place.parent.uri in unique)]


def _folders(where: Location) -> list[Location]:
    import pyarrow.fs as pafs

    from raygpt import storage

    entries = storage.list_folder(where)
    return [storage.child(where, entry) for entry in entries if entry.type == pafs.FileType.Directory]


def _target(output: str | None, home: str) -> Location:
    """The file that is written: report.html in a folder that is named, or in run.storage."""
    from raygpt import storage

    where = storage.locate(output or home)
    target = where if where.name.endswith(".html") else where / "report.html"
    storage.check_writable(target.parent, "report.output" if output else "run.storage")
    return target
