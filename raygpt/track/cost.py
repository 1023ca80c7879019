"""What a run costs: its machines' prices over the time for which the run has had them.

A fixed price per hour is that of all machines together. With `auto` every node of the cluster counts at the price of
its own machine type (`raygpt.prices`), from when it came until it went: the sum over nodes that join and leave.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from raygpt import prices
from raygpt.errors import UserError

Price = float | Literal["auto"] | None
LOOK_SECONDS = 10.0
IDLE_SECONDS = 900.0  # an autoscaler has taken a machine that nothing runs on away by then (10 minutes in cluster/)


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, alive or gone. `machine` is its type (None: it does not say), `market` spot or
    on-demand; times are seconds since 1970 UTC, None where nobody tells them. `address` is for people."""

    id: str
    machine: str | None
    market: str = prices.ON_DEMAND
    started: float | None = None
    ended: float | None = None
    address: str = ""

    @property
    def price(self) -> float | None:
        """US dollars per hour; None: not known."""
        try:
            return prices.machine(self.machine).hourly(self.market) if self.machine is not None else None
        except UserError:
            return None

    @property
    def price_read(self) -> str:
        """The day on which that price was read, empty where it is not known."""
        try:
            return prices.machine(self.machine).read if self.machine is not None else ""
        except UserError:
            return ""


@dataclass
class _Stay:
    """What one node has to do with this bill: its price, and from when to when it counts."""

    node: Node
    price: float | None
    begin: float
    ended: float | None = None

    def hours(self, now: float) -> float:
        return max(0.0, (now if self.ended is None else self.ended) - self.begin) / 3600

    def as_paid(self) -> dict[str, Any]:
        return {
            "node": self.node.id,
            "machine": self.node.machine,
            "market": self.node.market,
            "usd_per_hour": self.price,
            "read": self.node.price_read,
            "from": self.begin,
            "to": None if self.ended is None else max(self.begin, self.ended),
        }


class Bill:
    """US dollars of a run: this attempt's from `since` on and those of the attempts before it.

    `price` is what all machines cost per hour, auto, or None: then there is no cost at all. `earlier` are (dollars,
    seconds) of the attempts before; where one kept no dollars, its seconds count at the present price per hour. `nodes`
    lists the nodes, dead ones as long as they are remembered, or is None while nobody can tell: then those known go on
    counting. A node counts from its own start, though not from before `since`: a cluster that was there already has
    been paid for by others. `waited` is {node: from when on it counts instead}, in seconds since 1970 UTC: the nodes
    that stayed up for this run between a failure and this start. `unbudgeted` are dollars of earlier attempts that
    `budget_usd` leaves out. Safe between threads.
    """

    def __init__(
        self,
        price: Price = None,
        *,
        since: float = 0.0,
        earlier: Sequence[tuple[float | None, float]] = (),
        nodes: Callable[[], Sequence[Node] | None] = lambda: None,
        waited: Mapping[str, float] | None = None,
        unbudgeted: float = 0.0,
        clock: Callable[[], float] = lambda: time.time(),
    ) -> None:
        self.price, self.since, self.earlier = price, since, tuple(earlier)
        self.metered = price == "auto"
        self._nodes, self._clock, self._waited = nodes, clock, dict(waited or {})
        self._unbudgeted = unbudgeted
        self._stays: dict[str, _Stay] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def __enter__(self) -> Bill:
        if self.metered:
            self.look()
            threading.Thread(target=self._watch, daemon=True, name="run-cost").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def look(self) -> None:
        """See which nodes there are now."""
        if (found := self._nodes()) is None:
            return
        now = self._clock()
        with self._lock:
            there = {node.id: node for node in found}
            for name, stay in self._stays.items():
                if stay.ended is None and name not in there:
                    stay.ended = now
            for node in found:
                if node.id not in self._stays:
                    started = now if node.started is None else node.started
                    if node.id in self._waited and node.started is None:
                        started = self._waited[node.id]  # it was there then
                    begin = max(started, self._waited.get(node.id, self.since))
                    self._stays[node.id] = _Stay(node, node.price, begin)
                if self._stays[node.id].ended is None:
                    self._stays[node.id].ended = node.ended

    def usd(self) -> float | None:
        """US dollars of all attempts so far; None without a price."""
        mine, rate = self.attempt_usd(), self.usd_per_hour()
        kept = [usd for usd, _ in self.earlier if usd is not None]
        if self.price is None or (mine is None and not kept):
            return None
        before = sum((rate or 0.0) * seconds / 3600 if usd is None else usd for usd, seconds in self.earlier)
        return (mine or 0.0) + before

    def budget_usd(self) -> float | None:
        """Those that track.max_cost_usd counts. Of machines that waited for this run after a failure it counts no more
        than IDLE_SECONDS: what still stands after that somebody else keeps, and a run that goes on days later on a
        shared cluster must not end at its start. In `usd` they are whole."""
        if (whole := self.usd()) is None:
            return None
        with self._lock:
            entries = [
                (stay.price, stay.begin, math.inf if stay.ended is None else stay.ended)
                for stay in self._stays.values()
            ]
        return whole - self._unbudgeted - sum(beyond_idle(*entry, self.since) for entry in entries)

    def attempt_usd(self) -> float | None:
        """Those of this attempt alone."""
        now = self._clock()
        if not self.metered:
            return None if self.price is None else float(self.price) * max(0.0, now - self.since) / 3600
        with self._lock:
            priced = [(stay.price, stay.hours(now)) for stay in self._stays.values()]
        known = [(price, hours) for price, hours in priced if price is not None]
        return sum(price * hours for price, hours in known) if known else None

    def paid(self) -> list[dict[str, Any]]:
        """What this attempt pays for, as attempts.json keeps it: an entry per node with machine, market, price per
        hour, the day the price was read, `from` and `to` in seconds since 1970 UTC (to: null while it is there). A
        price of all machines together is one entry that names none."""
        if self.price is None:
            return []
        if not self.metered:
            return [{"machine": None, "usd_per_hour": float(self.price), "from": self.since, "to": None}]
        with self._lock:
            stays = [stay.as_paid() for stay in self._stays.values()]
        # one that had gone before this attempt cost it nothing
        return [stay for stay in stays if stay["to"] is None or stay["to"] > stay["from"]]

    def usd_per_hour(self) -> float | None:
        """What an hour costs with the nodes that are there now; None without a price."""
        if not self.metered:
            return None if self.price is None else float(self.price)
        with self._lock:
            known = [stay.price for stay in self._stays.values() if stay.ended is None and stay.price is not None]
        return sum(known) if known else None

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            self.look()


def beyond_idle(price: float | None, begin: float, end: float, since: float) -> float:
    """US dollars of a machine that an attempt paid for from `begin` on although it took the run at `since`, beyond
    IDLE_SECONDS of waiting."""
    return max(0.0, min(since - IDLE_SECONDS, end) - begin) * (price or 0.0) / 3600


def waited_beyond_idle(attempts: Sequence[tuple[float, float, Sequence[Mapping[str, Any]]]]) -> float:
    """The same of earlier attempts, (started, last seen, what it paid for) of each. What is paid for from the moment at
    which an attempt was last seen had waited since then."""
    left = {last_seen for _, last_seen, _ in attempts}
    return sum(
        beyond_idle(
            entry.get("usd_per_hour"), entry["from"], math.inf if entry.get("to") is None else entry["to"], started
        )
        for started, _, paid in attempts
        for entry in paid
        if entry.get("from") in left
    )


def check_budget(price: Price, max_usd: float | None, nodes: Callable[[], Sequence[Node] | None]) -> None:
    """Raises UserError, naming both ways out, for a budget that cannot be counted: a machine of the cluster has no
    known price, or there is none to ask."""
    if max_usd is None or price != "auto":
        return
    found = [node for node in nodes() or () if node.ended is None]
    unpriced = next((node for node in found if node.price is None), None)
    if unpriced is None and found:
        return
    if unpriced is None:
        who = "no cluster is there whose machines could say it"
    elif unpriced.machine is None:
        who = f"node {unpriced.address} does not say what machine it is"
    else:
        who = f"no price is known of {unpriced.machine}, the machine of node {unpriced.address}"
    raise UserError(
        f"track.max_cost_usd needs a price to count with, and {who}: set track.price_per_hour to what all machines of "
        f"the run cost per hour in US dollars, or label nodes raygpt.io/instance-type=<type> and name the type's price "
        f"in the file of {prices.VARIABLE}."
    )


def unpriced(nodes: Sequence[Node]) -> str | None:
    """One sentence about nodes that do not count although others do; None where all or none do."""
    alive = [node for node in nodes if node.ended is None]
    missing = [node for node in alive if node.price is None]
    if not missing or len(missing) == len(alive):
        return None
    named = ", ".join(f"{node.address} ({node.machine or 'no raygpt.io/instance-type'})" for node in missing[:3])
    return f"Cost counts {len(alive) - len(missing)} of {len(alive)} nodes: no price is known of {named}."
