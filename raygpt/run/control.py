"""The wire between the driver, which owns the terminal and the signals, and rank 0, which owns the run.

One small Ray actor holds what each has to tell the other. Rank 0 talks to it from a thread, so neither
the training step nor the driver ever waits for the other.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raygpt.run.attribution import WARNING
from raygpt.run.stop import DISPLACED, StopToken


def pause(elapsed: float) -> float:
    """Seconds between two looks into the mailbox, `elapsed` after the start: a fifth of one, later up to one.

    Two processes that look five times a second take 2 % of a core, which on two cores is 1 % of training.
    """
    return min(max(0.2, elapsed / 50), 1.0)


@ray.remote(num_cpus=0)
class RunControl:
    """Mailbox: events go up (`exchange`, `take`), the wish to stop and what the run has cost go down."""

    def __init__(self) -> None:
        self._events: list[tuple[str, Any]] = []
        self._stop = False
        self._usd: float | None = None

    def exchange(self, events: list[tuple[str, Any]]) -> tuple[bool, float | None]:
        """Rank 0 delivers events; returns whether it should stop, and the US dollars so far."""
        self._events += events
        return self._stop, self._usd

    def take(self, usd: float | None = None) -> list[tuple[str, Any]]:
        """The driver collects what came since it last asked, and says what the run has cost."""
        self._usd = usd
        events, self._events = self._events, []
        return events

    def request_stop(self) -> None:
        self._stop = True


def make_control() -> Any:
    """A mailbox on this very node: an actor that needs no resources may be put anywhere, and a node that is lost must
    not take the driver's ears along."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return RunControl.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]


class Mailbox:
    """The driver's end. A mailbox that does not answer costs messages, never the run: Ray Train says how that ended."""

    def __init__(self, control: Any) -> None:
        self._control = control
        self._heard: set[str] = set()

    def take(self, usd: float | None = None) -> list[tuple[str, Any]]:
        try:
            events = ray.get(self._control.take.remote(usd), timeout=30)
        except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError):
            return []
        return [told for event in events if (told := self._once(event)) is not None]

    def _once(self, event: tuple[str, Any]) -> tuple[str, Any] | None:
        """A worker's warning as a note, None where another has said the same."""
        if event[0] != WARNING:
            return event
        who, text = event[1]
        if text in self._heard:
            return None
        self._heard.add(text)
        return "note", f"{who} {text}"

    def request_stop(self) -> None:
        self._control.request_stop.remote()

    def follow(self, token: StopToken) -> None:
        """Pass the wish to stop on to the workers, who then save. Not when another driver has the run: they would save
        into what is its now, and end with this driver."""
        token.listen(lambda: None if token.reason == DISPLACED else self.request_stop())


class ControlLink:
    """Rank 0's end of the wire. `who` stands before its notes, where it is not plain whose they are."""

    def __init__(self, control: Any, who: str = "") -> None:
        self._control = control
        self._who = f"{who} " if who else ""
        self._events: list[tuple[str, Any]] = []
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._stop = False
        self._usd: float | None = None
        self.started = False  # whether "start" has been sent
        self._thread = threading.Thread(target=self._run, daemon=True, name="run-control")
        self._thread.start()

    def send(self, kind: str, value: Any) -> None:
        """Queue an event: start, record or end with a dict, note or refused with text, first_step with seconds."""
        self.started = self.started or kind == "start"
        with self._lock:
            self._events.append((kind, f"{self._who}{value}" if kind == "note" else value))

    def stop_requested(self) -> bool:
        return self._stop

    def cost_usd(self) -> float | None:
        """What the run has cost, as the driver last said: at most two seconds ago."""
        return self._usd

    def close(self) -> None:
        """Deliver what is queued and end the thread."""
        self._closed.set()
        self._thread.join()
        self._exchange()

    def _run(self) -> None:
        began = time.monotonic()
        while not self._closed.wait(pause(time.monotonic() - began)):
            self._exchange()

    def _exchange(self) -> None:
        with self._lock:
            events, self._events = self._events, []
        try:
            stop, self._usd = ray.get(self._control.exchange.remote(events), timeout=30)
            self._stop = stop or self._stop
        except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError):
            # a driver that died takes its actor along; the worker is about to be ended too
            with self._lock:
                self._events = events + self._events
