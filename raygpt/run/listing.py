"""The runs below one place, each from the few small files that it keeps: what `raygpt runs` shows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from raygpt import storage
from raygpt.errors import UserError, one_line
from raygpt.run.frame import COMPLETE, CONFIG, EARLY, FAILED, FINISHED, SPENT, STOPPED, SUMMARY
from raygpt.run.lock import ATTEMPTS, Attempt, parse_attempts
from raygpt.storage import Location
from raygpt.track.account import INSIDE

READERS = 32  # at a time: on S3 a read is 20 to 50 ms of waiting
TAIL_BYTES = 16_384  # of metrics.jsonl: some 50 records
# 1,000 runs take 0.5 s of a core with libyaml
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
RUNNING, LOST, BROKEN = "running", "lost", "broken"
STATES = {FINISHED: FINISHED, EARLY: FINISHED, COMPLETE: FINISHED, STOPPED: STOPPED, SPENT: STOPPED, FAILED: FAILED}


@dataclass
class RunInfo:
    """One run. `state` is running, finished, stopped (it goes on when it is started again), failed, lost (its driver
    was killed, or has not been heard of) or broken, its history unreadable; `problem` names what is.

    Times are seconds since 1970 UTC: `started` of the first attempt, `last_seen` of the last. None is not known.
    """

    name: str
    uri: str
    state: str
    job: str | None = None
    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    val_loss: float | None = None
    cost_usd: float | None = None
    started: float | None = None
    last_seen: float | None = None
    host: str | None = None
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def find_runs(names: Sequence[str], home: str) -> list[Location]:
    """Run folders that are meant by names in `home`, paths or URIs of runs, and folders of runs, each once and in that
    order, each with the run of `raygpt evaluate` that lies in it; without names all of `home`. Raises UserError where
    there is none. The trials of a sweep are no runs of their own."""
    found: dict[str, Location] = {}
    for name in names or [home]:
        for run in _runs_at(name, home):
            found.setdefault(run.uri, run)
    with ThreadPoolExecutor(READERS) as pool:
        inside = pool.map(_run_inside, found.values())
    return list({each.uri: each for run, inner in zip(found.values(), inside) for each in (run, *inner)}.values())


def _run_inside(run: Location) -> list[Location]:
    inner = run / INSIDE
    return [inner] if storage.exists(inner / ATTEMPTS) else []


def locate_named(name: str, home: str, known: Callable[[Location], bool]) -> Location:
    """Where a name points: to what lies here if that is `known`, else into `home` if it has one of that name."""
    where = storage.locate(name)
    at_home = storage.locate(home) / name if "/" not in name else where
    return at_home if at_home.uri != where.uri and not known(where) and storage.exists(at_home) else where


def _runs_at(name: str, home: str) -> list[Location]:
    where = locate_named(name, home, is_run)
    if is_run(where):
        return [where]
    if not storage.exists(where):
        raise UserError(f"there is no run {name}: neither in {home} nor as a folder.")
    inside = sorted(run.name for run in list_runs(where))
    if not inside:
        raise UserError(f"{where.uri} holds no run: name a run, a run's folder or a folder of runs.")
    return [where / run for run in inside]


def is_run(where: Location) -> bool:
    return any(storage.exists(where / name) for name in (ATTEMPTS, CONFIG, "metrics.jsonl"))


def list_runs(where: Location) -> list[RunInfo]:
    """Runs in the folders of `where`, or `where` itself if it is one: those that run first, then the last seen first.

    A folder without a run's files is none. Raises UserError where `where` does not exist or cannot be read.
    """
    import pyarrow.fs as pafs

    entries = storage.list_folder(where)
    if not entries and not storage.exists(where):
        raise UserError(f"{where.uri} does not exist: name the folder or the s3:// URI that runs are stored in.")
    folders = [storage.child(where, entry) for entry in entries if entry.type == pafs.FileType.Directory]
    if any(entry.base_name == ATTEMPTS for entry in entries):
        folders = [where]
    with ThreadPoolExecutor(READERS) as pool:
        found = [run for run in pool.map(_read, folders) if run is not None]
    return sorted(found, key=lambda run: (run.state != RUNNING, -(run.last_seen or 0), run.name))


def table(runs: Iterable[RunInfo], now: float) -> str:
    """Aligned columns with a heading; below it a sentence for each run with a problem."""
    runs = list(runs)
    rows: list[tuple[str, ...]] = [("run", "job", "state", "step", "loss", "val", "$", "age", "seen", "host")]
    rows += [_row(run, now) for run in runs]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:{width}s}" for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, *(f"{run.uri}: {run.problem}" for run in runs if run.problem)])


def _row(run: RunInfo, now: float) -> tuple[str, ...]:
    from raygpt.track.progress import human_duration

    def ago(then: float | None) -> str:
        return "-" if then is None else human_duration(now - then)

    step = "-" if run.step is None else f"{run.step}/{run.total_steps}" if run.total_steps else str(run.step)
    loss, val = ("-" if value is None else f"{value:.4f}" for value in (run.loss, run.val_loss))
    cost = "-" if run.cost_usd is None else f"{run.cost_usd:.2f}"
    words = (run.name, run.job or "-", run.state, step, loss, val, cost)
    return (*words, ago(run.started), ago(run.last_seen), run.host or "-")


def _read(folder: Location) -> RunInfo | None:
    run = RunInfo(folder.name, folder.uri, BROKEN)
    try:
        attempts = _attempts(folder)
        if attempts is None:
            return None
        run.job, run.host = attempts[-1].job or None, attempts[-1].host
        run.started, run.last_seen = attempts[0].started, attempts[-1].last_seen
        run.state = _state(attempts[-1])
        _figures(run, folder)
    except (UserError, OSError, ValueError) as error:
        run.problem = one_line(error)
    return run


def _attempts(folder: Location) -> list[Attempt] | None:
    """The run's history, None where the folder holds no run. Raises ValueError for a history that is no such thing."""
    try:
        attempts = parse_attempts(storage.read_text(folder / ATTEMPTS))
    except FileNotFoundError:
        if not storage.exists(folder / CONFIG):
            return None
        raise ValueError(f"it has a {CONFIG} and no {ATTEMPTS}") from None
    except ValueError as error:
        raise ValueError(f"{ATTEMPTS} cannot be read ({one_line(error, 80)})") from None
    if not attempts:
        raise ValueError(f"{ATTEMPTS} is empty")
    return attempts


def _state(last: Attempt) -> str:
    if last.outcome is None:
        return RUNNING if last.is_live else LOST
    return STATES.get(last.outcome, last.outcome)


def _figures(run: RunInfo, folder: Location) -> None:
    """What the newest record says, and the summary where it is about the same step or a later one."""
    summary = _summary(folder)
    records = _last_records(folder / "metrics.jsonl")
    newest: dict[str, Any] = {}
    for record in records:
        newest |= record
    steps = summary.get("steps")
    if isinstance(steps, int) and steps >= newest.get("step", 0):
        newest = {**newest, **summary, "step": steps}
    elif "step" not in newest:
        newest = summary
    run.step = newest.get("step")
    run.loss, run.val_loss, run.cost_usd = (newest.get(name) for name in ("train_loss", "val_loss", "cost_usd"))
    run.total_steps = _total_steps(folder)


def _summary(folder: Location) -> dict[str, Any]:
    try:
        found = json.loads(storage.read_text(folder / SUMMARY))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{SUMMARY} cannot be read ({one_line(error, 80)})") from None
    return found if isinstance(found, dict) else {}


def _last_records(where: Location) -> list[dict[str, Any]]:
    """The last records of metrics.jsonl, from its end alone; a torn line is none."""
    try:
        with where.fs.open_input_file(where.path) as file:
            size = file.size()
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().splitlines()[1 if size > TAIL_BYTES else 0 :]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise storage.explain(error, where) from error
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


def _total_steps(folder: Location) -> int | None:
    """Steps that the saved settings ask for; None where only the data would say, as for epochs."""
    try:
        text = storage.read_text(folder / CONFIG)
    except FileNotFoundError:
        return None
    # one section: the whole file takes ten times as long
    _, _, below = f"\n{text}".partition("\ntrain:\n")
    section = below.split("\n")
    end = next((number for number, line in enumerate(section) if line and not line.startswith(" ")), len(section))
    try:
        settings = yaml.load("\n".join(section[:end]), _LOADER) or {}
    except yaml.YAMLError:
        raise ValueError(f"{CONFIG} is no YAML") from None
    if not isinstance(settings, dict):
        return None
    if isinstance(settings.get("max_steps"), int):
        return settings["max_steps"]
    tokens, batch = settings.get("max_tokens"), settings.get("global_batch_tokens")
    return tokens // batch if isinstance(tokens, int) and isinstance(batch, int) and batch else None
