"""One run, for every job: `work(run) -> Outcome` inside one frame.

The frame has what all jobs share: it refuses a folder that is in use or begun with other settings, takes the lock,
writes config.yaml, hands signals and the budget to one stop token, times the run, writes summary.json, and turns the
outcome into an exit status. A job brings what it does, and says whether there is something to go on from.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

import yaml

from raygpt import prices, storage
from raygpt.cluster import nodes
from raygpt.cluster.phases import Launch
from raygpt.config import Config
from raygpt.config.fixed import Kind, changed_fixed
from raygpt.config.settings import dump
from raygpt.errors import UserError
from raygpt.run.lock import Attempt, RunLock
from raygpt.run.stop import BUDGET, DISPLACED, Budget, Signals, StopToken
from raygpt.storage import Location
from raygpt.track.cost import Bill, Price, check_budget, unpriced, waited_beyond_idle

FINISHED, EARLY, STOPPED, SPENT, COMPLETE, FAILED = "finished", "early", "stopped", "budget", "complete", "failed"
CONFIG, SUMMARY = "config.yaml", "summary.json"


def run_location(config: Config) -> Location:
    """The run's folder."""
    return storage.locate(config.run.storage) / config.run.name


@dataclass
class Outcome:
    """How a run ended: finished, early, stopped, budget (both go on later), complete (nothing to do) or failed (its
    parts did). `summary` are its figures, none where those that are there stay; the frame adds the outcome and who
    stopped it. `closing` are the last words; `limit` is the setting that a budget was."""

    outcome: str
    summary: dict[str, Any] = field(default_factory=dict)
    signal: int = 0
    closing: str = ""
    limit: str = "track.max_cost_usd"

    @property
    def exit_status(self) -> int:
        """0 when the run is where it should be, 128 + signal when somebody stopped it, 1 when nothing came of it."""
        if self.outcome == STOPPED:
            return 128 + self.signal
        return 1 if self.outcome == FAILED else 0


@dataclass
class Run:
    """What a job has while it runs. `again` is the command that goes on with it; `say` prints a line of its own, and a
    work with a live bar puts its own printer there; `launch` are the phases up to the first step."""

    folder: Location
    config: Config
    lock: RunLock
    bill: Bill
    stop: StopToken
    again: str
    stream: TextIO
    say: Callable[[str], None]
    launch: Launch = field(default_factory=lambda: Launch(time.time()))

    def cost_usd(self) -> float | None:
        """What the run has cost so far, None without a price."""
        return self.bill.usd()

    def named(self, outcome: str) -> str:
        """The outcome by its reason: a run that the budget stopped was not stopped by somebody."""
        return SPENT if outcome == STOPPED and self.stop.reason == BUDGET else outcome

    def check_held(self) -> None:
        """Raises UserError when another driver has taken the run over: nothing may be written from here on."""
        if self.lock.displaced_by is not None:
            raise UserError(
                f"run {self.folder.uri} was taken over by {self.lock.displaced_by}: this one wrote nothing more; stop "
                "one of the two, or give one another run.name."
            )


def check_start(config: Config, begun: Callable[[Location], bool], kind: str) -> bool:
    """Whether a run goes on, by run.resume; `begun` says of a folder whether it holds something to go on from.

    Raises UserError where run.resume forbids what the folder calls for.
    """
    folder = run_location(config)
    found = begun(folder)
    if config.run.resume == "must" and not found:
        raise UserError(f"run.resume=must but {folder.uri} has no {kind}: check run.storage and run.name.")
    if config.run.resume == "never" and (found or storage.exists(folder / CONFIG)):
        raise UserError(f"run.resume=never but run {folder.uri} exists already: choose another run.name.")
    return found


def check_unchanged(config: Config, kind: Kind) -> None:
    """Refuse to go on with settings that the run's own results would not survive, each by name."""
    folder = run_location(config)
    saved = saved_config(folder)
    if changed := [change.key for change in changed_fixed(saved, config.to_dict(), kind)] if saved else []:
        raise UserError(
            f"run {folder.uri} was begun with other settings ({', '.join(changed)}): set them back to go on with it, "
            "or give the new one a run.name of its own."
        )


def saved_config(folder: Location) -> dict[str, Any]:
    """The settings that the run was last started with, {} for none."""
    try:
        return yaml.safe_load(storage.read_text(folder / CONFIG)) or {}
    except FileNotFoundError:
        return {}


def run_job(
    config: Config,
    work: Callable[[Run], Outcome],
    *,
    again: str = "",
    stream: TextIO | None = None,
    stop: StopToken | None = None,
    stopping: str = "finishing this step and saving a checkpoint",
    report: Callable[[Location], object] | None = None,
) -> Outcome:
    """Run `work` with the run's folder held, and close the run. `stop` lets a caller in the same process end it;
    `report` draws the page of a summary just written.

    Raises UserError for what the user can mend, the work's own error when it failed for good.
    """
    stream, token = stream or sys.stdout, stop or StopToken()
    folder, asked = run_location(config), nodes.take_asked()
    price, max_usd = config.track.price_per_hour, config.track.max_cost_usd
    if price == "auto":
        prices.machines()  # a file of prices that cannot be read is told now, and not taken for none
    check_budget(price, max_usd, nodes.nodes)
    program, _, rest = again.partition(" ")
    job = rest.split(" ")[0] if program == "raygpt" else ""

    def say(text: str) -> None:
        print(text, file=stream, flush=True)

    lock = RunLock(folder, lambda: token.request(DISPLACED), job, say)
    lock.acquire()
    bill = _bill(price, lock, asked)
    run = Run(folder, config, lock, bill, token, again, stream, say)
    ended = FAILED
    try:
        storage.write_text(folder / CONFIG, dump(config))
        if bill.metered and (note := unpriced(nodes.nodes() or ())):
            run.say(note)
        with bill, Signals(token, lambda text: run.say(text), stopping), Budget(token, bill, max_usd):
            outcome = work(run)
        run.check_held()
        ended = outcome.outcome = run.named(outcome.outcome)
        outcome.signal = outcome.signal or token.signal
        if ended in (STOPPED, SPENT):
            outcome.summary |= {"outcome": ended, "stopped_by": token.stopped_by}
        if outcome.summary:
            outcome.summary.setdefault("outcome", ended)
            storage.write_text(folder / SUMMARY, json.dumps(outcome.summary, indent=2) + "\n")
            if report is not None:
                lock.beat()  # the page says what the run has cost up to now
                report(folder)
        if ended in (STOPPED, SPENT):
            why = "Stopped" if ended == STOPPED else f"{outcome.limit} is reached: stopped"
            run.say(f"{why} {outcome.closing} To go on: {again}")
        elif outcome.closing:
            run.say(outcome.closing)
        return outcome
    finally:
        lock.release(ended)


def _bill(price: Price, lock: RunLock, asked: float | None) -> Bill:
    """What the run costs. At a fixed price it counts while its folder is held; with nodes at their own prices from when
    this process asked for its cluster, waiting for them included."""
    earlier = [(attempt.usd, attempt.seconds) for attempt in lock.earlier]
    metered = price == "auto"
    since = asked or lock.started if metered else lock.started
    idle = waited_beyond_idle([(attempt.started, attempt.last_seen, attempt.paid) for attempt in lock.earlier])
    waited = left_waiting(lock.earlier)
    bill = Bill(price, since=since, earlier=earlier, nodes=nodes.nodes, waited=waited, unbudgeted=idle)
    lock.spent, lock.paid = bill.attempt_usd, bill.paid
    return bill


def left_waiting(earlier: Sequence[Attempt]) -> dict[str, float]:
    """{node: seconds since 1970 UTC} of the nodes that a failure left behind: they are paid for while nothing runs on
    them, and by this run. After a stop by wish they are nobody's."""
    for attempt in reversed(earlier):
        if attempt.outcome not in (None, FAILED):
            break
        if attempt.paid:  # one that failed before it had a cluster left none behind
            return {paid["node"]: attempt.last_seen for paid in attempt.paid if "node" in paid and paid["to"] is None}
    return {}
